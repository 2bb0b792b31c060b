"""Every setting of a configuration: its key, its default, and the comment that stands with it in the source."""

import ast
import dataclasses
import inspect
import io
import json
import textwrap
import tokenize
import typing
from functools import cache
from typing import Any

from ddt_apps.run.config import fields_of

NARROWEST = 40  # columns for comments, however narrow the terminal is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A setting as `key=value` names it."""

    name: str
    default: str  # as it would be written; "" for a group
    comment: str


def keys_of(cls: type) -> list[Key]:
    """Return all settings of a dataclass, those of its groups included, in the order of the source.

    A field's comment is the one at the end of its line, else the lines above it, else that of the class it is inherited
    from; the choices of a `Literal` stand behind it in brackets.
    """
    keys = []
    for name, owner, field, default in fields_of(cls):
        choices = typing.get_args(typing.get_type_hints(owner)[field.name])
        written = [f"[{', '.join(choices)}]"] if choices and all(isinstance(each, str) for each in choices) else []
        comment = " ".join([_comments_of(owner).get(field.name, ""), *written]).strip()
        keys.append(Key(name=name, default=_written(default), comment=comment))
    return keys


@cache
def _comments_of(cls: type) -> dict[str, str]:
    found = {}
    for each in reversed(cls.__mro__):
        if "__annotations__" in each.__dict__:
            found |= _comments(textwrap.dedent(inspect.getsource(each)))
    return found


def _comments(source: str) -> dict[str, str]:
    lines = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above = node.lineno - 1
            while above in said and lines[above - 1].lstrip().startswith("#"):
                above -= 1
            comment = said.get(node.end_lineno) or " ".join(said[line] for line in range(above + 1, node.lineno))
            if comment:
                found[node.target.id] = comment
    return found


def table(keys: list[Key], width: int) -> str:
    """Lay keys out in columns: key, default, comment; comments are broken to fit `width`."""
    name_width = max(len(key.name) for key in keys) + 2
    value_width = min(20, max(len(key.default) for key in keys)) + 2
    indent = " " * (name_width + value_width)
    wrapper = textwrap.TextWrapper(
        max(width, len(indent) + NARROWEST), subsequent_indent=indent, break_long_words=False
    )
    lines = []
    for key in keys:
        wrapper.initial_indent = f"{key.name:<{name_width}}{key.default:<{value_width}}"
        lines += wrapper.wrap(key.comment) or [wrapper.initial_indent.rstrip()]
    return "\n".join(lines)


def _written(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "(needed)"
    if dataclasses.is_dataclass(default):
        return ""
    return default if isinstance(default, str) and default else json.dumps(default, default=str)
