"""Pack pictures and words from where people have them into a shard folder."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import ImageColor

from ddt_data.limits import Pixels, PositiveInt, check_settings
from ddt_data.readers.layouts import find_reader
from ddt_data.readers.records import Picture, Record, Refused, Span, bytes_or_path, reason
from ddt_data.shards.block_writing import Sample
from ddt_data.shards.building import Plan, Progress, build
from ddt_data.shards.images import ENCODINGS
from ddt_data.shards.manifest import Manifest
from ddt_data.shards.meta import apart, misfits, usable
from ddt_data.shards.notes import Made
from ddt_data.shards.pictures import load_image
from ddt_data.shards.tar_shard import TarShardWriter

Numbered = tuple[int, Record | Refused]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How pictures are packed."""

    image_size: Pixels | tuple[Pixels, Pixels] = 64  # side in pixels, or (width, height)
    strict: bool = False  # stop at the first input that cannot be used, instead of naming it in the manifest
    background: str = "white"  # behind transparent parts: a colour in words, or "#rrggbb"
    samples_per_shard: PositiveInt = 1000  # inputs, so that a shard may hold fewer samples
    image_format: str = "jpg"  # or "png", "webp"; see `encode_image`

    def __post_init__(self):
        check_settings(self)
        if self.image_format not in ENCODINGS:
            raise ValueError(f"image_format ({self.image_format!r}) must be one of: {', '.join(ENCODINGS)}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise ValueError(f"background ({self.background!r}) is no colour; use a word, or #rrggbb") from error


def pack_folder(
    source: str | Path,
    out: str | Path,
    config: PackConfig | None = None,
    *,
    kind: str = "auto",
    images: str | Path | None = None,
    licence: str = "",
    workers: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Pack the pictures of a folder, or of a file that lists pictures, into a new shard folder.

    What cannot be used is left out and named in the manifest with the reason. A run that was stopped goes on shard by
    shard when it is started again; the result does not depend on it, nor on the number of workers. The key of a sample
    is the number of its input, `meta["source"]` its name.

    Args:
        source: With `kind` and `images`: see `open_reader`.
        config: Size of the pictures and other settings; `PackConfig()` by default.
        workers: Processes. With more than one, scripts need the usual `if __name__ == "__main__":`.
        progress: Called with (samples done, 0).

    Raises:
        FileNotFoundError: If the source is missing.
        FileExistsError: If `out` holds something.
        ValueError: If the source holds no pictures, not one can be used, or (strict) one cannot.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (30, 20)).save(folder / "black.png")
        >>> _ = (folder / "broken.png").write_text("no picture")
        >>> manifest = pack_folder(folder, folder / "shards", PackConfig(image_size=16))
        >>> manifest.samples, [entry["name"] for entry in manifest.skipped]
        (1, ['broken.png'])
    """
    config = config or PackConfig()
    found, read = find_reader(source, kind, images)  # fails early
    said = f"{found} {Path(source).name}"
    plan = _plan(read, config, source=said, licence=licence)
    return build(out, plan, workers, progress=progress)


def pack_records(
    records: Iterable[Record | Refused],
    out: str | Path,
    config: PackConfig,
    source: str = "",
    licence: str = "",
    parts: tuple[dict, ...] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Pack the records of any reader, one's own included, into a new shard folder.

    Args:
        records: What to pack, in this order.
        source: Where the records come from, in words.
        parts: See `Manifest`.
        progress: Called with (samples done, of).

    Raises:
        FileExistsError: If `out` holds something.
        ValueError: If not one can be used, or (strict) one cannot.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from ddt_data import encode_image
        >>> red = Record("red", image=encode_image(np.full((8, 8, 3), (255, 0, 0), np.uint8)), text="a red card")
        >>> pack_records([red], Path(tempfile.mkdtemp(), "out"), PackConfig(image_size=8)).samples
        1
    """
    listed = list(records)
    plan = _plan(lambda: listed, config, source=source, licence=licence, parts=parts)
    return build(out, plan, total=len(listed), progress=progress)


def _plan(read: Callable[[], Iterable[Record | Refused]], config: PackConfig, **about: Any) -> Plan:
    manifest = Manifest(0, (), image_size=config.image_size, **about)
    return Plan(partial(_chunks, read, config), partial(write_records, config), manifest)


def write_records(config: PackConfig, path: Path, records: list[Numbered]) -> Made:
    """Write one shard of records; what cannot be used is left out and named.

    Raises:
        ValueError: If one cannot be used, and the settings are strict.
    """
    writer, skipped = TarShardWriter(path, config.image_format), []
    try:
        for number, record in records:
            try:
                odd = misfits(record.meta) if isinstance(record, Record) else {}
                if config.strict and odd:
                    raise ValueError("; ".join(odd.values()))
                with warnings.catch_warnings(action="ignore"):  # what is wrong raises, or does not matter
                    writer.write(read_record(number, record, config))
                skipped += [
                    {"name": f"{record.name}, {key}", "why": reason(f"{why}; it is kept as {apart(key)}")}
                    for key, why in odd.items()
                ]
            except (ValueError, OSError) as error:
                why = reason(error).removeprefix(f"{reason(record.name)}: ")
                if config.strict and getattr(record, "fault", True):
                    name = reason(record.name)
                    raise ValueError(f"{name}: {why}; or leave such inputs out: strict=False") from error
                skipped.append({"name": record.name, "why": why})
        return Made(writer.close(), tuple(skipped))
    except ValueError:
        writer.abort()
        raise


def read_record(number: int, record: Record | Refused, config: PackConfig) -> Sample:
    """Read the pictures of a record and make it a sample.

    Raises:
        ValueError: If it was refused, or a picture cannot be read.
    """
    if isinstance(record, Refused):
        raise ValueError(record.why)
    sample: Sample = {"key": f"{number:08d}"}
    for field in ("image", "target"):
        if (picture := getattr(record, field)) is not None:
            name = record.name if field == "image" else f"{record.name} (its target)"
            sample[field] = load_image(bytes_or_path(picture), config.image_size, name, config.background)
    if record.text is not None:
        sample["text"] = record.text
    return {**sample, "meta": {**usable(record.meta), "source": record.name}}


def _chunks(read: Callable[[], Iterable], config: PackConfig) -> Iterator[tuple[Any, list[Numbered]]]:
    numbered = enumerate(read())
    settings = {name: value for name, value in asdict(config).items() if name != "strict"}
    while chunk := list(islice(numbered, config.samples_per_shard)):
        yield [settings, [record_identity(number, record) for number, record in chunk]], chunk


def record_identity(number: int, record: Record | Refused) -> list:
    """Return what tells records apart, and a file from what it was before it was changed."""
    if isinstance(record, Refused):
        return [number, record.name, record.why]
    return [number, record.name, record.text, record.meta, *map(_picture_identity, (record.image, record.target))]


def _picture_identity(picture: Picture | None) -> Any:
    match picture:
        case bytes():
            return hashlib.sha256(picture).hexdigest()
        case Span():
            return [picture.offset, picture.size, *_picture_identity(picture.path)]
        case Path():
            try:
                found = picture.stat()
            except OSError:
                return []
            return [found.st_size, found.st_mtime_ns]
    return None
