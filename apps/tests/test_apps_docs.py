"""Examples in docstrings run; so does every snippet of the tour and the tutorials, in order, at tiny sizes."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import ddt_apps
import ddt_tokenizer.cli
from ddt_apps.cli.main import app
from ddt_apps.evaluation import scenes
from ddt_data import load_prompts

ROOT = Path(__file__).resolve().parents[2]
MODULES = [info.name for info in pkgutil.walk_packages(ddt_apps.__path__, "ddt_apps.") if "__main__" not in info.name]
SNIPPET = re.compile(r'^```(bash|python|diff)(?: title="(.*)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
TINY = ["batch_size=8", "loggers=[]", "optimizer.warmup_steps=1"]
SIZES = [f"codec.{part}.{size}" for part in ("encoder", "network") for size in ("width=16", "depth=1", "num_heads=2")]
SHRUNK = {  # what a training is given beside its line
    "train-tokenizer": [
        *(each.replace("optimizer", "training.optimizer") for each in TINY),
        *SIZES,
        "training.continuous_steps=1",
        "held_out=2",
        "steps=3",
    ],
    "pretrain": [*TINY, "llama.width=16", "llama.depth=1", "llama.num_heads=2", "text_vocabulary=300", "steps=3"],
}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    if ".serve." in name:
        pytest.importorskip("starlette")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_readme_examples_run():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def run_line(line):
    """Run a line of a page as a shell would, but for sizes and counts."""
    for part in line.split(" && "):
        command, *words = shlex.split(part, comments=True)
        if command == "pip":
            files = [ROOT / word for word in words if word.startswith("./")]
            assert files and all((file / "pyproject.toml").is_file() for file in files), part
        elif command == "ddt-tokenizer":
            ddt_tokenizer.cli.main(words)
        else:
            assert command == "ddt", f"{part}: write what is not run in a text block"
            for name, least in (("--count", "24"), ("count=", "count=12")):
                place = next((i for i, word in enumerate(words) if word.startswith(name)), None)
                if place is not None:
                    words[place + name.startswith("-")] = least
            words = ["devices=1" if word == "devices=2" else word for word in words]  # two: test_apps_ranks.py
            result = CliRunner().invoke(app, [*words, *SHRUNK.get(words[0], [])])
            assert result.exit_code == 0 or (words == ["doctor"] and result.exit_code == 1), f"{part}: {result.output}"


def run_page(name):
    """Run the snippets of a page in order in the working directory."""
    scope = {"__name__": name}
    for language, title, code in SNIPPET.findall((ROOT / "docs" / name).read_text()):
        if title:
            Path(title).write_text(code)
        if language == "bash":
            for line in code.splitlines():
                run_line(line)
        elif language == "python":
            exec(compile(code, name, "exec"), scope)


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """Where the tour was made."""
    folder, before = tmp_path_factory.mktemp("tour"), os.getcwd()
    (folder / "photos").mkdir()
    for i, name in enumerate(["fox", *"abcdefghijk"]):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{name}.jpg")
        (folder / f"photos/{name}.txt").write_text(f"a photo of {name}")
    os.chdir(folder)
    try:
        run_page("tour.md")
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("page", ["photos", "backbone", "cluster", "peer"])
def test_snippets_of_the_tutorials_run(page, toured, monkeypatch):
    monkeypatch.chdir(toured)
    monkeypatch.setattr(scenes, "load_prompts", lambda level: load_prompts(level)[::60])
    run_page(f"tutorials/{page}.md")


def test_the_quantizer_of_the_tutorial_trains(toured, tmp_path):
    """The page's file and change are put into a copy of the package, where its commands then run."""
    shutil.copytree(Path(ddt_tokenizer.__file__).parent, tmp_path / "ddt_tokenizer")
    folder = tmp_path / "ddt_tokenizer" / "quantizers"
    snippets = SNIPPET.findall((ROOT / "docs/tutorials/quantizer.md").read_text())
    (folder / "sphere.py").write_text(next(code for language, _, code in snippets if language == "python"))
    lines = next(code for language, _, code in snippets if language == "diff").splitlines()
    before, after = ("\n".join(line[1:] for line in lines if not line.startswith(sign)) for sign in "+-")
    kinds = (folder / "kinds.py").read_text()
    assert before in kinds
    (folder / "kinds.py").write_text(kinds.replace(before, after))
    code = "import test_apps_docs; test_apps_docs.run_page('tutorials/quantizer.md')"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], cwd=toured, env={**os.environ, "PYTHONPATH": paths}, check=True)
    assert "kind: bsq" in (toured / "runs/bsq/config.yaml").read_text()
