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
    pack_folder,
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


def test_pictures_with_text_files_are_packed(photos, tmp_path):
    for name in ("a", "b", "sub/a"):
        (photos / f"{name}.txt").write_text(f"  picture\n{name} ")
    manifest = pack_folder(photos, tmp_path / "out", image_size=16)
    samples = list(ShardDataset(tmp_path / "out"))
    assert manifest.samples == 3 and manifest.image_size == 16
    assert {s["meta"]["source"]: s["text"] for s in samples} == {
        "a.jpg": "picture a",
        "b.png": "picture b",
        "sub/a.webp": "picture sub/a",
    }
    assert all(s["image"].shape == (16, 16, 3) for s in samples)


def test_pictures_with_a_list_of_captions_are_packed(photos, tmp_path):
    lines = [json.dumps({"file_name": name, "text": f"a {name}"}) for name in ("sub/a.webp", "a.jpg", "b.png")]
    (photos / "captions.jsonl").write_text("\n".join(lines) + "\n\n")
    pack_folder(photos, tmp_path / "out", image_size=16)
    assert all(s["text"] == f"a {s['meta']['source']}" for s in ShardDataset(tmp_path / "out"))


def test_pictures_alone_are_packed(photos, tmp_path):
    pack_folder(photos, tmp_path / "out", image_size=16)
    assert [set(s) for s in ShardDataset(tmp_path / "out")] == [{"key", "image", "meta"}] * 3


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pack_folder(tmp_path / "none", tmp_path / "out", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        pack_folder(tmp_path / "empty", tmp_path / "out", 16)


def captions(*lines):
    return {"captions.jsonl": "\n".join(lines)}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"lost.txt": "x"}, "lost.txt: caption without a picture; add lost.jpg"),
        ({"a.txt": "x"}, r"b.png: no caption \(2 such pictures\)"),
        ({"a.txt": " ", "b.txt": "x", "sub/a.txt": "x"}, r"a.jpg: its caption is empty"),
        ({"a.txt": "x", "captions.jsonl": ""}, "keep one kind"),
        (captions('{"file_name": "lost.jpg", "text": "x"}'), "line 1: caption without a picture, lost.jpg"),
        (captions('{"file_name": "a.jpg", "text": "x"}', "oops"), "line 2"),
        (captions('{"file": "a.jpg"}'), "line 1"),
        (captions('{"file_name": "a.jpg", "text": 5}'), "line 1"),
        (captions(*['{"file_name": "a.jpg", "text": "x"}'] * 2), "line 2: a second caption"),
    ],
)
def test_captions_that_do_not_fit_are_named_and_nothing_is_written(photos, tmp_path, files, words):
    for name, text in files.items():
        (photos / name).write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        pack_folder(photos, tmp_path / "out", 16)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_two_pictures_of_one_name_are_refused(photos, tmp_path):
    paint(photos / "a.png")
    with pytest.raises(ValueError, match=r"a.jpg and a.png share one name"):
        pack_folder(photos, tmp_path / "out", 16)


def test_an_unreadable_picture_stops_or_is_skipped_by_name(photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad.jpg.*skip"):
        pack_folder(photos, tmp_path / "out", 16)
    assert not (tmp_path / "out").exists()
    manifest = pack_folder(photos, tmp_path / "out", 16, skip_bad=True)
    assert manifest.samples == 3
    assert [entry["name"] for entry in manifest.skipped] == ["bad.jpg"]


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
