"""ddt tokenize: picture shards to id shards."""

from pathlib import Path

from ddt_apps.codec import Codec, to_tensor
from ddt_apps.devices import pick_device
from ddt_apps.progress import StageProgress
from ddt_data import ShardDataset, ShardWriter


def tokenize_shards(shards: Path, tokenizer: Path, out: Path, batch_size: int = 256) -> None:
    """Write the ids of all pictures, with their captions, questions and edits, into a new shard folder.

    Args:
        shards: Folder of picture shards.
        tokenizer: Folder of a `ddt train-tokenizer` run.
        out: Folder to make; it appears whole.
        batch_size: Pictures encoded at once.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: Something is missing, in the way, of another size, or damaged.
    """
    dataset, codec = ShardDataset(shards), Codec.from_pretrained(tokenizer, pick_device())
    if dataset.manifest.image_size is None:
        raise ValueError(f"'{shards}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    if dataset.manifest.image_size != codec.image_size:
        raise ValueError(
            f"pictures in '{shards}' have {dataset.manifest.image_size} px, the tokenizer in '{tokenizer}' takes "
            f"{codec.image_size}; pack them again with --image-size {codec.image_size}"
        )
    dataset.check()
    source = f"ids of {dataset.manifest.source}"
    with (
        StageProgress("tokenize", len(dataset), unit="pictures") as progress,
        ShardWriter(out, source=source, tokenizer=codec.identity) as writer,
    ):
        for first in range(0, len(dataset), batch_size):
            samples = [dataset[i] for i in range(first, min(first + batch_size, len(dataset)))]
            for picture, ids in (("image", "ids"), ("target", "target_ids")):
                having = [sample for sample in samples if picture in sample]
                if having:
                    encoded = codec.encode(to_tensor([sample.pop(picture) for sample in having]))
                    for sample, row in zip(having, encoded, strict=True):
                        sample[ids] = row.numpy()
            for sample in samples:
                writer.write(sample)
            progress.update(first + len(samples))
