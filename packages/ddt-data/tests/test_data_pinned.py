"""Packages are fetched pinned, checked and once; nothing else gets into the cache."""

import io
import sys
import tarfile
import zipfile

import pytest

from ddt_data.sets import pinned as module
from ddt_data.sets.pinned import Pinned, as_parts, fetch, read_archive, write_notice
from ddt_data.shards.manifest import checksum

FILES = {"data/words.txt": b"fox", "data/deep/bell.txt": "größer".encode()}


def tgz(path, prefix=""):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def wheel(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("data")
        for name, data in FILES.items():
            archive.writestr(name, data)
    return path


def deb(path):
    def member(name, data):
        return f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)

    control, inner = b"odd", tgz(path.with_suffix(".inner"), "./").read_bytes()
    path.write_bytes(b"!<arch>\n" + member("debian-binary", b"2.0\n") + member("control.tar.xz", control))
    with open(path, "ab") as file:
        file.write(member("data.tar.gz", inner))
    return path


@pytest.mark.parametrize(("make", "name"), [(tgz, "a.tgz"), (wheel, "a.whl"), (deb, "a.deb")])
def test_archives_are_read_without_unpacking(tmp_path, make, name):
    path = make(tmp_path / name)
    assert dict(read_archive(path)) == FILES


def test_the_folder_that_npm_adds_is_left_out(tmp_path):
    assert dict(read_archive(tgz(tmp_path / "a.tgz", "package/"))) == FILES


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client that "downloads" what lies in `offer`, and notes each call."""
    offer = tmp_path / "offer"
    offer.mkdir()
    code = (
        "import shutil, sys, pathlib\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as file: file.write(sys.argv[1] + '\\n')\n"
        f"for path in pathlib.Path({str(offer)!r}).iterdir(): shutil.copy(path, '.')\n"
        "sys.exit('no such package' if sys.argv[1] == 'missing 1' else 0)\n"
    )
    monkeypatch.setitem(module.CLIENTS, "test", [sys.executable, "-c", code, "{name} {version}"])
    wheel(offer / "set-1.whl")
    return offer


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


def pin(offer, **changes):
    fields = {
        "client": "test",
        "name": "set",
        "version": "1",
        "sha256": checksum(offer / "set-1.whl"),
        "licence": "MIT",
    }
    return Pinned(**{**fields, **changes}, what="a set")


def test_a_package_is_downloaded_once(client, tmp_path):
    first = fetch(pin(client), cache=tmp_path / "cache")
    assert dict(read_archive(first)) == FILES
    assert fetch(pin(client), cache=tmp_path / "cache") == first and calls(tmp_path) == ["set 1"]


def test_a_damaged_cache_is_replaced(client, tmp_path):
    path = fetch(pin(client), cache=tmp_path / "cache")
    path.write_bytes(b"damaged")
    assert dict(read_archive(fetch(pin(client), cache=tmp_path / "cache"))) == FILES and len(calls(tmp_path)) == 2


def test_another_archive_than_the_pinned_one_is_not_used(client, tmp_path):
    with pytest.raises(ValueError, match=r"set 1 is not what was pinned .*not used") as caught:
        fetch(pin(client, sha256="0" * 64), cache=tmp_path / "cache")
    assert "\n" not in str(caught.value) and not list((tmp_path / "cache").rglob("*.whl"))


def test_a_client_that_fails_or_is_missing_is_told(client, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"missing 1 could not be downloaded with test \(no such package\)"):
        fetch(pin(client, name="missing"), cache=tmp_path / "cache")
    monkeypatch.setitem(module.CLIENTS, "none", ["no-such-client", "{name}"])
    with pytest.raises(ValueError, match="no-such-client, which is not installed"):
        fetch(pin(client, client="none"), cache=tmp_path / "cache")


def test_share_alike_needs_agreement(client, tmp_path):
    bound = pin(client, licence="CC-BY-SA-4.0")
    with pytest.raises(ValueError, match=r"CC-BY-SA-4.0.*--share-alike"):
        fetch(bound, cache=tmp_path / "cache")
    assert not calls(tmp_path)
    assert fetch(bound, share_alike=True, cache=tmp_path / "cache").is_file()


def test_the_notice_and_the_manifest_name_sources_and_licences(client, tmp_path):
    write_notice(tmp_path / "out", [pin(client)])
    text = (tmp_path / "out" / "NOTICE").read_text()
    assert "a set" in text and "set 1" in text and "MIT" in text
    assert as_parts({pin(client): 5}) == ({"name": "a set", "samples": 5, "source": "test set 1", "licence": "MIT"},)


@pytest.mark.parametrize(
    "setting", [{}, {"PIP_NO_BINARY": ":all:"}, {"PIP_NO_BINARY": "spy-set"}, {"PIP_PREFER_BINARY": "0"}]
)
def test_nothing_of_a_package_is_run_before_its_checksum_is_compared(tmp_path, monkeypatch, setting):
    """An index that offers a source archive, whose build would leave a mark, in place of the wheel or beside it."""
    (tmp_path / "links").mkdir()
    build = {
        "setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='spy-set')\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: spy-set\nVersion: 1\n",
    }
    with tarfile.open(tmp_path / "links" / "spy-set-1.tar.gz", "w:gz") as tar:
        for name, text in build.items():
            info = tarfile.TarInfo(f"spy-set-1/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "links"), "PIP_NO_BUILD_ISOLATION": "0"}
    for name, value in {**offline, **setting}.items():
        monkeypatch.setenv(name, value)
    wanted = Pinned("pip", "spy-set", "1", "0" * 64, "MIT", "a set")
    with pytest.raises(ValueError, match="spy-set 1 could not be downloaded"):
        fetch(wanted, cache=tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "links" / "spy_set-1-py3-none-any.whl", "w") as archive:
        archive.writestr("spy_set-1.dist-info/METADATA", build["PKG-INFO"])
        archive.writestr("spy_set-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("spy_set-1.dist-info/RECORD", "")
    with pytest.raises(ValueError, match="spy-set 1 is not what was pinned"):
        fetch(wanted, cache=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_npm_is_told_to_run_no_script():
    assert "--ignore-scripts" in module.CLIENTS["npm"]
