# Copied from packages/ddt-data/src/ddt_data/shards/colours.py
"""Colours of pictures as people have them -> 8 bits of sRGB: 16-bit grey, transparent colours, profiles."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# How Pillow makes the values of a PNG 8 bits, by its name of their layout; the transparent colour it leaves as it is.
PNG_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of profiles: the mode of Pillow that they speak of
NEAR = 2  # a profile that moves no colour further than this, of 255, is sRGB by another name


def to_srgb(file: Image.Image) -> Image.Image:
    """Convert a picture into mode RGB, or RGBA if parts are transparent, in the colours that its profile says.

    A profile that is broken, or of another kind of picture, is passed over, and so is sRGB: the values then stay.

    Raises:
        ValueError: If its values have no known range, or no colours.

    Example:
        >>> to_srgb(Image.fromarray(np.full((2, 2), 257 * 100, np.uint16))).getpixel((0, 0))
        (100, 100, 100)
    """
    profile = file.info.get("icc_profile")
    image = _of_8_bits(file)
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    space, transform = _conversion(profile) if isinstance(profile, bytes) else (None, None)
    grey, inks = image.mode in ("1", "L", "LA"), image.mode == "CMYK"
    if transform is None or (space == "L" and not grey) or (space == "CMYK") != inks:
        return colours
    managed = ImageCms.applyTransform(colours.convert("RGB") if space == "RGB" else image.convert(space), transform)
    if colours.mode == "RGBA":
        managed.putalpha(colours.getchannel("A"))
    return managed


def _of_8_bits(file: Image.Image) -> Image.Image:
    """Scale 16-bit grey, which Pillow would clip, and the transparent colour of a PNG, which it leaves as it is."""
    if file.mode == "F":
        raise ValueError("its values are floating point, of unknown range")
    if not file.mode.startswith("I"):
        scale = PNG_SCALES.get(file.tile[0][3]) if file.format == "PNG" and getattr(file, "tile", ()) else None
        if scale is None or "transparency" not in file.info:
            return file
        image = file.copy()
        clear = np.asarray(file.info["transparency"]) * scale
        image.info["transparency"] = tuple(map(int, clear)) if clear.ndim else int(clear)
        return image
    tags = getattr(file, "tag_v2", {})  # of a TIFF
    if tags and file.mode == "I":
        raise ValueError("its values are of 32 bits or signed, of unknown range")
    values = np.asarray(file, np.float32)
    clear = values == file.info["transparency"] if "transparency" in file.info else None
    most = 2 ** tags.get(258, (16,))[0] - 1
    values = most - values if tags.get(262) == 0 else values  # white is zero
    image = Image.fromarray((values / (most / 255)).clip(0, 255).astype(np.uint8))
    if clear is not None:
        image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return image


@lru_cache(maxsize=8)
def _conversion(profile: bytes) -> tuple[str | None, ImageCms.ImageCmsTransform | None]:
    """Mode that a profile speaks of, and the way from there to sRGB; Nones if there is none, or it leads nowhere."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = SPACES[opened.profile.xcolor_space.strip()]
        flags = ImageCms.Flags.NOOPTIMIZE if space == "L" else 0  # its table for grey is coarse, and no quicker
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), space, "RGB", flags=flags)
        if space != "CMYK":
            levels = np.linspace(0, 255, 9 if space == "RGB" else 256).astype(np.uint8)
            axes = np.meshgrid(*[levels] * len(space), indexing="ij")  # "RGB" has three of them, "L" one
            probe = Image.fromarray(np.stack(axes, -1).reshape(1, -1, len(space)).squeeze(-1 if space == "L" else ()))
            moved = np.asarray(ImageCms.applyTransform(probe, transform), int) - np.asarray(probe.convert("RGB"))
            if np.abs(moved).max() <= NEAR:
                return None, None
        return space, transform
    except (OSError, ValueError, TypeError, LookupError, ImageCms.PyCMSError):
        return None, None
