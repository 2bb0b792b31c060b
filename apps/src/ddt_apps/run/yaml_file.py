"""What a configuration may say: plain YAML, whose references are to its own settings and to nothing else."""

import re
from pathlib import Path
from typing import Any

REFERENCE = re.compile(r"\$\{\s*([\w.-]+)\s*\}")


def read_yaml(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a YAML file, replace what `overrides` such as "lr=1e-3" name, and resolve references.

    The file may come from elsewhere: aliases that repeat one another, deep groups and OmegaConf's resolvers, which read
    the environment, are refused.

    Args:
        path: Of the file; "" for none.
        overrides: Later ones win.

    Raises:
        ValueError: If it cannot be read; names the file.

    Example:
        >>> read_yaml("", ["steps=100", "name=run-${steps}"])
        {'steps': 100, 'name': 'run-100'}
        >>> read_yaml("", ["rates={bias: 0.1}", "rates={}"])
        {'rates': {}}
        >>> read_yaml("", ["name=${oc.env:HOME}"])
        Traceback (most recent call last):
        ValueError: cannot read the configuration name=${oc.env:HOME}: name may name plain settings only, as in ${seed}
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.load(path) if path else OmegaConf.create({})
        if not OmegaConf.is_dict(merged):
            raise ValueError("it must hold 'key: value' lines")
        for override in overrides:
            key, _, value = override.partition("=")
            if value == "{}" and OmegaConf.select(merged, key) is not None:
                OmegaConf.update(merged, key, {}, merge=False)  # nothing in place of what is there, not beside it
            else:
                merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        values = OmegaConf.to_container(merged)
        return _resolved(values, "", values)
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename:  # OmegaConf's own names none
            raise
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot read the configuration {path or ' '.join(overrides)}: {said}") from error


def _resolved(value: Any, where: str, root: dict[str, Any]) -> Any:
    """Put settings in place of references to them; no reference leads to another, so nothing grows without bound."""
    if isinstance(value, dict):
        return {key: _resolved(item, f"{where}.{key}".lstrip("."), root) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, f"{where}[{i}]", root) for i, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    found = {name: _setting(name, root) for name in REFERENCE.findall(value)}
    if "${" in REFERENCE.sub("", value) or None in found.values():
        raise ValueError(f"{where} may name plain settings only, as in ${{seed}}")
    whole = REFERENCE.fullmatch(value)
    return found[whole[1]] if whole else REFERENCE.sub(lambda match: str(found[match[1]]), value)


def _setting(name: str, values: Any) -> Any:
    """Return the setting of a dotted name; None if there is none, or it is a group or a reference itself."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return None if isinstance(values, dict | list) or "${" in str(values) else values
