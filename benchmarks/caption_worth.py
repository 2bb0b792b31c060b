"""What a caption is worth to a pretrained language model, in nats a visual token, and bits from coarse to fine.

python benchmarks/caption_worth.py runs/my-lm data/held-out-ids

The ids must be of scenes that the run never saw: ddt data scenes --seed 1, then ddt tokenize. Printed are bits a visual
token under the right caption, the caption of another sample, and none, over all positions and for each eighth of the
image in the order in which the model writes it.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from ddt_apps.models import load_language_model
from ddt_data import ShardDataset
from ddt_llm import MultimodalLM, collate
from ddt_llm.head import head_nats

BATCH = 32


@torch.inference_mode()
def visual_nats(lm: MultimodalLM, captions: list[str], ids: Tensor) -> Tensor:
    """Cross-entropy [N, K] of every visual token of images [N, K] after their captions, in the order of writing."""
    examples = [lm.sequences.text_to_image(*pair) for pair in zip(captions, ids, strict=True)]
    nats = []
    for first in range(0, len(examples), BATCH):
        tokens = collate(examples[first : first + BATCH], lm.sequences.pad)["input_ids"].to(lm.model.device)
        hidden = lm.model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        targets, visual = tokens[:, 1:], lm.vocabulary.visual
        inside = (targets >= visual.start) & (targets < visual.stop)
        nats.append(head_nats(lm.model, hidden[inside], targets[inside]).view(-1, lm.vocabulary.num_tokens))
    return torch.cat(nats).cpu()


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
    found = {
        "right": visual_nats(lm, captions, ids),
        "wrong": visual_nats(lm, captions[1:] + captions[:1], ids),
        "none": visual_nats(lm, [""] * len(captions), ids),
    }
    for name, nats in found.items():
        parts = " ".join(f"{part.mean() / math.log(2):5.2f}" for part in nats.chunk(8, dim=1))
        print(f"{name:>6} caption: {nats.mean() / math.log(2):.3f} bits a visual token; coarse to fine {parts}")
    worth = (found["wrong"] - found["right"]).mean(1)
    error = worth.std() / len(worth) ** 0.5
    print(f"the right caption is worth {worth.mean():.3f} +- {error:.3f} nats a visual token over a wrong one")


if __name__ == "__main__":
    main()
