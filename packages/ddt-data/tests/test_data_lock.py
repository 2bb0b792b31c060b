"""The lock of a folder: one holder at a time, none left behind."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddt_data.shards.lock import is_locked, locked

HOLD = (
    "import sys, time; from ddt_data.shards.lock import locked\n"
    "with locked(sys.argv[1]):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_and_a_killed_one_locks_nobody_out(tmp_path):
    folder = tmp_path / "deep" / "out"
    process = hold(folder)
    try:
        with pytest.raises(BlockingIOError, match="out is being made"), locked(folder):
            pass
        assert is_locked(folder)
    finally:
        process.kill()
        process.wait()
    left = os.listdir(folder.parent)
    assert left and not is_locked(folder) and os.listdir(folder.parent) == left  # to ask changes nothing
    with locked(folder):
        pass
    assert os.listdir(folder.parent) == []


def test_a_link_and_what_it_leads_to_have_one_lock(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with locked(tmp_path / "link"), pytest.raises(BlockingIOError), locked(tmp_path / "disk"):
        pass
    with locked(tmp_path / "link"):
        assert is_locked(tmp_path / "disk")
    assert not is_locked(tmp_path / "disk") and sorted(os.listdir(tmp_path)) == ["disk", "link"]


def test_a_file_that_goes_while_it_is_looked_at_is_made_anew(tmp_path, monkeypatch):
    flock, gone = fcntl.flock, []

    def then_it_goes(file, how):
        flock(file, how)
        if not gone:
            gone.append((tmp_path / ".out.lock").unlink())

    monkeypatch.setattr(fcntl, "flock", then_it_goes)
    monkeypatch.setattr(Path, "exists", lambda self: True)  # it was there a moment ago
    with locked(tmp_path / "out") as file:
        assert file.is_file() and gone


def test_many_processes_take_turns(tmp_path):
    """Each adds one to a number in a file, within the lock: no addition is lost, whoever removes the file when."""
    count = tmp_path / "count"
    count.write_text("0")
    add = (
        "import sys; from pathlib import Path; from ddt_data.shards.lock import locked\n"
        "done, file = 0, Path(sys.argv[1])\n"
        "while done < 50:\n"
        "    try:\n"
        "        with locked(file.with_name('out')):\n"
        "            file.write_text(str(int(file.read_text()) + 1)); done += 1\n"
        "    except BlockingIOError:\n"
        "        pass\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", add, str(count)]) for _ in range(3)]
    end = time.monotonic() + 60
    assert [process.wait(end - time.monotonic()) for process in processes] == [0, 0, 0]
    assert count.read_text() == "150"
