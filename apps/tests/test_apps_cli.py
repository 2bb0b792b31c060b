"""The command: help that teaches, one-line errors, exit codes."""

import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import torch
import typer
from typer.testing import CliRunner

from ddt_apps.cli.main import Verbs, app


def command(error):
    failing = typer.Typer(cls=Verbs)

    @failing.callback()
    def root():
        """So that the command below is a verb."""

    @failing.command()
    def fail():
        raise error

    return CliRunner().invoke(failing, ["fail"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("width (30) must be\ndivisible by 4"), "error: width (30) must be divisible by 4\n"),
        (FileNotFoundError("no shards in x; run ddt data"), "error: no shards in x; run ddt data\n"),
        (FileExistsError(17, "File exists", "data/x"), "error: data/x: File exists\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(error, line):
    result = command(error)
    assert (result.exit_code, result.stderr) == (2, line)


def test_a_fault_of_ours_keeps_its_traceback():
    assert isinstance(command(KeyError("x")).exception, KeyError)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error"),
    ],
)
def test_too_little_memory_is_a_line_that_says_what_helps(error):
    result = command(error)
    assert result.exit_code == 2 and "lower batch_size" in result.stderr and result.stderr.count("\n") == 1
    assert "allocat" in result.stderr or "out of memory" in result.stderr
    assert isinstance(command(RuntimeError("a shape")).exception, RuntimeError)


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("DDT_TRACEBACK", "1")
    assert isinstance(command(ValueError("x")).exception, ValueError)


def test_ctrl_c_is_one_line():
    result = command(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "\nstopped\n")


def test_every_verb_has_an_example():
    groups = [(app, "ddt"), *((group.typer_instance, f"ddt {group.name}") for group in app.registered_groups)]
    for group, prefix in groups:
        for verb in group.registered_commands:
            name = verb.name or verb.callback.__name__
            assert f"Example: [bold]{prefix} {name}" in verb.callback.__doc__


def test_help_lists_the_verbs_in_the_order_of_work():
    lines = CliRunner().invoke(app, ["--help"]).output.splitlines()
    words = [line.split()[1] for line in lines if line.startswith("│ ") and line[2] != " "]
    start, train = (
        ["demo", "doctor", "plan", "bench", "config"],
        [
            "train-vae",
            "train-tokenizer",
            "train-renderer",
            "import-selftok",
            "tokenize",
            "pretrain",
            "sft",
            "adapt",
            "rl",
            "runs",
            "data",
        ],
    )
    use = ["reconstruct", "generate", "edit", "ask", "caption", "chat", "serve", "evaluate", "export"]
    options = ["--version", "--install-completion", "--show-completion", "--help"]
    assert words == [*options, *start, *train, *use]
    panels = [line.split()[1] for line in lines if line.startswith("╭─")]
    assert panels == ["Options", "Start", "Train", "Use"]


def test_help_and_versions_load_no_model_code():
    code = (
        "import sys\nfrom ddt_apps.cli.main import app\n"
        "for word in ('--help', '--version'):\n    try:\n        app([word])\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'lightning', 'transformers', 'omegaconf') if name in sys.modules])"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "ddt demo" in result.stdout
    assert {f"ddt-apps {version('ddt-apps')}", f"torch {version('torch')}"} <= set(result.stdout.splitlines())
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "module", ["models", "use.pictures", "use.chat", "train.settings", "cli.main", "shards.tokenize", "shards.make"]
)
def test_what_uses_models_loads_no_lightning(module):
    """Nor torchmetrics: they would be most of the wait for a first token."""
    code = f"import sys, ddt_apps.{module}; print({{'lightning', 'torchmetrics', 'omegaconf'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["pre"], ["pretrain"]),
        (["data", "p"], ["pack", "peek"]),
        (["pretrain", "tiny/s"], ["tiny/sft"]),
        (["pretrain", "--keys", "tiny/s"], ["tiny/sft"]),
        (["generate", "--precision", ""], ["32", "bf16"]),
    ],
)
def test_the_shell_completes_verbs_options_and_configurations(typed, offered):
    words = {"COMP_WORDS": "\n".join(["ddt", *typed]), "COMP_CWORD": str(len(typed)), "_DDT_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(app, [], env=words, prog_name="ddt")
    assert result.output.splitlines() == offered


def test_a_wrong_verb_is_refused():
    assert CliRunner().invoke(app, ["paint"]).exit_code == 2
