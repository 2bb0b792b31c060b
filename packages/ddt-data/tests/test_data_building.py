"""Shard folders made shard by shard: stopped anywhere, by any number of processes, the bytes are the same."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from makers import make, make_and_tell
from PIL import Image

from ddt_data import (
    PackConfig,
    Plan,
    Record,
    ShardDataset,
    build,
    encode_image,
    pack_folder,
    pack_records,
)

CONFIG = PackConfig(image_size=8, samples_per_shard=3)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (30, 20), (number * 20, 0, 0)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def whole(photos, tmp_path):
    pack_folder(photos, tmp_path / "whole", CONFIG)
    return contents(tmp_path / "whole")


def test_a_pack_that_was_stopped_makes_only_what_is_missing(photos, whole, tmp_path):
    def stop(done, of):
        if done > 3:  # after two shards
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_folder(photos, tmp_path / "out", CONFIG, progress=stop)
    assert not (tmp_path / "out").exists()
    old = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.part" / "shards").glob("*.tar")}
    assert len(old) == 2
    pack_folder(photos, tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == whole
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == when for name, when in old.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "whole"]


def test_processes_make_the_same_bytes(photos, whole, tmp_path):
    manifest = pack_folder(photos, tmp_path / "out", CONFIG, workers=2)
    assert contents(tmp_path / "out") == whole and manifest.source == "folder photos"
    assert [entry["name"] for entry in manifest.skipped] == ["4.png"]


def test_a_killed_pack_goes_on_to_the_same_bytes(photos, whole, tmp_path):
    code = (
        "import sys, os, signal, ddt_data\n"
        "kill = lambda done, of: os.kill(os.getpid(), signal.SIGKILL) if done > int(sys.argv[3]) else None\n"
        f"config = ddt_data.{CONFIG!r}\n"
        "ddt_data.pack_folder(sys.argv[1], sys.argv[2], config, progress=kill)\n"
    )
    for shards in (0, 4):
        command = [sys.executable, "-c", code, str(photos), str(tmp_path / "out"), str(shards)]
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    pack_folder(photos, tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == whole


def test_workers_of_a_killed_pack_end(photos, tmp_path):
    code = (
        "import sys, ddt_data\n"
        "if __name__ == '__main__':\n"
        f"    ddt_data.pack_folder(sys.argv[1], sys.argv[2], ddt_data.{CONFIG!r}, workers=2)\n"
    )
    (tmp_path / "script.py").write_text(code)
    for number in range(100, 1500):
        os.link(photos / "1.png", photos / f"{number}.png")
    command = [sys.executable, str(tmp_path / "script.py"), str(photos), str(tmp_path / "out")]
    process = subprocess.Popen(command)
    notes = tmp_path / ".out.part" / "notes"
    while len(list(notes.glob("*.json"))) < 4:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(1)
    before = len(list(notes.glob("*.json")))
    time.sleep(0.5)
    assert len(list(notes.glob("*.json"))) == before < 480


def test_a_picture_that_changed_in_between_is_read_again(photos, tmp_path):
    pack_folder(photos, tmp_path / "old", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(photos, tmp_path / "out", CONFIG, progress=_stop)
    Image.new("RGB", (30, 20), "blue").save(photos / "0.png")
    pack_folder(photos, tmp_path / "out", CONFIG)
    pack_folder(photos, tmp_path / "fresh", CONFIG)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != contents(tmp_path / "old")


def test_settings_that_changed_in_between_count(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pack_folder(photos, tmp_path / "out", CONFIG, progress=_stop)
    pack_folder(photos, tmp_path / "out", PackConfig(image_size=16, samples_per_shard=5))
    assert {sample["image"].shape for sample in ShardDataset(tmp_path / "out")} == {(16, 16, 3)}


def _stop(done, of):
    raise KeyboardInterrupt


def plan(*shards):
    return Plan(lambda: [(shard, list(shard)) for shard in shards], make)


def test_processes_share_one_listing_and_each_shard_is_made_once(tmp_path):
    """Only this process reads the source; a plan's tasks need not even be something that can be sent."""
    readers = []

    def tasks():
        readers.append(os.getpid())
        yield from ((letter, [letter]) for letter in "abcdefgh")

    seen = []
    build(
        tmp_path / "out", Plan(tasks, partial(make_and_tell, tmp_path)), 3, progress=lambda done, of: seen.append(done)
    )
    build(tmp_path / "alone", Plan(lambda: [(letter, [letter]) for letter in "abcdefgh"], make))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert readers == [os.getpid()] * 2  # to hand out, and to see at the end that nothing changed
    makers = [path.name.split(".") for path in tmp_path.glob("*.made")]
    assert sorted(text for text, *_ in makers) == list("abcdefgh") and str(os.getpid()) not in {
        pid for _, pid, _ in makers
    }
    assert seen == sorted(seen) and seen[-1] == 8


def test_a_fault_in_a_process_keeps_what_the_others_finished(tmp_path):
    with pytest.raises(ValueError, match="a fault"):
        build(tmp_path / "out", plan(("a",), ("fault",), *((str(number),) for number in range(50))), workers=2)
    done = len(list((tmp_path / ".out.part" / "shards").glob("*.tar")))
    assert 1 <= done < 50  # the others stop after their shard
    assert build(tmp_path / "out", plan(("a",), ("b",)), workers=2).samples == 2


def test_workers_end_with_the_command_in_the_midst_of_a_shard(tmp_path):
    code = (
        "import sys, pathlib, functools\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import ddt_data, makers as here\n"
        "if __name__ == '__main__':\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        "    plan = ddt_data.Plan(lambda: [(n, n) for n in 'ab'], functools.partial(here.make_slowly, folder))\n"
        "    ddt_data.build(folder / 'out', plan, workers=2)\n"
    )
    (tmp_path / "script.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)])
    while len(pids := list(tmp_path.glob("*.pid"))) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    left = [int(path.stem) for path in pids]
    for _ in range(200):
        if not (left := [pid for pid in left if runs(pid)]):
            break
        time.sleep(0.05)
    assert left == []


def runs(pid):
    """Whether a process runs, and does not just wait for somebody to ask how it ended."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip()[:1] not in ("", "Z")


def test_a_fault_keeps_finished_shards_for_the_next_run(tmp_path):
    with pytest.raises(ValueError, match="a fault"):
        build(tmp_path / "out", plan(("a",), ("fault",)))
    assert not (tmp_path / "out").exists()
    assert build(tmp_path / "out", plan(("a",), ("b",))).samples == 2
    with pytest.raises(ValueError, match="a fault"):
        build(tmp_path / "none", plan(("fault",)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_wrong_numbers_and_taken_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers"):
        build(tmp_path / "out", plan(("a",)), workers=0)
    build(tmp_path / "out", plan(("a",)))
    with pytest.raises(FileExistsError, match="finished shards"):
        build(tmp_path / "out", plan(("a",)))


@pytest.mark.parametrize(
    "settings",
    [{"image_size": 0}, {"image_size": (8, 0)}, {"samples_per_shard": 0}, {"image_format": "bmp"}, {"background": "x"}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PackConfig(**settings)


def test_nothing_left_to_write_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"no sample to write, 1 were left out; x: not a readable") as caught:
        pack_records([Record("x", image=b"no picture")], tmp_path / "out", CONFIG)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_records_of_ones_own_keep_their_words(tmp_path):
    picture = np.full((8, 8, 3), 7, np.uint8)
    data = encode_image(picture)
    records = [Record("a", image=data, target=data, text="a fox", meta={"edit": {"instruction": "nothing"}})]
    parts = ({"name": "mine", "samples": 1, "source": "here", "licence": "MIT"},)
    config = PackConfig(image_size=8, image_format="png")
    manifest = pack_records(records, tmp_path / "out", config, source="mine", parts=parts)
    (sample,) = ShardDataset(tmp_path / "out")
    assert (sample["image"] == picture).all() and (sample["target"] == picture).all()
    assert sample["meta"] == {"edit": {"instruction": "nothing"}, "source": "a"} and manifest.parts == parts
