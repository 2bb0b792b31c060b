"""Every setting of every package has a range where it is declared, and what is outside is refused by its name."""

import dataclasses
import math
import random
import re
import types
import typing
from types import SimpleNamespace

import pytest
import torch

from ddt_apps.demo.settings import Demo
from ddt_apps.evaluation import answers, captions, edits, language, reconstruction, scenes
from ddt_apps.run.config import SHIPPED, fields_of, load_config
from ddt_apps.train.settings import SETTINGS
from ddt_data import PackConfig, SceneConfig, SceneGenerator
from ddt_decoder import DecoderConfig
from ddt_llm.generation import Choice, Request, Sampling
from ddt_llm.training import LanguageModelTraining
from ddt_llm.vocabulary import VisualVocabulary
from ddt_tokenizer import TokenizerConfig
from ddt_tokenizer.every_steps import EverySteps
from ddt_tokenizer.limits import FiniteFloat, PositiveInt, check_setting
from ddt_tokenizer.training import TokenizerTraining

ROOTS = [*SETTINGS.values(), TokenizerConfig, DecoderConfig, PackConfig, SceneConfig, Demo]
ROOTS += [each.Settings for each in (answers, captions, edits, language, reconstruction, scenes)]
ROOTS += [Choice, Sampling, Request, VisualVocabulary]
NEEDED = {
    "data": "a",
    "tokenizer": "a",
    "model": "a",
    "prompt": [1],
    "text_size": 9,
    "codebook_size": 9,
    "num_tokens": 9,
    "steps": 9,
    "levels": (3, 3),
}


def hints(cls):
    return typing.get_type_hints(cls, include_extras=True)


def parts(kind):
    """The types that a type is made of, those with a range whole."""
    if typing.get_origin(kind) is typing.Annotated or not typing.get_args(kind):
        return [kind]
    return [part for each in typing.get_args(kind) for part in parts(each)]


def classes(cls, found):
    """A dataclass and all that its fields hold."""
    if dataclasses.is_dataclass(cls) and cls not in found:
        found.append(cls)
        for kind in hints(cls).values():
            for part in parts(kind):
                classes(part, found)
    return found


CLASSES = []
for root in ROOTS:
    classes(root, CLASSES)


def given(verb):
    """The settings that have to be given."""
    needed = {"train-renderer": ("data", "tokenizer"), "rl": ("model",)}
    needed |= dict.fromkeys(("sft", "adapt"), ("data", "model"))
    return [f"{name}=a" for name in needed.get(verb, ("data",))]


def example(cls):
    """An instance with nothing but defaults."""
    needed = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name == "levels"
        or (field.init and (field.default, field.default_factory) == (dataclasses.MISSING, dataclasses.MISSING))
    ]
    return cls(**{name: NEEDED[name] for name in needed})


def outside(kind):
    """Values that are not of a type: of each of its bounds a little beyond, no number at all, and no whole one."""
    number = typing.get_args(kind)[0]
    limits = dict.fromkeys(("ge", "gt", "le", "lt"))
    for part in kind.__metadata__:
        limits |= {name: getattr(part, name) for name in limits if getattr(part, name, None) is not None}
    step = 1 if number is int else 1e-6
    below = [limits["ge"] - step] if limits["ge"] is not None else []
    below += [limits["gt"], limits["gt"] - step] if limits["gt"] is not None else []
    above = [limits["le"] + step] if limits["le"] is not None else []
    above += [limits["lt"]] if limits["lt"] is not None else []
    odd = [math.nan, math.inf, -math.inf, True, "3", 10**400, -(10**400), [1], *([2.5, 2**80] if number is int else [])]
    return [*below, *above, *odd]


def placed(kind, part, value, usual):
    """What a field of a type holds with a value in the place of one part of the type; `usual` for its other items."""
    inner = typing.get_args(kind)
    if kind == part:
        return value
    if typing.get_origin(kind) is list:
        return [value]
    if typing.get_origin(kind) is dict:
        return {"a": value}
    if typing.get_origin(kind) is not tuple:
        return placed(next(each for each in inner if part in parts(each)), part, value, usual)
    if inner[-1] is ...:
        return (value,)
    return tuple(value if i == inner.index(part) else (usual or (0.5, 0.5))[i] for i in range(len(inner)))


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__module__ + "." + cls.__name__ for cls in CLASSES])
def test_every_number_declares_its_range(cls):
    for name, kind in hints(cls).items():
        assert not {int, float} & set(parts(kind)), f"{cls.__name__}.{name} ({kind}): declare its range, see limits.py"


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__module__ + "." + cls.__name__ for cls in CLASSES])
def test_what_is_outside_is_refused_by_name(cls):
    whole = example(cls)
    for field in dataclasses.fields(cls):
        kind = hints(cls)[field.name]
        for part in parts(kind) if field.init else []:
            if typing.get_origin(part) is not typing.Annotated:
                continue
            for value in outside(part):
                if str in parts(kind) and isinstance(value, str):  # `precision` is a word or a number
                    continue
                with pytest.raises(ValueError, match=rf"^{field.name}\b"):
                    dataclasses.replace(whole, **{field.name: placed(kind, part, value, getattr(whole, field.name))})


@pytest.mark.parametrize("verb", SETTINGS)
def test_a_refusal_begins_with_the_dotted_key(verb):
    cls = SETTINGS[verb]
    needed, tried, rng = given(verb), 0, random.Random(0)
    for key, owner, field, _ in fields_of(cls):
        kinds = [part for part in parts(hints(owner)[field.name]) if typing.get_origin(part) is typing.Annotated]
        plain = kinds and "tuple" not in str(hints(owner)[field.name]) and "dict" not in str(hints(owner)[field.name])
        if not plain or not field.init or key.startswith(("lora.", "codec.quantizer.")) or rng.random() < 0.3:
            continue
        value = ".nan" if typing.get_args(kinds[0])[0] is float else "-1"
        with pytest.raises(ValueError, match=rf"^{re.escape(key)} \((nan|-1)\) must be "):
            load_config(cls, None, [*needed, f"{key}={value}"])
        tried += 1
    assert tried > 10
    with pytest.raises(ValueError, match=r"^seed \(9223372036854775808\) must be "):
        load_config(cls, None, [*needed, f"seed={2**63}"])


@pytest.mark.parametrize("name", sorted(file.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob("*.yaml")))
def test_shipped_configurations_are_inside(name):
    verbs = {"renderer": "train-renderer", "one-card": "pretrain", "vae": "train-vae"}
    verbs |= {verb: verb for verb in ("pretrain", "sft", "adapt", "rl")}
    verb = verbs.get(name.split("/")[1][:-5], "train-tokenizer")
    assert load_config(SETTINGS[verb], name.removesuffix(".yaml"), given(verb)).steps > 0


@pytest.mark.parametrize(
    ("verb", "key", "message"),
    [
        ("train-renderer", "steps=0", r"steps \(0\) must be at least 1"),
        ("train-tokenizer", "accumulate=0", r"accumulate \(0\) must be at least 1"),
        ("train-tokenizer", "watch_every=0", r"watch_every \(0\) must be at least 1"),
        ("train-tokenizer", "gradient_clip=-0.5", r"gradient_clip \(-0\.5\) must be at least 0"),
        ("train-tokenizer", "codec.schedule=[0]", r"codec\.schedule in all \(0\) must be at least 1"),
        ("train-tokenizer", "training.optimizer.betas=[0.9,1.0]", r"training\.optimizer\.betas\[1\] \(1\.0\) must"),
        ("pretrain", "tasks.caption_dropout=1.5", r"tasks\.caption_dropout \(1\.5\) must be at least 0 and at most 1"),
        ("pretrain", "tasks={text_to_image: 0, image_to_text: 0, text_only: 0}", r"are all 0"),
        ("sft", "lora.rank=0", r"lora\.rank \(0\) must be at least 1"),
        ("sft", "lora.bits=8", r"lora\.bits must be one of 4, 32, not 8"),
        ("sft", "lora={bits: 4} strategy=fsdp2", r"strategy \(fsdp2\) shares out weights of 32 bits, not lora\.bits"),
        ("pretrain", "lora.bits=4", r"lora\.bits \(4\) are of pretrained weights, and backbone=tiny has none"),
        ("sft", "retention_limit=1", r"retention_limit \(1\.0\) must be above 1"),
    ],
)
def test_a_run_that_would_learn_nothing_is_refused(verb, key, message):
    with pytest.raises(ValueError, match=message):
        load_config(SETTINGS[verb], None, [*given(verb), *re.split(r" (?=\w+=)", key)])


def test_zero_still_means_off_where_it_did():
    load_config(SETTINGS["pretrain"], None, ["data=a", "row_length=0", "optimizer.warmup_steps=0", "gradient_clip=0"])
    load_config(SETTINGS["train-tokenizer"], None, ["data=a", "held_out=0", "training.continuous_steps=0", "workers=0"])


@pytest.mark.parametrize("module", [TokenizerTraining, LanguageModelTraining])
def test_a_step_has_a_seed_of_its_own_from_any_seed(module):
    """Small seeds give what they always gave; those that are dates work too."""

    def drawn(seed, step, rank=0, batches=1, batch=0):
        trainer = SimpleNamespace(accumulate_grad_batches=batches)
        state = SimpleNamespace(trainer=trainer, global_step=step, global_rank=rank, seed=seed)
        module.on_train_batch_start(state, None, batch)
        return torch.initial_seed()

    rng = random.Random(0)
    for _ in range(100):
        seed, step, rank = rng.randrange(10**6), rng.randrange(10**6), rng.randrange(8)
        of_rank = rank * 1_000_000_007 if module is LanguageModelTraining else 0  # others draw for rows, not for ranks
        assert drawn(seed, step, rank) == seed * 1_000_003 + step + of_rank
    large = [20261126012345, 2**40 + 1, 2**62, 2**63 - 1]
    assert len({drawn(seed, step) for seed in large for step in range(20)}) == 80


def test_seeds_of_scenes_and_answers_are_checked():
    config = SceneConfig.tiny()
    assert SceneGenerator(config, 20261126012345)[0] != SceneGenerator(config, 20261126012346)[0]
    for seed in (-1, 2**63, True, 1.0):
        with pytest.raises(ValueError, match=r"^seed "):
            SceneGenerator(config, seed)
        with pytest.raises(ValueError, match=r"^seed "):
            Request([1], seed)


def test_what_watches_every_none_steps_is_refused_at_the_start():
    watcher = EverySteps()
    for every in (0, -3, True, 2.0):
        watcher.every = every
        with pytest.raises(ValueError, match=r"^every "):
            watcher.on_train_start(SimpleNamespace(global_step=0), None)


def test_types_are_checked_inside_collections():
    for kind, right, wrong in (
        (tuple[PositiveInt, ...], [(), (1, 2), [3]], [3, "ab", (0,), (1, None)]),
        (tuple[FiniteFloat, FiniteFloat], [(1, 2.5)], [(1,), (1, 2, 3), (1, math.nan)]),
        (dict[str, PositiveInt], [{}, {"a": 1}], [[], {"a": 0}, "a"]),
        (PositiveInt | None, [None, 3], [0, "3", False]),
        (PositiveInt | tuple[PositiveInt, PositiveInt], [3, (1, 2)], [0, (0, 1), (1,), None]),
        (typing.Literal["a", "b"], ["a"], ["c", None, 1, ["a"]]),
        (bool, [True], [1, "true", None]),
        (str | None, ["", None], [1, b"a"]),
        (types.SimpleNamespace, [SimpleNamespace()], [{}]),
    ):
        for value in right:
            check_setting("it", kind, value)
        for value in wrong:
            with pytest.raises(ValueError, match=r"^it\b"):
                check_setting("it", kind, value)
