"""Many commands make one folder: whoever dies when, the bytes are those of one that was alone."""

import errno
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from makers import make

from ddt_data import Plan, ShardWriter, build
from ddt_data.shards import jobs
from ddt_data.shards.claim import part_of
from ddt_data.shards.jobs import Job, joined
from ddt_data.shards.lock import locked
from ddt_data.shards.notes import Status, name_of, status_of

LETTERS = "abcdefghijklmnopqrst"


def plan(make=make, letters=LETTERS):
    return Plan(lambda: [([letter], [letter, letter.upper()]) for letter in letters], make)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    build(tmp_path / "whole", plan())
    return contents(tmp_path / "whole")


@pytest.fixture
def elsewhere(monkeypatch):
    """Call something as a job of another machine, whose lock says nothing here and whose file stands still."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "_machine", lambda: "elsewhere")
            return function(*arguments)

    return call


def test_many_at_once_make_each_shard_once_and_all_have_the_manifest(tmp_path, whole):
    made, start = [], threading.Barrier(6)

    def noting(path, texts):
        made.append(texts[0])
        time.sleep(random.uniform(0, 0.01))
        return make(path, texts)

    def work(_):
        start.wait()
        return build(tmp_path / "out", plan(noting))

    with ThreadPoolExecutor(6) as pool:
        manifests = list(pool.map(work, range(6)))
    assert contents(tmp_path / "out") == whole and sorted(made) == list(LETTERS)
    assert all(manifest == manifests[0] for manifest in manifests) and manifests[0].samples == 2 * len(LETTERS)
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def killed(work, at):
    """Do work in a fork that SIGKILL ends before its write number `at`; return its process."""
    if (child := os.fork()) == 0:
        count = iter(range(1, at))

        def watch(event, arguments):
            if event in ("os.rename", "os.symlink", "os.mkdir") and next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("seed", range(3))
def test_three_that_are_killed_at_any_write_and_one_that_is_not(tmp_path, whole, seed):
    rng = random.Random(seed)
    for _ in range(2):
        children = [
            killed(lambda: build(tmp_path / "out", plan(letters=LETTERS)), rng.randrange(1, 30)) for _ in range(3)
        ]
        for child in children:
            os.waitpid(child, 0)
    if not (tmp_path / "out").exists():
        build(tmp_path / "out", plan())
    assert contents(tmp_path / "out") == whole


def test_a_claim_is_one_jobs_and_of_a_dead_one_the_first_to_follow_has_it(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 1.0)
    monkeypatch.setattr(jobs, "BEAT", 0.05)
    with Job(tmp_path, "p") as one, Job(tmp_path, "p") as two:
        gone = elsewhere(Job(tmp_path, "p").__enter__)
        assert gone.claim("x") and not one.claim("x") and not two.claim("x")
        gone._ended.set()  # it is touched no more
        until = time.monotonic() + 20
        while not one.claim("x"):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert one.claim("x") and not two.claim("x")
    gone.__exit__()
    with Job(tmp_path, "p") as later:
        assert later.claim("x") and later.alone()


def test_of_many_that_follow_a_dead_job_one_has_its_work(tmp_path):
    dead = Job(tmp_path, "p").__enter__()
    assert all(dead.claim(name_of(number)) for number in range(50))
    dead.__exit__()
    with ThreadPoolExecutor(8) as pool:

        def work(_):
            with Job(tmp_path, "p") as job:
                start.wait()
                had = [number for number in range(50) if job.claim(name_of(number))]
                end.wait()
                return had

        start, end = threading.Barrier(8), threading.Barrier(8)
        had = list(pool.map(work, range(8)))
    assert sorted(number for some in had for number in some) == list(range(50))


def test_a_job_of_another_machine_lives_as_long_as_its_file_is_touched(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 1.0)
    monkeypatch.setattr(jobs, "BEAT", 0.05)
    far = elsewhere(Job(tmp_path, "p").__enter__)
    with Job(tmp_path, "p") as here:
        assert far.claim("x")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert not here.claim("x")
            time.sleep(0.1)
        os.utime(far.folder / jobs.ALIVE, (0, 0))  # a clock that goes wrong says nothing
        assert not here.claim("x")
    far.__exit__()


def test_one_that_comes_back_after_it_was_taken_for_dead_does_no_harm(tmp_path, whole, elsewhere, monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    for wake_before_the_end in (True, False):
        out, begun, wake = tmp_path / f"out-{wake_before_the_end}", threading.Event(), threading.Event()

        def slow(path, texts, begun=begun, wake=wake):
            begun.set()
            wake.wait()
            return make(path, texts)

        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(elsewhere, build, out, plan(slow))
            begun.wait()
            if wake_before_the_end:
                threading.Timer(0.5, wake.set).start()
            manifest = build(out, plan())
            wake.set()
            assert late.result() == manifest
        assert contents(out) == whole
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_on_a_disk_without_links_a_folder_is_made_all_the_same(tmp_path, whole, monkeypatch):
    def symlink(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), target)

    monkeypatch.setattr(os, "symlink", symlink)
    build(tmp_path / "out", plan())
    assert contents(tmp_path / "out") == whole


def test_two_that_make_something_else_are_not_at_one_folder(tmp_path):
    out = tmp_path / "out"
    with joined(out, "something else"):
        with pytest.raises(BlockingIOError, match="out is being made of something else; wait for its end"):
            build(out, plan())
        with pytest.raises(BlockingIOError, match="is being made by another command"), ShardWriter(out):
            pass
    with locked(out), pytest.raises(BlockingIOError, match="is being made by another command"):  # as by a writer
        build(out, plan())
    assert build(out, plan()).samples == 2 * len(LETTERS)


def test_a_source_that_is_another_one_for_another_job_is_told(tmp_path):
    """Both have the same words for it, so that only the notes show the difference."""
    out, done, end = tmp_path / "out", threading.Event(), threading.Event()

    def first(path, texts):
        if texts[0] == "b":
            done.set()
            end.wait()
        return make(path, texts)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(build, out, plan(first))
        done.wait()
        try:
            with pytest.raises(BlockingIOError, match="out is being made of something else"):
                build(out, plan(letters="zbc"))
        finally:
            end.set()
        assert running.result().samples == 2 * len(LETTERS)


def test_an_error_of_one_is_that_of_all_and_leaves_what_is_finished(tmp_path):
    def faulty(path, texts):
        if texts[0] == "d":
            raise ValueError("a fault")
        return make(path, texts)

    def work(_):
        with pytest.raises(ValueError, match="a fault"):
            build(tmp_path / "out", plan(faulty))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert not (tmp_path / "out").exists() and (part_of(tmp_path / "out") / "shards" / "000000.tar").is_file()
    assert build(tmp_path / "out", plan()).samples == 2 * len(LETTERS)


def test_how_far_a_folder_is_can_be_seen_from_outside(tmp_path):
    out, begun, end = tmp_path / "out", threading.Event(), threading.Event()
    assert status_of(out) == Status(complete=False, samples=0, skipped=0, jobs=0, rate=0.0)

    def slow(path, texts):
        if texts[0] == "h":
            begun.set()
            end.wait()
        time.sleep(0.02)
        return make(path, texts)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(build, out, plan(slow))
        begun.wait()
        try:
            before = sorted(tmp_path.rglob("*"))
            found = status_of(out)
            assert (found.samples, found.jobs) == (14, 1)
            assert 5 < found.rate < 100  # two samples in 0.02 s or more
            assert sorted(tmp_path.rglob("*")) == before
            with Job(part_of(out), "") as other:  # which is at a second shard
                assert other.claim(name_of(LETTERS.index("i")))
                two = status_of(out)
            assert two.jobs == 2 and two.rate == pytest.approx(2 * found.rate)
        finally:
            end.set()
        running.result()
    assert status_of(out) == Status(complete=True, samples=2 * len(LETTERS), skipped=0, jobs=0, rate=0.0)
