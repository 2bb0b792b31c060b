"""The index of a shard folder: it says what the headers of the tars say, and else it is not believed."""

import io
import json
import os
import pickle
import resource
import signal
import sys
import tarfile
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from ddt_data import Manifest, PackConfig, Shard, ShardDataset, ShardWriter, check_folder, pack_folder, write_block
from ddt_data.shards import index as indexing
from ddt_data.shards.index import DIGEST, INDEX, _digest, find_places, open_index, read_header, write_index
from ddt_data.shards.manifest import checksum
from ddt_data.shards.tar_shard import WalkedTar


def write(folder, count=13, seed=0, per=4, key="{:04d}"):
    rng = np.random.default_rng(seed)
    with ShardWriter(folder, samples_per_shard=per, image_size=8) as writer:
        for number in range(count):
            sample = {"key": key.format(number), "text": "x" * int(rng.integers(0, 1200))}
            if rng.random() < 0.5:
                sample["meta"] = {"n": number}
            if rng.random() < 0.5:
                sample["image"] = rng.integers(0, 255, (8, 8, 3), np.uint8)
            writer.write(sample)
    return folder


def read(folder):
    """Samples as they are read, for comparisons."""
    return [pickle.dumps(sample) for sample in map(ShardDataset(folder).__getitem__, range(len(ShardDataset(folder))))]


def slow_places(tar):
    """The same by tarfile, one sample after another."""
    places, key = [], None
    with tarfile.open(fileobj=io.BytesIO(tar)) as tar:
        for info in tar:
            if (own := info.name.partition(".")[0]) != key:
                places.append(info.offset // 512)
                key = own
            end = info.offset_data + -(-info.size // 512) * 512
    return [*places, end // 512]


def vouch(folder):
    """Make the manifest agree with the tars as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["sha256"] = checksum(folder / shard["name"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge(folder, numbers):
    """Write an index whose digest is right, whatever it says."""
    numbers = np.asarray(numbers, "<u4")
    digest = np.frombuffer(_digest(Manifest.read(folder).shards, numbers), "<u4")
    np.save(folder / INDEX, np.concatenate([digest, numbers]))


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "shards")


@pytest.mark.parametrize("seed", range(8))
def test_it_says_where_samples_begin(tmp_path, seed):
    folder = write(tmp_path / "shards", count=3 * seed + 1, seed=seed, per=1 + seed)
    tars = sorted(folder.glob("*.tar"))
    assert np.load(folder / INDEX)[DIGEST:].tolist() == [
        place for tar in tars for place in slow_places(tar.read_bytes())
    ]
    assert check_folder(folder).broken == []


@pytest.mark.parametrize("key", ["{:04d}", "größe{}", "x" * 120 + "{}"])
def test_samples_are_those_of_a_walk_over_all_headers(tmp_path, key, monkeypatch):
    folder = write(tmp_path / "shards", key=key)
    assert (folder / INDEX).exists() == (len(key) < 100 and key.isascii())  # else tarfile has to read the headers
    with_index = read(folder)
    (folder / INDEX).unlink(missing_ok=True)
    assert read(folder) == with_index
    monkeypatch.setattr("ddt_data.shards.tar_shard.find_places", lambda path: None)
    assert read(folder) == with_index and len(with_index) == 13


def test_opening_reads_no_header(folder, monkeypatch):
    monkeypatch.setattr("ddt_data.shards.tar_shard.find_places", None)
    monkeypatch.setattr(tarfile, "open", None)
    assert ShardDataset(folder)[12]["key"] == "0012"
    monkeypatch.undo()
    (folder / "000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.tar: the manifest names this shard, but it is gone"):
        ShardDataset(folder)


def test_blocks_of_ids_need_none(tmp_path):
    shard = write_block(tmp_path / "000000.tar", [{"key": "0", "text": "a fox"}], None)
    write_index(tmp_path, Manifest(1, (shard,)))
    assert not (tmp_path / INDEX).exists()


def test_a_walk_that_tarfile_has_to_do_is_left_to_it(tmp_path):
    """Samples that are not together, links, names twice, long names, damage."""

    def tar(*members, format=tarfile.PAX_FORMAT, **more):
        with tarfile.open(tmp_path / "0.tar", "w", format=format) as archive:
            for name in members:
                info = tarfile.TarInfo(name)
                info.size = 3
                for field, value in more.items():
                    setattr(info, field, value)
                archive.addfile(info, io.BytesIO(b"abc"))
        return tmp_path / "0.tar"

    assert find_places(tar("a.txt", "a.png", "b.txt")).tolist() == [0, 4, 6]
    assert find_places(tar("a.txt", "b.txt", format=tarfile.GNU_FORMAT)).tolist() == [0, 2, 4]
    assert find_places(tar("a.txt", "b.txt", "a.png")) is None and len(WalkedTar(tmp_path / "0.tar")) == 2
    assert find_places(tar("a.txt", "a.txt")) is None
    assert find_places(tar("a.txt", type=tarfile.SYMTYPE, linkname="b")) is None
    assert find_places(tar("a.txt", type=tarfile.DIRTYPE)) is None
    assert find_places(tar("x" * 101 + ".txt")) is None and find_places(tar("ü.txt")) is None
    assert find_places(tar("a.txt", pax_headers={"comment": "x"})) is None
    assert find_places(tar()) is None
    whole = tar("a.txt", "b.txt").read_bytes()
    for end in (0, 511, 512, 1024, 1500, 2048):
        (tmp_path / "0.tar").write_bytes(whole[:end])
        assert find_places(tmp_path / "0.tar") is None


def test_a_header_changed_anywhere_is_read_as_tarfile_reads_it():
    def check(data):
        return np.frombuffer(b"%06o\0 " % (data[:148].sum() + data[156:].sum() + 256), np.uint8)

    rng, info = np.random.default_rng(0), tarfile.TarInfo("0001.target.png")
    info.size, info.uname = 1234, "bigdata"
    whole, changed = np.frombuffer(info.tobuf(), np.uint8), 0
    for number in range(3000):
        data, honest = whole.copy(), number % 3 == 0  # its checksum is then right
        data[rng.integers(0, 512, 1 + number % 2)] = rng.choice([0, 32, 48, 55, 128, 255, rng.integers(256)])
        data[148:156] = check(data) if honest else data[148:156]
        try:
            key, extension, size = read_header(data.tobytes())
        except ValueError:
            continue
        if honest:  # nobody needs mode, owner, time and device, at which tarfile may stop
            for unused in (slice(100, 124), slice(136, 148), slice(329, 345)):
                data[unused] = whole[unused]
            data[148:156] = check(data)
        found = tarfile.TarInfo.frombuf(data.tobytes(), "utf-8", "surrogateescape")
        assert (f"{key}.{extension}".rstrip("."), size) == (found.name.rstrip("."), found.size) and found.isreg()
        changed += (data != whole).any()
    assert changed > 100


def test_a_damaged_index_is_not_believed(folder):
    whole, samples = (folder / INDEX).read_bytes(), read(folder)
    rng = np.random.default_rng(0)
    for number in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(0, len(data))
        data[at : at + rng.integers(1, 32)] ^= rng.integers(1, 256, dtype=np.uint8)
        cut = data.tobytes()[: rng.integers(0, len(data))] if number % 3 == 0 else data.tobytes()
        (folder / INDEX).write_bytes(cut + b"\0" * int(rng.integers(0, 9)) if number % 7 == 0 else cut)
        assert open_index(folder, Manifest.read(folder).shards) is None and read(folder) == samples
    assert [entry["name"] for entry in check_folder(folder).broken] == [INDEX]


def test_what_is_no_plain_file_is_not_believed(folder):
    samples, path = read(folder), folder / INDEX
    odd = [
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("gone"),
        path.touch,
    ]
    odd += [lambda: np.save(path, np.zeros(30)), lambda: np.save(path, np.zeros((2, 9), "<u4"))]
    odd += [lambda: np.save(path, np.array(7, "<u4")), lambda: np.save(path, np.zeros(3, "<u4"))]
    odd += [lambda: path.write_bytes(b"\x80\x04."), lambda: np.save(path, np.array([{}]), allow_pickle=True)]
    path.unlink()
    for make in odd:
        make()
        assert read(folder) == samples and [entry["name"] for entry in check_folder(folder).broken] == [INDEX]
        path.rmdir() if path.is_dir() else path.unlink()
    assert check_folder(folder).broken == []


def test_an_index_of_other_tars_is_not_believed(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", seed=1)
    samples = read(b)
    (b / INDEX).write_bytes((a / INDEX).read_bytes())
    assert read(b) == samples
    for name in ("000000.tar", "000002.tar"):  # a stranger changes some tars, and the manifest with them
        (a / name).write_bytes((b / name).read_bytes())
    vouch(a)
    assert read(a)[:4] == samples[:4] and read(a)[8:12] == samples[8:12]
    assert [entry["name"] for entry in check_folder(a).broken] == [INDEX]


def test_a_tar_that_changed_behind_the_manifest_spoils_no_other_and_is_named(folder):
    """Its size or its headers tell, whatever the index says; bytes that still fit are for `check`."""
    path, rng, refused = folder / "000001.tar", np.random.default_rng(0), 0
    whole, samples = path.read_bytes(), read(folder)
    for number in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(0, len(data) - 64)
        if number % 3 == 0:  # within a header
            at = 512 * rng.choice(slow_places(whole)[:-1])
        data[at : at + rng.integers(1, 64)] = rng.choice([0, 45, 57, 255, rng.integers(256)])
        path.write_bytes(data[: rng.integers(1, len(data))].tobytes() if number % 4 == 0 else data.tobytes())
        if path.read_bytes() == whole:
            continue
        try:
            assert [pickle.dumps(ShardDataset(folder)[index]) for index in (0, 12)] == [samples[0], samples[12]]
            assert len(read(folder)) == 13
        except ValueError as error:
            assert "000001.tar" in str(error) and "\n" not in str(error)
            refused += 1
        assert "000001.tar" in [entry["name"] for entry in check_folder(folder).broken]
    path.write_bytes(whole)
    assert read(folder) == samples and refused > 50


def test_a_forged_index_shows_nothing_but_members_of_the_tars_by_their_names(folder):
    """Whatever it says, a sample is its tar's, or an error of one line; and `check_folder` tells the forgery."""
    right = np.load(folder / INDEX)[DIGEST:].astype(np.int64)
    whole = {sample["key"]: sample for sample in map(ShardDataset(folder).__getitem__, range(13))}
    rng, believed, refused = np.random.default_rng(0), 0, 0
    for number in range(400):
        numbers = right.copy()
        chosen = rng.integers(0, len(right), 1 + number % 3)
        numbers[chosen] += rng.integers(-3, 4, len(chosen))
        if number % 4 == 0:
            numbers[chosen] = rng.choice([0, 1, 2**31, 2**32 - 1], len(chosen))
        numbers %= 2**32
        if (numbers == right).all():
            continue
        forge(folder, numbers)
        believed += open_index(folder, Manifest.read(folder).shards) is not None
        dataset = ShardDataset(folder)
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
            except ValueError as error:
                assert ".tar is damaged" in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert all(pickle.dumps(whole[sample["key"]][name]) == pickle.dumps(sample[name]) for name in sample)
        assert INDEX in [entry["name"] for entry in check_folder(folder).broken]
    assert believed > 30 and refused > 30


def test_huge_counts_take_no_memory(folder):
    samples, path = read(folder), folder / INDEX
    header = np.lib.format.header_data_from_array_1_0(np.zeros(0, "<u4")) | {"shape": (1 << 38,)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (1 << 40))  # a hole, which takes no space
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(folder) == samples
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["samples"] = (1 << 38) - 8 - sum(shard["samples"] + 1 for shard in manifest["shards"][1:]) - 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"000000\.tar holds 4 samples, the manifest says"):
        ShardDataset(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (1024 if sys.platform == "darwin" else 1) < 50_000  # kB


def test_processes_map_the_file_and_notice_another_one(folder, tmp_path):
    dataset = ShardDataset(write(tmp_path / "many", count=3000, per=1000))
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000
    assert [pickle.loads(sent)[index]["key"] for index in (0, 1700, 2999)] == ["0000", "1700", "2999"]
    (tmp_path / "many" / INDEX).write_bytes((folder / INDEX).read_bytes())
    with pytest.raises(ValueError, match="was replaced while it was in use; start again"):
        pickle.loads(sent)[0]


CONFIG = PackConfig(image_size=8, samples_per_shard=3)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_fork(work):
    """Return the exit code of a child that does the work, or minus the signal that it died of."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(make, at):
    """Make a folder and die before write number `at`; exit 0 if there were fewer."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink"):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if any(isinstance(each, (str, os.PathLike)) and ".out" in str(each) for each in arguments[:2]):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    make()
    os._exit(0)


@pytest.mark.parametrize("kind", ["pack", "writer"])
def test_killed_at_every_write_it_is_the_same_in_the_end(tmp_path, kind):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(7):
        Image.new("RGB", (30, 20), (number * 20, 0, 0)).save(photos / f"{number}.png")

    def make(name):
        if kind == "pack":
            pack_folder(photos, tmp_path / name, CONFIG)
        else:
            write(tmp_path / name, count=5, per=2)

    make("whole")
    whole, kills = contents(tmp_path / "whole"), 0
    assert INDEX in whole
    while True:
        code = in_fork(lambda at=kills + 1: dying(lambda: make("out"), at))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        with suppress(FileExistsError):  # it is whole; what the kill left beside it goes now
            make("out")
        assert contents(tmp_path / "out") == whole, kills
        for left in (*(tmp_path / "out").iterdir(), tmp_path / "out", tmp_path / ".out.lock"):
            left.rmdir() if left.is_dir() else left.unlink(missing_ok=True)
        assert sorted(os.listdir(tmp_path)) == ["photos", "whole"], kills
    assert kills > 10


def test_an_index_that_a_kill_left_is_none_of_a_later_plan(tmp_path):
    """Of a folder that was about to be put in place, and is then made of tars that have no index."""
    part = tmp_path / ".out.part"
    part.mkdir()
    (part / INDEX).write_bytes(b"old")
    write(tmp_path / "shards", count=2)
    (tmp_path / "shards" / INDEX).rename(part / INDEX)
    shard = write_block(part / "000000.tar", [{"key": "0", "text": "a fox"}], None)
    write_index(part, Manifest(1, (Shard(shard.name, 1, shard.sha256),)))
    assert sorted(os.listdir(part)) == ["000000.tar"]


def test_the_index_of_shards_is_a_function_of_them_alone(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    before = (first / INDEX).read_bytes()
    assert before == (second / INDEX).read_bytes()
    (second / INDEX).unlink()
    indexing.write_index(second, Manifest.read(second))
    assert (second / INDEX).read_bytes() == before
