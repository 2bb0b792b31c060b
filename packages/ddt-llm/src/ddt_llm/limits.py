# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/limits.py
"""What settings may be, checked where they are declared: words, numbers that are finite, and their ranges."""

import operator
import types
from functools import cache
from math import inf
from numbers import Integral, Real
from reprlib import repr as short
from sys import float_info
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
FiniteFloat = Annotated[float, Interval(gt=-inf, lt=inf)]
Share = Annotated[float, Interval(ge=0, le=1)]
Decay = Annotated[float, Interval(ge=0, lt=1)]  # of a moving average
Depth = Annotated[int, Interval(ge=1, le=1024)]  # layers; a config.json from elsewhere may name any number
Pixels = Annotated[int, Interval(ge=1, le=16_384)]  # a side of a picture
Tokens = Annotated[int, Interval(ge=1, le=65_536)]  # of an image, K
Seed = Annotated[int, Interval(ge=0, lt=2**63)]

BOUNDS = {
    Ge: ("at least", operator.ge),
    Gt: ("above", operator.gt),
    Le: ("at most", operator.le),
    Lt: ("below", operator.lt),
}
KINDS = {int: "a whole number of at most 64 bits", float: "a finite number", bool: "true or false", str: "text"}


def check_settings(config: Any) -> None:
    """Refuse values of a dataclass that its annotations do not allow; call it in `__post_init__`.

    A `Literal` takes one of its values, a number has to be finite and in the range that `Annotated` declares, and
    everything has its declared type: `True` is no number. Tuples, lists and dicts are checked item by item.

    Raises:
        ValueError: If a value is not allowed; names the setting, its value and what is.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Config:
        ...     attention: Literal["joint", "one_way"] = "joint"
        ...     decays: tuple[Annotated[float, Ge(0), Lt(1)], ...] = (0.9, 0.99)
        >>> check_settings(Config(attention="oneway"))
        Traceback (most recent call last):
        ValueError: attention ('oneway') must be joint or one_way
        >>> check_settings(Config(decays=(0.9, 1.5)))
        Traceback (most recent call last):
        ValueError: decays[1] (1.5) must be at least 0 and below 1
    """
    given = vars(config)  # sizes that follow from other settings are not there yet
    for name, kind in _hints(type(config)).items():
        if name in given:
            check_setting(name, kind, given[name])


def check_setting(name: str, kind: Any, value: Any) -> None:
    """Refuse a value that a type does not allow, as `check_settings` does.

    Example:
        >>> check_setting("seed", Seed, -1)
        Traceback (most recent call last):
        ValueError: seed (-1) must be at least 0 and below 9223372036854775808
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        check_setting(name, arguments[0], value)
        if not all(BOUNDS[bound][1](value, limit) for bound, limit in _bounds(kind)):
            raise ValueError(f"{name} ({short(value)}) must be {range_of(kind)}")
    elif origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} ({short(value)}) must be {' or '.join(map(str, arguments))}")
    elif origin in (Union, types.UnionType):
        fitting = [each for each in arguments if isinstance(value, _outer(each))]
        check_setting(name, [*fitting, *arguments][0], value)
    elif origin in (tuple, list):
        alike = origin is list or arguments[-1] is ...
        if not isinstance(value, tuple | list) or not (alike or len(value) == len(arguments)):
            raise ValueError(f"{name} ({short(value)}) must be a list{'' if alike else f' of {len(arguments)}'}")
        for i, item in enumerate(value):
            check_setting(f"{name}[{i}]", arguments[0 if alike else i], item)
    elif origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} ({short(value)}) must be names with their values")
        for key, item in value.items():
            check_setting(f"{name}[{key}]", arguments[1], item)
    elif isinstance(kind, type) and not _is(kind, value):
        raise ValueError(f"{name} ({short(value)}) must be {KINDS.get(kind) or kind.__name__}")


def range_of(kind: Any) -> str:
    """Return in words what a type asks of a number; nothing if it declares no range.

    Example:
        >>> range_of(Share), range_of(int | None)
        ('at least 0 and at most 1', '')
    """
    return " and ".join(f"{BOUNDS[bound][0]} {limit}" for bound, limit in _bounds(kind) if abs(limit) != inf)


def _bounds(kind: Any) -> list[tuple[type, float]]:
    parts = [list(part) if isinstance(part, GroupedMetadata) else [part] for part in getattr(kind, "__metadata__", ())]
    return [(type(each), getattr(each, type(each).__name__.lower())) for part in parts for each in part]


def _outer(kind: Any) -> type | tuple[type, ...]:
    """Return what an instance of a type is one of, whatever it holds."""
    if get_origin(kind) is Annotated:
        return _outer(get_args(kind)[0])
    kind = get_origin(kind) or kind
    return {int: Integral, float: Real, tuple: (tuple, list), Literal: str}.get(kind, kind)


def _is(kind: type, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, Integral) and -(2**63) <= value < 2**63
    if kind is float:
        return isinstance(value, Real) and abs(value) <= float_info.max  # which NaN is not either
    return isinstance(value, kind)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
