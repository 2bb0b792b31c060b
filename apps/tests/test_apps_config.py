"""Configuration: conversion, overrides, and messages that help."""

import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from ddt_apps.run.config import first_difference, load_config, save_config
from ddt_apps.run.folder import Run
from ddt_apps.run.yaml_file import read_yaml
from ddt_apps.train.settings import Pretrain, TrainRenderer, TrainTokenizer, Tune
from ddt_decoder import DecoderConfig
from ddt_tokenizer import TokenizerConfig


@dataclass(frozen=True)
class Encoder:
    width: int = 64
    depth: int = 2
    kind: Literal["dual", "joint"] = "dual"


@dataclass(frozen=True)
class Data:
    folder: Path
    limit: int | None = None


@dataclass(frozen=True)
class Train:
    data: Data
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    nouns: tuple[str, ...] = ("fox",)
    encoder: Encoder = field(default_factory=lambda: Encoder(depth=5))
    teacher: Encoder | None = None
    device: str = "auto"
    compile: bool = False

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr ({self.lr}) must be above 0")


@pytest.fixture
def yaml(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("data:\n  folder: shards\nlr: 1\nnouns: [fox, bell]\n")
    return path


def test_yaml_and_overrides_become_a_frozen_dataclass(yaml):
    config = load_config(Train, yaml, ["encoder.width=8", "betas=[0.5,0.6]", "data.limit=3", "lr=3e-4"])
    assert config == Train(
        Data(Path("shards"), 3), 3e-4, (0.5, 0.6), ("fox", "bell"), Encoder(width=8, depth=5), None, "auto", False
    )


def test_a_partial_group_keeps_the_other_defaults_of_its_owner(yaml):
    assert load_config(Train, yaml, ["encoder.kind=joint"]).encoder == Encoder(depth=5, kind="joint")


def test_optional_group_is_built_when_given(yaml):
    assert load_config(Train, yaml, ["teacher.depth=9"]).teacher == Encoder(depth=9)
    assert load_config(Train, yaml, ["teacher=null"]).teacher is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.dept=3", "unknown key 'encoder.dept'; did you mean 'encoder.depth'?"),
        ("depth=3", "unknown key 'depth'; did you mean 'encoder.depth'?"),
        ("zzz=3", "unknown key 'zzz'; known: data, lr, "),
        ("encoder.kind=dul", "encoder.kind must be one of 'dual', 'joint', not 'dul'; did you mean 'dual'?"),
        ("encoder.depth=deep", "encoder.depth must be a whole number, not 'deep'"),
        ("encoder.depth=true", "encoder.depth must be a whole number, not True"),
        ("encoder=3", "encoder must be a group of settings (width, depth, kind), not 3"),
        ("betas=[1.0]", "betas must hold 2 values, not 1"),
        ("betas=[1.0,x]", "betas[1] must be a number, not 'x'"),
        ("compile=1", "compile must be true or false, not 1"),
        ("lr=-1", "lr (-1.0) must be above 0"),
        ("lr", "override 'lr' has no '='; write key=value"),
        ("lr=${nothing}", "cannot read the configuration"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(yaml, override, message):
    with pytest.raises(ValueError) as error:
        load_config(Train, yaml, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match=r"lacks 'data'"):
        load_config(Train, None)


def test_unknown_key_in_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("data: {folder: a, limt: 3}")
    with pytest.raises(ValueError, match=r"unknown key 'data.limt'; did you mean 'data.limit'\?"):
        load_config(Train, tmp_path / "bad.yaml")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration 'nowhere'; shipped configurations:"):
        load_config(Train, "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no configuration .*gone\.yaml"):
        load_config(Train, tmp_path / "gone.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match=r"cannot read the configuration .*broken\.yaml"):
        load_config(Train, tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="key: value"):
        load_config(Train, tmp_path / "list.yaml")


def test_saved_config_reads_back_equal(yaml, tmp_path):
    config = load_config(Train, yaml, ["lr=1e-5", "teacher.depth=9"])
    save_config(config, tmp_path / "deep" / "config.yaml")
    assert load_config(Train, tmp_path / "deep" / "config.yaml") == config


def test_interpolation_is_resolved(yaml):
    config = load_config(Train, yaml, ["encoder.width=7", "encoder.depth=${encoder.width}"])
    assert config.encoder.depth == 7


def test_first_difference_names_the_innermost_key(yaml):
    old, new = load_config(Train, yaml), load_config(Train, yaml, ["encoder.width=7"])
    assert first_difference(old, new) == ("encoder.width", 64, 7)
    assert first_difference(old, old) is None


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    side: int = 1
    rounded: float = 0.0


@dataclass(frozen=True)
class Polygon:
    kind: Literal["polygon"] = "polygon"
    angles: tuple[int, ...] = ()
    corners: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "corners", len(self.angles))


@dataclass(frozen=True)
class Drawing:
    shape: Square | Polygon = field(default_factory=lambda: Square(side=3))


def test_the_kind_says_which_of_several_dataclasses_is_meant(tmp_path):
    assert load_config(Drawing, None, ["shape.rounded=1"]).shape == Square(side=3, rounded=1.0)
    polygon = load_config(Drawing, None, ["shape.kind=polygon", "shape.angles=[60,60,60]"])
    assert polygon.shape == Polygon(angles=(60, 60, 60)) and polygon.shape.corners == 3
    save_config(polygon, tmp_path / "config.yaml")
    assert load_config(Drawing, tmp_path / "config.yaml") == polygon  # what follows is written, and read if it is right


def test_a_config_with_the_settings_of_all_kinds_loads(tmp_path):
    (tmp_path / "old.yaml").write_text("shape: {kind: polygon, side: 1, rounded: 0, corners: 1, angles: [9]}")
    assert load_config(Drawing, tmp_path / "old.yaml").shape == Polygon(angles=(9,))
    (tmp_path / "old.yaml").write_text("shape: {side: 2, angles: []}")
    assert load_config(Drawing, tmp_path / "old.yaml").shape == Square(side=2)


EARLIER = "decay: 0.99, commitment: 1.0, dead_share: 0.2, diversity: 0.0, replacement: worst, revived_share: 1.0"


@pytest.mark.parametrize(
    ("settings", "quantizer"),
    [
        ("kind: vq, codebook_size: 512, code_width: 16, levels: [], rate: 0.1", {"code_width": 16, "rate": 0.1}),
        ("kind: fsq, codebook_size: 60, code_width: 3, levels: [5, 4, 3], rate: 0.0", {"levels": (5, 4, 3)}),
        ("kind: lfq, codebook_size: 16, code_width: 4, levels: [], rate: 0.0", {"code_width": 4}),
    ],
    ids=["vq", "fsq", "lfq"],
)
def test_quantizers_of_earlier_runs_load(settings, quantizer, tmp_path):
    (tmp_path / "config.yaml").write_text(f"quantizer: {{{settings}, {EARLIER}}}")
    found = load_config(TokenizerConfig, tmp_path / "config.yaml").quantizer
    assert found == type(found)(**quantizer) and found.kind in settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shape.kind=squar"], "shape.kind must be one of 'square', 'polygon', not 'squar'; did you mean 'square'?"),
        (["shape.kind=polygon", "shape.side=3"], "shape.side is for kind=square, not for kind=polygon; remove it"),
        (["shape.angles=[9]"], "shape.angles is for kind=polygon, not for kind=square; remove it"),
        (["shape.kind=polygon", "shape.angle=[9]"], "unknown key 'shape.angle'; did you mean 'shape.angles'?"),
        (["shape.kind=polygon", "shape.corners=4"], "shape.corners is 0, which follows from other settings, not 4"),
        (["shape=3"], "shape must be a group of settings"),
    ],
)
def test_a_setting_of_another_kind_is_named(overrides, message):
    with pytest.raises(ValueError) as error:
        load_config(Drawing, None, overrides)
    assert message in str(error.value)


BEFORE = {
    "tokenizer": (
        TrainTokenizer,
        "codec.encoder.width=16 codec.encoder.depth=1 codec.encoder.num_heads=2 "
        "codec.quantizer.codebook_size=32 codec.network.width=16 "
        "codec.network.depth=2 codec.network.num_heads=2 training.optimizer.steps=20 "
        "training.optimizer.warmup_steps=2 training.continuous_steps=4 batch_size=4 held_out=3 watch_every=5 "
        "data=data name=tok",
    ),
    "renderer": (
        TrainRenderer,
        "data=data tokenizer=runs/tok steps=20 batch_size=4 held_out=3 watch_every=5 training.discriminator_width=8 "
        "training.second_phase_step=10 training.second_phase=[0.5,0.5] name=ren",
    ),
    "pretrain": (
        Pretrain,
        "llama.width=32 llama.depth=1 llama.num_heads=2 text_vocabulary=400 data=ids optimizer.steps=20 "
        "optimizer.warmup_steps=2 batch_size=8 watch_every=6 name=pre",
    ),
    "sft": (
        Tune,
        "data=ids optimizer.steps=20 optimizer.warmup_steps=2 batch_size=8 watch_every=6 model=runs/pre name=sft "
        "retention_limit=99",
    ),
}


@pytest.mark.parametrize("verb", BEFORE)
def test_a_run_of_an_earlier_version_goes_on_with_the_same_command(verb, tmp_path):
    """`configs_before` holds config.yaml as commit b0c4d17 wrote it."""
    cls, overrides = BEFORE[verb]
    shutil.copy(Path(__file__).parent / "configs_before" / f"{verb}.yaml", tmp_path / "config.yaml")
    Run(tmp_path, load_config(cls, f"tiny/{verb}", overrides.split()))
    with pytest.raises(ValueError, match="was started with seed=0, not 1"):
        Run(tmp_path, load_config(cls, f"tiny/{verb}", [*overrides.split(), "seed=1"]))


@pytest.mark.parametrize("side", [4, None])
def test_a_run_whose_halves_told_their_start_each_goes_on(side, tmp_path):
    at = "codec.start=grid" if side else "codec.start=null"
    settings = load_config(TrainTokenizer, "tiny/tokenizer", ["data=data", at])
    save_config(settings, tmp_path / "config.yaml")
    written = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    del written["codec"]["start"]
    written["codec"]["encoder"]["start_grid"] = written["codec"]["network"]["token_grid"] = side
    OmegaConf.save(OmegaConf.create(written), tmp_path / "config.yaml")
    Run(tmp_path, settings)
    other = load_config(TrainTokenizer, "tiny/tokenizer", ["data=data", "codec.start=haar"])
    with pytest.raises(ValueError, match=r"was started with codec.start=(grid|None), not haar"):
        Run(tmp_path, other)


@pytest.mark.parametrize(
    ("setting", "named"), [("accumulate=2", "set batch_size"), ("gradient_clip=1", "training.grad")]
)
def test_what_a_renderer_decides_itself_is_refused(setting, named):
    with pytest.raises(ValueError, match=named):
        load_config(TrainRenderer, "tiny/renderer", ["data=data", "tokenizer=runs/first", setting])


def test_sizes_of_tokenizer_and_decoder_are_said_once(tmp_path):
    """Whatever sizes are given, both halves have them, and config.yaml says each once."""
    rng = random.Random(0)
    for _ in range(5):
        size, k, v, d = 8 * rng.randint(2, 6), rng.randint(2, 9), rng.randint(8, 99), rng.randint(2, 9)
        settings = [f"codec.image_size={size}", f"codec.schedule=[{k - 1},1]", "codec.encoder.patch_size=8"]
        settings += [f"codec.quantizer.codebook_size={v}", f"codec.quantizer.code_width={d}"]
        config = load_config(TrainTokenizer, "tiny/tokenizer", ["data=data", *settings])
        tokenizer, decoder = config.codec.tokenizer, config.codec.decoder
        assert (tokenizer.image_size, tokenizer.encoder.num_tokens) == (decoder.image_size, sum(decoder.schedule))
        assert (tokenizer.quantizer.codebook_size, tokenizer.quantizer.code_width) == (v, d)
        assert (decoder.codebook_size, decoder.network.token_width, sum(decoder.schedule)) == (v, d, k)
        save_config(config, tmp_path / "config.yaml")
        assert load_config(TrainTokenizer, tmp_path / "config.yaml") == config
        assert "num_tokens" not in (tmp_path / "config.yaml").read_text()
    fsq = ["codec.quantizer.kind=fsq", "codec.quantizer.levels=[5,4,3]", "codec.latents.channels=4", "data=data"]
    codec = load_config(TrainTokenizer, "tiny/tokenizer", [*fsq, "codec.latents.downscale=1"]).codec
    assert (codec.decoder.codebook_size, codec.network.token_width, codec.network.channels) == (60, 3, 4)


def test_a_preset_is_what_its_other_keys_change():
    config = load_config(
        TrainTokenizer, None, ["data=data", "codec.preset=selftok-512", "codec.flow.token_dropout=0.2"]
    )
    assert config.codec.tokenizer == TokenizerConfig.selftok_512()
    assert config.codec.flow == replace(DecoderConfig.selftok_512().flow, token_dropout=0.2)
    with pytest.raises(ValueError, match=r"preset \('smal'\) must be one of tiny, small, ddt-480"):
        load_config(TrainTokenizer, None, ["data=data", "codec.preset=smal"])


def test_nothing_outside_the_file_gets_in(tmp_path, monkeypatch):
    """Resolvers of OmegaConf, however they are written, stay unread."""
    monkeypatch.setenv("A_SECRET", "s3cret")
    (tmp_path / "elsewhere.txt").write_text("s3cret")
    for text in (
        "${oc.env:A_SECRET}",
        "runs-${oc.env:A_SECRET}",
        "${ oc.env : A_SECRET }",
        "${oc.env:NOTHING,${oc.env:A_SECRET}}",
        "${${kind}:A_SECRET}",
        "$${oc.env:A_SECRET}",
        "${oc.decode:'1'}",
        "${oc.select:lr}",
        "${oc.dict.keys:encoder}",
        "${oc.create:{a: 1}}",
        "${oc.deprecated:lr}",
        "${encoder}",
        "${.lr}",
        "${missing}",
    ):
        (tmp_path / "a.yaml").write_text(f"kind: oc.env\nlr: 0.1\nencoder: {{width: 8}}\ndata: {{folder: {text!r}}}\n")
        with pytest.raises(ValueError, match="cannot read the configuration") as error:
            read_yaml(tmp_path / "a.yaml")
        assert "s3cret" not in str(error.value) and "\n" not in str(error.value)


def test_references_to_plain_settings_are_resolved_once(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: 0.5, c: x}\nd: '${a.b}'\ne: 'run-${a.c}-${ a.b }'\nf: ['${a.b}', $1]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 0.5, "c": "x"}, "d": 0.5, "e": "run-x-0.5", "f": [0.5, "$1"]}
    doubled = "a0: " + "x" * 100 + "\n" + "".join(f"a{i + 1}: '${{a{i}}}${{a{i}}}'\n" for i in range(40))
    (tmp_path / "a.yaml").write_text(doubled)
    with pytest.raises(ValueError, match=r"a2 may name plain settings only"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "a: " + "{b: " * 5000,
        "".join(" " * depth + "a:\n" for depth in range(600)),
        "- " * 50_000,
        "a: &a [*a]",
        "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
        "a: &a {b: 1}\n" + "".join(f"a{i}: {{<<: *a, c: [*a, *a, *a, *a]}}\n" for i in range(2000)),
        "a: " + "9" * 50_000,
        "a: \x00",
        "just words: [",
        "7",
        "[1, 2]",
        "!!python/object/apply:os.getcwd []",
    ],
)
def test_a_file_that_would_not_end_is_refused_at_once(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml") as error:
        load_config(Train, tmp_path / "a.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["- a\n- b\n", "- {lr: 0.1}\n", "5\n"])
@pytest.mark.parametrize("overrides", [[], ["lr=0.1"]])
def test_a_file_without_settings_is_refused_with_and_without_overrides(tmp_path, text, overrides):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"list\.yaml.*"):
        read_yaml(tmp_path / "list.yaml", overrides)
