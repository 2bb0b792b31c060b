"""Packing scenes, folders and texts, and what people get wrong about them."""

import json

import numpy as np
import pytest
from PIL import Image

from ddt_data import (
    SceneConfig,
    SceneGenerator,
    ShardDataset,
    make_sample,
    pack_scenes,
    pack_text,
    prose,
)


def paint(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), colour).save(path)


@pytest.fixture
def photos(tmp_path):
    for name, colour in {"a.jpg": "red", "b.png": "green", "sub/a.webp": "blue"}.items():
        paint(tmp_path / "photos" / name, colour)
    return tmp_path / "photos"


def test_scenes_are_packed_with_words_and_edits(tmp_path):
    seen = []
    config = SceneConfig.tiny()
    manifest = pack_scenes(config, 20, tmp_path / "out", seed=3, progress=lambda done, of: seen.append((done, of)))
    assert manifest.samples == 20 and manifest.image_size == 32 and seen[-1] == (20, 20)
    dataset = ShardDataset(tmp_path / "out")
    for index in (0, 7, 19):
        sample, made = dataset[index], make_sample(SceneGenerator(config, seed=3), index)
        assert np.array_equal(sample["image"], made["image"]) and np.array_equal(sample["target"], made["target"])
        assert sample["text"] == made["text"]
        assert sample["meta"] == json.loads(json.dumps(made["meta"]))
        assert len(sample["meta"]["questions"]) == 3
        assert {"kind", "instruction", "caption", "scene"} == set(sample["meta"]["edit"])


def test_scenes_can_be_packed_without_edits_and_questions(tmp_path):
    pack_scenes(SceneConfig.tiny(), 2, tmp_path / "out", seed=0, edits=False, questions=0)
    sample = ShardDataset(tmp_path / "out")[0]
    assert set(sample) == {"key", "image", "text", "meta"} and sample["meta"]["questions"] == []


def test_no_scenes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="count"):
        pack_scenes(SceneConfig.tiny(), 0, tmp_path / "out", seed=0)


def test_texts_are_packed_from_lines_and_files(tmp_path):
    assert pack_text(prose(), tmp_path / "prose").samples == len(prose())
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    for name in ("a.txt", "a.jsonl"):
        assert pack_text(tmp_path / name, tmp_path / f"{name}-out").source == name
        assert [sample["text"] for sample in ShardDataset(tmp_path / f"{name}-out")] == ["one", "two"]


def test_texts_that_are_missing_empty_or_malformed_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        pack_text(tmp_path / "none.txt", tmp_path / "out")
    with pytest.raises(ValueError, match="no sample"):
        pack_text([" "], tmp_path / "out")
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n')
    with pytest.raises(ValueError, match="line 2"):
        pack_text(tmp_path / "bad.jsonl", tmp_path / "out")
