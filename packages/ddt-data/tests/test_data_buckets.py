"""Aspect-ratio buckets: pictures keep about their shape, batches are of one shape."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddt_data import (
    PackConfig,
    Record,
    ShardDataset,
    aspect_buckets,
    encode_image,
    nearest_bucket,
    open_buckets,
    open_reader,
    pack_buckets,
)
from ddt_data.shards.datamodule import ShardStream


@pytest.mark.parametrize(("image_size", "step"), [(64, 16), (128, 16), (256, 32), (48, 8)])
def test_buckets_keep_about_the_area_and_fit_the_step(image_size, step):
    buckets = aspect_buckets(image_size, step)
    assert (image_size, image_size) in buckets and len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % step == height % step == 0 and max(width, height) <= 2 * min(width, height)
        assert abs(width * height - image_size**2) <= step * max(width, height)
        assert (height, width) in buckets


def test_the_nearest_bucket_cuts_least_off():
    buckets = aspect_buckets(128)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(20, 2000, (50, 2)):
        chosen = nearest_bucket(width, height, buckets)

        def kept(bucket, ratio=width / height):
            return min(bucket[0] / bucket[1] / ratio, ratio * bucket[1] / bucket[0])

        assert kept(chosen) == max(map(kept, buckets))


@pytest.mark.parametrize(("options", "words"), [((60, 16), "image_size"), ((64, 16, 0.5), "max_ratio")])
def test_numbers_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        aspect_buckets(*options)


def test_pictures_are_packed_by_shape_and_batches_stack(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(24):
        size = [(90, 90), (160, 90), (90, 160)][number % 3]
        Image.new("RGB", size, (number * 10, 0, 0)).save(tmp_path / "photos" / f"{number:02}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: upright it is a portrait
    Image.new("RGB", (160, 90)).save(tmp_path / "photos" / "turned.jpg", exif=exif)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    config = PackConfig(image_size=64, image_format="png")
    made = pack_buckets(open_reader(tmp_path / "photos")[1], tmp_path / "out", config)
    assert {name: manifest.samples for name, manifest in made.items()} == {"48x80": 9, "64x64": 8, "80x48": 8}
    assert [entry["name"] for entry in made["64x64"].skipped] == ["bad.png"]
    again = pack_buckets(open_reader(tmp_path / "photos")[1], tmp_path / "out", config)
    assert again == made and ShardDataset(tmp_path / "out" / "48x80").manifest.image_size == (48, 80)
    mixture = open_buckets(tmp_path / "out")
    stream = ShardStream(mixture, lambda batch: np.stack([s["image"] for s in batch]), 4, steps=60, seed=0)
    shapes = [batch.shape for batch in stream.train_dataloader()]
    assert set(shapes) == {(4, 80, 48, 3), (4, 64, 64, 3), (4, 48, 80, 3)}
    with pytest.raises(FileNotFoundError, match="holds no buckets"):
        open_buckets(tmp_path / "photos")


def test_what_is_no_picture_goes_with_the_fullest_bucket(tmp_path):
    """A README beside pictures that are all wide makes no square bucket."""
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(160, 90), (160, 90), (90, 160)]):
        Image.new("RGB", size).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "README.md").write_text("about these")
    made = pack_buckets(open_reader(tmp_path / "photos")[1], tmp_path / "out", PackConfig(image_size=64))
    assert {name: manifest.samples for name, manifest in made.items()} == {"48x80": 1, "80x48": 2}
    assert [entry["name"] for entry in made["80x48"].skipped] == ["README.md"]


def records(count, size=(90, 90)):
    return [Record(str(i), image=encode_image(np.full((*size, 3), 20 * i, np.uint8))) for i in range(count)]


@pytest.mark.parametrize(
    "changed",
    [
        lambda: (records(4), {}),  # one more
        lambda: (records(2), {}),  # one less
        lambda: ([*records(2), Record("2", image=encode_image(np.zeros((90, 90, 3), np.uint8)))], {}),  # another one
        lambda: (records(3, (50, 90)), {}),  # all of another shape
        lambda: (records(3), {"background": "black"}),
        lambda: (records(3), {"image_format": "webp"}),
    ],
)
def test_buckets_of_other_pictures_or_settings_are_not_taken_for_finished_ones(tmp_path, changed):
    config = PackConfig(image_size=64, image_format="png")
    pack_buckets(records(3), tmp_path / "out", config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found, settings = changed()
    with pytest.raises(FileExistsError, match=r"64x64 holds other pictures, or in another way; choose another"):
        pack_buckets(found, tmp_path / "out", replace(config, **settings))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    more = [*records(3), *records(2, (50, 90))]  # the others in a bucket of their own: none is missing
    assert [m.samples for m in pack_buckets(more, tmp_path / "out", config).values()] == [3, 2]


def test_a_picture_that_cannot_be_read_stops_no_other_bucket(tmp_path):
    config = PackConfig(image_size=64, image_format="png")
    mixed = [*records(2, (50, 90)), Record("torn", image=b"no picture")]  # which would lie in a bucket of its own
    for _ in range(2):
        (made,) = pack_buckets(mixed, tmp_path / "out", config).values()
        assert made.samples == 2 and [entry["name"] for entry in made.skipped] == ["torn"]
    with pytest.raises(ValueError, match=r"no sample to write, 1 were left out; torn: not a readable picture"):
        pack_buckets(mixed[2:], tmp_path / "none", config)
    with pytest.raises(ValueError, match="torn"):
        pack_buckets(mixed, tmp_path / "strict", replace(config, strict=True))
    assert not (tmp_path / "none").exists()


def test_a_bucket_that_is_not_in_place_yet_is_no_finished_one(tmp_path):
    """Killed between its manifest and its name, it goes on."""
    config, put = PackConfig(image_size=64, image_format="png"), os.replace

    def put_files_alone(source, target):
        if Path(source).is_dir():
            raise OSError("the power is gone")
        put(source, target)

    pack_buckets(records(3), tmp_path / "whole", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.replace", put_files_alone)
        with pytest.raises(OSError, match="the power is gone"):
            pack_buckets(records(3), tmp_path / "out", config)
    assert (tmp_path / "out" / ".64x64.part" / "shards" / "manifest.json").is_file()
    with pytest.raises(FileNotFoundError, match="holds no buckets"):
        open_buckets(tmp_path / "out")
    pack_buckets(records(3), tmp_path / "out", config)
    whole, out = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("whole", "out"))
    assert whole == out


def test_a_lock_that_a_kill_left_beside_a_finished_bucket_goes(tmp_path):
    pack_buckets(records(3), tmp_path / "out", PackConfig(image_size=64))
    (tmp_path / "out" / ".64x64.lock").touch()
    pack_buckets(records(3), tmp_path / "out", PackConfig(image_size=64))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["64x64"]
