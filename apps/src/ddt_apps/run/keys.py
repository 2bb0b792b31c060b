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
from typing import Any, NamedTuple

from ddt_apps.run.config import fields_of
from ddt_tokenizer.limits import range_of

NARROWEST = 40  # columns for comments, however narrow the terminal is


class Key(NamedTuple):
    """A setting as `key=value` names it, its default as it would be written, and its comment."""

    name: str
    default: str
    comment: str


def keys_of(cls: type) -> list[Key]:
    """Return all settings of a dataclass, those of its groups included, in the order of the source.

    A field's comment is the one at the end of its line, else the lines above it, else that of the class it is inherited
    from; the choices of a `Literal` or the range of a number stand behind it in brackets.
    """
    keys = []
    for name, owner, field, default in fields_of(cls):
        keys.append(Key(name, _written(default) if field.init else "(follows)", comment_of(owner, field.name)))
    return keys


def comment_of(cls: type, name: str) -> str:
    """Return the comment of a field of a dataclass, as `keys_of` does; "" if there is none."""
    kind = typing.get_type_hints(cls, include_extras=True)[name]
    words = [each for each in typing.get_args(kind) if isinstance(each, str)]
    words += [limits for each in (kind, *typing.get_args(kind)) if (limits := range_of(each))]
    return f"{_comments(cls).get(name, '')} [{', '.join(words)}]".removesuffix(" []").lstrip()


def table(keys: list[Key], width: int) -> str:
    """Lay keys out in columns: key, default, comment; comments are broken to fit `width`."""
    names, defaults = max(len(key.name) for key in keys) + 2, min(20, max(len(key.default) for key in keys)) + 2
    room = max(width, names + defaults + NARROWEST)
    wrapper = textwrap.TextWrapper(room, subsequent_indent=" " * (names + defaults), break_long_words=False)
    lines = []
    for key in keys:
        wrapper.initial_indent = f"{key.name:<{names}}{key.default:<{defaults}}"
        lines += wrapper.wrap(key.comment) or [wrapper.initial_indent.rstrip()]
    return "\n".join(lines)


@cache
def _comments(cls: type) -> dict[str, str]:
    found = {}
    for each in [each for each in reversed(cls.__mro__) if "__annotations__" in each.__dict__]:
        source = textwrap.dedent(inspect.getsource(each))
        lines, tokens = source.splitlines(), tokenize.generate_tokens(io.StringIO(source).readline)
        said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for node in [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]:
            above = node.lineno
            while lines[above - 2].lstrip().startswith("#"):
                above -= 1
            comment = said.get(node.end_lineno) or " ".join(said[line] for line in range(above, node.lineno))
            found |= {node.target.id: comment} if comment else {}
    return found


def _written(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "(needed)"
    if dataclasses.is_dataclass(default):
        return ""
    return default if isinstance(default, str) and default else json.dumps(default, default=str)
