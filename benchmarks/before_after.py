"""This tree against another commit: is anything slower than before?

git worktree add ../before COMMIT
python benchmarks/before_after.py ../before [PART ...] [rounds=12] [precision=bf16]

Each tree has a process of its own with the same random weights and batches, on one thread in float32, or in bf16. The
two take turns, and start anew after three, since a process may be a tenth slower than its twin for all its life: with
`.` for the other tree it shows how much that is. Printed is the CPU time before over the CPU time now: above 1 this
tree is quicker. Encoded are eight batches of 16 images of 64 px, drawn 64 images in one step and 4 in 25, by a small
codec on pixels; a training step is forward, backward, clipping and optimizer: `tokenizer-K64` with 16 images and 64
tokens, the others as `LANGUAGE` has it; `generate` writes 64 ids for 16 prompts. Without PART all parts run, in a
quarter of an hour; a part takes one or two minutes.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from pairs import settings, take_turns, timed
from torch import nn

HERE = Path(__file__).parent.parent
LANGUAGE = {  # width, depth, heads, rows of text, codes, K, examples, row_length
    "tiny": (128, 4, 4, 768, 512, 16, 48, 0),
    "small": (256, 4, 4, 1024, 8192, 64, 64, 192),
}


def codec(num_tokens: int = 64) -> tuple[nn.Module, nn.Module]:
    """A small codec on pixels, with K tokens all of which are seen until the image is nearly there."""
    from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig
    from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig

    torch.manual_seed(0)
    quantizer = VectorConfig(codebook_size=8192, rate=0.001)
    tokenizer = DDTTokenizer(TokenizerConfig(encoder=EncoderConfig(num_tokens=num_tokens), quantizer=quantizer))
    flow = FlowConfig(time_shift=8.0, full_noise_share=0.7)
    decoder = DDTDecoder(DecoderConfig(codebook_size=8192, schedule=(num_tokens,) + (0,) * 24, flow=flow))
    decoder.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), "")
    return tokenizer, decoder


def encode(precision: str) -> Callable[[], object]:
    tokenizer, _ = codec()
    tokenizer.eval().precision = precision.removeprefix("fp")
    images = torch.rand(16, 3, 64, 64) * 2 - 1
    return lambda: [tokenizer.encode(images) for _ in range(8)]


def decode(precision: str, steps: int, images: int) -> Callable[[], object]:
    _, decoder = codec()
    decoder.eval().precision = precision.removeprefix("fp")
    return partial(decoder.decode, torch.randint(8192, (images, 64)), num_steps=steps)


def stepping(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, loss: Callable, precision: str):
    """Make one step of training."""

    def step() -> None:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def train_tokenizer(precision: str, num_tokens: int) -> Callable[[], object]:
    """16 images a step."""
    from ddt_tokenizer.optimizer import OptimizerConfig, build_optimizer

    tokenizer, decoder = (half.train() for half in codec(num_tokens))
    both = nn.ModuleDict({"tokenizer": tokenizer, "decoder": decoder})
    optimizer = build_optimizer(both.named_parameters(), OptimizerConfig(steps=1000, optimizer="muon", lr=5e-3))
    images = torch.rand(16, 3, 64, 64) * 2 - 1
    quantizer = tokenizer.quantizer
    quantizer.counts.fill_(1.0)  # as if k-means had been made
    quantizer.sums.copy_(quantizer.codebook)

    def loss() -> torch.Tensor:
        tokens, _, commitment = tokenizer(images)
        return decoder.loss(images, tokens) + commitment

    return stepping(list(both.parameters()), optimizer, loss, precision)


def pretrain(precision: str, size: str) -> Callable[[], object]:
    """Captions of scenes with random ids, laid out and packed as the preset does."""
    from ddt_data import SceneConfig, SceneGenerator, make_sample
    from ddt_llm import (
        TinyLlamaConfig,
        collate,
        collate_packed,
        expand_vocabulary,
        tiny_llama,
        train_text_tokenizer,
    )
    from ddt_llm.loss import token_loss
    from ddt_llm.optimizer import OptimizerConfig, build_optimizer
    from ddt_llm.sequences import Sequences
    from ddt_llm.training import LanguageModelTraining
    from ddt_llm.vocabulary import VisualVocabulary

    width, depth, heads, rows, codes, num_tokens, count, row_length = LANGUAGE[size]
    scenes, rng = SceneGenerator(getattr(SceneConfig, size, SceneConfig)(), seed=0), random.Random(0)
    captions = [make_sample(scenes, i)["text"] for i in range(200)]
    text = train_text_tokenizer(captions, rows)
    backbone = tiny_llama(TinyLlamaConfig(width=width, depth=depth, num_heads=heads), text, seed=0)
    model, text = expand_vocabulary(backbone, text, codebook_size=codes, num_tokens=num_tokens)
    sequences = Sequences(VisualVocabulary.from_config(model.config), text)
    examples = [
        rng.choice((sequences.text_to_image, lambda caption, ids: sequences.image_to_text(ids, caption)))(
            captions[i], torch.randint(codes, (num_tokens,))
        )
        for i in range(count)
    ]
    pad = sequences.pad
    batch = collate_packed(examples, pad, row_length=row_length) if row_length else collate(examples, pad)
    config = OptimizerConfig(steps=1000, optimizer="muon", lr=3e-3)
    module = LanguageModelTraining(model.train(), config)
    optimizer = build_optimizer(model, config)

    def loss() -> torch.Tensor:
        return token_loss(module.model, module.vocabulary, **batch).mean

    return stepping(list(model.parameters()), optimizer, loss, precision)


def generate(precision: str) -> Callable[[], object]:
    """64 ids for 16 prompts by a LLaMA of 4 million weights."""
    from generation_speed import SIZES, build

    lm = build(*SIZES["4 M"])
    if precision == "bf16":
        lm.model.bfloat16()
    return partial(lm.generate_batch, ["a red fox left of a bell"] * 16, output="image")


PARTS: dict[str, Callable[[str], Callable[[], object]]] = {
    "encode": encode,
    "decode-1": partial(decode, steps=1, images=64),
    "decode-25": partial(decode, steps=25, images=4),
    **{f"tokenizer-K{k}": partial(train_tokenizer, num_tokens=k) for k in (16, 64, 256, 512)},
    "tiny/pretrain": partial(pretrain, size="tiny"),
    "small/pretrain": partial(pretrain, size="small"),
    "generate": generate,
}


def work(part: str, precision: str) -> None:
    """Do a part once for each line of stdin, and print its CPU seconds."""
    torch.set_num_threads(1)
    way = timed(PARTS[part](precision))
    for _ in sys.stdin:
        print(way(), flush=True)


def start(tree: Path, part: str, precision: str) -> subprocess.Popen:
    """Start what works with the packages of a tree."""
    sources = [str(folder) for folder in (*sorted(tree.glob("packages/*/src")), tree / "apps" / "src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources)}
    command = [sys.executable, __file__, "work", part, precision]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def turns(tree: Path, part: str, precision: str) -> Iterator[float]:
    """Yield the CPU seconds of one turn after the other, of a new process after every third."""
    while True:
        with start(tree, part, precision) as process:
            for _ in range(3):
                print(file=process.stdin, flush=True)
                yield float(process.stdout.readline())


def main() -> None:
    options, words = settings(rounds=12, precision="fp32")
    if not words:
        raise SystemExit(__doc__)
    before, *parts = words
    for part in parts or PARTS:
        trees = {"now": HERE, "before": Path(before)}
        ways = {name: turns(tree, part, options["precision"]) for name, tree in trees.items()}
        take_turns(part, {name: way.__next__ for name, way in ways.items()}, options["rounds"])


if __name__ == "__main__":
    work(*sys.argv[2:]) if sys.argv[1:2] == ["work"] else main()
