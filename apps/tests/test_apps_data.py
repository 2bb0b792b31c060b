"""`ddt data`: shards on disk, and mistakes in one line with nothing half-written."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_data import ShardDataset


def ddt(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("fox", "bell"):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"a {name}")
    return folder


def test_scenes_become_shards(tmp_path):
    result = ddt("data", "scenes", "--out", tmp_path / "scenes", "--count", 5, "--level", "tiny")
    assert result.exit_code == 0, result.stderr
    assert "5 samples in 1 shards" in result.stderr
    sample = ShardDataset(tmp_path / "scenes")[4]
    assert sample["image"].shape == (32, 32, 3)
    assert sample["text"] and sample["meta"]["questions"] and sample["meta"]["edit"]["instruction"]


def test_a_folder_of_photographs_becomes_shards(photos, tmp_path):
    assert ddt("data", "pack", photos, "--out", tmp_path / "shards", "--image-size", 16).exit_code == 0
    samples = ShardDataset(tmp_path / "shards")
    assert {sample["text"] for sample in samples} == {"a fox", "a bell"}
    assert samples[0]["image"].shape == (16, 16, 3)


def test_a_file_of_texts_becomes_shards(tmp_path):
    (tmp_path / "prose.txt").write_text("A fox is red.\n\nA bell rings.\n")
    assert ddt("data", "pack", tmp_path / "prose.txt", "--out", tmp_path / "shards").exit_code == 0
    assert [sample["text"] for sample in ShardDataset(tmp_path / "shards")] == ["A fox is red.", "A bell rings."]


def test_unreadable_pictures_are_left_out_and_named_or_stop_the_command(photos, tmp_path):
    (photos / "bell.jpg").write_bytes(b"not a picture")
    result = ddt("data", "pack", photos, "--out", tmp_path / "shards")
    assert result.exit_code == 0
    assert (
        "1 samples in 1 shards, 1 inputs left out" in result.stderr and "skipped bell.jpg: not a read" in result.stderr
    )
    result = ddt("data", "pack", photos, "--out", tmp_path / "strict", "--strict")
    assert result.exit_code == 2 and "error: bell.jpg: not a readable picture" in result.stderr
    assert not (tmp_path / "strict").exists()


def test_only_a_few_of_many_bad_inputs_are_printed(photos, tmp_path):
    for number in range(9):
        (photos / f"{number}.jpg").write_bytes(b"not a picture")
    result = ddt("data", "pack", photos, "--out", tmp_path / "shards")
    assert result.stderr.count("skipped ") == 5 and "and 4 more" in result.stderr
    assert len(ShardDataset(tmp_path / "shards").manifest.skipped) == 9


def test_lists_of_pictures_are_told_from_lists_of_texts(photos, tmp_path):
    (photos / "captions.jsonl").write_text('{"file_name": "fox.jpg", "text": "a red fox"}\n')
    (photos / "fox.txt").unlink()
    (photos / "bell.txt").unlink()
    assert ddt("data", "pack", photos / "captions.jsonl", "--out", tmp_path / "a", "--image-size", 8).exit_code == 0
    assert ShardDataset(tmp_path / "a")[0]["image"].shape == (8, 8, 3)
    (tmp_path / "b.jsonl").write_text('{"text": "a red fox"}\n')
    assert ddt("data", "pack", tmp_path / "b.jsonl", "--out", tmp_path / "b").exit_code == 0
    assert set(ShardDataset(tmp_path / "b")[0]) == {"key", "text"}


def test_check_tells_what_is_there_and_fails_on_what_is_broken(photos, tmp_path):
    (photos / "empty.jpg").touch()
    (photos / "empty.txt").write_text("nothing")
    (photos / "fox2.jpg").write_bytes((photos / "fox.jpg").read_bytes())
    (photos / "fox2.txt").write_text("a fox")
    arguments = ["data", "pack", photos, "--out", tmp_path / "shards", "--image-size", 16, "--licence", "CC-BY-4.0"]
    assert ddt(*arguments).exit_code == 0
    result = ddt("data", "check", tmp_path / "shards", "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0 and (tmp_path / "sheet.png").is_file()
    for words in ("3 samples in 1 shards", "CC-BY-4.0", "image 3", "5 to 6 characters", "16 x 16: 3", "left out  1"):
        assert words in result.stdout
    assert "empty.jpg: not a readable picture" in result.stdout
    assert "2 samples show the same" in result.stdout and "broken    0" in result.stdout
    tar = tmp_path / "shards" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-600])
    result = ddt("data", "check", tmp_path / "shards")
    assert result.exit_code == 1 and "000000.tar is damaged" in result.stdout


def test_buckets_are_packed_side_by_side(photos, tmp_path):
    Image.new("RGB", (100, 100)).save(photos / "card.png")
    (photos / "card.txt").write_text("a card")
    result = ddt("data", "pack", photos, "--out", tmp_path / "out", "--buckets")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["64x64", "80x48"]


def test_peek_draws_the_batch_of_a_step(photos, tmp_path):
    assert ddt("data", "pack", photos, "--out", tmp_path / "a", "--image-size", 32).exit_code == 0
    assert ddt("data", "scenes", "--out", tmp_path / "b", "--count", 5, "--level", "tiny").exit_code == 0
    mixture = f"{tmp_path / 'a'}:0.5,{tmp_path / 'b'}:0.5"
    first, again, later = (
        ddt("data", "peek", mixture, "--out", tmp_path / f"{n}.png", "--batch-size", 6, "--step", step)
        for n, step in enumerate((0, 0, 1))
    )
    assert first.exit_code == 0, first.stderr
    assert len(first.stdout.splitlines()) == 6 and first.stdout == again.stdout != later.stdout
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


@pytest.mark.parametrize(
    ("ending", "image_format"),
    [("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP"), ("png", "PNG"), ("tif", None), ("", None)],
)
def test_a_picture_is_what_its_ending_says(tmp_path, ending, image_format):
    assert ddt("data", "scenes", "--out", tmp_path / "a", "--count", 5, "--level", "tiny").exit_code == 0
    out = tmp_path / f"sheet.{ending}" if ending else tmp_path / "sheet"
    for verb in (["peek", tmp_path / "a", "--out", out], ["check", tmp_path / "a", "--sheet", out]):
        result = ddt("data", *verb)
        assert result.exit_code == (0 if image_format else 2), result.stderr
        if image_format:
            with Image.open(out) as picture:
                assert picture.format == image_format
            out.unlink()
        else:
            assert f"'{out}' must end in .png, .jpg" in result.stderr and not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_words_of_strangers_do_nothing_on_the_screen(photos, tmp_path):
    (photos / "torn\x1b[2J.jpg").write_bytes(b"no picture")
    for name in ("fox", "torn\x1b[2J"):
        (photos / f"{name}.txt").write_text("a \x1b]0;title\x07 fox")
    packed = ddt("data", "pack", photos, "--out", tmp_path / "a", "--licence", "\x1b[31mnone")
    checked = ddt("data", "check", tmp_path / "a")
    peeked = ddt("data", "peek", tmp_path / "a", "--out", tmp_path / "b.png")
    refused = ddt("data", "check", tmp_path / "\x1b[2Jnone")
    said = "".join(result.stdout + result.stderr for result in (packed, checked, peeked, refused))
    assert "\x1b" not in said and "\x07" not in said and said.count("[2J") >= 3
    assert [result.exit_code for result in (packed, checked, peeked, refused)] == [0, 0, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "scenes", "--count", "0"], ["count (0)"]),
        (["data", "scenes", "--level", "huge"], ["level ('huge')", "tiny, standard, hard"]),
        (["data", "scenes", "--split", "test"], ["split 'test'", "train or unseen"]),
        (["data", "pack", "nowhere"], ["nowhere", "no such folder"]),
        (["data", "pack", "empty"], ["empty", "no pictures"]),
        (["data", "pack", "torn"], ["no sample to write", "fox.jpg"]),
        (["data", "pack", "orphan", "--strict"], ["owl.txt", "caption without a picture"]),
        (["data", "pack", "photos", "--kind", "zip"], ["kind of source 'zip'", "webdataset"]),
        (["data", "pack", "photos", "--buckets", "--workers", "2"], ["workers (2)", "buckets"]),
        (["data", "fetch", "coco"], ["set 'coco'", "emoji"]),
        (["data", "pack", "photos", "--image-size", "0"], ["image_size (0)"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(photos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "fox.jpg").write_bytes((photos / "fox.jpg").read_bytes()[:200])
    (tmp_path / "orphan").mkdir()
    (tmp_path / "orphan" / "fox.jpg").write_bytes((photos / "fox.jpg").read_bytes())
    (tmp_path / "orphan" / "owl.txt").write_text("an owl")
    before = sorted(tmp_path.rglob("*"))
    result = ddt(*arguments, "--out", "shards")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_folder_is_not_overwritten(tmp_path):
    arguments = ["data", "scenes", "--out", tmp_path / "scenes", "--count", 2, "--level", "tiny"]
    assert ddt(*arguments).exit_code == 0
    again = ddt(*arguments)
    assert again.exit_code == 2
    assert "scenes" in again.stderr and again.stderr.count("\n") == 1
