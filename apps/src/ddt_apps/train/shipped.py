"""Configurations by name: whose they are, and what the shipped ones say of themselves."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddt_apps.run.config import fields_of, find_config, shipped
from ddt_apps.run.settings import RunSettings
from ddt_apps.run.yaml_file import read_yaml
from ddt_apps.train.settings import SETTINGS


def settings_of(source: str) -> type[RunSettings]:
    """Return the settings that a configuration is of: those that know most of its keys.

    Where several know as many, the name decides, as in `tiny/sft`.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If it may be of several verbs.

    Example:
        >>> settings_of("small/drawings").verb, settings_of("tiny/sft").verb
        ('train-tokenizer', 'sft')
    """
    keys = set(_keys_of(read_yaml(find_config(source))))
    known = {cls: len(keys & {name for name, *_ in fields_of(cls)}) for cls in SETTINGS.values()}
    best = [cls for cls in known if known[cls] == max(known.values())]
    named = [cls for cls in best if Path(source).stem == cls.verb.removeprefix("train-")]
    if len(best) > 1 and not named:
        choices = " or ".join(f"ddt {cls.verb} {source} --print-config" for cls in best)
        raise ValueError(f"configuration {source!r} may be of several verbs; choose: {choices}")
    return (named or best)[0]


def titles() -> str:
    """List the shipped configurations: name, verb, and the first sentence of what each says of itself.

    Example:
        >>> titles().splitlines()[-2]
        'tiny/sft              sft              Edits, questions, drawing and describing, from the pretrained model.'
    """
    lines = []
    for name in shipped():
        said = re.match(r"(?:#.*\n)*", find_config(name).read_text(encoding="utf-8"))[0]
        sentence = re.split(r"(?<=\.) |;", " ".join(said.replace("#", "").split()))[0]
        lines.append(f"{name:<22}{settings_of(name).verb:<17}{sentence}")
    return "\n".join(lines)


def _keys_of(values: dict[str, Any], where: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{where}{name}"
        if isinstance(value, dict):
            yield from _keys_of(value, f"{where}{name}.")
