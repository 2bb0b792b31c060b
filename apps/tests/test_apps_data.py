"""`ddt data`: shards on disk, and mistakes in one line with nothing half-written."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli import app
from ddt_data import ShardDataset


def ddt(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("fox", "bell"):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"a {name}")
    return folder


def test_scenes_become_shards(tmp_path):
    result = ddt("data", "scenes", "--out", tmp_path / "scenes", "--count", 5, "--preset", "tiny")
    assert result.exit_code == 0, result.stderr
    assert "5 samples in 1 shards" in result.stderr
    sample = ShardDataset(tmp_path / "scenes")[4]
    assert sample["image"].shape == (32, 32, 3)
    assert sample["text"] and sample["meta"]["questions"] and sample["meta"]["edit"]["instruction"]


def test_a_folder_of_photographs_becomes_shards(photos, tmp_path):
    assert ddt("data", "pack", photos, "--out", tmp_path / "shards", "--image-size", 16).exit_code == 0
    samples = ShardDataset(tmp_path / "shards")
    assert {sample["text"] for sample in samples} == {"a fox", "a bell"}
    assert samples[0]["image"].shape == (16, 16, 3)


def test_a_file_of_texts_becomes_shards(tmp_path):
    (tmp_path / "prose.txt").write_text("A fox is red.\n\nA bell rings.\n")
    assert ddt("data", "pack", tmp_path / "prose.txt", "--out", tmp_path / "shards").exit_code == 0
    assert [sample["text"] for sample in ShardDataset(tmp_path / "shards")] == ["A fox is red.", "A bell rings."]


def test_unreadable_pictures_are_skipped_on_request_and_named(photos, tmp_path):
    (photos / "bell.jpg").write_bytes(b"not a picture")
    result = ddt("data", "pack", photos, "--out", tmp_path / "shards", "--skip-bad")
    assert result.exit_code == 0
    assert "1 samples" in result.stderr and "skipped bell.jpg" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "scenes", "--count", "0"], ["count (0)"]),
        (["data", "scenes", "--preset", "huge"], ["preset 'huge'", "tiny or full"]),
        (["data", "scenes", "--split", "test"], ["split 'test'", "train or unseen"]),
        (["data", "pack", "nowhere"], ["nowhere", "no such folder"]),
        (["data", "pack", "empty"], ["empty", "no pictures"]),
        (["data", "pack", "torn"], ["torn", "fox.jpg"]),
        (["data", "pack", "orphan"], ["owl.txt", "caption without a picture"]),
        (["data", "pack", "photos", "--image-size", "0"], ["image_size (0)"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(photos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "fox.jpg").write_bytes((photos / "fox.jpg").read_bytes()[:200])
    (tmp_path / "orphan").mkdir()
    (tmp_path / "orphan" / "fox.jpg").write_bytes((photos / "fox.jpg").read_bytes())
    (tmp_path / "orphan" / "owl.txt").write_text("an owl")
    before = sorted(tmp_path.rglob("*"))
    result = ddt(*arguments, "--out", "shards")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_folder_is_not_overwritten(tmp_path):
    arguments = ["data", "scenes", "--out", tmp_path / "scenes", "--count", 2, "--preset", "tiny"]
    assert ddt(*arguments).exit_code == 0
    again = ddt(*arguments)
    assert again.exit_code == 2
    assert "scenes" in again.stderr and again.stderr.count("\n") == 1
