"""The pages about the tree say what is there: every file, every function of the walks, every place to touch."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAP = (ROOT / "docs/architecture.md").read_text()
HOUSES = sorted(path for path in ROOT.glob("*/src/ddt_*")) + sorted(ROOT.glob("packages/*/src/ddt_*"))


@pytest.mark.parametrize("house", HOUSES, ids=[house.name for house in HOUSES])
def test_the_map_has_a_place_for_every_file(house):
    part = re.search(rf"^\S*{house.name}/ .*\n((?:.+\n)*)", MAP, re.MULTILINE)[1]
    here = Counter(file.name for file in house.rglob("*.py") if not file.name.startswith("__"))
    named = Counter(re.findall(r"\b\w+\.py\b", part))
    assert +(named - here) == Counter() and +(here - named) == Counter()


def test_the_functions_of_the_walks_are_there():
    names = set(re.findall(r"`(ddt_\w+(?:\.\w+)+)`", MAP))
    assert len(names) >= 20
    for name in names:
        parts, found = name.split("."), None
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[cut:]:
                found = getattr(found, attribute)
            break
        assert found is not None, name


def test_the_files_to_touch_are_there():
    page = (ROOT / "docs/extending.md").read_text()
    paths = re.findall(r"`((?:packages|apps)/[\w./-]+\.py)`", page)
    assert len(paths) >= 12
    for path in paths:
        assert (ROOT / path).is_file() or (path.endswith("/NEW.py") and (ROOT / path).parent.is_dir()), path
