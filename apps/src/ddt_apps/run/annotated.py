"""A configuration in full, as YAML: every setting with its value, and the comment that stands with it in the source."""

import dataclasses
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ddt_apps.run.config import find_config, load_config
from ddt_apps.run.keys import comment_of
from ddt_apps.run.settings import RunSettings
from ddt_apps.run.terminal import harmless
from ddt_apps.run.yaml_file import read_yaml

WIDTH = 120  # columns, beyond which a comment stands above its setting
PLAIN = re.compile(r"(?!(?:on|off|yes|no|true|false|null)$)[a-z/][\w./-]*", re.IGNORECASE)  # what YAML reads as text


def in_full(cls: type[RunSettings], source: str, overrides: list[str], upgraded: Callable[[dict], dict] = dict) -> str:
    """Return a configuration of the verb that has the settings `cls`, in full; `load_config` reads it back.

    What has to be given and is not, such as the data, stands in it as a comment.

    Args:
        upgraded: Renames what an older version wrote, of the config.yaml of a run.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If a setting is unknown or wrong.
    """
    given = read_yaml(find_config(source), overrides)
    wanted = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in given
    }
    config = load_config(cls, source, [*overrides, *(f"{name}=needed" for name in wanted)], upgraded)
    command = " ".join(" ".join([cls.verb, source, *overrides]).split())
    lines = [f"# ddt {command}", *_lines(config, wanted=wanted)]
    return harmless("\n".join(lines)) + "\n"  # whose escapes are YAML's, too


def _lines(
    config: Any, indent: str = "", wanted: Collection[str] = (), following: Collection[str] = ()
) -> Iterator[str]:
    for field in dataclasses.fields(config):
        if not field.init or field.name in following:
            continue
        value, comment = getattr(config, field.name), comment_of(type(config), field.name)
        group = dataclasses.is_dataclass(value)
        line = f"{indent}{field.name}:" if group else f"{indent}{field.name}: {_written(value)}"
        if field.name in wanted:
            line = f"# {field.name}: needed"
        if comment and len(line) + len(comment) + 3 > WIDTH:
            yield from textwrap.wrap(comment, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            yield line
        else:
            yield f"{line}  # {comment}" if comment else line
        if group:
            yield from _lines(value, f"{indent}  ", following=field.metadata.get("follows", ()))


def _written(value: Any) -> str:
    text = isinstance(value, str) and PLAIN.fullmatch(value)
    return value if text else json.dumps(value, default=str, ensure_ascii=False)
