"""Read COCO captions: one JSON with `images` and `annotations`, and the folder of the pictures."""

import os
from collections.abc import Iterator
from pathlib import Path

from ddt_data.readers.listing import inside
from ddt_data.readers.records import Record, Refused, one_line, reason
from ddt_data.readers.text import read_json

ID = int | float | str


def read_coco(file: str | Path, images: str | Path | None = None) -> Iterator[Record | Refused]:
    """Yield the pictures of a COCO captions file in its order, the first caption as text, all in `meta["captions"]`.

    Args:
        file: Such as `annotations/captions_val2017.json`.
        images: Folder of the pictures; by default the folder beside the file, or one level up, that holds the first.

    Raises:
        ValueError: If the file is not of this format, or no folder holds its pictures.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.jpg").write_bytes(b"...")
        >>> found = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
        >>> _ = (folder / "captions.json").write_text(json.dumps(found))
        >>> [record.text for record in read_coco(folder / "captions.json")]
        ['a cat']
    """
    file = Path(file)
    found = read_json(file)
    if not is_coco(found):
        raise ValueError(f"{file}: not COCO captions; it needs `images` and `annotations` with captions")
    captions, refused = _captions(file, found["annotations"])
    names = [entry["file_name"] for entry in found["images"] if _is_image(entry)]
    folder = Path(images) if images else find_pictures_of(file, names)
    known = set()
    for number, entry in enumerate(found["images"]):
        if not _is_image(entry):
            refused.append(Refused(f"{file.name}, image {number}", "has no file_name, or no id; correct the entry"))
            continue
        name, key = entry["file_name"], entry["id"]
        known.add(key)
        try:
            path = inside(folder, name)
            if key not in captions:
                raise ValueError("no caption; add it or remove the entry")
            yield Record(name, image=path, text=captions[key][0], meta={"captions": captions[key]})
        except ValueError as error:
            yield Refused(name, reason(error))
    yield from refused
    if unknown := [key for key in captions if key not in known]:
        said = f"captions of images that it does not list, such as {str(unknown[0])[:20]}; remove them"
        yield Refused(f"{file.name}, {len(unknown)} ids", said, fault=False)


def is_coco(found: object) -> bool:
    """Return whether a JSON is a COCO captions file."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in ("images", "annotations")):
        return False
    notes = found["annotations"]
    return not notes or any(isinstance(note, dict) and "caption" in note for note in notes)


def _captions(file: Path, notes: list) -> tuple[dict[ID, list[str]], list[Refused]]:
    """Return the captions of each image by its id, and what is none."""
    captions: dict[ID, list[str]] = {}
    refused = []
    for number, note in enumerate(notes):
        try:
            if not isinstance(note, dict) or not isinstance(note.get("image_id"), ID):
                raise ValueError("has no image_id that is a number or a text; correct the entry")
            captions.setdefault(note["image_id"], []).append(one_line(note.get("caption")))
        except ValueError as error:
            refused.append(Refused(f"{file.name}, annotation {number}", reason(error), fault=False))
    return {key: texts for key, texts in captions.items() if texts}, refused


def _is_image(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and isinstance(entry.get("id"), ID)


def find_pictures_of(file: Path, names: list[str]) -> Path:
    """Find the folder that the file names of a list are relative to, near the list.

    Raises:
        ValueError: If there is none.
    """
    near = [file.parent, file.parent.parent]
    places = [*near, *(path for top in near for path in sorted(top.iterdir()) if path.is_dir())]
    some = [name for name in names[:100] if not os.path.isabs(name)]
    for place in places:
        if any(os.path.isfile(place / name) for name in some):
            return place
    example = f" (such as {names[0][:60]})" if names else ""
    raise ValueError(f"{file}: its pictures{example} are not near it; name their folder with images=..., or --images")
