"""Make the embedded sprite sheets from their pinned sources.

Needed only to change the art. In an empty folder and a fresh environment:

    npm install @iconify-json/twemoji@1.2.5 @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
    pip install resvg_py==0.5.0 pillow==13.0.0 ./packages/ddt-data
    python packages/ddt-data/scripts/make_sprites.py node_modules packages/ddt-data/src/ddt_data/scenes/art

The same versions give the same pixels; the sheets are lossless.
"""

import io
import json
import sys
from pathlib import Path

import resvg_py
from PIL import Image

from ddt_data.scenes.nouns import NOUNS
from ddt_data.scenes.sprites import CELL, COLUMNS

SOURCES = {"twemoji": "twemoji", "noto": "noto", "fluent": "fluent-emoji-flat"}

# Icon names of the nouns that are not called by their own name.
ICONS = {
    "apple": "red-apple",
    "tree": "deciduous-tree",
    "dog": "dog-face",
    "cat": "cat-face",
    "rabbit": "rabbit-face",
    "pig": "pig-face",
    "car": "automobile",
    "ball": "soccer-ball",
    "clock": "alarm-clock",
    "gift": "wrapped-gift",
    "heart": "red-heart",
}
DRAWN = 512  # side at which the vector drawing is rasterised, pixels


def rasterise(icons: dict, noun: str) -> Image.Image:
    """Draw one icon, cropped to what is drawn and centred in a 64 px cell, so that all styles fill it alike."""
    name = ICONS.get(noun, noun)
    name = icons.get("aliases", {}).get(name, {"parent": name})["parent"]
    icon = icons["icons"][name]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    left, top = icon.get("left", 0), icon.get("top", 0)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.HAMMING)


def make_sheet(icons: dict) -> Image.Image:
    """Lay the sprites of one style out in the order of `NOUNS`."""
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(NOUNS) // COLUMNS) * CELL))
    for n, noun in enumerate(NOUNS):
        row, column = divmod(n, COLUMNS)
        sheet.paste(rasterise(icons, noun), (column * CELL, row * CELL))
    return sheet


def main() -> None:
    node_modules, art = map(Path, sys.argv[1:])
    for style, package in SOURCES.items():
        icons = json.loads((node_modules / "@iconify-json" / package / "icons.json").read_text())
        make_sheet(icons).save(art / f"{style}.webp", lossless=True, quality=100, method=6)


if __name__ == "__main__":
    main()
