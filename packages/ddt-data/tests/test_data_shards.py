"""Shard folders: what is written is read, whole or not at all."""

import json
import subprocess
import sys

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from ddt_data import Manifest, ShardDataset, ShardWriter

TOKENIZER = {"fingerprint": "abc123", "codebook_size": 16, "num_tokens": 4}


def random_sample(index: int) -> dict:
    rng = np.random.default_rng(index)
    return {
        "key": f"{index:04d}",
        "image": rng.integers(0, 255, (8, 8, 3), np.uint8),
        "target": rng.integers(0, 255, (8, 8, 3), np.uint8),
        "text": f"sample {index}, größer",
        "meta": {"questions": [], "scene": {"x": index}},
        "ids": rng.integers(0, 16, 4),
        "target_ids": rng.integers(0, 16, 4),
    }


def write(folder, count=10, **options):
    with ShardWriter(folder, samples_per_shard=4, tokenizer=TOKENIZER, image_size=8, **options) as writer:
        for index in range(count):
            writer.write(random_sample(index))
    return folder


def assert_same(read: dict, written: dict) -> None:
    assert read.keys() == written.keys()
    for field, value in written.items():
        assert np.array_equal(read[field], value) if isinstance(value, np.ndarray) else read[field] == value


def test_samples_come_back_as_they_were_in_any_order(tmp_path):
    dataset = ShardDataset(write(tmp_path / "shards"), tokenizer="abc123")
    assert len(dataset) == 10
    for index in (9, 0, 5, 5, 3):
        assert_same(dataset[index], random_sample(index))
    assert dataset[0]["ids"].dtype == np.int64 and dataset[0]["image"].dtype == np.uint8


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, context):
    dataset = ShardDataset(write(tmp_path / "shards"))
    dataset[0]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
    for index, sample in enumerate(loader):
        assert sample["key"] == f"{index:04d}"
        assert np.array_equal(sample["image"], random_sample(index)["image"])


def test_plain_webdataset_reads_the_shards(tmp_path):
    folder = write(tmp_path / "shards")
    tars = sorted(map(str, folder.glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 10
    for index, sample in enumerate(samples):
        written = random_sample(index)
        assert sample["__key__"] == written["key"] and sample["txt"] == written["text"]
        assert np.array_equal(sample["png"], written["image"])
        assert np.array_equal(sample["ids.npy"], written["ids"])
        assert sample["json"] == written["meta"]


def test_the_manifest_tells_counts_checksums_and_what_was_skipped(tmp_path):
    with ShardWriter(tmp_path / "shards", samples_per_shard=2, source="a test", image_size=8) as writer:
        for index in range(5):
            writer.write({"key": str(index), "text": "x"})
        writer.skip("bad.jpg", "cut off")
    manifest = Manifest.read(tmp_path / "shards")
    assert manifest == writer.manifest
    assert [shard.samples for shard in manifest.shards] == [2, 2, 1] and manifest.samples == 5
    assert manifest.skipped == ({"name": "bad.jpg", "why": "cut off"},)
    assert (manifest.source, manifest.image_size, manifest.tokenizer) == ("a test", 8, None)
    ShardDataset(tmp_path / "shards").check()


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_a_failing_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "shards", samples_per_shard=1) as writer:
        writer.write({"key": "0", "text": "x"})
        writer.write({"key": "1", "text": "x"})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_does_not_matter(tmp_path):
    code = (
        "import os, sys, ddt_data\n"
        "writer = ddt_data.ShardWriter(sys.argv[1]).__enter__()\n"
        "writer.write({'key': 'old', 'text': 'x'})\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "shards")]).returncode == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shards.lock", ".shards.part"]
    write(tmp_path / "shards")
    assert len(ShardDataset(tmp_path / "shards")) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_nothing_written_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no sample"), ShardWriter(tmp_path / "shards"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="delete it or choose another"):
        ShardWriter(write(tmp_path / "shards"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        ShardWriter(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"key": "0000"}, "before"),
        ({"key": "a.b"}, "dot"),
        ({"key": "x", "sound": b""}, "sound"),
        ({"key": "x", "ids": np.zeros(3, int)}, "4 integers"),
        ({"key": "x", "ids": np.full(4, 16)}, "0 to 15"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path, sample, words):
    with pytest.raises(ValueError, match=words), ShardWriter(tmp_path / "shards", tokenizer=TOKENIZER) as writer:
        writer.write(random_sample(0))
        writer.write(sample)


def test_ids_need_their_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="tokenizer"), ShardWriter(tmp_path / "shards") as writer:
        writer.write(random_sample(0))
    with pytest.raises(ValueError, match="num_tokens"):
        ShardWriter(tmp_path / "shards", tokenizer={"fingerprint": "x"})


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"abc123.*not of fff.*make the id shards again"):
        ShardDataset(write(tmp_path / "shards"), tokenizer="fff")
    with ShardWriter(tmp_path / "plain") as writer:
        writer.write({"key": "0", "text": "x"})
    with pytest.raises(ValueError, match="holds no ids"):
        ShardDataset(tmp_path / "plain", tokenizer="fff")


def test_missing_empty_and_unfinished_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such shard folder"):
        ShardDataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is empty"):
        ShardDataset(tmp_path / "empty")
    (tmp_path / "empty" / "000000.tar").touch()
    with pytest.raises(FileNotFoundError, match="unfinished"):
        ShardDataset(tmp_path / "empty")


def test_a_missing_shard_and_a_wrong_count_are_named(tmp_path):
    folder = write(tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1]["samples"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"000001.tar holds 4 samples, the manifest says 3"):
        ShardDataset(folder)
    (folder / "000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001.tar"):
        ShardDataset(folder)


def test_a_damaged_shard_is_named(tmp_path):
    folder = write(tmp_path / "shards")
    data = bytearray((folder / "000000.tar").read_bytes())
    data[600] ^= 255
    (folder / "000000.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"000000.tar is damaged"):
        ShardDataset(folder).check()
    (folder / "000000.tar").write_bytes(b"x" * 600)
    with pytest.raises(ValueError, match=r"000000.tar is damaged"):
        ShardDataset(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json"):
        Manifest.read(tmp_path)
