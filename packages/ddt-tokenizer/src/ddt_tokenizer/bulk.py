"""Ids of many pictures: files, folders and shard folders, batch by batch, leaving out what cannot be read."""

import glob
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from numpy.typing import NDArray

from ddt_tokenizer.block_writing import Sample
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.listing import CAPTIONS, PICTURES, Listing, ending, find_described, find_pictures, name_in
from ddt_tokenizer.manifest import MANIFEST, Manifest
from ddt_tokenizer.pictures import load_image
from ddt_tokenizer.shards import batches, read_shards
from ddt_tokenizer.terminal import printable
from ddt_tokenizer.text import decode, parse_object
from ddt_tokenizer.tokenizer import DDTTokenizer

IMAGE_MEMBERS = {"png": "ids", "jpg": "ids", "webp": "ids", "target.png": "target_ids"}


@dataclass(frozen=True)
class Item:
    """What becomes one row of ids (two for an edit)."""

    key: str
    name: str  # what messages call it
    pictures: dict[str, Path | bytes]  # by the field that their ids go to: "ids", "target_ids"
    words: dict[str, list[str] | bytes] = field(default_factory=dict)  # "txt": caption, or its files; "json": metadata
    max_pixels: int | None = None  # of a picture, where that is known

    def read_words(self) -> Sample:
        """Decode what goes along.

        Raises:
            ValueError: If the caption is empty or not UTF-8, there are several, or the metadata is no JSON object.
        """
        words: Sample = {}
        if caption := self.words.get("txt"):
            words["text"] = self._caption(caption)
        if "json" in self.words:
            try:
                words["meta"] = parse_object(decode(self.words["json"]))
            except ValueError as error:
                raise ValueError(f"metadata of '{self.name}' {error}") from error
        return words

    def _caption(self, caption: list[str] | bytes) -> str:
        if isinstance(caption, bytes):
            data = caption
        elif len(caption) > 1:
            raise ValueError(f"'{self.name}' has captions in {len(caption)} files; remove one")
        else:
            data = Path(caption[0]).read_bytes()
        try:
            text = decode(data)
        except ValueError as error:
            raise ValueError(f"caption of '{self.name}' {error}") from error
        if isinstance(caption, list) and not (text := " ".join(text.split())):
            raise ValueError(f"caption of '{self.name}' is empty; write one, or remove its file")
        return text


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
    paths: list[tuple[Path, str, list[str]]] = []
    for source in sources:
        if source.is_dir():
            files = Listing(source).files
            found = find_pictures(source, files)
            if not found:
                raise ValueError(f"'{source}' holds no pictures ({', '.join(PICTURES)}) and no {MANIFEST}")
            beside = find_described(files)
            paths += [(path, name_in(source, path), beside.get(str(path), [])) for path in found]
        elif source.is_file():
            paths.append((source, printable(str(source)), _beside(source)))
        else:
            raise FileNotFoundError(f"picture or folder '{source}' does not exist")
    return len(paths), (_file_item(index, *path) for index, path in enumerate(paths))


def _beside(picture: Path) -> list[str]:
    """Return the files of words beside one picture."""
    files = [str(path) for path in sorted(picture.parent.glob(f"{glob.escape(picture.stem)}.*"))]
    return find_described([str(picture), *files]).get(str(picture), [])


def _file_item(index: int, path: Path, name: str, beside: list[str]) -> Item:
    captions = [file for file in beside if ending(file) in CAPTIONS]
    meta = json.dumps({"source": name}, ensure_ascii=False).encode()
    return Item(f"{index:08d}", name, {"ids": path}, {"txt": captions, "json": meta})


def _shard_items(folder: Path) -> Iterator[Item]:
    max_pixels = Manifest.read(folder).max_pixels
    for key, members in read_shards(folder):
        pictures = {IMAGE_MEMBERS[kind]: data for kind, data in members.items() if kind in IMAGE_MEMBERS}
        words = {kind: members[kind] for kind in ("txt", "json") if kind in members}
        yield Item(key, key, pictures, words, max_pixels)


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
            options = {"name": item.name, "max_pixels": item.max_pixels}
            return item.read_words(), [load_image(picture, size, **options) for picture in item.pictures.values()]
        except ValueError as error:
            return str(error)
        except OSError:  # whose own words name the whole path
            return f"'{item.name}' or its caption is gone, or may not be read; repair or remove it"

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
