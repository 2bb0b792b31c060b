"""What a training run says at its beginning and at its end, and that what it says can be typed."""

import random
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.main import get_command

from ddt_apps.cli.main import app
from ddt_apps.run.config import load_config
from ddt_apps.run.telling import NEXT, next_command, tell_start
from ddt_apps.train.settings import SETTINGS

NEEDED = {"data": "data/a b:0.5,data/c:0.5", "tokenizer": "runs/my tokenizer", "model": "runs/lm"}


def settings(verb, *overrides):
    cls = SETTINGS[verb]
    known = [f"{key}={value}" for key, value in NEEDED.items() if key in cls.__dataclass_fields__]
    return load_config(cls, None, [*known, "name=mine", *overrides])


@pytest.mark.parametrize("verb", SETTINGS)
def test_the_next_command_is_one(verb):
    """Its verb is there, and takes what it is given."""
    _, name, *words = shlex.split(next_command(settings(verb), Path("runs/mine")))
    command = get_command(app).commands[name]
    context = command.make_context(name, list(words), resilient_parsing=True)
    assert any("runs/mine" in str(value) for value in context.params.values())
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= {option for each in command.params for option in each.opts}
    if "{data}" in NEXT[verb]:
        assert {"data/a b", "data=data/a b"} & set(words)


@pytest.mark.parametrize("seed", range(10))
def test_what_begins_is_said(seed, capsys):
    rng = random.Random(seed)
    steps, batch, accumulate, samples = (rng.randint(1, n) for n in (5000, 64, 3, 20_000))
    step = rng.choice([0, steps])
    frozen, trained = torch.nn.Linear(7, 3), torch.nn.Linear(rng.randint(1, 90), 5)
    frozen.requires_grad_(False)
    config = SimpleNamespace(steps=steps, batches=steps * accumulate, batch_size=batch, accumulate=accumulate)
    module, stream = torch.nn.Sequential(frozen, trained), SimpleNamespace(dataset=range(samples))
    tell_start(Path("runs/mine"), config, "cpu in 32-true", module, stream, step)
    first, second = capsys.readouterr().err.splitlines()
    weights = 5 * trained.in_features + 5
    assert first.startswith(f"training {weights:,} weights on cpu in 32-true into runs/mine")
    assert first.endswith(f", going on at step {step}") == bool(step)
    assert second.startswith(f"{samples:,} samples, {steps:,} steps of ")
    assert float(second.split(": ")[1].split()[0]) == pytest.approx(steps * accumulate * batch / samples, rel=0.01)
