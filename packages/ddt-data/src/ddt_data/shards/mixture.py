"""Several shard folders as one dataset, each with its share of training."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Self

from torch.utils.data import ConcatDataset

from ddt_data.shards.folder import ShardDataset
from ddt_data.shards.manifest import Manifest
from ddt_data.shards.stream import StepSampler


class Mixture(ConcatDataset):
    """Shard folders put end to end, from which training draws in the `order` that their weights give.

    Args:
        sources: Datasets of shards: pictures of one size, latents of one space, ids of one tokenizer.
        weights: Share of each in training; None for shares by size, and one shuffle for all.
        whole_batches: Take each batch from one source; sources may then be of several picture sizes.

    Raises:
        ValueError: If there is no source, weights do not fit, or sources are of two sizes, spaces or tokenizers.

    Example:
        >>> import tempfile
        >>> from ddt_data import pack_text
        >>> folders = [Path(tempfile.mkdtemp(), name) for name in ("foxes", "bells")]
        >>> _ = pack_text(["A fox."] * 3, folders[0]), pack_text(["A bell."], folders[1])
        >>> mixture = Mixture([ShardDataset(folder) for folder in folders], weights=[1, 1])
        >>> len(mixture), mixture[3]["text"]
        (4, 'A bell.')
    """

    def __init__(
        self, sources: Sequence[ShardDataset], weights: Sequence[float] | None = None, whole_batches: bool = False
    ):
        if not sources or (weights is not None and (len(weights) != len(sources) or min(weights) <= 0)):
            raise ValueError(f"weights ({weights}) must be one number above 0 for each of {len(sources)} sources")
        one, latents = sources[0].manifest, all(source.manifest.latents for source in sources)
        shared = ["image_size"] * (not whole_batches) + ["tokenizer"] + ["latents"] * latents
        for name, source in product(shared, sources[1:]):
            first, other = getattr(one, name), getattr(source.manifest, name)
            moved = name == "latents" and {**first, "vae": ""} == {**other, "vae": ""}  # the VAE may lie anywhere
            if other != first and not moved:
                raise ValueError(
                    f"{name} is {first} in {sources[0].folder} and {other} in {source.folder}; make them alike"
                )
        super().__init__(sources)
        self.sources, self.weights = list(sources), None if weights is None else list(weights)
        self.whole_batches = whole_batches
        self.lengths = [len(source) for source in sources]
        self.manifest = Manifest(
            samples=sum(self.lengths),
            shards=(),
            source=" + ".join(source.manifest.source for source in sources),
            image_size=one.image_size,
            tokenizer=one.tokenizer,
            latents=one.latents if latents else None,
            parts=tuple(part for source in sources for part in source.manifest.parts),
            format=one.format,
        )

    def order(self, batch_size: int, steps: int, seed: int, **options: Any) -> StepSampler:
        """Return the batches of a run, each source having its share; `options` are those of `StepSampler`.

        Example:
            >>> import tempfile
            >>> from ddt_data import pack_text
            >>> folder = Path(tempfile.mkdtemp(), "foxes")
            >>> _ = pack_text(["A fox."] * 5, folder)
            >>> [len(batch) for batch in open_shards(folder).order(batch_size=2, steps=3, seed=0)]
            [2, 2, 2]
        """
        options |= {"weights": self.weights, "whole_batches": self.whole_batches}
        return StepSampler(self.lengths, batch_size, steps, seed, **options)

    def without_last(self, count: int) -> Self:
        """Return the mixture without the last samples, which are of the last source."""
        kept = [*self.sources[:-1], self.sources[-1].without_last(count)]
        return type(self)(kept, self.weights, self.whole_batches)

    def check(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            ValueError: If a shard was changed or damaged.
        """
        for source in self.sources:
            source.check()


def open_shards(data: str | Path, tokenizer: str | None = None) -> Mixture:
    """Open one shard folder, or several with their shares, as configurations name them; one is a mixture of one.

    Args:
        data: A folder, of a disk or behind a URL; or folders separated by commas, each with its share after a colon, or
            none with one.
        tokenizer: See `ShardDataset`.

    Raises:
        FileNotFoundError: If a folder is missing, empty or unfinished, or a shard is gone.
        ValueError: If a share is no number, or folders are damaged or do not fit together; see `Mixture`.

    Example:
        >>> import tempfile
        >>> from ddt_data import pack_text
        >>> folders = [Path(tempfile.mkdtemp(), name) for name in ("foxes", "bells")]
        >>> _ = pack_text(["A fox."] * 3, folders[0]), pack_text(["A bell."], folders[1])
        >>> open_shards(f"{folders[0]}:0.8, {folders[1]}:0.2").weights
        [0.8, 0.2]
    """
    folders, weights = folders_and_shares(data)
    sources = [ShardDataset(folder, tokenizer) for folder in folders]
    return Mixture(sources, None if None in weights else weights)


def folders_and_shares(data: str | Path) -> tuple[list[str], list[float | None]]:
    """Return the folders that `data` of `open_shards` names, and their shares, or None for each.

    Raises:
        ValueError: If a share is no number, or only some folders have one.

    Example:
        >>> folders_and_shares("foxes:0.8, s3://bucket/bells:0.2")
        (['foxes', 's3://bucket/bells'], [0.8, 0.2])
    """
    entries = [entry.strip() for entry in str(data).split(",")]
    folders, weights = [], []
    for entry in entries:
        folder, colon, share = entry.rpartition(":")
        if (
            not colon or "/" in share or (len(entries) == 1 and Path(entry).exists())
        ):  # its name may hold a colon, as URLs do
            folder, share = entry, None
        try:
            weights.append(None if share is None else float(share))
        except ValueError as error:
            raise ValueError(
                f"data ({entry}): the share after the colon must be a number, as in {folder}:0.5"
            ) from error
        folders.append(folder)
    if None in weights and any(weights):
        raise ValueError(f"data ({data}): give every folder a share, or none")
    return folders, weights
