"""The command on many pictures: folders, shards, unreadable files, health."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.cli import main
from ddt_tokenizer.lock import locked
from ddt_tokenizer.manifest import BLOCKS, Manifest, checksum
from ddt_tokenizer.shards import read_ids, read_shards


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    tokenizer = DDTTokenizer(
        TokenizerConfig(image_size=16, encoder=encoder, quantizer=VectorConfig(codebook_size=64, code_width=6))
    ).eval()
    tokenizer.folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(tokenizer.folder)
    return tokenizer


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(5):
        picture(i).save(folder / f"{i}.png")
    picture(5).save(folder / "more" / "5.jpg")
    (folder / "1.txt").write_text("a fox\n on ice")
    (folder / "notes.md").write_text("no picture")
    return folder


def run(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def read_blocks(folder):
    """The samples of id shards by key."""
    samples = {}
    for _, members in read_shards(folder):
        lines = members["block.words.jsonl"].splitlines()
        for field, name in (("ids", "ids"), ("target_ids", "target.ids")):
            if f"block.{name}.npy" in members:
                array = np.load(io.BytesIO(members[f"block.{name}.npy"]))
                rows = members.get(f"block.{name}.rows.npy")
                rows = range(len(lines)) if rows is None else np.load(io.BytesIO(rows))
                for line, row in zip(lines, rows, strict=True):
                    sample = samples.setdefault(json.loads(line)["key"], json.loads(line))
                    if row >= 0:
                        sample[field] = array[row].tolist()
    return samples


def test_a_folder_becomes_a_file_of_ids(tokenizer, folder, tmp_path):
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids.npz", "--batch-size", 4) == 0
    saved = np.load(tmp_path / "ids.npz")
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", "more/5.jpg"]
    assert saved["names"].tolist() == names
    assert np.array_equal(saved["ids"], tokenizer.encode([folder / name for name in names]).numpy())


def test_unreadable_pictures_are_left_out_and_named(tokenizer, folder, tmp_path, capsys):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:300])
    (folder / "3.png").write_text("no picture")
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids.npz") == 1
    error = capsys.readouterr().err
    assert "4 of 6 pictures" in error and "left out 2.png" in error and "left out 3.png" in error
    assert len(np.load(tmp_path / "ids.npz")["ids"]) == 4
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids") == 1
    assert [skipped["name"] for skipped in Manifest.read(tmp_path / "ids").skipped] == ["2.png", "3.png"]


def test_a_caption_that_is_not_utf8_is_named(tokenizer, folder, tmp_path, capsys):
    (folder / "1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids") == 1
    assert "left out 1.png: caption of '1.png' is not UTF-8" in capsys.readouterr().err
    assert Manifest.read(tmp_path / "ids").samples == 5


def test_a_folder_becomes_shards_with_its_captions(tokenizer, folder, tmp_path):
    out = tmp_path / "ids"
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", out) == 0
    manifest = Manifest.read(out)
    assert manifest.tokenizer == {"fingerprint": tokenizer.fingerprint(), "codebook_size": 64, "num_tokens": 5}
    assert manifest.samples == 6 and manifest.shards[0].samples == 6 and manifest.format == BLOCKS
    samples = read_blocks(out)
    assert samples["00000001"]["text"] == "a fox on ice" and "text" not in samples["00000002"]
    assert samples["00000005"]["meta"] == {"source": "more/5.jpg"}
    assert np.array_equal(read_ids(out)[5], tokenizer.encode(folder / "more" / "5.jpg")[0].numpy())
    again = tmp_path / "again"
    run("encode", folder, "--tokenizer", tokenizer.folder, "--out", again)
    assert (again / "000000.tar").read_bytes() == (out / "000000.tar").read_bytes()


def write_picture_shards(folder, damage=False):
    """As ddt-data does: an edit, a plain picture, and text alone."""
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as tar:

        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        def png(seed):
            buffer = io.BytesIO()
            picture(seed).resize((16, 16)).save(buffer, "png")
            return buffer.getvalue()

        add("a.png", png(0))
        add("a.target.png", png(1))
        add("a.txt", b"an edit")
        add("a.json", b'{"edit": {"kind": "recolour"}}')
        add("b.png", b"broken" if damage else png(2))
        add("c.txt", b"text alone")
    import hashlib

    digest = hashlib.sha256((folder / "000000.tar").read_bytes()).hexdigest()
    shards = [{"name": "000000.tar", "samples": 3, "sha256": digest}]
    manifest = {"format": "ddt-shards-1", "samples": 3, "shards": shards, "source": "test", "image_size": 16}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": None, "skipped": []}))
    return [
        torch.from_numpy(np.array(picture(i).resize((16, 16)))).permute(2, 0, 1).float() / 127.5 - 1 for i in range(3)
    ]


def test_picture_shards_become_id_shards_with_targets_and_words(tokenizer, tmp_path, capsys):
    images = torch.stack(write_picture_shards(tmp_path / "pictures"))
    out = tmp_path / "ids"
    assert run("encode", tmp_path / "pictures", "--tokenizer", tokenizer.folder, "--out", out) == 1
    assert "sample 'c' holds no picture" in capsys.readouterr().err
    samples = read_blocks(out)
    assert set(samples["a"]) == {"key", "text", "meta", "ids", "target_ids"} and set(samples["b"]) == {"key", "ids"}
    rows = [samples["a"]["ids"], samples["a"]["target_ids"], samples["b"]["ids"]]
    assert rows == tokenizer.encode(images).tolist()


def test_what_is_not_safe_or_clear_is_refused_as_everywhere(tokenizer, folder, tmp_path, capsys, monkeypatch):
    for name in ("0.png", "1.png", "2.png"):
        (folder / name).unlink()
    picture(0).save(folder / "0.png", format="PPM")  # whatever its name, of a format that is not read
    Image.fromarray(np.random.default_rng(0).random((20, 16), dtype=np.float32)).save(folder / "1.tiff")
    picture(0).resize((40, 40)).save(folder / "2.png")
    monkeypatch.setattr("ddt_tokenizer.pictures.MAX_PIXELS", 1500)
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids.npz") == 1
    error = capsys.readouterr().err
    assert "left out 0.png" in error and "left out 1.tiff" in error and "unknown range" in error
    assert "left out 2.png" in error and "more than 1500" in error and "3 of 6 pictures" in error
    for name in ("0.png", "1.tiff", "2.png"):
        with pytest.raises(ValueError, match="not a readable picture"):
            tokenizer.encode([folder / name])
    with pytest.raises(ValueError, match="unknown range"):
        tokenizer.encode(Image.fromarray(np.zeros((20, 16), np.float32)))


def test_damaged_shards_are_refused_and_leave_nothing(tokenizer, tmp_path, capsys):
    write_picture_shards(tmp_path / "pictures")
    with open(tmp_path / "pictures" / "000000.tar", "r+b") as file:
        file.seek(600)
        file.write(b"x")
    assert run("encode", tmp_path / "pictures", "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids") == 2
    assert "checksum" in capsys.readouterr().err and not (tmp_path / "ids").exists()
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_done_is_said_in_a_line(tokenizer, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_picture_shards(tmp_path / "pictures")
    out = tmp_path / "ids.npz"
    for sources, target, named in (
        ([tmp_path / "none.png"], out, "none.png"),
        ([tmp_path / "empty"], out, "holds no pictures"),
        ([tmp_path / "pictures", folder], out, "only source"),
        ([folder], tmp_path / "no" / "ids.npz", "make it first"),
        ([folder], folder, "not empty"),
    ):
        assert run("encode", *sources, "--tokenizer", tokenizer.folder, "--out", target) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and named in error[0]
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_text("x")
    for target in (out, tmp_path / "ids"):
        capsys.readouterr()
        assert run("encode", folder / "bad", "--tokenizer", tokenizer.folder, "--out", target) == 2
        assert "none of 1 pictures can be read; the first: " in capsys.readouterr().err and not target.exists()
    assert run("health", tokenizer.folder, folder / "bad") == 2
    assert "none of 1 pictures can be read; the first: " in capsys.readouterr().err
    for verb in (
        ["health", tokenizer.folder, folder],
        ["encode", folder, "--tokenizer", tokenizer.folder, "--out", out],
    ):
        assert run(*verb, "--batch-size", 0) == 2
        assert "--batch-size (0) must be at least 1" in capsys.readouterr().err


def test_health_of_pictures_ids_and_shards_is_one(tokenizer, folder, tmp_path, capsys):
    run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids.npz")
    run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids")
    for source in (folder, tmp_path / "ids.npz", tmp_path / "ids"):
        assert run("health", tokenizer.folder, source, "--json", tmp_path / "health.json") == 0
        saved = json.loads((tmp_path / "health.json").read_text())
        assert saved["images"] == 6 and len(saved["position_bits"]) == 5
        assert "6 images" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "ids" / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "0" * 16
    (tmp_path / "ids" / "manifest.json").write_text(json.dumps(manifest))
    assert run("health", tokenizer.folder, tmp_path / "ids") == 2
    assert "0000000000000000" in capsys.readouterr().err


def encode(tokenizer, source, out, *options):
    return run("encode", source, "--tokenizer", tokenizer.folder, "--out", out, *options)


def test_the_file_that_is_named_is_the_file_that_is_written(tokenizer, folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.npy").symlink_to(tmp_path / "disk" / "far.npy")
    expected = tokenizer.encode([folder / f"{i}.png" for i in range(5)] + [folder / "more" / "5.jpg"]).numpy()
    for name in ("ids.npy", "IDS.NPY", "link.npy"):
        assert encode(tokenizer, folder, tmp_path / name) == 0
        assert np.array_equal(np.load(tmp_path / name), expected)
        assert run("health", tokenizer.folder, tmp_path / name) == 0
    assert encode(tokenizer, folder, tmp_path / "ids.NPZ") == 0
    assert np.array_equal(np.load(tmp_path / "ids.NPZ")["ids"], expected)
    assert (tmp_path / "link.npy").is_symlink() and (tmp_path / "disk" / "far.npy").is_file()
    assert not list(tmp_path.glob(".*"))
    mask = os.umask(0o027)
    os.umask(mask)
    assert (tmp_path / "ids.npy").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["ids.txt", "ids.json", "ids.pt", "ids.CSV", "ids.tar", "ids.safetensors", "ids.npyz"])
def test_another_ending_is_refused_and_no_folder_made(tokenizer, folder, tmp_path, name, capsys):
    assert encode(tokenizer, folder, tmp_path / name) == 2
    said = capsys.readouterr().err
    assert name in said and "must end in .npz or .npy" in said and not (tmp_path / name).exists()


def test_a_folder_may_have_a_version_in_its_name(tokenizer, folder, tmp_path):
    assert encode(tokenizer, folder, tmp_path / "ids-1.0") == 0 and Manifest.read(tmp_path / "ids-1.0").samples == 6
    (tmp_path / "ids.npz").mkdir()
    assert encode(tokenizer, folder, tmp_path / "ids.npz") == 2


@pytest.mark.parametrize("out", ["ids", "ids.npz", "ids.npy"])
def test_the_second_of_two_commands_is_refused(tokenizer, folder, tmp_path, out, capsys):
    with locked(tmp_path / out):
        assert encode(tokenizer, folder, tmp_path / out) == 2
    assert "is being made by another command" in capsys.readouterr().err and not (tmp_path / out).exists()
    assert encode(tokenizer, folder, tmp_path / out) == 0 and not list(tmp_path.glob(".*"))


def test_a_link_to_an_empty_folder_is_written_through(tokenizer, folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "ids").symlink_to(tmp_path / "disk")
    assert encode(tokenizer, folder, tmp_path / "ids") == 0
    assert (tmp_path / "ids").is_symlink() and Manifest.read(tmp_path / "disk").samples == 6


def test_folders_are_read_as_everywhere(tokenizer, folder, tmp_path, capsys):
    """Hidden files and what systems keep are no pictures; endings count in any case; marks at the beginning do not."""
    for hidden in (".trash", "__MACOSX", "@eaDir"):
        (folder / hidden).mkdir()
        picture(7).save(folder / hidden / "x.png")
    picture(7).save(folder / ".hidden.png")
    (folder / "._0.png").write_bytes(b"of a Mac")
    picture(8).save(folder / "6.PNG")
    (folder / "6.TXT").write_bytes("\ufeffa größer fox".encode())
    picture(9).save(folder / "7.jfif", "jpeg")
    (folder / "7.jfif.txt").write_text("a bell")
    (folder / "8.png").symlink_to(folder / "gone.png")
    (folder / "9.png").mkdir()
    picture(9).save(folder / "10.png")
    (folder / "10.txt").write_text(" \n")
    assert encode(tokenizer, folder, tmp_path / "ids") == 1
    samples = {sample["meta"]["source"]: sample.get("text") for sample in read_blocks(tmp_path / "ids").values()}
    assert samples.keys() == {"0.png", "1.png", "2.png", "3.png", "4.png", "6.PNG", "7.jfif", "more/5.jpg"}
    assert (samples["6.PNG"], samples["7.jfif"], samples["1.png"]) == ("a größer fox", "a bell", "a fox on ice")
    skipped = {entry["name"]: entry["why"] for entry in Manifest.read(tmp_path / "ids").skipped}
    assert skipped.keys() == {"8.png", "10.png"} and "is empty" in skipped["10.png"]
    assert str(tmp_path) not in json.dumps(skipped) and "Errno" not in json.dumps(skipped)


def test_what_is_no_picture_among_the_sources_is_named(tokenizer, folder, tmp_path, capsys):
    (folder / "bad\x1b[31m.png").write_text("x")
    sources = [folder / "0.png", folder / "notes.md", tokenizer.folder / "config.json", folder / "bad\x1b[31m.png"]
    assert run("encode", *sources, "--tokenizer", tokenizer.folder, "--out", tmp_path / "ids.npz") == 1
    said = capsys.readouterr().err
    assert "1 of 4 pictures" in said and "notes.md: not a readable" in said and "config.json: not a readable" in said
    assert "\x1b" not in said and "bad\\x1b[31m.png" in said


@pytest.mark.parametrize("kind", ["text", "empty", "other array", "floats", "huge", "pickle"])
def test_a_file_that_is_none_of_ids_is_refused_in_a_line(tokenizer, tmp_path, kind, capsys):
    for ending in (".npz", ".npy"):
        file = tmp_path / f"ids{ending}"
        arrays = {"other array": {"x": np.zeros(3)}, "floats": {"ids": np.zeros((2, 5))}}.get(kind)
        arrays = arrays or {"ids": np.array([{}], object) if kind == "pickle" else np.zeros((2, 5), np.int64)}
        if ending == ".npz":
            np.savez(file, **arrays)
        else:
            np.save(file, next(iter(arrays.values())), allow_pickle=True)
        if kind in ("text", "empty"):
            file.write_bytes(b"no ids" * (kind == "text"))
        if kind == "huge":
            file.write_bytes(file.read_bytes().replace(b"(2, 5), }     ", b"(29999, 55), }"))
        assert run("health", tokenizer.folder, file) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert run("health", tokenizer.folder, tmp_path / "ids.npz", tmp_path / "ids.npy") == 2
    assert "must be the only source" in capsys.readouterr().err


def test_shards_of_strangers_are_read_or_refused_in_a_line(tokenizer, tmp_path, capsys):
    write_picture_shards(tmp_path / "pictures")
    path, rng = tmp_path / "pictures" / "000000.tar", np.random.default_rng(0)
    manifest = json.loads((tmp_path / "pictures" / "manifest.json").read_text())
    whole, ends = path.read_bytes(), set()
    for number in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(0, 10_000)
        data[at : at + rng.integers(1, 200)] = rng.choice([0, 45, 57, 255, rng.integers(256)])
        path.write_bytes(data[: rng.integers(1, len(data))].tobytes() if number % 4 == 0 else data.tobytes())
        manifest["shards"][0]["sha256"] = checksum(path)
        (tmp_path / "pictures" / "manifest.json").write_text(json.dumps(manifest))
        ends.add(encode(tokenizer, tmp_path / "pictures", tmp_path / f"{number}.npz"))
        capsys.readouterr()
    assert ends == {1, 2}
    shutil.rmtree(tmp_path / "pictures")
    write_picture_shards(tmp_path / "pictures")
    manifest = json.loads((tmp_path / "pictures" / "manifest.json").read_text()) | {"image_size": 15}
    (tmp_path / "pictures" / "manifest.json").write_text(json.dumps(manifest))
    assert encode(tokenizer, tmp_path / "pictures", tmp_path / "small.npz") == 2
    assert "16 x 16 pixels are more than 225" in capsys.readouterr().err


def test_the_run_that_trained_a_tokenizer_stands_for_it(tokenizer, folder, tmp_path):
    shutil.copytree(tokenizer.folder, tmp_path / "run" / "tokenizer")
    assert run("encode", folder, "--tokenizer", tmp_path / "run", "--out", tmp_path / "a.npy") == 0
    assert run("encode", folder, "--tokenizer", tokenizer.folder, "--out", tmp_path / "b.npy") == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
