"""`~` in paths, also where no shell replaces it: behind `--out=`, behind `data=`, and in YAML."""

import os


def at_home(paths: str) -> str:
    """Replace `~` at the beginning of a path, or of each in a list as `data` takes it, by the home folder.

    Example:
        >>> at_home("~/a:0.5,data/b~:0.5") == os.path.expanduser("~/a:0.5") + ",data/b~:0.5"
        True
    """
    return ",".join(map(os.path.expanduser, paths.split(",")))
