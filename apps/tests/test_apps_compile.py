"""Compiled runs: when they are, that they compute what others do, and that they go on as they began."""

import itertools
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import cut, make_all, same, train, weights
from torch._dynamo.utils import counters

from ddt_apps.run import compiling, devices
from ddt_apps.run.config import load_config, save_config
from ddt_apps.run.devices import pick_compile
from ddt_apps.train.settings import Pretrain
from ddt_decoder import DDTDecoder
from ddt_llm import training as llm_training

FROZEN = ("training.freeze=encoder", "training.continuous_steps=0")
RUNS = ("runs/plain", "runs/compiled")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of each verb, of which none is compiled."""
    folder = tmp_path_factory.mktemp("compile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all()
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it, where graphs are traced but run as they are written: compilers take a minute."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def origin(name):
    return json.loads(Path(f"runs/{name}/origin.json").read_text()).get("compiled_from", "off")


def graphs():
    return counters["stats"]["unique_graphs"]


def close(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)


def test_the_setting_is_a_word_however_it_is_written(tmp_path):
    for written, read in [("on", "on"), ("true", "on"), ("off", "off"), ("false", "off"), ("auto", "auto")]:
        config = load_config(Pretrain, None, ["data=ids", f"compile={written}"])
        assert config.compile == read
        save_config(config, tmp_path / "config.yaml")
        assert load_config(Pretrain, tmp_path / "config.yaml") == config
    with pytest.raises(ValueError, match="compile must be one of 'auto', 'on', 'off', not 1"):
        load_config(Pretrain, None, ["data=ids", "compile=1"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_compiles_where_it_has_a_compiler(device, monkeypatch):
    device = torch.device(device)
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(devices, "find_spec", lambda name: name)
    assert [pick_compile(setting, device) for setting in ("auto", "on", "off")] == ["auto", "on", "off"]
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert [pick_compile(setting, device) for setting in ("auto", "off")] == ["off", "off"]
    with pytest.raises(ValueError, match=r"compile=on needs .*; (pip )?install .*, or begin with compile=off$"):
        pick_compile("on", device)


def test_other_devices_compile_nothing():
    assert pick_compile("auto", torch.device("mps")) == pick_compile("off", torch.device("mps")) == "off"
    with pytest.raises(ValueError, match="compile=on needs device cpu or cuda, not mps"):
        pick_compile("on", torch.device("mps"))


def test_without_a_compiler_a_run_is_as_ever_or_says_so(here, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="a C\\+\\+ compiler, and no-such-compiler is not here"):
        train("pretrain", "refused", "compile=on")
    assert not Path("runs/refused/config.yaml").exists()
    assert same(weights(train("pretrain", "auto"), "pretrain"), weights("runs/pretrain", "pretrain"))
    assert origin("auto") == "off" and not graphs()


@pytest.mark.parametrize(
    ("verb", "backend", "overrides"),
    [
        ("tokenizer", "eager", ["accumulate=2"]),
        (
            "tokenizer",
            "eager",
            ["codec.network.activation_checkpointing=true", *FROZEN],
        ),
        ("renderer", "eager", []),
        ("pretrain", "aot_eager", ["activation_checkpointing=true", "llama.depth=2"]),
        ("pretrain", "eager", ["lora.rank=2", "retention_limit=100"]),
        ("sft", "eager", ["row_length=128"]),
    ],
)
def test_a_compiled_run_is_the_plain_one_but_for_rounding(here, verb, backend, overrides, monkeypatch, capsys):
    """Its model has the same weights under the same names, and nothing tells them apart."""
    monkeypatch.setattr(compiling, "BACKEND", backend)
    train(verb, "plain", "compile=off", *overrides)
    assert not graphs()
    train(verb, "compiled", "compile=on", *overrides)
    error = capsys.readouterr().err
    assert graphs() and "in 32-true, compiled, into" in error and "/6 compiling, which takes" in error
    assert "not everything can be compiled" not in error
    assert close(weights("runs/compiled", verb), weights("runs/plain", verb))
    left = [sorted(str(file.relative_to(run)) for file in run.rglob("*")) for run in map(Path, RUNS)]
    assert left[0] == left[1]


@pytest.mark.parametrize("verb", ["tokenizer", "pretrain"])
def test_a_compiled_run_goes_on_exactly_as_it_began(here, verb):
    whole = weights(train(verb, "whole", "compile=on"), verb)
    cut(verb, "cut", "compile=on")
    for other in ("off", "false"):
        with pytest.raises(ValueError, match="runs/cut computes with compile=on, not off; set compile=on to go on"):
            train(verb, "cut", f"compile={other}")
    torch._dynamo.reset()
    before = graphs()
    assert same(weights(train(verb, "cut"), verb), whole)  # auto: as before
    assert graphs() > before


def test_a_plain_run_goes_on_as_it_began(here, monkeypatch):
    cut("pretrain", "cut", "compile=off")
    with pytest.raises(ValueError, match="runs/cut computes with compile=off, not on; set compile=off to go on"):
        train("pretrain", "cut", "compile=on")
    monkeypatch.setattr(compiling, "LONG", 0)
    runs = ("all", "compile=off"), ("cut",)
    whole, rest = (weights(train("pretrain", *run, "optimizer.steps=9"), "pretrain") for run in runs)
    assert same(whole, rest)
    assert not graphs()


def test_a_run_from_before_goes_on_as_it_began(here):
    cut("pretrain", "cut", "compile=off")
    file = Path("runs/cut/origin.json")
    old = json.loads(file.read_text())
    del old["compiled_from"]
    file.write_text(json.dumps(old))
    text = Path("runs/cut/config.yaml").read_text()
    assert "compile: 'off'\n" in text
    Path("runs/cut/config.yaml").write_text(text.replace("compile: 'off'\n", ""))
    assert same(weights(train("pretrain", "cut"), "pretrain"), weights("runs/pretrain", "pretrain"))
    assert origin("cut") == "off"


@pytest.mark.parametrize(("long", "decided"), [(0, 5), (1e6, "off")])
def test_a_run_decides_by_its_first_steps_and_keeps_to_it(here, long, decided, monkeypatch):
    """Killed before or after it has decided, it ends as the one that was not."""
    monkeypatch.setattr(compiling, "LONG", long)
    steps = ("optimizer.steps=9",)
    whole = weights(train("pretrain", "whole", *steps), "pretrain")
    assert origin("whole") == decided and bool(graphs()) == (decided == 5)
    if decided == "off":
        assert same(whole, weights(train("pretrain", "plain", *steps, "compile=off"), "pretrain"))
    cut("pretrain", "late", *steps, step=7)  # the checkpoint is of the beginning: its first steps are made again
    assert origin("late") == decided
    monkeypatch.setattr(compiling, "LONG", 1e6 - long)
    assert same(weights(train("pretrain", "late", *steps), "pretrain"), whole)
    assert origin("late") == decided


def test_a_run_that_was_over_before_it_decided_says_that_it_is_not_compiled(here):
    train("pretrain", "short", "optimizer.steps=3")
    assert origin("short") == "off"


def test_a_run_is_measured_by_what_is_left_of_it(monkeypatch):
    """In steps, not in batches that are gathered; the first one, which warms up, does not count."""

    class Trainer:
        max_steps, global_step = 605, 0
        strategy = SimpleNamespace(broadcast=lambda value: value)

    clock = itertools.chain([0.0, 50.0], itertools.count(51.0))
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    for steps, expected in ((605, 5), (604, float("inf"))):
        clock = itertools.chain([0.0, 50.0], itertools.count(51.0))
        decided, Trainer.max_steps = [], steps
        callback = compiling.Compiling(None, decided.append, print)
        module = torch.nn.Module()
        module.networks = []
        for Trainer.global_step in range(6):
            for batch in range(3):
                assert not decided
                callback.on_train_batch_start(Trainer, module, None, batch)
                if Trainer.global_step == 5:
                    break
        assert decided == [expected]
        callback.on_exception()


def test_sizes_that_change_compile_nothing_anew(here, monkeypatch):
    """Neither rows of own estimates nor packed rows, nor what watches between steps."""
    rows, shapes = set(), set()
    estimates, loss = DDTDecoder._estimates, llm_training.token_loss

    def token_loss(*given, **batch):
        shapes.add(batch["input_ids"].shape)
        return loss(*given, **batch)

    monkeypatch.setattr(
        DDTDecoder, "_estimates", lambda self, *given: rows.add(len(given[-1])) or estimates(self, *given)
    )
    monkeypatch.setattr(llm_training, "token_loss", token_loss)
    many = ["codec.network.depth=2", "batch_size=8"]
    flow = ["codec.flow.own_estimates=1.0", "codec.flow.full_noise_share=0.7", "training.optimizer.steps=16"]
    train("tokenizer", "many", "compile=on", *many, *flow)
    assert len(rows) >= 4
    # The block of the encoder, and the last and the other one of the decoder, these with and without gradient: five.
    # The rest are for no row and for one, which torch takes for special.
    assert graphs() <= 5 + 4
    torch._dynamo.reset()
    counters.clear()
    train("pretrain", "packed", "compile=on", "llama.depth=3", "row_length=64", "batch_size=8", "optimizer.steps=16")
    assert len(shapes) >= 5 and graphs() <= 2


def test_what_cannot_be_compiled_runs_as_it_is_written(here, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    assert same(weights(train("pretrain", "mine", "compile=on"), "pretrain"), weights("runs/pretrain", "pretrain"))
    error = capsys.readouterr().err
    assert error.count("not everything can be compiled, and runs as it is written: ") == 1
    assert "no such instruction" in error and "Traceback" not in error and "and more" not in error
    assert not torch._dynamo.config.suppress_errors  # as before
    assert not logging.getLogger("torch._dynamo.convert_frame").filters
