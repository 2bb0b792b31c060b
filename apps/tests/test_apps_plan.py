"""`ddt plan`: a step on the meta device is counted as a real one would be."""

import math
import resource
import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.machine import plan as planning
from ddt_apps.machine import rehearsal
from ddt_apps.machine.ledger import Ledger, count, on_meta
from ddt_apps.machine.plan import DEVICES, GB, Device, plan
from ddt_apps.run.config import load_config
from ddt_apps.train.settings import Pretrain, TrainTokenizer, TrainVAE
from ddt_data import ShardWriter
from ddt_tokenizer import DDTTokenizer
from ddt_tokenizer.vae_training import VAETraining, build_vae

ddt = CliRunner()
SMALL = ["data=x", "codec.encoder.width=64", "codec.network.width=64", "codec.encoder.num_heads=2"]
SMALL += ["codec.network.num_heads=2", "batch_size=16", "precision=32"]
LLAMA = ["data=x", "llama.width=128", "llama.depth=4", "llama.num_heads=2", "batch_size=8", "precision=32"]
IDS = (4096, 64)


@cache
def tokenizer(*overrides):
    return plan(load_config(TrainTokenizer, "tiny/tokenizer", [*SMALL, *overrides]))


@cache
def language(*overrides, ids=IDS):
    return plan(load_config(Pretrain, "tiny/pretrain", [*LLAMA, *overrides]), ids=ids)


def test_weights_optimizer_and_operations_are_those_of_a_real_step():
    config = load_config(TrainVAE, "small/vae", ["data=x", "vae.width=8", "batch_size=4", "image_size=32"])
    found = plan(config)
    module = VAETraining(build_vae(config.vae).train(), config.training)
    module.trainer = trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=1)
    module.log_dict, module.lr_schedulers = print, lambda: SimpleNamespace(get_last_lr=lambda: [0.0])
    optimizer = module.configure_optimizers()["optimizer"]
    with FlopCounterMode(display=False) as counter:
        module.training_step(torch.zeros(4, 3, 32, 32), 0).backward()
    optimizer.step()
    sizes = [state.nbytes for each in optimizer.state.values() for state in each.values()]
    assert (found.total, found.trained) == count(module) and trainer.global_step == 0
    assert found.flops == counter.get_total_flops() > 0
    assert found.optimizer == sum(sizes)
    assert found.weights == found.gradients == sum(p.nbytes for p in module.parameters())


def test_the_peak_is_that_of_what_is_alive():
    ledger, size = Ledger(), 1000 * 1000 * 4
    with ledger:
        first = torch.empty(1000, 1000, device="meta")
        assert ledger.bytes == size and ledger.hold(first.view(-1)) is None and ledger.bytes == size
        second = first + 1
        del first
        third = second.exp().sum()
    assert ledger.bytes == size + third.nbytes and ledger.peak == 2 * size + third.nbytes


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    for found, more, less in (
        (tokenizer(), tokenizer("batch_size=32"), tokenizer("codec.network.activation_checkpointing=true")),
        (language(), language("batch_size=16"), language("activation_checkpointing=true")),
    ):
        assert 1.8 < more.activations / found.activations < 2.2
        assert less.activations < 0.9 * found.activations and less.weights == found.weights
        assert less.flops > found.flops and more.flops == pytest.approx(2 * found.flops, rel=0.01)


def test_checkpointing_keeps_one_block_however_many_there_are():
    plans = {}
    for depth in (2, 8):
        many = ["batch_size=64", f"llama.depth={depth}", "optimizer.optimizer=adamw"]
        plans[depth] = [language(*many).activations, language(*many, "activation_checkpointing=true").activations]
    assert plans[8][0] > 2.5 * plans[2][0] and plans[8][1] < 1.3 * plans[2][1]


def test_bf16_halves_what_is_kept_and_not_the_weights():
    found, mixed = language("llama.depth=8"), language("llama.depth=8", "precision=bf16-mixed")
    assert 0.45 < mixed.activations / found.activations < 0.9
    assert (mixed.weights, mixed.optimizer) == (found.weights, found.optimizer)
    assert mixed.flops == pytest.approx(found.flops, rel=0.15)


def test_processes_share_the_batch_or_the_model():
    one, copies, shares = language(), language("devices=4"), language("devices=4", "strategy=fsdp2")
    assert copies.weights == one.weights and copies.exchange == one.gradients
    assert shares.weights == one.weights / 4 and shares.optimizer == one.optimizer / 4
    assert shares.exchange > 0 and copies.flops == shares.flops == pytest.approx(one.flops / 4, rel=0.01)
    assert language("accumulate=3").flops == 3 * one.flops
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be divisible by devices \(3\)"):
        language("devices=3")


def test_adapters_leave_the_rest_alone():
    found, adapted = language(), language("lora.rank=4")
    assert adapted.trained < found.trained < adapted.total and adapted.optimizer < found.optimizer


def test_the_full_runs_are_planned_in_seconds():
    command = ["plan", "pretrain", "llama3-8b/pretrain", "data=ids", "--ids", "65536", "480"]
    said = ddt.invoke(app, [*command, "--on", "h100", "devices=32", "strategy=fsdp2"]).output
    assert "weights   8,56" in said and "32 x h100 by fsdp2 in bf16-mixed" in said and "does not fit" not in said
    said = ddt.invoke(
        app, ["plan", "pretrain", "llama3-8b/one-card", "data=ids", "--ids", "65536", "480", "--on", "l40s"]
    ).output
    assert "weights   8,73" in said and "weights 10.63" in said and "does not fit" not in said  # 6.98 G of 4 bits
    for name, size in (("selftok-512", "4,24"), ("ddt-480", "4,07")):
        command = ["plan", "train-tokenizer", f"imagenet/{name}", "data=x", "vae=x", "--on", "h100"]
        said = ddt.invoke(app, command).output
        assert f"weights   {size}" in said and "energy " in said and "does not fit" not in said


WAYS = ["activation_checkpointing=true", "strategy=fsdp2", "batch_size=32 accumulate=2"]


@pytest.mark.parametrize("needed", [0, 1, 2, 3])
def test_what_does_not_fit_is_told_the_first_thing_that_helps(needed, monkeypatch):
    """A device that is just too small for what is typed before the last way."""
    many = ["devices=4", "batch_size=64", "llama.width=256", "llama.depth=2"]
    sizes = [language(*many, *" ".join(WAYS[:ways]).split()).memory for ways in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    room = sizes[0] + 1 if not needed else (sizes[needed - 1] + sizes[needed]) / 2
    said = planned_on(room, many, monkeypatch)
    remedy = f"it does not fit; it would with {' '.join(WAYS[:needed])}\n"
    assert remedy in said if needed else "does not fit" not in said


def test_what_never_fits_is_told_so(monkeypatch):
    said = planned_on(1e6, ["devices=4", "batch_size=8"], monkeypatch)
    assert "nor with a smaller batch, checkpointing, sharding or adapters" in said


def planned_on(room, overrides, monkeypatch):
    monkeypatch.setitem(DEVICES, "small", Device(room / GB, 1, 1))
    command = ["plan", "pretrain", "tiny/pretrain", *LLAMA, *overrides, "--ids", "4096", "64", "--on", "small"]
    return ddt.invoke(app, command).output


def test_what_cannot_be_planned_is_told():
    def error(*arguments):
        done = ddt.invoke(app, ["plan", *arguments])
        assert done.exit_code == 2
        return done.output

    assert "verb 'train' must be train-vae," in error("train", "tiny/tokenizer")
    assert "--on 'tpu' must be h100," in error("train-tokenizer", "tiny/tokenizer", "data=x", "--on", "tpu")
    assert "say what its ids will be, as --ids" in error("pretrain", "tiny/pretrain", "data=gone", "--on", "h100")


def test_on_this_machine_a_step_is_tried(monkeypatch):
    """Time is that of the trainer's steps, and memory what the process has had."""
    monkeypatch.setattr(rehearsal, "SECONDS", 0.0)
    took = []

    class Slow(rehearsal.Clock):
        def on_train_batch_start(self, *_):
            begin = time.thread_time()
            while time.thread_time() < begin + 0.05:
                pass
            took.append(1)

    words = ["plan", "train-tokenizer", "tiny/tokenizer", *SMALL, "batch_size=2", "device=cpu"]
    quick = ddt.invoke(app, words)
    assert quick.exit_code == 0, quick.output
    monkeypatch.setattr(rehearsal, "Clock", Slow)
    slow = ddt.invoke(app, words)
    assert "(tried here)" in quick.output and " in 32-true" in quick.output
    assert 0.04 < found_seconds(slow.output) - found_seconds(quick.output) < 0.5
    assert len(took) == rehearsal.WARM + rehearsal.LEAST
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    assert found_memory(slow.output) == pytest.approx(highest, rel=0.02)


def test_what_takes_too_long_or_does_not_fit_is_not_tried(monkeypatch):
    """Its time is operations by what products of matrices reach here, and a share of that."""
    monkeypatch.setattr(planning, "matrix_peak", lambda *_: 1e9)
    monkeypatch.setattr(planning, "rehearse", None)
    words = ["plan", "train-tokenizer", "tiny/tokenizer", *SMALL, "batch_size=64", "device=cpu"]
    monkeypatch.setattr(planning, "LONGEST", 0.0)
    said = ddt.invoke(app, [*words, "--efficiency", "0.5"]).output
    flops = plan(load_config(TrainTokenizer, "tiny/tokenizer", words[3:])).flops
    assert found_seconds(said) == pytest.approx(flops / 0.5e9, rel=0.01)
    assert "50% of what products of matrices reach here" in said
    monkeypatch.setattr(planning, "LONGEST", math.inf)
    monkeypatch.setattr(planning, "memory_of_machine", lambda: 1e6)
    assert "does not fit" in ddt.invoke(app, words).output


def test_activations_are_those_of_tensors_that_are_kept():
    """Of a real step: what backward will need, each memory once, is what is held between the passes."""
    config = load_config(Pretrain, "tiny/pretrain", [*LLAMA, "batch_size=4"])
    module, (batch,) = rehearsal.prepare(config, 4, "cpu", IDS)
    module.trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=1)
    module.log_dict, module.lr_schedulers = print, lambda: SimpleNamespace(get_last_lr=lambda: [0.0])
    weights, kept = {p.untyped_storage().data_ptr() for p in module.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module.training_step(batch, 0)
    saved = sum(each.untyped_storage().nbytes() for where, each in kept.items() if where not in weights)
    counted = plan(config, ids=IDS).activations
    assert loss.isfinite() and saved < counted < 1.6 * saved  # a pass has more at its highest than is kept


def test_examples_of_a_run_are_those_of_its_shards(tmp_path):
    """Rows are as long as the texts are, not as a guess has them."""
    identity = {"fingerprint": "0" * 16, "codebook_size": 64, "num_tokens": 8}
    with ShardWriter(tmp_path / "ids", source="random", tokenizer=identity) as writer:
        for i in range(8):
            writer.write({"key": f"{i}", "text": "a red fox", "ids": np.arange(8) + i})
    config = load_config(Pretrain, "tiny/pretrain", [*LLAMA, f"data={tmp_path}/ids", "text=''", "batch_size=4"])
    for device in ("cpu", "meta"):
        module, batches = rehearsal.prepare(config, 4, device)
        assert module.vocabulary.num_tokens == 8 and len(batches) == rehearsal.BATCHES
        assert {batch["input_ids"].device.type for batch in batches} == {device}
        assert max(batch["input_ids"].shape[1] for batch in batches) < 8 + rehearsal.WORDS


def test_an_hour_of_a_device_is_planned_for_tokenizing():
    said = ddt.invoke(app, ["plan", "tokenize", "imagenet/ddt-480", "data=x", "--on", "h100"]).output
    rate = float(said.split(" in fp32: ")[1].split(" pictures/s")[0])
    million = float(said.split("a million ")[1].split(" hours")[0])
    assert million == pytest.approx(1e6 / rate / 3600, rel=0.01)
    tiny = ddt.invoke(app, ["plan", "tokenize", "tiny/tokenizer", "data=x", "--on", "h100"]).output
    config = load_config(TrainTokenizer, "tiny/tokenizer", ["data=x"]).codec
    tokenizer = DDTTokenizer(config.tokenizer).eval()
    tokenizer.precision = "bf16"
    with Ledger() as ledger:
        tokenizer.encode(torch.zeros(2, 3, 32, 32))
    assert float(tiny.split("a picture ")[1].split(" ")[0]) == pytest.approx(ledger.flops / 2e12, rel=0.01)
    assert (
        "name a folder with vae="
        in ddt.invoke(app, ["plan", "tokenize", "small/tokenizer", "data=x", "--on", "h100"]).output
    )


def found_seconds(said):
    return float(said.split(" together, ")[1].split(" s:")[0])


def found_memory(said):
    return float(said.split("memory    ")[1].split(" of ")[0])


def test_torch_is_left_as_it_was():
    names = [(torch, "autocast"), (torch, "is_autocast_enabled"), (F, "linear"), (torch.Tensor, "matmul")]
    before = [getattr(owner, name) for owner, name in names]
    with pytest.raises(RuntimeError), on_meta(True):
        assert F.linear(torch.zeros(2, 2), torch.zeros(2, 2)).dtype == torch.bfloat16
        with torch.autocast("meta", enabled=False):
            assert F.linear(torch.zeros(2, 2), torch.zeros(2, 2)).dtype == torch.float32
        raise RuntimeError
    assert [getattr(owner, name) for owner, name in names] == before
