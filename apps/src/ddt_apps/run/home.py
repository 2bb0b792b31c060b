"""`~` in paths, also where no shell replaces it: behind `--out=`, behind `data=`, and in YAML."""

import os


def at_home(paths: str) -> str:
    """Replace `~` at the beginning of a path, or of each in a list as `data` takes it, by the home folder.

    Example:
        >>> home = os.path.expanduser("~")
        >>> at_home("~/a:0.5, ~/b:0.5, c~:1") == f"{home}/a:0.5, {home}/b:0.5, c~:1"
        True
    """
    return ",".join(_expanded(path) for path in paths.split(","))


def _expanded(path: str) -> str:
    bare = path.lstrip()
    return path[: len(path) - len(bare)] + os.path.expanduser(bare)
