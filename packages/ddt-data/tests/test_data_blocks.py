"""Blocks of ids: what is written is read, in a tenth of the space."""

import ast
import json
import pickle
import resource
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

import ddt_data
from ddt_data import Made, Plan, ShardDataset, ShardWriter, build, write_block
from ddt_data.shards.manifest import BLOCKS, Manifest, Shard, checksum

TOKENIZER = {"fingerprint": "abc", "codebook_size": 512, "num_tokens": 16}


def random_sample(index):
    """A sample with, by turns, an edit, no words, and latents."""
    rng = np.random.default_rng(index)
    sample = {"key": f"{index:08d}", "ids": rng.integers(0, 512, 16)}
    if index % 3:
        sample |= {"text": f"sample {index}, größer", "meta": {"questions": [], "x": index}}
    if index % 2:
        sample |= {"target_ids": rng.integers(0, 512, 16), "latents": rng.normal(size=(4, 2, 2)).astype(np.float16)}
    return sample


def make(path, numbers):
    return Made(write_block(path, [random_sample(number) for number in numbers], TOKENIZER))


@pytest.fixture
def folder(tmp_path):
    tasks = [(first, range(first, min(first + 8, 30))) for first in range(0, 30, 8)]
    manifest = Manifest(0, (), tokenizer=TOKENIZER, format=BLOCKS)
    build(tmp_path / "ids", Plan(lambda: tasks, make, manifest))
    return tmp_path / "ids"


def assert_same(read, written):
    assert read.keys() == written.keys()
    for field, value in written.items():
        assert np.array_equal(read[field], value) if isinstance(value, np.ndarray) else read[field] == value


def test_samples_come_back_as_they_were_in_any_order(folder):
    dataset = ShardDataset(folder, tokenizer="abc")
    for index in (29, 0, 7, 8, 8, 15):
        assert_same(dataset[index], random_sample(index))
    assert dataset[3]["ids"].dtype == np.int64 and dataset[3]["latents"].dtype == np.float16
    dataset[3]["ids"][0] = 1  # a copy: the file stays as it is
    assert_same(dataset[3], random_sample(3))


def test_workers_read_the_same(folder):
    dataset = ShardDataset(folder)
    dataset[0]
    sent = pickle.loads(pickle.dumps(dataset))  # as to a spawned worker
    for index, sample in enumerate(DataLoader(sent, batch_size=None, num_workers=2)):
        assert np.array_equal(sample["ids"], random_sample(index)["ids"])


def test_a_foreign_tokenizer_is_refused(folder):
    with pytest.raises(ValueError, match="ids of tokenizer abc, not of other"):
        ShardDataset(folder, tokenizer="other")


def test_the_members_are_plain_arrays_for_other_programs(folder):
    (sample,) = webdataset.WebDataset(str(folder / "000000.tar"), shardshuffle=False, empty_check=False)
    lines = [json.loads(line) for line in sample["block.words.jsonl"].splitlines()]
    assert [line["key"] for line in lines] == [f"{index:08d}" for index in range(8)]
    decoded = next(iter(webdataset.WebDataset(str(folder / "000000.tar"), shardshuffle=False).decode()))
    assert np.array_equal(decoded["block.ids.npy"], [random_sample(index)["ids"] for index in range(8)])
    assert decoded["block.ids.npy"].dtype == np.uint16


def test_a_sample_takes_little_more_than_its_ids(tmp_path):
    samples = [{"key": f"{i:08d}", "ids": np.arange(64)} for i in range(1000)]
    write_block(tmp_path / "0.tar", samples, {**TOKENIZER, "num_tokens": 64})
    assert (tmp_path / "0.tar").stat().st_size / 1000 < 64 * 2 + 40


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"key": "00000000", "ids": np.zeros(16, int)}, "share a key"),
        ({"key": "x", "image": np.zeros((8, 8, 3), np.uint8)}, "'image'"),
        ({"key": "x", "ids": np.zeros(3, int)}, "16 integers"),
        ({"key": "x", "ids": np.full(16, 512)}, "0 to 511"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path, sample, words):
    with pytest.raises(ValueError, match=words):
        write_block(tmp_path / "0.tar", [random_sample(0), sample], TOKENIZER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 8, 60])
def test_a_block_is_what_webdataset_writes(tmp_path, count):
    """The same members in the same bytes, headers and end included, although webdataset had no part in it."""
    shard = write_block(tmp_path / "000007.tar", [random_sample(number) for number in range(count)], TOKENIZER)
    with tarfile.open(tmp_path / "000007.tar") as tar:
        members = {member.name.partition(".")[2]: tar.extractfile(member).read() for member in tar}
    assert len(members) == (3 if count == 1 else 7)  # some arrays with rows
    writer = webdataset.TarWriter(str(tmp_path / "other.tar"), encoder=False, mtime=0)
    writer.write({"__key__": "000007", **members})
    writer.close()
    assert (tmp_path / "000007.tar").read_bytes() == (tmp_path / "other.tar").read_bytes()
    assert shard == Shard("000007.tar", count, checksum(tmp_path / "other.tar"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000007.tar", "other.tar"]


def test_no_samples_make_no_block(tmp_path):
    assert write_block(tmp_path / "0.tar", [], TOKENIZER) is None and not list(tmp_path.iterdir())


def test_what_other_packages_copy_stands_alone():
    """These modules import the standard library, numpy, Pillow and one another, so that a copy works anywhere."""
    folder = Path(ddt_data.__file__).parent / "shards"
    for name in ("pictures", "colours", "manifest", "block_writing", "lock", "claim"):
        text = (folder / f"{name}.py").read_text()
        assert "ddt" not in text.replace("ddt-shards-", "")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in ("manifest", "colours", "lock")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {n.partition(".")[0] for n in names} <= {*sys.stdlib_module_names, "numpy", "PIL"}


def test_a_damaged_block_is_named(folder):
    data = (folder / "000000.tar").read_bytes()
    at = data.index(b"\x93NUMPY")
    (folder / "000000.tar").write_bytes(data[:at] + b"xxxxxx" + data[at + 6 :])
    with pytest.raises(ValueError, match=r"000000.tar is damaged"):
        ShardDataset(folder)


def test_a_folder_may_have_more_shards_than_a_process_may_open_files(tmp_path):
    tasks = [(number, [number]) for number in range(150)]
    build(tmp_path / "blocks", Plan(lambda: tasks, make, Manifest(0, (), tokenizer=TOKENIZER, format=BLOCKS)))
    with ShardWriter(tmp_path / "members", samples_per_shard=1, tokenizer=TOKENIZER) as writer:
        for number in range(150):
            writer.write(random_sample(number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        for kind in ("blocks", "members"):
            keys = [sample["key"] for sample in ShardDataset(tmp_path / kind)]
            assert keys == [f"{number:08d}" for number in range(150)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reading_leaves_the_random_state_alone(folder):
    before = torch.get_rng_state()
    list(ShardDataset(folder))
    assert torch.equal(before, torch.get_rng_state())
