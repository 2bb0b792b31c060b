"""Shard folders behind URLs are read as those of a disk are: through a cache, compared with their checksums."""

import http.server
import os
import pickle
import random
import shutil
import sys
import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fsspec
import pytest
from torch.utils.data import DataLoader

from ddt_data import ShardDataset, ShardWriter, check_folder, open_shards
from ddt_data.shards import remote
from ddt_data.shards.remote import RemoteFolder, open_folder

SENT = Counter()


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves files, and counts what was sent."""

    def do_GET(self):
        SENT[self.path] += 1
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "foxes"
    with ShardWriter(folder, samples_per_shard=5) as writer:
        for number in range(23):
            writer.write({"key": str(number), "text": f"fox {number}"})
    return folder


@pytest.fixture(scope="module")
def server(folder):
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder.parent)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


@pytest.fixture(params=["memory", "http"])
def url(request, folder, server):
    if request.param == "http":
        return f"{server}/foxes"
    fsspec.filesystem("memory").put(f"{folder}/", "/remote/foxes/", recursive=True)
    return "memory://remote/foxes"


def test_samples_are_those_of_the_folder(folder, url, cache):
    here, there = ShardDataset(folder), ShardDataset(f"{url}/")
    assert there.manifest == here.manifest and len(there) == 23 and not cache.exists()
    order = random.Random(0).sample(range(23), 23)
    assert [there[index] for index in order] == [here[index] for index in order]
    assert sorted(os.listdir(cache)) == sorted(f"{shard.sha256}.tar" for shard in here.manifest.shards)
    assert [sample["key"] for sample in open_shards(f"{url}:0.7,{folder}:0.3").without_last(20)][-1] == "2"
    there.check()
    assert check_folder(url).samples == 23 and not check_folder(url).broken


def test_what_is_read_is_fetched_and_no_more_and_once(folder, server, cache):
    SENT.clear()
    there = ShardDataset(f"{server}/foxes")
    assert dict(SENT) == {"/foxes/manifest.json": 1}
    assert there[7]["text"] == "fox 7" and there[9]["text"] == "fox 9"
    assert [path for path in SENT if path.endswith(".tar")] == ["/foxes/000001.tar"]
    shutil.rmtree(cache)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ShardDataset(f"{server}/foxes")[22], range(8)))
    assert found == [ShardDataset(folder)[22]] * 8 and SENT["/foxes/000004.tar"] == 1
    assert len(os.listdir(cache)) == 1


def test_processes_that_load_share_the_cache(folder, server):
    SENT.clear()
    there = pickle.loads(pickle.dumps(ShardDataset(f"{server}/foxes")))
    assert there[0]["key"] == "0"  # its file system is not that of the processes
    loaded = DataLoader(there, batch_size=4, num_workers=2, collate_fn=list)
    assert [sample["key"] for batch in loaded for sample in batch] == [str(number) for number in range(23)]
    assert all(times <= 2 for path, times in SENT.items() if path.endswith(".tar"))


def test_what_is_not_what_the_manifest_says_is_refused_and_not_kept(folder, cache):
    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/remote/torn/", recursive=True)
    data = files.cat_file("/remote/torn/000002.tar")
    for wrong in (data[:700] + b"x" + data[701:], data[:-512], b""):
        files.pipe_file("/remote/torn/000002.tar", wrong)
        there = ShardDataset("memory://remote/torn")
        assert there[0]["key"] == "0"
        with pytest.raises(ValueError, match=r"torn/000002.tar is not what its manifest says") as caught:
            there[12]
        assert "\n" not in str(caught.value) and len(os.listdir(cache)) == 1
    files.pipe_file("/remote/torn/000002.tar", data)
    assert there[12]["key"] == "12"


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("memory://remote/nowhere", FileNotFoundError, "nowhere/manifest.json: there is no such file"),
        ("{server}/nowhere", FileNotFoundError, "nowhere/manifest.json: there is no such file"),
        ("http://127.0.0.1:9/foxes", OSError, "cannot be fetched"),
        ("oddly://bucket/foxes", OSError, "Protocol not known: oddly"),
        ("{server}/broken", ValueError, "not JSON"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_a_line(folder, server, url, kind, words):
    (folder.parent / "broken").mkdir(exist_ok=True)
    (folder.parent / "broken" / "manifest.json").write_text("{")
    with pytest.raises(kind, match=words) as caught:
        ShardDataset(url.format(server=server))
    assert "\n" not in str(caught.value)


def test_a_package_that_a_protocol_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(OSError, match=r"s3://bucket/foxes/manifest.json cannot be fetched .*s3fs"):
        ShardDataset("s3://bucket/foxes")


def test_a_manifest_of_a_stranger_leads_nowhere_else(folder, cache):
    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/remote/strange/", recursive=True)
    text = files.cat_file("/remote/strange/manifest.json")
    digest = ShardDataset(folder).manifest.shards[0].sha256.encode()
    files.pipe_file("/remote/strange/manifest.json", text.replace(digest, b"../../../stolen"))
    with pytest.raises(ValueError, match="no SHA-256"):
        ShardDataset("memory://remote/strange")[0]
    assert not cache.exists()


def test_what_was_not_used_for_longest_makes_room(folder, url, cache, monkeypatch):
    size, disk = (folder / "000000.tar").stat().st_size, namedtuple("Disk", "total free")

    def usage(place):
        return disk(30 * size, 6 * size - sum(path.stat().st_size for path in place.glob("*.tar")))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(remote, "IN_USE", 30.0)
    there, shards = RemoteFolder(url), open_folder(folder)[1].shards
    for age, shard in enumerate(shards[:3]):  # three fit: half of the six are to stay free
        path = there / shard.name
        os.utime(path, (time.time() - 100 + age,) * 2)
    there / shards[0].name  # used again
    there / shards[3].name
    assert {path.stem for path in cache.glob("*.tar")} == {shards[number].sha256 for number in (0, 2, 3)}
    there / shards[4].name
    assert {path.stem for path in cache.glob("*.tar")} == {shards[number].sha256 for number in (0, 3, 4)}
    there / shards[1].name  # all are in use, so that more is taken
    assert len(list(cache.glob("*.tar"))) == 4
