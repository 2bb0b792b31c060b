"""A run remembers what it began with, takes what may change on the way, and leaves its model when asked."""

import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddt_apps.models import load_pair, load_renderer_run
from ddt_apps.run.carrying_out import carry_out, run_folder
from ddt_apps.run.config import load_config
from ddt_apps.run.fitting import RunRecorder
from ddt_apps.run.metrics import read_metrics
from ddt_apps.run.origin import digest
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import pretrain, renderer, sft, tokenizer
from ddt_apps.train.export import export_run
from ddt_apps.train.settings import Pretrain, TrainRenderer, TrainTokenizer, Tune
from ddt_data import pack_text
from ddt_data.shards.lock import locked
from ddt_decoder.renderer_training import RendererTraining
from ddt_llm.training import LanguageModelTraining
from ddt_tokenizer.training import TokenizerTraining

ALL = ["batch_size=4", "watch_every=2", "tensorboard=false", "precision=32-true"]
SIZES = [f"codec.{part}.{size}" for part in ("encoder", "network") for size in ("width=16", "depth=1", "num_heads=2")]
SCHEDULE = ["optimizer.steps=6", "optimizer.warmup_steps=1"]
CODEC = ["codec.quantizer.codebook_size=16", "codec.schedule=[4]", "training.continuous_steps=1"]
RENDERER = [f"training.{each}" for each in ("second_phase_step=2", "warmup_steps=1")]
RENDERER += [f"training.discriminator_{each}" for each in ("width=8", "depth=2")]
LLAMA = ["llama.width=16", "llama.depth=1", "llama.num_heads=2", "text_vocabulary=300"]
VERBS = {
    "tokenizer": (
        tokenizer.train,
        TrainTokenizer,
        ["data=sc", *SIZES, *CODEC, "held_out=2", *(f"training.{each}" for each in SCHEDULE)],
    ),
    "renderer": (
        renderer.train,
        TrainRenderer,
        ["data=sc", "tokenizer=runs/tokenizer", "steps=6", "held_out=2", *RENDERER],
    ),
    "pretrain": (
        pretrain.train,
        Pretrain,
        ["data=ids", "text=words", *SCHEDULE, *LLAMA],
    ),
    "sft": (sft.train, Tune, ["data=ids", "text=words", "model=runs/pretrain", *SCHEDULE]),
}
MODULES = {"tokenizer": TokenizerTraining, "renderer": RendererTraining}
WEIGHTS = {"tokenizer": "decoder", "renderer": "renderer", "pretrain": "model", "sft": "model"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Data, and a finished run of each verb."""
    folder = tmp_path_factory.mktemp("origin")
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_scenes(Path("sc"), 12, level="tiny")
        pack_text(["A fox sleeps.", "A bell rings."] * 20, Path("words"))
        for verb in VERBS:
            train(verb, verb)
            if verb == "tokenizer":
                tokenize_shards(Path("sc"), Path("runs/tokenizer"), Path("ids"))
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def here(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(RunRecorder, "log_every", 1)
    monkeypatch.setattr(RunRecorder, "save_every_seconds", 0.0)


def train(verb, name, *overrides):
    work, settings, own = VERBS[verb]
    return work(load_config(settings, f"tiny/{verb}", [*ALL, *own, f"name={name}", *overrides]))


def cut(verb, name, *overrides, step=3):
    """Train, and be stopped before a step."""
    module = MODULES.get(verb, LanguageModelTraining)
    with pytest.MonkeyPatch.context() as patch:
        original = module.training_step

        def stopping(self, *arguments):
            if self.global_step == step:
                raise OSError("the power is gone")
            return original(self, *arguments)

        patch.setattr(module, "training_step", stopping)
        with pytest.raises(OSError, match="the power is gone"):
            train(verb, name, *overrides)


def weights(run, verb):
    return load_file(Path(run) / WEIGHTS[verb] / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("source", ["sc", "ids", "words", "runs/tokenizer", "runs/pretrain"])
def test_a_digest_is_of_what_is_there_and_not_of_where(here, source):
    first = digest(source)
    assert len(first) == 16 and digest(f"{source}/") == digest(Path(source).resolve()) == first
    shutil.copytree(source, "elsewhere/deep")
    assert digest("elsewhere/deep") == first
    (Path("elsewhere/deep") / "README.md").write_text("about it")
    assert digest("elsewhere/deep") == first
    file = next(path for pattern in ("manifest.json", "*/*.safetensors") for path in Path(source).glob(pattern))
    data = bytearray((Path("elsewhere/deep") / file.relative_to(source)).read_bytes())
    place = data.index(b'"sha256": "') + 12 if file.suffix == ".json" else len(data) - 3
    data[place] = ord("0") if data[place] != ord("0") else ord("1")
    (Path("elsewhere/deep") / file.relative_to(source)).write_bytes(data)
    assert digest("elsewhere/deep") not in ("", first)


def replace_source(source):
    """Let something else lie there: other scenes, another text, a model with a changed weight."""
    folder = Path(source)
    if source in ("sc", "ids"):
        shutil.rmtree("sc")
        make_scenes(Path("sc"), 12, level="tiny", seed=7)
        if source == "ids":
            shutil.rmtree("ids")
            tokenize_shards(Path("sc"), Path("runs/tokenizer"), folder)
    elif source == "words":
        shutil.rmtree(folder)
        pack_text(["A kite flies."] * 40, folder)
    else:
        file = next(folder.glob("*/model.safetensors"))
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")


@pytest.mark.parametrize(
    ("verb", "setting", "source"),
    [
        ("tokenizer", "data", "sc"),
        ("renderer", "tokenizer", "runs/tokenizer"),
        ("pretrain", "data", "ids"),
        ("pretrain", "text", "words"),
        ("sft", "model", "runs/pretrain"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_what_a_run_began_with_may_move_but_not_change(here, verb, setting, source, finished, capsys):
    name = verb if finished else "cut"
    if not finished:
        cut(verb, name)
    os.rename(source, "moved")
    if finished:
        train(verb, name, f"{setting}=moved")
        assert f"runs/{name} is finished: its model is in runs/{name}/" in capsys.readouterr().out
    os.rename("moved", source)
    replace_source(source)
    with pytest.raises(ValueError, match=rf"runs/{name} was begun with {setting}={source}, which holds something else"):
        train(verb, name)
    os.rename(source, "moved")
    with pytest.raises(ValueError, match=rf"begun with {setting}={source}, not moved, which holds something else"):
        train(verb, name, f"{setting}=moved")


def test_a_cut_run_goes_on_from_moved_data_in_a_moved_folder_as_if_nothing_had_happened(here):
    cut("tokenizer", "cut")
    os.rename("sc", "moved")
    os.rename("runs/cut", "runs/other")
    free = ["data=moved/", "workers=1", "watch_every=3", "device=cpu", "precision=auto"]
    if "bf16" not in json.loads(Path("runs/other/origin.json").read_text())["precision"]:
        free[-1] = "precision=32-true"
    run = train("tokenizer", "other", *free)
    assert same(weights(run, "tokenizer"), weights("runs/tokenizer", "tokenizer"))
    assert "data: moved/\n" in (run / "config.yaml").read_text()


def test_each_part_of_a_mixture_is_compared_and_its_share(here):
    make_scenes(Path("more"), 12, level="tiny", seed=3)
    cut("tokenizer", "cut", "data=sc:0.5,more:0.5")
    for data, said in [("sc:0.5,more:0.4", "more:0.5, not more:0.4"), ("sc:0.5", "sc:0.5, not"), ("more:1", "sc:0.5")]:
        with pytest.raises(ValueError, match=f"runs/cut was begun with data={said}" if "," in data else "begun with"):
            train("tokenizer", "cut", f"data={data}")
    os.rename("more", "less")
    train("tokenizer", "cut", "data=sc:0.5,less:0.5")


def test_a_finished_run_whose_data_are_gone_says_that_it_is_finished_or_that_its_model_is_gone(here, capsys):
    shutil.rmtree("sc")
    train("renderer", "renderer")
    assert "runs/renderer is finished: its model is in runs/renderer/renderer" in capsys.readouterr().out
    shutil.rmtree("runs/renderer/renderer")
    with pytest.raises(FileNotFoundError, match=r"the model in runs/renderer/renderer is gone; delete runs/renderer"):
        train("renderer", "renderer")


@pytest.mark.parametrize(
    ("verb", "steps"),
    [("tokenizer", "training.optimizer.steps"), ("renderer", "steps"), ("pretrain", "optimizer.steps")],
)
def test_steps_may_be_raised_and_lowered_to_what_is_done(here, verb, steps):
    with pytest.MonkeyPatch.context() as patch:  # killed after the last step, before the export
        patch.setattr("ddt_apps.run.folder.Run.finish", lambda run: None)
        train(verb, "run")
    train(verb, "run", f"{steps}=9")
    assert read_metrics(Path("runs/run/metrics.csv"))["loss"][0] == list(range(1, 10))
    (change,) = json.loads(Path("runs/run/origin.json").read_text())["changes"]
    assert change == {"step": 6, "setting": steps, "from": 6, "to": 9}
    with pytest.raises(ValueError, match=rf"runs/run was started with {re.escape(steps)}=9, not 12"):
        train(verb, "run", f"{steps}=12")  # it is finished
    cut(verb, "low", f"{steps}=8", step=5)
    with pytest.raises(ValueError, match=r"runs/low/last\.ckpt holds 5 steps already, more than the 4"):
        train(verb, "low", f"{steps}=4")
    train(verb, "low", f"{steps}=5")
    assert Path("runs/low/done.json").exists() and read_metrics(Path("runs/low/metrics.csv"))["loss"][0][-1] == 5


def test_a_rate_that_is_changed_on_the_way_is_that_of_the_next_step(here):
    for verb, group in (("tokenizer", "training.optimizer"), ("pretrain", "optimizer")):
        cut(verb, "cut", f"{group}.lr=1e-3")
        train(verb, "cut", f"{group}.lr=5e-4")
        old = read_metrics(Path("runs/cut/metrics.csv"))["lr"][1]
        train(verb, "plain", f"{group}.lr=5e-4")
        new = read_metrics(Path("runs/plain/metrics.csv"))["lr"][1]
        assert old[3:] == new[3:] and all(a == pytest.approx(2 * b) for a, b in zip(old[:3], new[:3], strict=True))
        shutil.rmtree("runs/cut")
        shutil.rmtree("runs/plain")


def test_what_decides_the_result_stays_as_it_was(here):
    cut("tokenizer", "cut")
    for setting in ("seed=1", "batch_size=2", "codec.encoder.width=32", "training.optimizer.optimizer=adamw"):
        key = setting.split("=")[0]
        with pytest.raises(ValueError, match=rf"runs/cut was started with {re.escape(key)}="):
            train("tokenizer", "cut", setting)


@pytest.mark.parametrize("verb", ["tokenizer", "renderer", "pretrain"])
def test_a_run_that_a_high_rate_spoiled_goes_on_with_a_lower_one(here, verb, monkeypatch):
    monkeypatch.setattr(RunRecorder, "save_every_seconds", 1e9)
    rate = {"tokenizer": "training.optimizer.lr", "renderer": "training.lr", "pretrain": "optimizer.lr"}[verb]
    with pytest.raises(ValueError, match=rf"not finite at step .*goes on with other values of .*{re.escape(rate)}"):
        train(verb, "high", f"{rate}=1e30")
    assert Path("runs/high/last.ckpt").exists()
    train(verb, "high", f"{rate}=1e-4")
    assert not list(Path("runs/high").glob("*.ckpt"))


def test_other_rates_after_a_stop_begin_at_the_checkpoint_before(here, monkeypatch, capsys):
    """Checkpoints come after steps 1 and 2; the gradient of step 4 is not finite, with every rate."""
    monkeypatch.setattr(RunRecorder, "log_every", 1)
    written = RunRecorder.on_train_batch_end

    def until_two(self, trainer, *arguments):
        self.save_every_seconds = 0.0 if trainer.global_step <= 2 else 1e9
        written(self, trainer, *arguments)

    monkeypatch.setattr(RunRecorder, "on_train_batch_end", until_two)
    with monkeypatch.context() as patch:
        step = TokenizerTraining.training_step

        def bad(self, *arguments):
            out = step(self, *arguments)
            return out | {"loss": out["loss"] * (torch.inf if self.global_step == 4 else 1)}

        patch.setattr(TokenizerTraining, "training_step", bad)
        for _ in range(2):  # the second time it stops where it began
            with pytest.raises(ValueError, match="not finite at step 4") as said:
                train("tokenizer", "run")
        assert "delete runs/run/last.ckpt to start over" in str(said.value)
    steps = [torch.load(f"runs/run/{n}.ckpt", weights_only=True)["global_step"] for n in ("before", "last")]
    assert steps == [2, 4]
    shutil.copytree("runs/run", "runs/same")
    train("tokenizer", "run", "training.optimizer.lr=1e-4")
    assert "are made anew" in capsys.readouterr().out
    assert json.loads(Path("runs/run/origin.json").read_text())["changes"][0]["step"] == 2
    assert not list(Path("runs/run").glob("*.ckpt"))
    train("tokenizer", "same")  # with its own rate it goes on from step 4, as if nothing had happened
    assert same(weights("runs/same", "tokenizer"), weights("runs/tokenizer", "tokenizer"))


def test_a_gradient_of_the_discriminator_that_is_not_finite_reaches_no_weight(here, monkeypatch):
    import ddt_decoder.renderer_training as training

    loss, calls = training.discriminator_loss, []

    def broken(*arguments):
        calls.append(0)
        return loss(*arguments) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(training, "discriminator_loss", broken)
    with pytest.raises(ValueError, match=r"the gradient of discriminator\..* is not finite at step 3"):
        train("renderer", "run")
    assert all(t.isfinite().all() for t in torch.load("runs/run/last.ckpt", weights_only=True)["state_dict"].values())
    train("renderer", "run")
    assert same(weights("runs/run", "renderer"), weights("runs/renderer", "renderer"))


@pytest.mark.parametrize("verb", VERBS)
def test_the_model_of_a_stopped_run_is_exported_and_the_run_goes_on(here, verb, capsys):
    cut(verb, "cut", step=4)
    before = Path("runs/cut/last.ckpt").read_bytes()
    export_run(Path("runs/cut"))
    assert "runs/cut is not finished and can go on: its model is in runs/cut/" in capsys.readouterr().out
    assert Path("runs/cut/last.ckpt").read_bytes() == before and not Path("runs/cut/done.json").exists()
    saved = list(torch.load("runs/cut/last.ckpt", weights_only=True)["state_dict"].values())
    for name, tensor in weights("runs/cut", verb).items():
        assert name == "codebook" or any(torch.equal(tensor, each) for each in saved), name
    run = train(verb, "cut")
    assert same(weights(run, verb), weights(f"runs/{verb}", verb))


def test_there_is_nothing_to_export_where_nothing_was_saved(here):
    with pytest.raises(FileNotFoundError, match=r"no training run in 'runs/none'"):
        export_run(Path("runs/none"))
    cut("tokenizer", "cut")
    Path("runs/cut/last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"runs/cut/last\.ckpt is not there"):
        export_run(Path("runs/cut"))


def test_a_damaged_checkpoint_is_named_with_the_way_on(here):
    cut("tokenizer", "cut")
    good, generator = Path("runs/cut/last.ckpt").read_bytes(), random.Random(0)
    torch.save({"state_dict": {}}, "lacking")
    cases = [b"", b"hello", generator.randbytes(999), b"\x80\x02cbuiltins\nprint\n.", Path("lacking").read_bytes()]
    cases += [good[: generator.randrange(len(good))] for _ in range(5)]
    for data in cases:
        Path("runs/cut/last.ckpt").write_bytes(data)
        with pytest.raises(
            ValueError, match=r"^runs/cut/last\.ckpt is .*; delete runs/cut/last\.ckpt to start"
        ) as said:
            train("tokenizer", "cut")
        assert "\n" not in str(said.value)
    found = torch.load("lacking", weights_only=True) | dict.fromkeys(
        ("loops", "callbacks", "optimizer_states", "lr_schedulers", "global_step"), 0
    )
    torch.save(found, "runs/cut/last.ckpt")
    with pytest.raises(ValueError, match=r"is of another model: .* is missing in it and"):
        train("tokenizer", "cut")


@pytest.mark.parametrize(
    ("edit", "aside"),
    [
        (lambda text: b"\xef\xbb\xbf" + text, False),
        (lambda text: text.replace(b",", b";"), True),
        (lambda text: text.replace(b"step", b"Schritt"), True),
        (lambda text: text.decode().encode("utf-16"), True),
        (lambda text: text.replace(b"\n2,", b"\ntwo,"), True),
        (lambda text: text.replace(b"\n2,", b"\n2,,,,,,,"), True),
        (lambda text: b"", True),
    ],
)
def test_metrics_that_a_spreadsheet_has_changed_stop_nobody(here, edit, aside, capsys):
    cut("pretrain", "cut")
    file = Path("runs/cut/metrics.csv")
    file.write_bytes(edit(file.read_bytes()))
    kept = file.read_bytes()
    train("pretrain", "cut")
    assert read_metrics(file)["loss"][0] == ([4, 5, 6] if aside else [1, 2, 3, 4, 5, 6])
    assert Path("runs/cut/metrics.1.csv").exists() == aside
    if aside:
        assert Path("runs/cut/metrics.1.csv").read_bytes() == kept
        assert "runs/cut/metrics.csv is not as a run wrote it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "a/b", "/x", "a/..", ".x", "a\nb", "~", "-"])
def test_a_name_is_that_of_one_folder_in_runs(here, name):
    with pytest.raises(ValueError, match="must be that of one folder in runs"):
        run_folder(name)
    before = sorted(Path().rglob("*"))
    with pytest.raises(ValueError, match=r"name \("):
        carry_out(load_config(Pretrain, None, ["data=ids"]).__class__(data="ids", name=name), print)
    assert sorted(Path().rglob("*")) == before


def test_a_run_is_trained_by_one_process_at_a_time(here):
    with locked("runs/both"), pytest.raises(BlockingIOError, match=r"runs/both is in training by another command"):
        train("tokenizer", "both")
    assert not Path("runs/both").exists()


def test_a_process_that_was_forked_under_a_lock_does_not_keep_it(here):
    with locked("runs/both"):
        if (child := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with locked("runs/both"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_what_a_kill_left_goes_with_the_next_command(here):
    for left in ("model/.saving-abc", "samples", "."):
        Path("runs/pretrain", left).mkdir(exist_ok=True)
    for left in ("model/.saving-abc/model.safetensors", ".last.ckpt.part", "last.ckpt", "before.ckpt", "x.partial"):
        Path("runs/pretrain", left).write_bytes(b"x")
    train("pretrain", "pretrain")
    names = {path.name for path in Path("runs/pretrain").rglob("*")}
    assert not names & {".saving-abc", ".last.ckpt.part", "last.ckpt", "before.ckpt", "x.partial"}
    assert {"model.safetensors", "ddt.json"} <= names


def test_files_of_runs_have_the_mode_of_the_umask(here):
    before = os.umask(0o027)
    try:
        for verb in VERBS:
            cut(verb, f"new-{verb}")
            assert stat.S_IMODE(Path(f"runs/new-{verb}/last.ckpt").stat().st_mode) == 0o640
            for path in train(verb, f"new-{verb}").rglob("*"):
                assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
    finally:
        os.umask(before)


def test_broken_neighbours_are_passed_over(here):
    for name, text in (("a", ""), ("b", "[]"), ("c", "[" * 100_000), ("d", "\0"), ("e", None)):
        shutil.copytree("runs/tokenizer", f"runs/{name}")
        config = Path(f"runs/{name}/tokenizer/config.json")
        config.write_text(text) if text is not None else shutil.rmtree(f"runs/{name}/decoder")
    _, codec = load_pair(Path("runs/pretrain"), None)
    assert codec.fingerprint == json.loads(Path("runs/tokenizer/tokenizer/config.json").read_text())["fingerprint"]


def test_a_renderer_finds_its_tokenizer_from_anywhere(here, tmp_path, monkeypatch):
    run = Path("runs/renderer").resolve()
    monkeypatch.chdir(tmp_path)
    assert load_renderer_run(run).renderer is not None
    shutil.move(run.parent, tmp_path / "elsewhere")
    os.rename(tmp_path / "elsewhere/tokenizer", tmp_path / "elsewhere/renamed")
    assert load_renderer_run(tmp_path / "elsewhere/renderer").renderer is not None
    (tmp_path / "elsewhere/renderer/config.yaml").write_text("tokenizer: ${oc.env:HOME}")
    assert load_renderer_run(tmp_path / "elsewhere/renderer").renderer is not None
    shutil.rmtree(tmp_path / "elsewhere/renamed")
    with pytest.raises(FileNotFoundError, match="no tokenizer run of fingerprint"):
        load_renderer_run(tmp_path / "elsewhere/renderer")


def test_what_goes_wrong_in_a_process_that_reads_data_is_said_in_a_line(here, monkeypatch):
    from ddt_data import ShardDataset

    parent = os.getpid()

    def broken(act):
        original = ShardDataset.__getitem__
        return lambda self, i: act() if os.getpid() != parent else original(self, i)

    def refuse():
        raise OSError("shard 3 is damaged; make it again")

    with monkeypatch.context() as patch:
        patch.setattr(ShardDataset, "__getitem__", broken(lambda: os.kill(os.getpid(), 9)))
        with pytest.raises(ValueError, match=r"^a process that reads data died, .* run the same command again"):
            train("tokenizer", "run", "workers=1")
    with monkeypatch.context() as patch:
        patch.setattr(ShardDataset, "__getitem__", broken(refuse))
        with pytest.raises(ValueError, match=r"^shard 3 is damaged; make it again$"):
            train("tokenizer", "run", "workers=1")
    train("tokenizer", "run", "workers=1")
    assert same(weights("runs/run", "tokenizer"), weights("runs/tokenizer", "tokenizer"))


def test_runs_that_are_killed_at_any_write_end_in_the_same_folder():
    script = Path(__file__).with_name("kill_every_write.py")
    done = subprocess.run([sys.executable, script, "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("always the same folder in the end") == 4
