"""Where a folder is made: tried before any work, by one command at a time, and nothing is left of those that died."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from ddt_data import (
    PackConfig,
    Record,
    SceneConfig,
    ShardDataset,
    ShardWriter,
    encode_image,
    pack_buckets,
    pack_folder,
    pack_scenes,
    pack_text,
    write_block,
)
from ddt_data.sets import fetching
from ddt_data.sets.pinned import Pinned, Split

RECORDS = [Record(str(i), image=encode_image(np.full((8 + 8 * (i % 3), 16, 3), i, np.uint8))) for i in range(6)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_texts(out):
    with ShardWriter(out) as writer:
        writer.write({"key": "0", "text": "a fox"})


def pack_photos(out):
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        (photos / "a.png").write_bytes(RECORDS[0].image)
        pack_folder(photos, out, PackConfig(image_size=8))


def fetch_texts(out):
    fetching.fetch_set("text", out)


MAKERS = {
    "writer": write_texts,
    "texts": lambda out: pack_text(["a fox", "a bell"], out),
    "scenes": lambda out: pack_scenes(SceneConfig.tiny(), 2, out, seed=0),
    "folder": pack_photos,
    "buckets": lambda out: pack_buckets(RECORDS, out, PackConfig(image_size=32)),
    "fetch": fetch_texts,
}
SHARDS = ("writer", "texts", "scenes", "folder")  # what makes one shard folder


@pytest.fixture(autouse=True)
def passages(monkeypatch):
    pinned = Pinned("pip", "words", "1", "0" * 64, "MIT", "words of a test")
    monkeypatch.setattr(fetching, "load_passages", lambda *_: {"train": Split(["a fox", "a bell"], {pinned: 2})})


@pytest.mark.parametrize("maker", MAKERS)
def test_a_link_is_written_through(tmp_path, maker):
    MAKERS[maker](tmp_path / "plain")
    (tmp_path / "disk").mkdir()
    for target in ("disk/there", "disk/not-yet"):
        link = tmp_path / f"link to {target[5:]}"
        link.symlink_to(tmp_path / target)
    (tmp_path / "disk" / "there").mkdir()
    for target in ("there", "not-yet"):
        MAKERS[maker](tmp_path / f"link to {target}")
        assert (tmp_path / f"link to {target}").is_symlink()
        assert contents(tmp_path / "disk" / target) == contents(tmp_path / "plain")
    assert sorted(os.listdir(tmp_path / "disk")) == ["not-yet", "there"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("obstacle", ["file", "file above", "loop of links", "name too long", "taken"])
def test_what_cannot_be_made_is_refused_before_any_work(tmp_path, maker, obstacle, monkeypatch):
    out = tmp_path / "out"
    match obstacle:
        case "file":
            out.write_text("mine")
        case "file above":
            out.write_text("mine")
            out = out / "deeper" / "shards"
        case "loop of links":
            out.symlink_to(tmp_path / "back")
            (tmp_path / "back").symlink_to(out)
        case "name too long":
            out = tmp_path / ("x" * 254)
        case "taken":
            if maker in ("buckets", "fetch"):
                pytest.skip("these stand beside what is there")
            out.mkdir()
            (out / "mine.txt").write_text("mine")
    monkeypatch.setattr("ddt_data.shards.building._work", None)  # what would do the work
    monkeypatch.setattr("ddt_data.shards.folder.TarShardWriter", None)
    monkeypatch.setattr(fetching, "load_passages", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=r"choose another|already|folder") as caught:
        MAKERS[maker](out)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("maker", SHARDS)
@pytest.mark.parametrize("kind", [["tmpfs", "-t", "tmpfs"], ["bind", "--bind"]])
def test_a_mount_point_is_refused_before_any_work(tmp_path, maker, kind, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "bind").mkdir()
    source = tmp_path / "bind" if kind[0] == "bind" else "tmpfs"
    if os.geteuid() or subprocess.run(["mount", *kind[1:], source, tmp_path / "out"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        monkeypatch.setattr("ddt_data.shards.building._work", None)
        with pytest.raises(OSError, match="out cannot be made there"):
            MAKERS[maker](tmp_path / "out")
        assert not list(tmp_path.glob(".*"))
    finally:
        subprocess.run(["umount", "-l", tmp_path / "out"], check=True)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_place_that_may_not_be_written_to_is_refused_before_any_work(tmp_path, maker, monkeypatch):
    (tmp_path / "closed").mkdir()
    if os.geteuid():
        (tmp_path / "closed").chmod(0o500)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "closed"]).returncode:
        pytest.skip("needs the right to mount")
    try:
        monkeypatch.setattr(fetching, "load_passages", None)
        with pytest.raises(OSError, match="cannot be made there"):
            MAKERS[maker](tmp_path / "closed" / "out")
    finally:
        if not os.geteuid():
            subprocess.run(["umount", "-l", tmp_path / "closed"], check=True)
        (tmp_path / "closed").chmod(0o700)


SLOW = (
    "import sys, time, pathlib, ddt_data\n"
    "def tell(done, of):\n"
    "    print(done, flush=True); time.sleep(0.2)\n"
    "config = ddt_data.PackConfig(image_size=16, samples_per_shard=1)\n"
    "match sys.argv[1]:\n"
    "    case 'folder': ddt_data.pack_folder(sys.argv[2], sys.argv[3], config, progress=tell)\n"
    "    case 'buckets':\n"
    "        records = ddt_data.open_reader(sys.argv[2])[1]\n"
    "        ddt_data.pack_buckets(records, sys.argv[3], config, progress=tell)\n"
    "    case 'writer':\n"
    "        with ddt_data.ShardWriter(sys.argv[3], samples_per_shard=1) as writer:\n"
    "            for number in range(4):\n"
    "                writer.write({'key': str(number), 'text': 'x'}); tell(number, 4)\n"
)


def start(kind, photos, out):
    command = [sys.executable, "-c", SLOW, kind, str(photos), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for record in RECORDS[:4]:
        (folder / f"{record.name}.png").write_bytes(record.image)
    return folder


@pytest.mark.parametrize("kind", ["buckets", "writer"])
def test_the_second_of_two_commands_is_refused_and_the_first_goes_on(tmp_path, photos, kind):
    first = start(kind, photos, tmp_path / "out")
    assert first.stdout.readline()
    first.send_signal(signal.SIGSTOP)  # in the midst of its work
    second = start(kind, photos, tmp_path / "out")
    _, said = second.communicate(timeout=60)
    assert second.returncode and "is being made by another command" in said.splitlines()[-1]
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=60) == 0
    assert start(kind, photos, tmp_path / "alone").wait(timeout=60) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["folder", "buckets", "writer"])
def test_killed_at_any_moment_the_next_one_leaves_nothing_behind(tmp_path, photos, kind):
    rng = random.Random(0)
    for _ in range(2):
        process = start(kind, photos, tmp_path / "out")
        assert process.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(kind, photos, tmp_path / "out").wait(timeout=60) == 0
    assert start(kind, photos, tmp_path / "whole").wait(timeout=60) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "photos", "whole"]


def test_scenes_and_texts_go_on_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("ddt_data.shards.pack.SCENES", 4)
    monkeypatch.setattr("ddt_data.shards.pack.TEXTS", 4)

    def stop(done, of):
        assert of == 10
        if done > 6:
            raise KeyboardInterrupt

    pack_scenes(SceneConfig.tiny(), 10, tmp_path / "whole", seed=1)
    with pytest.raises(KeyboardInterrupt):
        pack_scenes(SceneConfig.tiny(), 10, tmp_path / "out", seed=1, progress=stop)
    old = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.part" / "shards").glob("*.tar")}
    assert len(old) == 2
    pack_scenes(SceneConfig.tiny(), 10, tmp_path / "out", seed=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == when for name, when in old.items())
    with pytest.raises(KeyboardInterrupt):
        pack_scenes(SceneConfig.tiny(), 10, tmp_path / "other", seed=1, progress=stop)
    pack_scenes(SceneConfig.tiny(), 6, tmp_path / "other", seed=2)  # other scenes: nothing of the first is kept
    pack_scenes(SceneConfig.tiny(), 6, tmp_path / "fresh", seed=2)
    assert contents(tmp_path / "other") == contents(tmp_path / "fresh")
    pack_text([f"text {i}" for i in range(9)], tmp_path / "texts")
    assert [sample["key"] for sample in ShardDataset(tmp_path / "texts")] == [f"{i:08d}" for i in range(9)]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_may_be_read_by_whom_the_user_lets(tmp_path, photos, mask):
    before = os.umask(mask)
    try:
        pack_folder(photos, tmp_path / "out", PackConfig(image_size=8))
        pack_buckets(RECORDS, tmp_path / "buckets", PackConfig(image_size=32))
        (tmp_path / "ids").mkdir()
        write_block(tmp_path / "ids" / "0.tar", [{"key": "0"}], None)
        for path in [*tmp_path.glob("out/**"), *tmp_path.glob("buckets/**/*"), *tmp_path.glob("ids/*")]:
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path
    finally:
        os.umask(before)
