"""Pack and check damaged inputs: python scripts/fuzz.py COUNT [SEED].

Each input is a good file that was damaged at random: bytes flipped, cut, pushed in, doubled, or another file joined to
it. It is packed beside good files. Whatever happens, an error is one line that a user can act on, every input is a
sample or named in the manifest, and the good files arrive. Prints what was not so, the peak of memory, and the slowest.
"""

import io
import json
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ddt_data import PackConfig, ShardDataset, check_folder, pack_folder, pack_text
from ddt_data.shards.index import INDEX
from ddt_data.shards.manifest import checksum

CONFIG = PackConfig(image_size=8, image_format="png")
FORMATS = {"png": "png", "jpg": "jpeg", "gif": "gif", "webp": "webp", "bmp": "bmp", "tif": "tiff"}


@dataclass
class Report:
    """What became of the inputs."""

    inputs: int = 0
    uncaught: list[str] = field(default_factory=list)  # what is no error of one line, by the number of the input
    lost: list[str] = field(default_factory=list)  # inputs that are neither a sample nor named
    slowest: tuple[float, int] = (0.0, 0)  # seconds, and the number of the input

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
        lines = [f"{self.inputs} inputs: {len(self.uncaught)} uncaught, {len(self.lost)} lost", *self.uncaught[:20]]
        slowest = f"slowest {self.slowest[0]:.2f} s, input {self.slowest[1]}"
        return "\n".join([*lines, *self.lost[:20], f"peak memory {peak:.0f} MiB, {slowest}"])


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to four ways."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        short = data[at : at + rng.randint(1, 64)]
        match rng.randrange(8):
            case 0:  # flip bits of a few bytes
                changed = bytearray(data)
                for _ in range(rng.randint(1, 8)):
                    if changed:
                        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
                data = bytes(changed)
            case 1:  # cut off
                data = data[:at]
            case 2:  # cut out
                data = data[:at] + data[end:]
            case 3:  # push in noise
                data = data[:at] + rng.randbytes(rng.randint(1, 600)) + data[at:]
            case 4:  # push in what means something
                data = data[:at] + rng.choice(MARKS) + data[at:]
            case 5:  # write extremes over
                data = data[:at] + rng.choice((b"\xff", b"\0", b"7", b"-")) * len(short) + data[at + len(short) :]
            case 6:  # join another file
                data = data + other if rng.random() < 0.5 else data[:at] + other
            case _:  # double a piece
                data = data[:at] + short * rng.randint(1, 50) + data[at:]
    return data


MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b'"', b"\n", b"\r", b"[" * 2000, b"{" * 3, b"\xe2\x80\xa8", b"\\ud800")
MARKS += (b"NaN", b"1e999", b"null", b"../", b"9" * 5000, b"'", b",", b";", b"\t", b"\x1b[31m", bytes(512), b"-1")


def picture(kind: str, rng: random.Random) -> bytes:
    """Return a picture of noise."""
    width, height = rng.randint(1, 24), rng.randint(1, 24)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(buffer, FORMATS[kind])
    return buffer.getvalue()


def tar(rng: random.Random) -> bytes:
    """Return a tar of three samples, in one of its formats."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((0, 1, 2))) as archive:
        for key in ("a", "b", "c" * rng.choice((1, 90))):
            meta = {"caption": "a fox", "questions": [{"question": "What?", "answer": "a fox"}]}
            for name, data in {
                f"{key}.png": picture("png", rng),
                f"{key}.txt": b"a fox",
                f"{key}.json": json.dumps(meta).encode(),
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def written(kind: str) -> dict[str, bytes]:
    """Return a list of the pictures a.png and b.png in one of the forms that lists have, by its name."""
    names, said = ("a.png", "b.png"), ("a fox", "an owl, small")
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "a fox"}]
    match kind:
        case "csv":
            return {"captions.csv": f'file_name,text,more\n{names[0]},{said[0]},1\n{names[1]},"{said[1]}",2\n'.encode()}
        case "tsv":
            return {
                "metadata.tsv": "file_name\ttext\n{}\t{}\n{}\t{}\n".format(
                    *sum(zip(names, said, strict=True), ())
                ).encode()
            }
        case "jsonl":
            rows = [{"file_name": name, "text": text} for name, text in zip(names, said, strict=True)]
            return {"captions.jsonl": "\n".join(map(json.dumps, rows)).encode()}
        case "coco":
            images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
            notes = [{"image_id": number, "caption": text} for number, text in enumerate(said)]
            return {"list.json": json.dumps({"images": images, "annotations": notes}).encode()}
        case "llava":
            return {"list.json": json.dumps([{"image": name, "conversations": turns} for name in names]).encode()}
        case "edits":
            return {"edits.jsonl": json.dumps({"source": names[0], "target": names[1], "instruction": "turn"}).encode()}
        case "beside":
            return {"a.json": json.dumps({"caption": said[0], "width": 3}).encode()}
        case _:
            return {"a.txt": said[0].encode()}


LISTS = ("csv", "tsv", "jsonl", "coco", "llava", "edits", "beside", "txt")


def fuzz_picture(folder: Path, rng: random.Random) -> set[str]:
    """Pack a damaged picture beside a good one."""
    kind, other = rng.choice(list(FORMATS)), rng.choice(list(FORMATS))
    (folder / "s" / f"bad.{kind}").write_bytes(damage(picture(kind, rng), picture(other, rng), rng))
    (folder / "s" / "good.png").write_bytes(picture("png", rng))
    return {f"bad.{kind}", "good.png"} - pack(folder, needed={"good.png"})


def fuzz_tar(folder: Path, rng: random.Random) -> set[str]:
    """Pack a damaged tar beside a good one."""
    good = tar(rng)
    (folder / "s" / "good.tar").write_bytes(good)
    (folder / "s" / "bad.tar").write_bytes(damage(good, tar(rng), rng))
    told = pack(folder, needed={"good.tar/a", "good.tar/b"})
    return {"bad.tar"} - {name.partition("/")[0] for name in told}


def fuzz_list(folder: Path, rng: random.Random) -> set[str]:
    """Pack pictures with damaged words."""
    for name in ("a.png", "b.png"):
        (folder / "s" / name).write_bytes(picture("png", rng))
    for name, data in written(rng.choice(LISTS)).items():
        (folder / "s" / name).write_bytes(damage(data, written(rng.choice(LISTS)).popitem()[1], rng))
    pack_folder(folder / "s", folder / "o", CONFIG)
    text = (folder / "o" / "manifest.json").read_text()
    samples = list(ShardDataset(folder / "o"))
    told = text + json.dumps([sample["meta"] for sample in samples])
    lost = {
        name for name in ("a.png", "b.png") if name not in told and "picture" not in told and "target" not in samples[0]
    }
    check_folder(folder / "o")
    return lost


def fuzz_text(folder: Path, rng: random.Random) -> set[str]:
    """Pack damaged texts."""
    name = rng.choice(("a.txt", "a.jsonl"))
    data = b"a fox\na bell\n" if name == "a.txt" else b'{"text": "a fox"}\n{"text": "a bell"}\n'
    (folder / "s" / name).write_bytes(damage(data, data, rng))
    pack_text(folder / "s" / name, folder / "o")
    check_folder(folder / "o")
    return set()


def fuzz_shard(folder: Path, rng: random.Random) -> set[str]:
    """Check shards of which one is damaged; half of the time its checksum is right."""
    for number in range(3):
        (folder / "s" / f"{number}.png").write_bytes(picture("png", rng))
    pack_folder(folder / "s", folder / "o", CONFIG)
    path, manifest = folder / "o" / "000000.tar", json.loads((folder / "o" / "manifest.json").read_text())
    whole = path.read_bytes()
    path.write_bytes(damage(whole, tar(rng), rng))
    same = path.read_bytes() == whole
    if rng.random() < 0.5:
        manifest["shards"][0]["sha256"], same = checksum(path), True
        (folder / "o" / "manifest.json").write_text(json.dumps(manifest))
        (folder / "o" / INDEX).unlink(missing_ok=True)
    found = check_folder(folder / "o")
    return set() if same or found.broken else {"000000.tar"}


def fuzz_index(folder: Path, rng: random.Random) -> set[str]:
    """Read shards whose index is damaged: the samples are those of the tars."""
    for number in range(5):
        (folder / "s" / f"{number}.png").write_bytes(picture("png", rng))
    pack_folder(folder / "s", folder / "o", CONFIG)
    path = folder / "o" / INDEX
    whole, keys = path.read_bytes(), [sample["key"] for sample in ShardDataset(folder / "o")]
    path.write_bytes(damage(whole, tar(rng), rng))
    told = path.read_bytes() == whole or check_folder(folder / "o").broken
    same = [sample["key"] for sample in ShardDataset(folder / "o")] == keys
    return set() if told and same else {INDEX}


KINDS: tuple[Callable[[Path, random.Random], set[str]], ...] = (
    fuzz_picture,
    fuzz_tar,
    fuzz_list,
    fuzz_text,
    fuzz_shard,
    fuzz_index,
)
MAY_REFUSE = (fuzz_list, fuzz_text)  # as a whole; elsewhere there is something good


def pack(folder: Path, needed: set[str]) -> set[str]:
    """Pack and check a folder; return the names of its samples and of what was left out.

    Raises:
        AssertionError: If a needed sample is missing, or a reason is no short line.
    """
    manifest = pack_folder(folder / "s", folder / "o", CONFIG)
    samples = {sample["meta"]["source"] for sample in ShardDataset(folder / "o")}
    assert needed <= samples, f"lost {needed - samples}"
    for entry in manifest.skipped:
        assert entry["why"].isprintable() and len(entry["why"]) <= 200, entry
    found = check_folder(folder / "o")
    assert not found.broken and not found.unusable, found
    return samples | {entry["name"] for entry in manifest.skipped}


def fuzz(count: int, seed: int = 0) -> Report:
    """Pack and check `count` damaged inputs; input i is a function of (seed, i)."""
    report = Report()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "s").mkdir()
            kind = KINDS[number % len(KINDS)]
            try:
                report.lost += [f"input {number}, {kind.__name__}: {lost}" for lost in kind(folder, rng)]
            except (ValueError, OSError) as error:
                if "\n" in str(error) or kind not in MAY_REFUSE:
                    report.uncaught.append(f"input {number}, {kind.__name__}: {error!r}")
            except Exception as error:
                report.uncaught.append(f"input {number}, {kind.__name__}: {error!r}"[:300])
        report.slowest = max(report.slowest, (time.perf_counter() - start, number))
        report.inputs += 1
    return report


if __name__ == "__main__":
    print(fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
