"""Colours of pictures against plain arithmetic: profiles, depths, transparent colours; and odd words beside them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ddt_data import decode_image, image_shape, load_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Primaries as they stand in profiles: XYZ under D50, a column each.
SRGB_XYZ = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
P3_XYZ = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
ADOBE_XYZ = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space, tags, pcs=b"XYZ "):
    body, table = b"", struct.pack(">I", len(tags))
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    size = struct.pack(">I", 128 + len(table) + len(body))
    head = size + b"test" + struct.pack(">I", 0x02400000) + b"mntr" + space + pcs + bytes(12) + b"acsp"
    return head + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48) + table + body


def of_primaries(xyz, gamma):
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = {f"{c}XYZ".encode(): b"XYZ " + bytes(4) + fixed(*xyz[:, i]) for i, c in enumerate("rgb")}
    return profile(b"RGB ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def of_grey(gamma):
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    return profile(b"GRAY", {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249), b"kTRC": curve})


def of_inks(lightness):
    """CMYK: each corner of the cube of inks has a lightness 0..255 and no colour."""
    straight = bytes(range(256))
    corners = b"".join(bytes([lightness(c, m, y, k), 128, 128]) for c, m, y, k in np.ndindex(2, 2, 2, 2))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + straight * 4 + corners
    return profile(b"CMYK", {b"A2B0": lut + straight * 3}, pcs=b"Lab ")


def as_bytes(image, image_format="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def encoded(linear):
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def random_picture(seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("image_format", ["png", "tiff", "webp"])
@pytest.mark.parametrize(("xyz", "gamma"), [(P3_XYZ, 2.2), (ADOBE_XYZ, 2.2), (SRGB_XYZ, 1.0), (SRGB_XYZ[:, ::-1], 1.8)])
def test_a_profile_is_followed(xyz, gamma, image_format):
    pixels = random_picture(1)
    linear = (pixels / 255) ** gamma
    expected = encoded(linear @ xyz.T @ np.linalg.inv(SRGB_XYZ).T)
    options = {"lossless": True} if image_format == "webp" else {}
    data = as_bytes(Image.fromarray(pixels), image_format, icc_profile=of_primaries(xyz, gamma), **options)
    for read in (load_image(data, 8), load_image(Image.open(io.BytesIO(data)), 8), decode_image(data, "x")):
        assert np.abs(read - expected).max() < 4
    assert np.abs(pixels - expected).max() > 20


def test_transparent_parts_keep_the_background_under_a_profile():
    pixels = np.dstack([random_picture(2), np.where(np.arange(64) < 32, 0, 255).reshape(8, 8)]).astype(np.uint8)
    data = as_bytes(Image.fromarray(pixels), icc_profile=of_primaries(P3_XYZ, 2.2))
    opaque = as_bytes(Image.fromarray(pixels[..., :3]), icc_profile=of_primaries(P3_XYZ, 2.2))
    read = load_image(data, 8, background="#123456")
    assert (read[:4] == (0x12, 0x34, 0x56)).all() and (read[4:] == load_image(opaque, 8)[4:]).all()


@pytest.mark.parametrize("gamma", [1.0, 1.8, 3.0])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_followed(gamma, mode):
    values = random_picture(3)[..., 0]
    grey = Image.fromarray(values if mode != "I;16" else values.astype(np.uint16) * 257)
    data = as_bytes(grey.convert("LA") if mode == "LA" else grey, icc_profile=of_grey(gamma))
    assert np.abs(load_image(data, 8) - encoded((values / 255) ** gamma)[..., None]).max() < 4


def test_a_profile_of_inks_is_followed():
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:4] = (0, 255, 255, 0)  # red, by plain arithmetic
    inks[4:] = (255, 0, 0, 0)
    picture = Image.fromarray(inks, "CMYK")
    data = as_bytes(picture, "tiff", icc_profile=of_inks(lambda c, m, y, k: 0 if c else 255))
    read = load_image(data, 8)
    assert (read[:4] > 250).all() and (read[4:] < 5).all()
    assert (load_image(as_bytes(picture, "tiff"), 8)[:4] == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1"])
def test_srgb_by_any_name_and_profiles_that_say_nothing_change_no_byte(mode):
    picture = Image.fromarray(random_picture(4, 32)).convert(mode)
    form = "tiff" if mode == "CMYK" else "png"
    plain = load_image(as_bytes(picture, form), 16)
    foreign = of_inks(lambda *inks: 9) if mode != "CMYK" else of_grey(3.0)
    for icc in (SRGB, b"", b"no profile", SRGB[:200], foreign):
        assert (load_image(as_bytes(picture, form, icc_profile=icc), 16) == plain).all()


def test_damaged_profiles_stop_nothing():
    rng, picture = np.random.default_rng(5), Image.fromarray(random_picture(5))
    for icc in (SRGB, of_primaries(P3_XYZ, 2.2), of_inks(lambda *inks: 200)):
        for _ in range(150):
            damaged = np.frombuffer(icc, np.uint8).copy()
            damaged[rng.integers(0, min(len(icc), 400), 6)] = rng.integers(0, 256, 6)
            kept = damaged[: rng.integers(1, len(icc) + 1)].tobytes()
            assert load_image(as_bytes(picture, icc_profile=kept), 8).shape == (8, 8, 3)


def png(values, depth, colour, *chunks):
    """A PNG of whole numbers [H, W, channels] of `depth` bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", head), *(chunk(*each) for each in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_transparent_colour_of_a_png_has_the_depth_of_its_values(depth, colour):
    channels = 3 if colour == 2 else 1
    values = np.random.default_rng(depth).integers(0, 2**depth, (8, 8, channels))
    clear = values[3, 3].copy()
    values[:2, :2] = clear
    read = load_image(png(values, depth, colour, (b"tRNS", struct.pack(f">{channels}H", *clear))), 8, background="lime")
    where = (values == clear).all(-1)
    shown = np.broadcast_to(values * 255 // (2**depth - 1), (8, 8, 3))
    assert where.sum() >= 5 and (read[where] == (0, 255, 0)).all()
    assert np.abs(read[~where].astype(int) - shown[~where]).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_with_transparency_is_laid_on_the_background(depth):
    values = np.random.default_rng(6).integers(0, 2**depth, (8, 8, 2))
    alpha = values[..., 1:] / (2**depth - 1)
    expected = 255 * (values[..., :1] / (2**depth - 1) * alpha + (1 - alpha) * (0, 0, 1))
    assert np.abs(load_image(png(values, depth, 4), 8, background="blue") - expected).max() < 3


def tiff(values, bits, white_is_zero):
    data = np.packbits((values.reshape(len(values), -1, 1) >> np.arange(bits - 1, -1, -1)) & 1, axis=None).tobytes()
    if bits == 16:
        data = values.astype("<u2").tobytes()
    width, height, at = values.shape[1], len(values), 8 + 2 + 12 * 9 + 4
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: at, 277: 1}
    tags |= {278: height, 279: len(data)}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(("bits", "white_is_zero"), [(8, 0), (8, 1), (12, 0), (16, 0), (16, 1)])
def test_grey_of_a_tiff_is_as_dark_as_it_is_meant(bits, white_is_zero):
    values = np.random.default_rng(bits).integers(0, 2**bits, (8, 8))
    expected = 255 * (1 - values / (2**bits - 1) if white_is_zero else values / (2**bits - 1))
    assert np.abs(load_image(tiff(values, bits, white_is_zero), 8) - expected[..., None]).max() <= 1


def test_sixteen_bits_are_scaled_as_ever():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    read = load_image(as_bytes(Image.fromarray(values)), 256)
    assert (read[..., 0] == (values.astype(np.float32) / 257).astype(np.uint8)).all()


def test_grey_of_unknown_range_is_refused():
    for picture in (np.zeros((8, 8), np.int32), np.zeros((8, 8), np.float32)):
        with pytest.raises(ValueError, match=r"x: not a readable picture .*of unknown range"):
            load_image(as_bytes(Image.fromarray(picture), "tiff"), 8, "x")


def random_exif(rng):
    """Entries that cameras write, but of kinds, counts and values that none should."""
    tags = [0x010F, 0x0110, 0x0112, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x8769, 0x8825, 0x9000, 0xA002, 0x0100]
    body, extra, count = b"", b"", int(rng.integers(1, 6))
    for tag in rng.choice(tags, count):
        kind, values = int(rng.integers(0, 14)), int(rng.integers(0, 9))
        data = rng.bytes(4) if rng.random() < 0.5 else struct.pack("<I", 8 + 2 + 12 * count + 4 + len(extra))
        extra += rng.bytes(int(rng.integers(0, 70)))
        body += struct.pack("<HHI", tag, kind, values) + data
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, count) + body + bytes(4) + extra


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_whatever_stands_in_the_exif_data_the_picture_is_read(image_format):
    rng, picture, read = np.random.default_rng(7), Image.fromarray(random_picture(7)).resize((9, 6)), 0
    for _ in range(400):
        data = as_bytes(picture, image_format, exif=random_exif(rng))
        assert load_image(data, 8).shape == (8, 8, 3)
        read += image_shape(data) in ((9, 6), (6, 9))
    assert read == 400


@pytest.mark.parametrize("entry", [(0x010F, 11, struct.pack("<f", 2.5)), (0x011A, 2, b"96\0\0"), (0x0131, 5, bytes(4))])
def test_a_picture_beside_odd_words_is_turned_upright(entry):
    entries = [(0x0112, 3, struct.pack("<HH", 8, 0)), entry]
    body = b"".join(struct.pack("<HHI", tag, kind, 3 if kind == 2 else 1) + data for tag, kind, data in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(8)
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    data = as_bytes(Image.fromarray(pixels), "jpeg", exif=exif, quality=95)
    assert image_shape(data) == (8, 16)
    read = load_image(data, (8, 16))
    assert (read[:6] > 200).all() and (read[10:] < 50).all()


def test_a_picture_larger_than_it_may_be_is_refused_from_its_header():
    values = np.zeros((4000, 4000, 1), int)
    data = png(values[:1, :1], 1, 0)
    big = data.replace(struct.pack(">II", 1, 1), struct.pack(">II", 4000, 4000))  # its values are not even there
    big = big[:29] + struct.pack(">I", zlib.crc32(big[12:29])) + big[33:]
    with pytest.raises(ValueError, match=r"x: not a readable picture .4000 x 4000 pixels are more than 1024"):
        decode_image(big, "x", max_pixels=32 * 32)
    whole = as_bytes(Image.new("RGB", (32, 32)))
    assert decode_image(whole, "x", max_pixels=32 * 32).shape == (32, 32, 3)
