"""`ddt config` and `--print-config`: configurations in full, which are configurations again."""

import random
import string
from dataclasses import dataclass, field

import pytest
import yaml
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.run.annotated import WIDTH, in_full
from ddt_apps.run.config import load_config, save_config, shipped
from ddt_apps.run.keys import keys_of
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.settings import SETTINGS
from ddt_apps.train.shipped import settings_of

GIVEN = {"data": "a:0.8,b:0.2", "tokenizer": "~/runs/x", "model": "runs/mine"}  # what has no default
ddt = CliRunner()


def dotted(values, where=""):
    for name, value in values.items():
        yield f"{where}{name}"
        yield from dotted(value, f"{where}{name}.") if isinstance(value, dict) else ()


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_configuration_in_full_is_the_same_one(name, tmp_path):
    cls = settings_of(name)
    result = ddt.invoke(app, ["config", name])
    assert result.exit_code == 0 and result.output.startswith(f"# ddt {cls.verb} {name}\n")
    (tmp_path / "mine.yaml").write_text(result.output)
    lacking = [key.name for key in keys_of(cls) if key.default == "(needed)"]
    given = [f"{key}={GIVEN[key]}" for key in lacking if f"# {key}: needed" in result.output]
    assert load_config(cls, tmp_path / "mine.yaml", given) == load_config(cls, name, given)
    written = set(dotted(yaml.safe_load(result.output)))
    kinds = ("codec.quantizer.", "lora.")  # of which it has one or none
    settable = {key.name for key in keys_of(cls) if key.default != "(follows)" and not key.name.startswith(kinds)}
    assert {key for key in lacking if f"# {key}: needed" in result.output} == settable - written


@pytest.mark.parametrize("verb", SETTINGS)
def test_a_verb_prints_what_it_would_train_and_stops(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(each for each in shipped() if settings_of(each).verb == verb)
    source = "model" if verb == "rl" else "data"
    overrides = ["name=mine", f"{source}=nowhere", "seed=7"]
    result = ddt.invoke(app, [verb, name, *overrides, "--print-config"])
    assert result.exit_code == 0 and not list(tmp_path.iterdir())
    assert [line.split("  #")[0] for line in result.output.splitlines()[:3]] == [
        f"# ddt {verb} {name} {' '.join(overrides)}",
        "name: mine",
        "seed: 7",
    ]
    assert f"\n{source}: nowhere" in result.output
    assert ddt.invoke(app, [verb, name, "sed=7", "--print-config"]).exit_code == 2


def test_whose_a_configuration_is_follows_from_its_keys_or_its_name(tmp_path):
    assert {settings_of(name).verb for name in shipped() if name.endswith("/sft")} == {"sft"}
    (tmp_path / "mine.yaml").write_text("batch_size: 3\n")
    with pytest.raises(ValueError, match=r"of several verbs; choose: ddt train-vae .*mine.yaml --print-config or "):
        settings_of(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("llama: {width: 8}\n")
    assert settings_of(str(tmp_path / "mine.yaml")).verb == "pretrain"
    assert {line.split()[0] for line in ddt.invoke(app, ["config"]).output.splitlines()} == set(shipped())


@dataclass(frozen=True, kw_only=True)
class Inner:
    words: tuple[str, ...] = ()  # any
    rates: dict[str, float] = field(default_factory=dict)  # a comment so long that it takes a line of its own, or two


@dataclass(frozen=True, kw_only=True)
class Outer(RunSettings):
    verb = "try"
    name: str = "x"
    text: str = ""
    inner: Inner = field(default_factory=Inner)  # a group

    @property
    def steps(self):
        return 1


def test_any_values_are_read_back(tmp_path):
    rng = random.Random(0)
    words = ["on", "null", "1e3", "", "- a", "a: b", "# no", "yes", "007", ".5", "[x]", "{", "'", '"', "a\\n", "\t", ""]
    for _ in range(40):
        text = (
            "".join(rng.choices(string.printable + "äß漢🦊\x9b\x7f\u202e", k=rng.randrange(12)))
            .replace("$", "")
            .lstrip("~")
        )
        inner = Inner(
            words=tuple(rng.choices(words, k=3)), rates={rng.choice(words): 10 ** rng.uniform(-9, 9)} if text else {}
        )
        config = Outer(text=text, inner=inner, seed=rng.randrange(9), gradient_clip=rng.choice([None, 1e-9, 3.0]))
        save_config(config, tmp_path / "a.yaml")
        assert load_config(Outer, tmp_path / "a.yaml") == config
        full = in_full(Outer, str(tmp_path / "a.yaml"), ["watch_every=5"])
        assert max(len(line) for line in full.splitlines() if " # " in line or line.lstrip().startswith("# ")) <= WIDTH
        (tmp_path / "b.yaml").write_text(full)
        again = load_config(Outer, tmp_path / "b.yaml")
        assert again.watch_every == 5 and (again.text, again.inner) == (config.text, config.inner)
