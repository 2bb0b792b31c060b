"""What a caption is worth to a pretrained language model, in nats a visual token, and bits from coarse to fine.

python benchmarks/caption_worth.py runs/my-lm data/held-out-ids

The ids must be of scenes that the run never saw: ddt data scenes --seed 1, then ddt tokenize. Printed are bits a visual
token under the right caption, the caption of another sample, and none, over all positions and for each eighth of the
image from the coarse end.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.models import visual_bits
from ddt_apps.models import load_language_model
from ddt_data import ShardDataset


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="of ddt pretrain")
    parser.add_argument("ids", type=Path, help="held-out id shards")
    parser.add_argument("--count", type=int, default=512)
    arguments = parser.parse_args()
    lm = load_language_model(arguments.run)
    lm.model.eval()
    dataset = ShardDataset(arguments.ids, tokenizer=lm.visual_fingerprint)
    samples = [dataset[i] for i in range(min(arguments.count, len(dataset)))]
    ids = torch.stack([torch.from_numpy(sample["ids"]) for sample in samples])
    captions = [sample["text"] for sample in samples]
    captions_by_name = {"right": captions, "wrong": captions[1:] + captions[:1], "none": [""] * len(captions)}

    def bits(said: list[str]) -> Tensor:
        return in_batches("foretell", len(ids), lambda r: visual_bits(lm, ids[r], said[r])).flip(1)  # coarse to fine

    found = {name: bits(said) for name, said in captions_by_name.items()}
    for name, each in found.items():
        parts = " ".join(f"{part.mean():5.2f}" for part in each.chunk(8, dim=1))
        print(f"{name:>6} caption: {each.mean():.3f} bits a visual token; coarse to fine {parts}")
    worth = (found["wrong"] - found["right"]).mean(1) * math.log(2)
    error = worth.std() / len(worth) ** 0.5
    print(f"the right caption is worth {worth.mean():.3f} +- {error:.3f} nats a visual token over a wrong one")


if __name__ == "__main__":
    main()
