"""Ids of many pictures: files, folders and shard folders, batch by batch, leaving out what cannot be read."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from numpy.typing import NDArray

from ddt_tokenizer.block_writing import Sample
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.manifest import MANIFEST, Manifest
from ddt_tokenizer.pictures import load_image
from ddt_tokenizer.shards import Members, batches, read_shards
from ddt_tokenizer.tokenizer import DDTTokenizer

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_MEMBERS = {"png": "ids", "jpg": "ids", "webp": "ids", "target.png": "target_ids"}


@dataclass(frozen=True)
class Item:
    """What becomes one row of ids (two for an edit)."""

    key: str
    name: str  # what messages call it
    pictures: dict[str, Path | bytes]  # by the field that their ids go to: "ids", "target_ids"
    members: Members = field(default_factory=dict)  # what goes along: "txt" (caption), "json" (metadata)

    def words(self) -> Sample:
        """Decode what goes along.

        Raises:
            ValueError: If the caption is not UTF-8 or the metadata not JSON.
        """
        words: Sample = {}
        try:
            if "txt" in self.members:
                words["text"] = self.members["txt"].decode()
            if "json" in self.members:
                words["meta"] = json.loads(self.members["json"])
            return words
        except UnicodeDecodeError as error:
            raise ValueError(f"caption of '{self.name}' is not UTF-8 ({error.reason}); save it as UTF-8") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"metadata of '{self.name}' is not JSON ({error}); make the shards again") from error


def find_items(sources: list[Path]) -> tuple[int, Iterable[Item]]:
    """Count and list pictures: files, those in folders with their captions (`name.txt`), or samples of a shard folder.

    Raises:
        FileNotFoundError: If a source does not exist, or shards are unfinished.
        ValueError: If a folder holds no pictures, or a shard folder is not the only source.
    """
    if any((source / MANIFEST).is_file() for source in sources):
        if len(sources) > 1:
            raise ValueError(f"a shard folder must be the only source, not one of {len(sources)}; encode it on its own")
        return Manifest.read(sources[0]).samples, _shard_items(sources[0])
    paths: list[tuple[Path, str]] = []
    for source in sources:
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
            if not found:
                raise ValueError(f"'{source}' holds no pictures ({', '.join(PICTURES)}) and no {MANIFEST}")
            paths += [(path, path.relative_to(source).as_posix()) for path in found]
        elif source.is_file():
            paths.append((source, str(source)))
        else:
            raise FileNotFoundError(f"picture or folder '{source}' does not exist")
    return len(paths), (_file_item(index, path, name) for index, (path, name) in enumerate(paths))


def _file_item(index: int, path: Path, name: str) -> Item:
    caption = path.with_suffix(".txt")
    members = {"txt": b" ".join(caption.read_bytes().split())} if caption.is_file() else {}
    members["json"] = json.dumps({"source": name}, ensure_ascii=False).encode()
    return Item(f"{index:08d}", name, {"ids": path}, members)


def _shard_items(folder: Path) -> Iterator[Item]:
    for key, members in read_shards(folder):
        pictures = {IMAGE_MEMBERS[kind]: data for kind, data in members.items() if kind in IMAGE_MEMBERS}
        yield Item(key, key, pictures, {kind: members[kind] for kind in ("txt", "json") if kind in members})


def encode_items(
    items: Iterable[Item], tokenizer: DDTTokenizer, batch_size: int, skip: Callable[[str, str], None]
) -> Iterator[tuple[str, Sample]]:
    """Encode the pictures of items, in order, `batch_size` items at once.

    Args:
        skip: Called with the name of an item whose picture or caption cannot be read, and why; it is left out.

    Yields:
        The name of an item, and its sample: `key`, `text` and `meta` if known, `ids` and `target_ids` int64 [K].

    Example:
        >>> from PIL import Image
        >>> import tempfile
        >>> from ddt_tokenizer import TokenizerConfig
        >>> tokenizer = DDTTokenizer(TokenizerConfig.tiny())
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (20, 20)).save(folder / "a.png")
        >>> _, items = find_items([folder])
        >>> [(name, len(sample["ids"])) for name, sample in encode_items(items, tokenizer.eval(), 8, skip=print)]
        [('a.png', 16)]
    """
    size = tokenizer.config.image_size

    def load(item: Item) -> tuple[Sample, list[NDArray]] | str:
        try:
            if "ids" not in item.pictures:
                raise ValueError(f"sample '{item.name}' holds no picture")
            return item.words(), [load_image(picture, size, item.name) for picture in item.pictures.values()]
        except (ValueError, FileNotFoundError) as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        for batch in batches(items, batch_size):
            readable: list[tuple[Item, Sample, list[NDArray]]] = []
            for item, loaded in zip(batch, pool.map(load, batch), strict=True):
                if isinstance(loaded, str):
                    skip(item.name, loaded)
                else:
                    readable.append((item, *loaded))
            if readable:
                images = to_tensor([picture for *_, pictures in readable for picture in pictures])
                ids = iter(tokenizer.encode(images).cpu().numpy())
                for item, words, _ in readable:
                    yield item.name, {"key": item.key, **words, **{field: next(ids) for field in item.pictures}}
