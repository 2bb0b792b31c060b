"""Shard folders of strangers: whatever a manifest, a tar or an array says, it is read as it is or refused by name."""

import contextlib
import copy
import io
import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ddt_data import Manifest, ShardDataset, ShardWriter, check_folder, encode_image, write_block
from ddt_data.shards.block_writing import from_npy, npy
from ddt_data.shards.index import INDEX
from ddt_data.shards.manifest import BLOCKS, Shard, checksum
from ddt_data.terminal import printable

TOKENIZER = {"fingerprint": "abc", "codebook_size": 16, "num_tokens": 4}


def sample(index):
    rng = np.random.default_rng(index)
    words = {"key": f"{index:04d}", "text": f"sample {index}", "meta": {"questions": [], "n": index}}
    return words | {"ids": rng.integers(0, 16, 4), "latents": rng.normal(size=(2, 3, 3)).astype(np.float16)}


@pytest.fixture
def members(tmp_path):
    with ShardWriter(tmp_path / "members", samples_per_shard=3, tokenizer=TOKENIZER, image_size=8) as writer:
        for index in range(6):
            writer.write(sample(index) | {"image": np.full((8, 8, 3), index, np.uint8)})
    return tmp_path / "members"


@pytest.fixture
def blocks(tmp_path):
    folder = tmp_path / "blocks"
    folder.mkdir()
    shard = write_block(folder / "000000.tar", [sample(index) for index in range(6)], TOKENIZER)
    Manifest(6, (shard,), tokenizer=TOKENIZER, format=BLOCKS).write(folder)
    return folder


def vouch(folder):
    """Make the manifest agree with the tars as they are now, as a stranger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["sha256"] = checksum(folder / shard["name"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / INDEX).unlink(missing_ok=True)  # see test_data_index.py


def replace_member(path, wanted, data, times=1):
    with tarfile.open(path) as tar:
        old = [(member.name, tar.extractfile(member).read()) for member in tar]
    assert wanted in dict(old)
    with tarfile.open(path, "w") as tar:
        for name, content in old:
            for _ in range(times if name == wanted else 1):
                info = tarfile.TarInfo(name)
                content = data if name == wanted else content
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


ODD = [None, True, -1, 0, 10**30, 1.5, float("nan"), "", "../x", "/etc/passwd", "a/b", "..", "\x1b[2J", [], {}, [[]]]
ODD += [{"name": 1}, [None], ["x"], [3, 4, 5], "x" * 5000, "\ud800", {"name": "x", "why": "y"}]


def test_a_manifest_with_anything_in_any_place_is_read_or_refused_in_a_line(members):
    """And what is read names tars inside of the folder alone."""
    path = members / "manifest.json"
    whole = json.loads(path.read_text())
    whole |= {"skipped": [{"name": "a", "why": "b"}], "licence": "MIT"}
    whole["parts"] = [{"name": "a", "samples": 1, "source": "b", "licence": "c"}]
    refused = 0
    for place in places(whole):
        for odd in ODD:
            changed = {"it": copy.deepcopy(whole)}
            holder, *rest = changed, "it", *place
            for key in rest[:-1]:
                holder = holder[key]
            holder[rest[-1]] = odd
            path.write_text(json.dumps(changed["it"]))
            try:
                dataset = ShardDataset(members)
                assert all((members / shard.name).parent == members for shard in dataset.manifest.shards)
                assert [dataset[i]["key"] for i in range(len(dataset))] == [f"{i:04d}" for i in range(6)]
            except (ValueError, OSError) as error:
                assert "members" in str(error) and "delete" not in str(error)
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"a":' * 100_000, "9" * 6000, '{"format": [[[]]]}', "\x00"]
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_nobody_is_told_to_throw_away_what_is_not_known_to_be_shards(tmp_path):
    def refusals(folder):
        for call in (ShardDataset, ShardWriter, check_folder):
            with pytest.raises((ValueError, OSError)) as caught:
                call(folder)
            yield str(caught.value)

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"...")
    assert all("delete" not in said for said in refusals(tmp_path / "photos"))
    (tmp_path / "photos" / "manifest.json").write_text('{"name": "an app for the web", "icons": []}')
    assert all("delete" not in said for said in refusals(tmp_path / "photos"))


@pytest.mark.parametrize("kind", ["members", "blocks"])
def test_bytes_changed_anywhere_are_read_or_refused_by_name(kind, request):
    folder = request.getfixturevalue(kind)
    path, rng = folder / "000000.tar", np.random.default_rng(0)
    whole = path.read_bytes()
    named = 0
    for number in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(0, len(data) - 64)
        data[at : at + rng.integers(1, 64)] = rng.choice([0, 45, 57, 255, rng.integers(256)])
        path.write_bytes(data[: rng.integers(1, len(data))].tobytes() if number % 4 == 0 else data.tobytes())
        vouch(folder)
        for entry in check_folder(folder).broken:
            assert entry["name"].startswith("000000.tar") or "says 6 samples" in entry["why"]
            named += 1
        try:
            dataset = ShardDataset(folder)
            for index in range(len(dataset)):
                dataset[index]
        except (ValueError, OSError) as error:
            assert "000000.tar" in str(error)
    assert named > 50


DEEP = b'{"a":' * 100_000


@pytest.mark.parametrize(
    ("member", "data"),
    [
        ("0001.txt", b"\xff\xfe"),
        ("0001.json", b"[1, 2]"),
        ("0001.json", b'{"questions": 5}'),
        ("0001.json", DEEP),
        ("0001.ids.npy", npy(np.zeros(3, np.int64))),
        ("0001.ids.npy", npy(np.full(4, 16))),
        ("0001.ids.npy", npy(np.full(4, -1))),
        ("0001.ids.npy", npy(np.zeros(4))),
        ("0001.ids.npy", npy(np.zeros((2, 2), np.int64))),
        ("0001.ids.npy", npy(np.zeros(4, np.int64))[:-1]),
        ("0001.ids.npy", npy(np.zeros(4, "<M8[s]"))),
        ("0001.latents.npy", npy(np.zeros((2, 3), np.float16))),
        ("0001.latents.npy", npy(np.zeros((2, 3, 3), np.int64))),
        ("0001.png", encode_image(np.zeros((9, 8, 3), np.uint8))),
    ],
)
def test_a_member_of_another_kind_is_named_and_the_others_are_read(members, member, data):
    replace_member(members / "000000.tar", member, data)
    vouch(members)
    found = check_folder(members)
    assert found.samples == 5 and [entry["name"] for entry in found.broken] == ["000000.tar, sample 1"]
    dataset = ShardDataset(members)
    with pytest.raises(ValueError, match=r"000000\.tar: (sample )?0001"):
        dataset[1]
    assert dataset[0]["key"] == "0000"


def test_members_that_occur_twice_or_are_no_files_are_refused(members):
    replace_member(members / "000000.tar", "0001.txt", b"another", times=2)
    vouch(members)
    with pytest.raises(ValueError, match=r"000000\.tar is damaged .*0001\.txt' twice"):
        ShardDataset(members)
    with tarfile.open(members / "000001.tar", "a") as tar:
        link = tarfile.TarInfo("0003.sound.mp3")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    vouch(members)
    assert [entry["name"] for entry in check_folder(members).broken] == ["000000.tar", "000001.tar"]


@pytest.mark.parametrize(
    ("member", "data"),
    [
        ("offsets.npy", npy(np.array([0, 5, 3], np.int64))),
        ("offsets.npy", npy(np.array([-5, 5], np.int64))),
        ("offsets.npy", npy(np.array(7, np.int64))),
        ("offsets.npy", npy(np.zeros(7))),
        ("offsets.npy", npy(np.array([0, 2**63 - 1, 0], np.int64))),
        ("ids.npy", npy(np.zeros((5, 4), np.uint8))),
        ("latents.npy", npy(np.array(1.0))),
        ("words.jsonl", b"{}"),
    ],
)
def test_a_block_whose_parts_do_not_go_together_is_refused(blocks, member, data):
    replace_member(blocks / "000000.tar", f"000000.block.{member}", data)
    vouch(blocks)
    with pytest.raises(ValueError, match=r"000000\.tar is damaged"):
        ShardDataset(blocks)
    assert [entry["name"] for entry in check_folder(blocks).broken] == ["000000.tar"]


@pytest.mark.parametrize(
    "line", [b"[1]", b"{}", b'{"key": 5}', b'{"key": "1", "ids": [1]}', b'{"key": "1", "text": 2}', b"\xff", DEEP]
)
def test_words_of_a_block_that_are_none_are_named(blocks, line):
    with tarfile.open(blocks / "000000.tar") as tar:
        words = tar.extractfile("000000.block.words.jsonl").read().splitlines()
    words[1] = line
    offsets = np.cumsum([0, *(len(each) + 1 for each in words)], dtype=np.int64)
    replace_member(blocks / "000000.tar", "000000.block.words.jsonl", b"".join(each + b"\n" for each in words))
    replace_member(blocks / "000000.tar", "000000.block.offsets.npy", npy(offsets))
    vouch(blocks)
    assert [entry["name"] for entry in check_folder(blocks).broken] == ["000000.tar, sample 1"]
    with pytest.raises(ValueError, match=r"000000\.tar: sample 1"):
        ShardDataset(blocks)[1]


@pytest.mark.parametrize("dtype", ["<i8", "<u2", "|u1", "<f2", ">f4", "|b1"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 2, 3, 4), ()])
def test_arrays_come_back_as_numpy_reads_them(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for each in (array, np.asfortranarray(array).reshape(shape, order="A")):
        read = from_npy(npy(each))
        assert read.dtype == each.dtype and read.shape == shape and (read == each).all()


def test_a_header_that_promises_more_than_there_is_takes_no_memory():
    """Nor is one believed that numpy would have to evaluate, or that speaks of objects."""
    code = (
        "import resource, sys\n"
        "from ddt_data.shards.block_writing import from_npy, npy\n"
        "import numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "whole = npy(np.zeros(1000, np.int64))\n"
        "for shape in (b'(90000000000,), }', b'(300000, 300000), }', b'(' + b'9' * 40 + b',), }'):\n"
        "    head = whole[: whole.index(b'(1000,), }')] + shape\n"
        "    try:\n"
        "        from_npy(head.ljust(127) + b'\\n' + whole[128:])\n"
        "    except ValueError:\n"
        "        print('refused')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["refused"] * 3, run.stderr
    rng, whole = np.random.default_rng(1), npy(np.arange(6).reshape(2, 3))
    for _ in range(2000):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, 128, 3)] = rng.integers(0, 256, 3)
        with contextlib.suppress(ValueError):
            assert from_npy(data[: rng.integers(100, 200)].tobytes()).nbytes <= len(data)
    for odd in (b"", b"PK\x03\x04", b"\x80\x04.", npy(np.zeros(3, "<U3")), npy(np.zeros(3, [("a", "<i4")]))):
        with pytest.raises(ValueError, match=r"no \.npy file"):
            from_npy(odd)


def test_a_shard_of_small_pictures_decodes_no_large_one(members):
    large = encode_image(np.zeros((5000, 5000, 3), np.uint8))
    replace_member(members / "000000.tar", "0001.png", large)
    vouch(members)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"0001\.png: not a readable picture .5000 x 5000 pixels are more than 64"):
        ShardDataset(members)[1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; it has 75,000


def test_words_of_strangers_command_no_terminal():
    rng = np.random.default_rng(2)
    for _ in range(300):
        text = "".join(map(chr, rng.integers(0, 0x300, 40))) + "\u202e\ud800 größe 狐 \U0001f98a\u200d"
        shown = printable(text)
        assert shown.encode().decode() == shown and not any(
            ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown
        )
        assert "größe 狐 \U0001f98a\u200d" in shown and "\u202e" not in shown
    assert printable("a fox, größer") == "a fox, größer"


def test_a_shard_of_another_name_is_not_looked_for(tmp_path):
    secret = tmp_path / "secret.tar"
    write_block(secret, [sample(0)], TOKENIZER)
    (tmp_path / "shards").mkdir()
    for name in ("../secret.tar", str(secret), "..", ".hidden", "a\\b.tar", "x\n.tar"):
        Manifest(1, (Shard(name, 1, checksum(secret)),), tokenizer=TOKENIZER).write(tmp_path / "shards")
        with pytest.raises(ValueError, match="'shards' is not what a manifest holds there"):
            ShardDataset(tmp_path / "shards")
    assert Path(secret).is_file()
