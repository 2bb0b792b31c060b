"""Emoji in up to twelve drawing styles: the same concepts, joined by code point or by name."""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ddt_data.sets.pinned import Pinned, fetch, read_archive

NAMES = Pinned(
    "npm",
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "Names and keywords of emoji, by the emojibase authors, from Unicode CLDR",
)


def _iconify(name: str, version: str, sha256: str, licence: str, what: str) -> Pinned:
    return Pinned("npm", f"@iconify-json/{name}", version, sha256, licence, what)


# fmt: off
STYLES = {  # in words, as captions name them
    "Twemoji": _iconify(
        "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0", "Twemoji, by Twitter and its contributors",
    ),
    "Noto": _iconify(
        "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0", "Noto Emoji, by Google",
    ),
    "old Noto": _iconify(
        "noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0", "Noto Emoji v1, by Google",
    ),
    "Fluent 3D": Pinned(
        "npm", "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT", "Fluent Emoji (3D), by Microsoft",
    ),
    "Fluent flat": _iconify(
        "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT", "Fluent Emoji (flat), by Microsoft",
    ),
    "Fluent": _iconify(
        "fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT", "Fluent Emoji (gradients), by Microsoft",
    ),
    "EmojiOne": _iconify(
        "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0", "EmojiOne 2, by Emoji One",
    ),
    "Firefox": _iconify(
        "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0", "Firefox OS Emoji, by Mozilla",
    ),
    "Streamline": _iconify(
        "streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0", "Streamline Emojis, by Streamline",
    ),
    "OpenMoji": _iconify(
        "openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0", "OpenMoji, by the students of HfG Schwaebisch Gmuend",
    ),
    "old EmojiOne": _iconify(
        "emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0", "EmojiOne 1, by Emoji One",
    ),
}
# fmt: on


@dataclass(frozen=True)
class Concept:
    """What an emoji shows, whoever drew it."""

    code: str  # of its characters, as in "1f469-1f3fd-200d-1f52c"
    base: str  # the same without skin tone; splits go by it
    label: str
    tone: str  # "" or "medium", "light and dark", ...
    keywords: tuple[str, ...]
    group: str  # such as "animals nature"


@dataclass(frozen=True)
class Drawing:
    """One concept in one style."""

    concept: Concept
    style: str
    data: str | bytes  # an SVG, or an encoded picture

    @property
    def name(self) -> str:
        """Style and code, as in "Noto/1f98a": what tells it from every other."""
        return f"{self.style}/{self.concept.code}"


def load_concepts(cache: Path | None = None) -> list[Concept]:
    """Fetch the names of emoji: 3,979, of which 1,650 differ from another by one skin tone.

    Raises:
        ValueError: If the package cannot be had.
    """
    files = dict(read_archive(fetch(NAMES, cache=cache)))
    groups = json.loads(files["meta/groups.json"])["groups"]
    return concepts_of(json.loads(files["en/data.json"]), groups)


def concepts_of(entries: list[dict], groups: dict[str, str]) -> list[Concept]:
    """Flatten the entries of emojibase, skin tones included.

    Example:
        >>> hand = {"hexcode": "1F44B", "label": "waving hand", "tags": ["wave"], "group": 1}
        >>> hand["skins"] = [{"hexcode": "1F44B-1F3FF", "label": "waving hand: dark skin tone", "tone": 5, "group": 1}]
        >>> [(c.code, c.base, c.tone) for c in concepts_of([hand], {"1": "people-body"})]
        [('1f44b', '1f44b', ''), ('1f44b-1f3ff', '1f44b', 'dark')]
    """
    found = []
    for entry in entries:
        for variant in (entry, *entry.get("skins", [])):
            tones = re.findall(r"([\w-]+) skin tone", variant["label"]) if variant is not entry else []
            found.append(
                Concept(
                    code=plain_code(variant["hexcode"]),
                    base=plain_code(entry["hexcode"]),
                    label=variant["label"],
                    tone=" and ".join(dict.fromkeys(tones)),
                    keywords=tuple(entry.get("tags", ())),
                    group=groups.get(str(entry.get("group")), "others").replace("-", " "),
                )
            )
    return found


def load_style(
    style: str, concepts: list[Concept], share_alike: bool = False, cache: Path | None = None
) -> list[Drawing]:
    """Fetch the drawings of one style that are of known concepts.

    Raises:
        ValueError: If the package cannot be had.
    """
    archive = fetch(STYLES[style], share_alike, cache)
    if STYLES[style].name.startswith("@iconify-json/"):
        files = {name: json.loads(data) for name, data in read_archive(archive) if name in ("icons.json", "chars.json")}
        return join_icons(style, concepts, files["icons.json"], files.get("chars.json", {}))
    pictures = {plain_code(Path(name).stem): data for name, data in read_archive(archive) if name.endswith(".webp")}
    return [Drawing(concept, style, pictures[concept.code]) for concept in concepts if concept.code in pictures]


def join_icons(style: str, concepts: list[Concept], icons: dict, chars: dict[str, str]) -> list[Drawing]:
    """Match the icons of an Iconify set with concepts, by code point where the set lists them, else by name.

    Example:
        >>> fox = Concept("1f98a", "1f98a", "fox", "", (), "animals nature")
        >>> icons = {"icons": {"fox": {"body": "<g/>"}}, "width": 128, "height": 128}
        >>> join_icons("Noto", [fox], icons, {})[0].data[-32:]
        'viewBox="0 0 128 128"><g/></svg>'
    """
    names = {plain_code(code): name for code, name in chars.items()}
    drawings = []
    for concept in concepts:
        name = names.get(concept.code, slug(concept.label))
        icon = icons["icons"].get(name) or icons.get("aliases", {}).get(name)
        if icon is not None:
            drawings.append(Drawing(concept, style, _svg(icon, icons)))
    return drawings


def _svg(icon: dict, icons: dict) -> str:
    turned = {}
    while "parent" in icon:  # an alias, perhaps mirrored
        turned = {**icon, **turned}
        parent = icon["parent"]
        icon = icons["icons"].get(parent) or icons["aliases"][parent]
    left, top, width, height = (
        icon.get(name, icons.get(name, default))
        for name, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    body = icon["body"]
    if turned.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{left} {top} {width} {height}">{body}</svg>'


def render_drawing(drawing: Drawing, size: int) -> bytes:
    """Rasterise a drawing into an encoded picture with transparency.

    Raises:
        ValueError: If resvg_py is not installed (extra `[fetch]`), or cannot draw it.
    """
    if isinstance(drawing.data, bytes):
        return drawing.data
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ValueError("drawing emoji needs resvg_py; pip install 'ddt-data[fetch]'") from error
    return svg_to_bytes(svg_string=drawing.data, width=size, height=size, skip_system_fonts=True)


def plain_code(code: str) -> str:
    """Write code points as files name them, without the marks that only choose between text and picture."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def slug(label: str) -> str:
    """Write a name as Iconify does.

    Example:
        >>> slug("woman's hat & piñata: medium-dark skin tone")
        'womans-hat-and-pinata-medium-dark-skin-tone'
    """
    plain = unicodedata.normalize("NFKD", label.replace("&", "and")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")
