"""Sources with 60 planted bad inputs: every good sample arrives right, every bad one is named, nothing is lost."""

import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ddt_data import PackConfig, ShardDataset, pack_folder

SIZE = 16


def noise(seed=0, side=48):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def as_bytes(image, image_format="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def bomb(side=20_000):
    """A valid PNG of one bit a pixel: 400 million pixels in 60 kB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(side // 8 + 1) * 100) for _ in range(side // 100)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def good_pictures():
    """Yield (name, bytes, the colour that it must have)."""
    red, clear = Image.new("RGB", (40, 30), (255, 0, 0)), Image.new("RGBA", (40, 30), (9, 9, 9, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "plain.jpg", as_bytes(red, "jpeg"), (254, 0, 0)
    yield "shouting.JPEG", as_bytes(red, "jpeg"), (254, 0, 0)
    yield "third.tiff", as_bytes(red, "tiff"), (255, 0, 0)
    yield "turned.jpg", as_bytes(red, "jpeg", exif=exif), (254, 0, 0)
    yield "cmyk.jpg", as_bytes(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "jpeg"), (254, 0, 0)
    yield "inks.tif", as_bytes(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "tiff"), (255, 0, 0)
    yield "grey.png", as_bytes(Image.new("L", (40, 30), 100)), (100, 100, 100)
    yield "sixteen.png", as_bytes(Image.fromarray(np.full((30, 40), 257 * 100, np.uint16))), (100, 100, 100)
    yield "deep.tif", as_bytes(Image.fromarray(np.full((30, 40), 257 * 100, np.uint16)), "tiff"), (100, 100, 100)
    yield "bit.png", as_bytes(Image.new("1", (40, 30), 1)), (255, 255, 255)
    yield "palette.png", as_bytes(red.convert("P", palette=Image.Palette.ADAPTIVE)), (255, 0, 0)
    yield "animated.gif", as_bytes(red, "gif", save_all=True, append_images=[Image.new("RGB", (40, 30))]), (255, 0, 0)
    yield "moving.webp", as_bytes(red, "webp", save_all=True, append_images=[clear], lossless=True), (255, 0, 0)
    yield "clear.png", as_bytes(clear), (255, 255, 255)
    yield "glass.webp", as_bytes(clear, "webp", lossless=True), (255, 255, 255)
    yield "no extension matches.bmp", as_bytes(red), (255, 0, 0)  # PNG in truth: what is inside counts
    yield "größe 狐狸 🦊 \n line.png", as_bytes(red), (255, 0, 0)
    yield "x" * 240 + ".png", as_bytes(red), (255, 0, 0)
    yield "/".join(["deep" * 20] * 10) + "/down.png", as_bytes(red), (255, 0, 0)
    yield "tiny.png", as_bytes(red.resize((1, 1))), (255, 0, 0)
    yield "thin.png", as_bytes(red.resize((2000, 1))), (255, 0, 0)
    yield "dots..in.it..png", as_bytes(red), (255, 0, 0)


def bad_pictures():
    """Yield (name, bytes), each with a good caption."""
    for image_format in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        options = {"lossless": True} if image_format == "webp" else {}
        data = as_bytes(noise(), image_format, **options)
        yield f"truncated {image_format}.{image_format}", data[: len(data) // 2]
    whole = as_bytes(noise())
    yield "empty.jpg", b""
    yield "nothing.png", b""
    yield "text.png", b"I am no picture.\n"
    yield "page.jpg", b"<!doctype html><title>404 not found</title>"
    yield "header.png", whole[:33]
    yield "signature.png", whole[:8]
    yield "checksum.png", whole[:50] + bytes([whole[50] ^ 255]) + whole[51:]
    yield "huge.png", whole[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + whole[24:]
    yield "bomb.png", bomb()
    yield "zeros.jpg", bytes(5000)
    yield "float.tif", as_bytes(Image.fromarray(np.random.rand(8, 8).astype(np.float32)), "tiff")
    yield "vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "tar.jpg", b"a.txt".ljust(512, b"\0")
    yield "progressive.jpg", as_bytes(noise(), "jpeg", progressive=True)[:900]


def put(folder, name, data, caption=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption)


def plant_folder(folder):
    """Fill a folder; give the (colour, caption) of each good input and the name of each bad one."""
    good, bad = {}, set()
    for name, data, colour in good_pictures():
        put(folder, name, data, f"this is {name}".encode())
        good[name] = (colour, " ".join(f"this is {name}".split()))
    for name, data in bad_pictures():
        put(folder, f"bad/{name}", data, b"a caption")
        bad.add(f"bad/{name}")
    picture = as_bytes(noise())
    for name, caption in {
        "no caption.png": None,
        "blank caption.png": b" \n\t ",
        "empty caption.png": b"",
        "latin caption.png": "größe".encode("latin-1"),
        "utf16 caption.png": "größe".encode("utf-16"),
    }.items():
        put(folder, name, picture, caption)
        bad.add(name)
    put(folder, "twice.jpg", picture, b"which?")
    put(folder, "twice.png", picture)
    good["twice.jpg"] = (None, "which?")
    put(folder, "orphan.txt", b"nobody")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    put(folder, "gone.txt", b"a caption")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    put(folder, "loop.txt", b"a caption")
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    put(folder, "pipe.txt", b"a caption")
    (folder / "round").symlink_to(folder)  # followed, it would never end
    put(folder, ".hidden.png", b"thumbnail of some program")
    return good, bad | {"twice.png", "orphan.txt", "gone.png", "loop.png", "pipe.png"}


def plant_tar(folder):
    good, bad = {}, set()
    picture = as_bytes(Image.new("RGB", (40, 30), (0, 0, 255)))

    def add(tar, name, data, kind=tarfile.REGTYPE, link=""):
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = len(data), kind, link
        tar.addfile(member, io.BytesIO(data))

    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for key in ("fox", "größe 🦊", "x" * 200, "sub/fox"):
            add(tar, f"{key}.png", picture)
            add(tar, f"{key}.txt", f"this is {key}".encode())
            good[f"0.tar/{key}"] = ((0, 0, 255), f"this is {key}")
        add(tar, "fo\udcffx.png", picture)
        good["0.tar/fo\ufffdx"] = ((0, 0, 255), None)
        for name in ("../escape.png", "a/../../escape.png", "/tmp-escape.png", "fox.png"):
            add(tar, name, picture)
            bad.add(f"0.tar/{name}")
        add(tar, "link.png", b"", tarfile.SYMTYPE, "/etc/hostname")
        add(tar, "hard.png", b"", tarfile.LNKTYPE, "fox.png")
        add(tar, "device.png", b"", tarfile.CHRTYPE)
        bad |= {"0.tar/link.png", "0.tar/hard.png", "0.tar/device.png"}
        add(tar, "words.txt", b"no picture")
        add(tar, "two.png", picture)
        add(tar, "two.jpg", picture)
        add(tar, "latin.png", picture)
        add(tar, "latin.txt", "größe".encode("latin-1"))
        add(tar, "meta.png", picture)
        add(tar, "meta.json", b"{")
        add(tar, "list.png", picture)
        add(tar, "list.json", b"[]")
        add(tar, "torn.png", picture[:60])
        add(tar, "text.png", b"no picture")
        bad |= {f"0.tar/{key}" for key in ("words", "two", "latin", "meta", "list", "torn", "text")}
    whole = (folder / "0.tar").read_bytes()
    (folder / "1.tar").write_bytes(whole[:4096])
    (folder / "2.tar").write_bytes(b"<html>not found</html>")
    return good, bad | {"2.tar/"}


def plant_list(folder):
    folder.mkdir()
    Image.new("RGB", (40, 30), (0, 255, 0)).save(folder / "a.png")
    Image.new("RGB", (40, 30), (0, 255, 0)).save(folder / "ü.png")
    Image.new("RGB", (40, 30)).save(folder / "unnamed.png")
    lines = [json.dumps({"file_name": name, "text": f"this is {name}"}).encode() for name in ("a.png", "ü.png")]
    lines += [b'{"file_name": "a.png", "text": "again"}', b'{"file_name": "none.png", "text": "x"}', b"{", b"[]", b"7"]
    lines += [b'{"file_name": "../outside.png", "text": "x"}', b'{"file_name": "/etc/hostname", "text": "x"}']
    (folder / "loop").symlink_to(folder / "loop")
    lines += [b'{"file_name": "loop/a.png", "text": "x"}', b'{"file_name": "' + b"x" * 5000 + b'.png", "text": "x"}']
    lines += [b"[" * 100_000, b'{"file_name": "\\u0000.png", "text": "x"}', b"9" * 5000]
    lines += [b'{"file_name": 5, "text": "x"}', b'{"file_name": "unnamed.png", "text": "gr\xf6\xdfe"}']
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines))
    Image.new("RGB", (40, 30)).save(folder.parent / "outside.png")
    bad = {f"captions.jsonl, line {number}" for number in range(3, 17)} | {"unnamed.png"}
    return {name: ((0, 255, 0), f"this is {name}") for name in ("a.png", "ü.png")}, bad


@pytest.mark.parametrize(
    ("plant", "planted", "workers"),
    [(plant_folder, 30, 1), (plant_tar, 15, 1), (plant_list, 15, 1)],
)
def test_every_good_sample_arrives_and_every_bad_one_is_named(tmp_path, plant, planted, workers):
    good, bad = plant(tmp_path / "source")
    assert len(bad) >= planted
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    config = PackConfig(image_size=SIZE, image_format="png", samples_per_shard=7)
    manifest = pack_folder(tmp_path / "source", tmp_path / "out", config, workers=workers)
    samples = {sample["meta"]["source"]: sample for sample in ShardDataset(tmp_path / "out")}
    extra = {name for name in samples if name.startswith("1.tar/")}  # what came before the cut
    assert set(samples) - extra == set(good)
    for name, (colour, caption) in good.items():
        assert samples[name].get("text") == caption
        assert samples[name]["image"].shape == (SIZE, SIZE, 3)
        if colour:
            assert np.abs(samples[name]["image"].astype(int) - colour).max() <= 1, name
    named = {entry["name"] for entry in manifest.skipped}
    assert {name for name in named if not name.startswith("1.tar/")} == bad
    for why in (entry["why"] for entry in manifest.skipped):
        assert why and "\n" not in why and "0x" not in why and str(tmp_path) not in why  # the same on every machine
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} - before
    assert {path.parts[0] for path in after} == {"out"}  # nothing was written elsewhere


def test_strict_stops_at_the_first_bad_input_by_name(tmp_path):
    plant_folder(tmp_path / "source")
    with pytest.raises(ValueError, match=r"bad/bomb.png: .*pixels.*strict=False") as caught:
        pack_folder(tmp_path / "source", tmp_path / "out", PackConfig(image_size=SIZE, strict=True))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
