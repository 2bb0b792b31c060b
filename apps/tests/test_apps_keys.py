"""`--keys`: every setting of a verb with its default and its comment, from the source itself."""

import dataclasses
import subprocess
import sys
import typing
from dataclasses import dataclass, field
from typing import Literal

import pytest
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.run.config import load_config
from ddt_apps.run.keys import Key, keys_of, table
from ddt_apps.train.settings import SETTINGS


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 1e-3  # highest # of all
    kind: Literal["muon", "adamw"] = "muon"  # of the matrices
    # Two lines
    # above it.
    betas: tuple[float, float] = (
        0.9,
        0.99,
    )


@dataclass(frozen=True, kw_only=True)
class Owner:
    name: str  # of the run
    every: int = 1  # steps
    bare: bool = True


@dataclass(frozen=True, kw_only=True)
class Train(Owner):
    """A class with a docstring, and a comment that belongs to no field:"""

    name: str = "train"
    every: int = 2  # steps between two

    # Above.
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=0.5))
    other: Optimizer | None = None  # may be left out
    text: str = ""  # of # anything
    needed: int


def test_keys_defaults_and_comments_are_those_of_the_source():
    found = {key.name: (key.default, key.comment) for key in keys_of(Train)}
    assert found == {
        "name": ("train", "of the run"),  # the comment of the class it is inherited from
        "every": ("2", "steps between two"),
        "bare": ("true", ""),
        "optimizer": ("", "Above."),
        "optimizer.lr": ("0.5", "highest # of all"),  # the owner's default
        "optimizer.kind": ("muon", "of the matrices [muon, adamw]"),
        "optimizer.betas": ("[0.9, 0.99]", "Two lines above it."),
        "other": ("null", "may be left out"),
        "other.lr": ("0.001", "highest # of all"),
        "other.kind": ("muon", "of the matrices [muon, adamw]"),
        "other.betas": ("[0.9, 0.99]", "Two lines above it."),
        "text": ('""', "of # anything"),
        "needed": ("(needed)", ""),
    }


def test_comments_are_broken_to_the_width_of_a_terminal_and_whole_in_a_pipe():
    keys = [Key(name="training.lr", default="0.1", comment="a word " * 30), Key(name="b", default="x" * 30, comment="")]
    lines = table(keys, 80).splitlines()
    assert max(map(len, lines)) <= 80 and " ".join(line[33:] for line in lines[:-1]).split() == ["a", "word"] * 30
    assert lines[0].startswith("training.lr  0.1 ") and lines[-1] == f"b            {'x' * 30}"
    assert all(len(line) == len(line.rstrip()) for line in lines)
    assert len(table(keys, sys.maxsize).splitlines()) == 2


def all_fields(cls, where=""):
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        yield f"{where}{each.name}"
        for kind in (hints[each.name], *typing.get_args(hints[each.name])):
            if dataclasses.is_dataclass(kind):
                following = {f"{where}{each.name}.{name}" for name in each.metadata.get("follows", ())}
                yield from (name for name in all_fields(kind, f"{where}{each.name}.") if name not in following)


@pytest.mark.parametrize("verb", SETTINGS)
def test_a_verb_lists_what_its_configuration_takes(verb):
    result = CliRunner().invoke(app, [verb, "--keys"])
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.splitlines()]
    assert listed == list(all_fields(SETTINGS[verb]))
    for key in listed:
        with pytest.raises(ValueError) as error:
            load_config(SETTINGS[verb], None, [f"{key}={{no: value}}"])
        assert not str(error.value).startswith(f"unknown key '{key}'")


@pytest.mark.parametrize("verb", SETTINGS)
def test_every_setting_of_a_verb_itself_has_a_comment(verb):
    codec = tuple(f"codec.{name}." for name in ("latents", "quantizer", "encoder", "network", "flow"))
    groups = (*codec, "training.", "optimizer.", "lora.", "llama.")  # of the packages
    assert [key.name for key in keys_of(SETTINGS[verb]) if not key.comment and not key.name.startswith(groups)] == []


@pytest.mark.parametrize("verb", SETTINGS)
def test_steps_have_one_spelling_in_all_verbs(verb):
    cls = SETTINGS[verb]
    needed = [f"{name}=x" for name in ("data", "tokenizer", "model") if name in cls.__dataclass_fields__]
    long = cls.short.get("steps", "steps")
    assert load_config(cls, None, [*needed, "steps=700"]) == load_config(cls, None, [*needed, f"{long}=700"])
    for first, last in ((long, "steps"), ("steps", long)):  # the later one wins
        assert load_config(cls, None, [*needed, f"{first}=800", f"{last}=700"]).steps == 700
    with pytest.raises(ValueError, match=rf"^{long} \(0\) must be at least 1"):
        load_config(cls, None, [*needed, "steps=0"])
    if verb in ("train-vae", "train-tokenizer"):
        config = load_config(cls, None, [*needed, "image_size=128"])
        assert getattr(config, "codec", config).image_size == 128


WRONG = [
    ["train-tokenizer", "tiny/tokenizer", "data=x", "batchsize=3"],
    ["train-renderer", "tiny/renderer", "data=x", "tokenizer=x", "batchsize=3"],
    ["pretrain", "tiny/pretrain", "data=x", "batchsize=3"],
    ["sft", "tiny/sft", "data=x", "model=x", "batchsize=3"],
    ["demo", "sft.batchsize=3"],
    *(["evaluate", each, "x", "lvel=3"] for each in ("scenes", "reconstruction", "answers", "language")),
]


@pytest.mark.parametrize("command", WRONG, ids=" ".join)
def test_a_wrong_key_is_answered_before_anything_heavy_is_loaded(command):
    code = (
        "import sys\nfrom ddt_apps.cli.main import app\n"
        f"try:\n    app({command})\n"
        "except SystemExit as end:\n"
        "    print(end.code, {'lightning', 'torchmetrics', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nearest = "level" if command[0] == "evaluate" else "batch_size"
    assert result.stdout == "2 set()\n" and f"did you mean '{nearest}'" in result.stderr
