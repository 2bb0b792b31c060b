"""Aspect-ratio buckets: pictures keep about their shape, and each batch is of one shape."""

import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ddt_data.readers.records import Record, Refused, bytes_or_path
from ddt_data.shards.building import Progress
from ddt_data.shards.folder import ShardDataset
from ddt_data.shards.manifest import MANIFEST, Manifest
from ddt_data.shards.mixture import Mixture
from ddt_data.shards.pack_pictures import PackConfig, pack_records
from ddt_data.shards.pictures import image_shape

Shape = tuple[int, int]  # (width, height)


def pack_buckets(
    records: Iterable[Record | Refused],
    out: str | Path,
    config: PackConfig,
    step: int = 16,
    source: str = "",
    licence: str = "",
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Pack pictures into a shard folder for each bucket, `<width>x<height>`, that has any; finished ones stay.

    Args:
        out: Folder of shard folders to make.
        config: Settings; buckets have about as many pixels as a square of its `image_size`.
        step: See `aspect_buckets`.
        progress: Called with (samples done in a bucket, of).

    Raises:
        FileExistsError: If a folder holds something else.
        ValueError: If no record of a bucket can be used, or (strict) one cannot.

    Example:
        >>> import tempfile
        >>> from ddt_data import encode_image
        >>> pictures = [np.zeros((20, 36, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)]
        >>> records = [Record(str(i), image=encode_image(picture)) for i, picture in enumerate(pictures)]
        >>> sorted(pack_buckets(records, Path(tempfile.mkdtemp(), "out"), PackConfig(image_size=64)))
        ['64x64', '80x48']
    """
    manifests = {}
    for (width, height), found in split_by_shape(records, config.image_size, step).items():
        folder = Path(out, f"{width}x{height}")
        if (folder / MANIFEST).is_file():
            manifests[folder.name] = Manifest.read(folder)
        elif found:
            shaped = replace(config, image_size=(width, height))
            manifests[folder.name] = pack_records(found, folder, shaped, source, licence, progress=progress)
    return manifests


def open_buckets(folder: str | Path) -> Mixture:
    """Open the buckets of a folder as one dataset of which `ShardStream` takes each batch from one bucket.

    Raises:
        FileNotFoundError: If there is no bucket.
    """
    folders = sorted(path.parent for path in Path(folder).glob(f"*x*/{MANIFEST}"))
    if not folders:
        raise FileNotFoundError(f"{folder} holds no buckets; make them with pack_buckets, or ddt data pack --buckets")
    sources = [ShardDataset(path) for path in folders]
    return Mixture(sources, [len(source) for source in sources], whole_batches=True)


def aspect_buckets(image_size: int, step: int = 16, max_ratio: float = 2.0) -> tuple[tuple[int, int], ...]:
    """List the shapes (width, height) of about `image_size` squared pixels whose sides are multiples of `step`.

    Args:
        image_size: Side of the square bucket, a multiple of `step`.
        step: Sides are multiples of it: patch size times the downscale of the latents.
        max_ratio: Longest side over shortest at most.

    Returns:
        Shapes from the most upright to the widest, the square among them; each keeps within one step of the area.

    Raises:
        ValueError: If `image_size` is no multiple of `step`, or `max_ratio` is below 1.

    Example:
        >>> aspect_buckets(64)
        ((48, 80), (64, 64), (80, 48))
    """
    if step < 1 or image_size < step or image_size % step:
        raise ValueError(f"image_size ({image_size}) must be a multiple of step ({step})")
    if max_ratio < 1:
        raise ValueError(f"max_ratio ({max_ratio}) must be at least 1")
    upright = [(width, round(image_size * image_size / width / step) * step) for width in range(step, image_size, step)]
    upright = [(width, height) for width, height in upright if height <= max_ratio * width]
    return (*upright, (image_size, image_size), *((height, width) for width, height in reversed(upright)))


def nearest_bucket(width: int, height: int, buckets: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Choose the bucket whose aspect ratio is nearest to the picture's, so that least is cut off.

    Example:
        >>> nearest_bucket(1920, 1080, aspect_buckets(64))
        (80, 48)
    """
    ratio = np.log(width / height)
    return min(buckets, key=lambda bucket: (abs(np.log(bucket[0] / bucket[1]) - ratio), bucket))


def split_by_shape(records: Iterable[Record | Refused], image_size: int, step: int = 16) -> dict[tuple[int, int], list]:
    """Sort records into aspect-ratio buckets by the shape of their picture.

    What cannot be read goes with the square, or, if there is none, with the bucket that holds most.

    Returns:
        Records by (width, height), for one shard folder each: batches of one shape then come from one folder.

    Example:
        >>> import numpy as np
        >>> from ddt_data import encode_image
        >>> wide = Record("wide", image=encode_image(np.zeros((20, 36, 3), np.uint8)))
        >>> {shape: len(found) for shape, found in split_by_shape([wide], image_size=64).items() if found}
        {(80, 48): 1}
    """
    buckets = aspect_buckets(image_size, step)
    found: dict[tuple[int, int], list] = {bucket: [] for bucket in buckets}
    square, readable = (image_size, image_size), Counter()
    for record in records:
        shape = square
        if isinstance(record, Record) and record.image is not None:
            # What is wrong is named when it is packed.
            with suppress(ValueError, OSError), warnings.catch_warnings(action="ignore"):
                shape = nearest_bucket(*image_shape(bytes_or_path(record.image)), buckets)
                readable[shape] += 1
        found[shape].append(record)
    if readable and not readable[square]:
        most = max(readable, key=lambda shape: (readable[shape], shape))
        found[most] += found[square]
        found[square] = []
    return found
