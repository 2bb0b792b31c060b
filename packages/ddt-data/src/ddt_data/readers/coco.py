"""Read COCO captions: one JSON with `images` and `annotations`, and the folder of the pictures."""

import json
from collections.abc import Iterator
from pathlib import Path

from ddt_data.readers.captions import inside
from ddt_data.readers.records import Record, Refused, one_line


def read_coco(file: str | Path, images: str | Path | None = None) -> Iterator[Record | Refused]:
    """Yield the pictures of a COCO captions file in its order, the first caption as text, all in `meta["captions"]`.

    Args:
        file: Such as `annotations/captions_val2017.json`.
        images: Folder of the pictures; by default the folder beside the file, or one level up, that holds the first.

    Raises:
        ValueError: If the file is not of this format, or no folder holds its pictures.

    Example:
        >>> import tempfile
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
    captions: dict[object, list[str]] = {}
    for entry in found["annotations"]:
        if isinstance(entry, dict) and isinstance(entry.get("caption"), str):
            captions.setdefault(entry.get("image_id"), []).append(entry["caption"])
    entries = [
        entry for entry in found["images"] if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    ]
    folder = Path(images) if images else find_pictures_of(file, [entry["file_name"] for entry in entries])
    for entry in entries:
        name = entry["file_name"]
        try:
            path = inside(folder, name)
            if entry.get("id") not in captions:
                raise ValueError("no caption; add it or remove the entry")
            texts = [one_line(text) for text in captions[entry["id"]]]
            yield Record(name, image=path, text=texts[0], meta={"captions": texts})
        except ValueError as error:
            yield Refused(name, str(error))


def is_coco(found: object) -> bool:
    """Return whether a JSON is a COCO captions file."""
    return isinstance(found, dict) and all(isinstance(found.get(key), list) for key in ("images", "annotations"))


def read_json(file: Path) -> object:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no JSON in UTF-8.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON in UTF-8 ({error}); correct it") from error


def find_pictures_of(file: Path, names: list[str]) -> Path:
    """Find the folder that the file names of a list are relative to, near the list.

    Raises:
        ValueError: If there is none.
    """
    near = [file.parent, file.parent.parent]
    places = [*near, *(path for top in near for path in sorted(top.iterdir()) if path.is_dir())]
    for place in places:
        if any((place / name).is_file() for name in names[:100]):
            return place
    example = f" (such as {names[0]})" if names else ""
    raise ValueError(f"{file}: its pictures{example} are not near it; name their folder with images=..., or --images")
