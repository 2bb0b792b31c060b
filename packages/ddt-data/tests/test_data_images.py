"""Reading pictures as people have them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from ddt_data import decode_image, encode_image, image_shape, load_image
from ddt_data.shards import pictures


def as_bytes(image: Image.Image, image_format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def half_red_half_blue(width: int = 80, height: int = 40) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_the_middle_is_cut_out_and_resized():
    image = load_image(as_bytes(half_red_half_blue()), 16)
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert (image[:, 2] == (255, 0, 0)).all() and (image[:, 13] == (0, 0, 255)).all()


def test_orientation_of_a_camera_is_honoured():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    image = load_image(as_bytes(half_red_half_blue(), exif=exif), 16)
    assert (image[2] == (255, 0, 0)).all() and (image[13] == (0, 0, 255)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(mode):
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    options = {"transparency": 0} if mode == "P" else {}
    clear = Image.new("P", (20, 20), 0) if mode == "P" else clear.convert(mode)
    assert (load_image(as_bytes(clear, **options), 8) == 255).all()


@pytest.mark.parametrize(
    ("mode", "image_format"), [("1", "png"), ("L", "png"), ("CMYK", "jpeg"), ("P", "gif"), ("RGB", "webp")]
)
def test_every_mode_becomes_rgb(mode, image_format):
    assert load_image(as_bytes(half_red_half_blue().convert(mode), image_format), 8).shape == (8, 8, 3)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    assert (load_image(as_bytes(grey), 8) == 100).all()


def test_downsizing_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    image = load_image(as_bytes(Image.fromarray(checks.astype(np.uint8))), 16)
    assert abs(image.astype(int) - 127).max() < 12


def broken_files(tmp_path):
    whole = as_bytes(Image.fromarray(np.random.randint(0, 255, (64, 64, 3), np.uint8)))
    bad_chunk = whole[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + whole[24:]
    for name, data in {"text": b"hello", "empty": b"", "cut off": whole[: len(whole) // 2], "huge": bad_chunk}.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        yield path


def test_an_unreadable_picture_is_named(tmp_path):
    for path in broken_files(tmp_path):
        with pytest.raises(ValueError, match=path.name) as caught:
            load_image(path, 16)
        assert "\n" not in str(caught.value)


def test_a_missing_picture_and_a_wrong_size_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none.png", 16)
    with pytest.raises(ValueError, match="image_size"):
        load_image(b"", 0)


def test_an_open_picture_is_read_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    grey = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    for image, options in ((half_red_half_blue(), {"exif": exif}), (clear, {}), (grey, {})):
        (tmp_path / "a.png").write_bytes(as_bytes(image, **options))
        for opened in (Image.open(tmp_path / "a.png"), tmp_path / "a.png"):
            assert (load_image(opened, 16) == load_image(as_bytes(image, **options), 16)).all()
            assert image_shape(opened) == image_shape(as_bytes(image, **options))
    before = clear.tobytes()
    load_image(clear, 16)
    assert clear.tobytes() == before and clear.mode == "RGBA"


def test_an_open_picture_of_unknown_range_or_cut_off_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"heights: not a readable picture .*of unknown range"):
        load_image(Image.fromarray(np.random.rand(8, 8).astype(np.float32)), 16, "heights")
    for path in broken_files(tmp_path):
        if path.stem == "cut off":
            with Image.open(path) as opened, pytest.raises(ValueError, match="picture: not a readable"):
                load_image(opened, 16)


@pytest.mark.parametrize("read", [decode_image, lambda data, name: load_image(data, 8, name), image_shape])
def test_other_formats_and_too_many_pixels_are_refused(read, monkeypatch):
    for image_format in ("ppm", "eps", "ico"):  # Pillow starts a program for some
        with pytest.raises(ValueError, match=r"x: not a readable picture .of no known format"):
            read(as_bytes(half_red_half_blue(), image_format), "x")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80 * 40)
    read(as_bytes(half_red_half_blue()), "x")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80 * 40 - 1)
    with pytest.raises(ValueError, match=r"x: not a readable picture .80 x 40 pixels are more than 3199"):
        read(as_bytes(half_red_half_blue()), "x")


@pytest.mark.parametrize(("image_format", "error"), [("png", 0), ("webp", 0), ("jpg", 12)])
def test_encoding_and_decoding_gives_the_picture_back(image_format, error):
    pixels = np.asarray(half_red_half_blue().resize((32, 32)).convert("L").convert("RGB"))
    decoded = decode_image(encode_image(pixels, image_format), "picture")
    assert np.abs(decoded.astype(int) - pixels).max() <= error


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="'bmp'"):
        encode_image(np.zeros((2, 2, 3), np.uint8), "bmp")
