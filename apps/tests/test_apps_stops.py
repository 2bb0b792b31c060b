"""What stops a run and what damages its files: it is told in a line, and the next command goes on."""

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import ALL, VERBS, cut, make_all, same, train, weights

from ddt_apps.models import load_pair, load_renderer_run
from ddt_apps.run.carrying_out import carry_out, run_folder
from ddt_apps.run.config import load_config
from ddt_apps.run.fitting import RunRecorder
from ddt_apps.run.metrics import read_metrics
from ddt_apps.train.settings import Pretrain
from ddt_data.shards.lock import locked
from ddt_tokenizer.training import TokenizerTraining


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Data, and a finished run of each verb."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all()
    return folder


@pytest.fixture
def here(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(RunRecorder, "log_every", 1)
    monkeypatch.setattr(RunRecorder, "save_every_seconds", 0.0)


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


def test_what_was_measured_between_two_rows_is_in_the_next_one_after_a_stop_too(here, monkeypatch):
    monkeypatch.setattr(RunRecorder, "log_every", 10)  # the one row is that of the last step, 6
    train("tokenizer", "whole", "watch_every=4")
    cut("tokenizer", "stopped", "watch_every=4", step=5)
    train("tokenizer", "stopped", "watch_every=4")
    whole, stopped = (Path(f"runs/{name}/metrics.csv").read_text() for name in ("whole", "stopped"))
    assert whole == stopped and "held_out_psnr" in whole


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
    assert done.stdout.count("always the same folder in the end") == 6


@pytest.mark.parametrize(
    ("number", "moment", "times"),
    [
        (signal.SIGINT, "loading", 1),
        (signal.SIGINT, "training", 2),
        (signal.SIGTERM, "loading", 2),
        (signal.SIGTERM, "training", 1),
    ],
)
def test_a_signal_ends_a_command_in_a_line_whenever_it_comes(here, number, moment, times):
    """While the command is loaded, before the first step and in the middle, once or twice."""
    command = [sys.executable, "-m", "ddt_apps", "train-tokenizer", "tiny/tokenizer", *ALL, *VERBS["tokenizer"][2]]
    long = ["name=run", "training.optimizer.steps=100000"]
    process = subprocess.Popen([*command, *long], stderr=subprocess.PIPE, text=True)
    file = Path(f"/proc/{process.pid}/maps") if moment == "loading" else Path("runs/run/metrics.csv")
    while not (file.exists() and ("torch" in file.read_text() if moment == "loading" else True)):
        assert process.poll() is None
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.01)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.count("stopped;") == 1 and "Traceback" not in said, said
