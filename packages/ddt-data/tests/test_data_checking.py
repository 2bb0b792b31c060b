"""`check_folder` finds what was planted in a shard folder."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ddt_data import ShardWriter, check_folder, contact_sheet
from ddt_data.shards.index import INDEX
from ddt_data.shards.manifest import checksum


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "shards", samples_per_shard=4, image_size=8) as writer:
        for index in range(12):
            picture = np.full((8, 8, 3), 20 * (index % 10), np.uint8)
            asked = [{"question": "What?", "answer": "a fox"}] * 2
            sample = {"key": str(index), "image": picture, "meta": {"questions": asked}}
            writer.write(sample | ({"text": "x" * (index + 1)} if index else {}))
    return tmp_path / "shards"


def rewrite(folder, name, change, honest=True):
    """Change the members of a shard; `honest` keeps the manifest's checksum right."""
    path = folder / name
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in change(members):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if honest:
        manifest = json.loads((folder / "manifest.json").read_text())
        for shard in manifest["shards"]:
            shard["sha256"] = checksum(folder / shard["name"])
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / INDEX).unlink(missing_ok=True)


def test_counts_lengths_and_pictures_that_occur_twice(folder, tmp_path):
    seen = []
    found = check_folder(folder, tmp_path / "sheet.png", lambda done, of: seen.append((done, of)))
    assert (found.samples, found.questions, found.captions) == (12, 24, (2, 7, 12))
    assert found.fields == {"image": 12, "meta": 12, "text": 11} and found.shapes == {(8, 8): 12}
    assert found.repeated_pictures == [["0", "10"], ["1", "11"]] and not found.broken and not found.repeated_keys
    assert seen[-1] == (12, 12)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 96


def test_broken_members_are_named_and_the_rest_is_read(folder):
    def spoil(members):
        return [(name, data[:40] if name == "5.png" else b"{" if name == "6.json" else data) for name, data in members]

    rewrite(folder, "000001.tar", spoil)
    found = check_folder(folder)
    assert found.samples == 10
    assert [entry["name"] for entry in found.broken] == ["000001.tar, sample 1", "000001.tar, sample 2"]
    assert "5.png" in found.broken[0]["why"] and "6.json" in found.broken[1]["why"]


def test_a_changed_a_short_and_a_missing_shard_are_named(folder):
    rewrite(folder, "000000.tar", lambda members: members[:-3])
    rewrite(folder, "000001.tar", lambda members: members[:-1], honest=False)
    (folder / "000002.tar").unlink()
    found = check_folder(folder)
    assert [entry["name"] for entry in found.broken] == ["000000.tar", "000001.tar", "000002.tar"]
    assert "holds 3 samples, the manifest says 4" in found.broken[0]["why"] and "checksum" in found.broken[1]["why"]


def test_keys_that_occur_twice_are_told(folder):
    rewrite(folder, "000002.tar", lambda members: [(name.replace("8.", "0."), data) for name, data in members])
    assert check_folder(folder).repeated_keys == ["0"]


def test_a_sheet_holds_every_picture():
    pictures = [np.full((10 + i, 20, 3), 10 * i, np.uint8) for i in range(7)]
    sheet = np.asarray(contact_sheet(pictures, side=40))
    for i in range(7):
        assert (sheet == 10 * i).all(-1).any()
    with pytest.raises(ValueError, match="7 pictures with 1 captions"):
        contact_sheet(pictures, ["one"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meta": {"questions": "how many?"}}, "meta is damaged"),
        ({"meta": {"questions": [{"question": "What?", "answer": 5}]}}, "questions are not"),
        ({"meta": {"edit": {"kind": "colour"}}}, "edit is not"),
        ({"text": " "}, "text is empty"),
        ({"image": np.zeros((8, 9, 3), np.uint8)}, "pixels"),
        ({"target": np.zeros((8, 8, 3), np.uint8)}, "target and no edit"),
    ],
)
def test_what_training_would_trip_over_is_found(tmp_path, change, words):
    with ShardWriter(tmp_path / "shards", image_size=8) as writer:
        good = {"image": np.zeros((8, 8, 3), np.uint8), "text": "a fox", "meta": {"questions": []}}
        writer.write({"key": "0", **good})
        writer.write({"key": "1", **good, **change})
    found = check_folder(tmp_path / "shards")
    (entry,) = found.broken + found.unusable  # what cannot be read is broken, what nothing learns from is unusable
    assert "sample 1" in entry["name"] and words in entry["why"]


@pytest.mark.parametrize("ids", [[7, 8], [-1, 0], [1], [[1, 2]], None])
def test_ids_that_are_not_the_tokenizers_are_found(tmp_path, ids):
    tokenizer = {"fingerprint": "f", "codebook_size": 8, "num_tokens": 2}
    with ShardWriter(tmp_path / "shards", tokenizer=tokenizer) as writer:
        writer.write({"key": "0", "ids": np.array([0, 7]), "text": "a fox"})

    def spoil(members):
        buffer = io.BytesIO()
        np.save(buffer, np.array(ids))
        return [(name, buffer.getvalue() if name.endswith(".npy") else data) for name, data in members]

    rewrite(
        tmp_path / "shards", "000000.tar", spoil if ids else lambda members: [m for m in members if "npy" not in m[0]]
    )
    found = check_folder(tmp_path / "shards")
    (entry,) = found.broken + found.unusable
    assert "ids" in entry["why"]
