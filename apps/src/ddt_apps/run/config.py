"""Configuration: YAML plus `key=value` overrides in, frozen dataclasses out.

Defaults live in the dataclasses, so a YAML file holds only what differs. A name such as `tiny/tokenizer` means a file
that ships with this package (`configs/tiny/tokenizer.yaml`); anything ending in `.yaml` is a path. In a group whose
dataclass has a `from_preset`, the key `preset` names the values that the group's other keys then change.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ddt_apps.run.atomic import writing
from ddt_apps.run.home import at_home
from ddt_apps.run.yaml_file import read_yaml

SHIPPED = Path(__file__).parents[1] / "configs"
Config = TypeVar("Config")


def follows(kind: type, **sources: str) -> Any:
    """Return the field of a group some of whose settings are no settings: they follow from others of its owner.

    Args:
        kind: The dataclass of the group, whose defaults are the field's.
        sources: Of each setting that follows, the one to set in its place.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Encoder:
        ...     width: int = 8
        ...     channels: int = 3
        >>> @dataclasses.dataclass(frozen=True)
        ... class Model:
        ...     channels: int = 3
        ...     encoder: Encoder = follows(Encoder, channels="channels")
        >>> load_config(Model, None, ["encoder.channels=4"])
        Traceback (most recent call last):
        ValueError: encoder.channels follows from channels; set that
    """
    return dataclasses.field(default_factory=kind, metadata={"follows": sources})


def load_config(
    cls: type[Config],
    source: str | Path | None,
    overrides: list[str] | tuple[str, ...] = (),
    upgraded: Callable[[dict], dict] = dict,
) -> Config:
    """Build the dataclass `cls` from a YAML file and overrides.

    Args:
        cls: A dataclass; fields may be nested dataclasses, tuples, lists, dicts, Literals, Paths, `X | None`, and
            unions of dataclasses whose `kind`, a Literal of one word, tells them apart.
        source: Path of a `.yaml` file, the name of a shipped one, or None for the defaults alone.
        overrides: Such as `["lr=1e-3", "encoder.depth=4"]`; later ones win. A dict `short` of the class names keys that
            overrides may have in place of longer ones.
        upgraded: Renames what an older version wrote.

    Raises:
        FileNotFoundError: If `source` does not exist; names the shipped ones.
        ValueError: If a key is unknown (names the nearest), a value has the wrong type, or the YAML cannot be read.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Optimizer:
        ...     lr: float = 1e-3
        ...     betas: tuple[float, float] = (0.9, 0.99)
        >>> load_config(Optimizer, None, ["lr=3e-4"])
        Optimizer(lr=0.0003, betas=(0.9, 0.99))
        >>> load_config(Optimizer, None, ["beta=0"])
        Traceback (most recent call last):
        ValueError: unknown key 'beta'; did you mean 'betas'?
    """
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"override {override!r} has no '='; write key=value, for example steps=100")
    overrides = [_in_full(override, getattr(cls, "short", {})) for override in overrides]
    values = read_yaml("" if source is None else find_config(source), overrides)
    return _build(cls, upgraded(values), where="", root=cls)


def save_config(config: Any, path: str | Path) -> None:
    """Write a dataclass as YAML that `load_config` reads back to an equal one.

    Example:
        >>> import tempfile
        >>> @dataclasses.dataclass(frozen=True)
        ... class Data:
        ...     folder: Path = Path("shards")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_config(Data(Path("mine")), Path(folder) / "config.yaml")
        ...     load_config(Data, Path(folder) / "config.yaml").folder.name
        'mine'
    """
    from omegaconf import OmegaConf

    with writing(Path(path)) as file:
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(plain(config))))


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields in which two configs of one class differ: dotted name, and both values.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Steps:
        ...     steps: int
        >>> list(differences(Steps(10), Steps(20)))
        [('steps', 10, 20)]
    """
    if old == new:
        return
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for field in dataclasses.fields(old):
            name = f"{where}.{field.name}" if where else field.name
            yield from differences(getattr(old, field.name), getattr(new, field.name), name)
    else:
        yield where, old, new


def first_difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the first of the `differences` of two configs, or None."""
    return next(differences(old, new, where), None)


def shipped() -> list[str]:
    """Return the names of the configurations that ship with this package."""
    return sorted(file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.rglob("*.yaml"))


def find_config(source: str | Path) -> Path:
    """Return the file of a configuration, from its path or the name of one that ships with this package.

    Raises:
        FileNotFoundError: If there is none; names the shipped ones.
    """
    if Path(source).suffix in {".yaml", ".yml"}:
        path, known = Path(at_home(str(source))), ""
    else:
        path = SHIPPED / f"{source}.yaml"
        known = f"; shipped configurations: {', '.join(shipped())}; or give the path of a .yaml file"
    if not path.is_file():
        raise FileNotFoundError(f"no configuration {str(source)!r}{known}")
    return path


def plain(value: Any) -> Any:
    """Return a dataclass as dicts, lists and plain values, without what follows from other settings."""
    if dataclasses.is_dataclass(value):
        found = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        for field in dataclasses.fields(value):
            for following in field.metadata.get("follows", ()):
                del found[field.name][following]
        return found
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(cls: type, values: dict, where: str, root: type, default: Any = None) -> Any:
    """Build one dataclass; `default` is the instance whose fields hold where `values` is silent."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(_unknown(f"{where}{key}", root))
    arguments = {}
    for name, field in fields.items():
        if name in values:
            given = getattr(default, name, _default(field))
            follow = field.metadata.get("follows", {})
            for following, source in follow.items():
                if isinstance(values[name], dict) and following in values[name]:
                    raise ValueError(f"{where}{name}.{following} follows from {where}{source}; set that")
            if follow and given is not None:  # what follows does so anew, whatever a preset says
                given = dataclasses.replace(given, **{key: getattr(_default(field), key) for key in follow})
            arguments[name] = _convert(hints[name], values[name], f"{where}{name}", root, given)
        elif default is not None:
            arguments[name] = getattr(default, name)
        elif _default(field) is dataclasses.MISSING:
            raise ValueError(f"the configuration lacks '{where}{name}'; add it to the YAML or give {where}{name}=...")
    try:
        built = cls(**arguments)
    except ValueError as error:
        named = re.match(r"\w+", str(error))  # most refusals begin with the setting
        raise ValueError(f"{where if named and named[0] in fields else ''}{error}") from error
    for name in values:
        if name not in arguments and values[name] != plain(getattr(built, name)):
            follows = f"{getattr(built, name)}, which follows from other settings"
            raise ValueError(f"{where}{name} is {follows}, not {values[name]!r}; leave it out")
    return built


def _in_full(override: str, short: dict[str, str]) -> str:
    key, _, value = override.partition("=")
    return f"{short.get(key, key)}={value}"


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _convert(kind: Any, value: Any, where: str, root: type, default: Any = None) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, root, default)
    if origin is typing.Literal:
        value = str(value) if type(value) is int and str(value) in arguments else value  # YAML's precision=32
        value = ("on" if value else "off") if type(value) is bool and "on" in arguments else value  # and compile=on
        if value in arguments and not (isinstance(value, bool) and True not in arguments):
            return value
        close = difflib.get_close_matches(str(value), [str(item) for item in arguments], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {value!r}{hint}")
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        if "preset" in value and hasattr(kind, "from_preset"):
            value, default = dict(value), kind.from_preset(value["preset"])
            del value["preset"]
        return _build(kind, value, f"{where}.", root, default if isinstance(default, kind) else None)
    if origin is tuple and isinstance(value, list):
        if arguments[-1:] == (Ellipsis,):
            return tuple(_convert(arguments[0], item, f"{where}[{i}]", root) for i, item in enumerate(value))
        if len(arguments) == len(value):
            pairs = enumerate(zip(arguments, value, strict=True))
            return tuple(_convert(item_kind, item, f"{where}[{i}]", root) for i, (item_kind, item) in pairs)
        raise ValueError(f"{where} must hold {len(arguments)} values, not {len(value)}: {value!r}")
    if origin is list and isinstance(value, list):
        return [_convert(arguments[0], item, f"{where}[{i}]", root) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}", root) for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(at_home(value))
    if type(value) is kind:
        return at_home(value) if kind is str and where != "name" else value
    raise ValueError(f"{where} must be {_name(kind)}, not {value!r}")


def _convert_union(kinds: tuple, value: Any, where: str, root: type, default: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    choices = [kind for kind in kinds if kind is not type(None)]
    if len(choices) == 1:
        return _convert(choices[0], value, where, root, default)
    if isinstance(value, dict) and all(map(dataclasses.is_dataclass, choices)):
        return _build_kind(choices, value, where, root, default)
    for kind in choices:
        if type(value) is kind or (typing.get_origin(kind) is typing.Literal and value in typing.get_args(kind)):
            return _convert(kind, value, where, root)
    raise ValueError(f"{where} must be {' or '.join(_name(kind) for kind in kinds)}, not {value!r}")


def _build_kind(kinds: list[type], value: dict, where: str, root: type, default: Any) -> Any:
    """Build the one of several dataclasses whose `kind` is that of the value, or else that of the default."""
    known = {cls.kind: {field.name: field for field in dataclasses.fields(cls)} for cls in kinds}
    kind = value.get("kind", getattr(default, "kind", None))
    kind = _convert(typing.Literal[tuple(known)], kind, f"{where}.kind", root)
    left = dict(value)
    for key in [key for key in value if key not in known[kind]]:
        theirs = {name: plain(_default(fields[key])) for name, fields in known.items() if key in fields}
        if theirs and value[key] not in theirs.values():
            raise ValueError(f"{where}.{key} is for kind={' or '.join(theirs)}, not for kind={kind}; remove it")
        if theirs:  # says nothing; the config.yaml of an older run has the settings of all kinds
            del left[key]
    return _convert(next(cls for cls in kinds if cls.kind == kind), left, where, root, default)


def _name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    if dataclasses.is_dataclass(kind):
        return f"a group of settings ({', '.join(field.name for field in dataclasses.fields(kind))})"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return names.get(kind) or ("a list" if typing.get_origin(kind) in (tuple, list) else str(kind))


def fields_of(cls: type, where: str = "", given: Any = None) -> Iterator[tuple[str, type, dataclasses.Field, Any]]:
    """Yield what `load_config` takes, groups included: the dotted key, its class, its field, and its default.

    A setting that has to be given has the default `dataclasses.MISSING`; one in a group has that of the group's owner.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = getattr(given, field.name, _default(field))
        yield f"{where}{field.name}", cls, field, default
        following = {f"{where}{field.name}.{name}" for name in field.metadata.get("follows", ())}
        for kind in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(kind):
                inner = fields_of(kind, f"{where}{field.name}.", default if isinstance(default, kind) else None)
                yield from (each for each in inner if each[0] not in following)


def _unknown(key: str, root: type) -> str:
    if key in getattr(root, "former", {}):
        return f"unknown key {key!r}; it is {root.former[key]} now"
    keys = [name for name, *_ in fields_of(root)]
    parent, _, name = key.rpartition(".")
    siblings = {each.rpartition(".")[2]: each for each in keys if each.rpartition(".")[0] == parent}
    elsewhere = [each for each in keys if each.rpartition(".")[2] == name]
    close = [siblings[each] for each in difflib.get_close_matches(name, siblings, n=1)]
    close = close or elsewhere or difflib.get_close_matches(key, keys, n=1)
    return f"unknown key {key!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(siblings)}")
