"""A training step with compiled networks against the same step as it is written, and what compiling costs.

python benchmarks/compile_step.py [tiny/tokenizer] [small/tokenizer] [tiny/pretrain] [small/pretrain] [draw] [pairs=8]
    [precision=bf16]

Trains as `Run.fit` does, from random pictures or captions of scenes with random ids, on one thread in fp32, or in bf16.
Every batch comes twice: one step runs as it is written, the next one compiled, so that what else the machine does falls
on both. Printed is the CPU time of compiled over written: the median of the pairs, the smallest and the largest; and
the CPU time of compiling, that of g++ apart. The first run fills the cache of torch, the second one finds it
(TORCHINDUCTOR_CACHE_DIR; with TORCHINDUCTOR_COMPILE_THREADS=1 all is done in this process and by its g++).
`draw` compares drawing in 25 steps with a decoder of that size on pixels instead.
"""

import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import lightning
import torch
from pairs import settings
from torch import nn
from torch._dynamo.utils import counters

from ddt_apps.run.compiling import GRAPHS, blocks
from ddt_apps.run.config import load_config
from ddt_apps.run.fitting import quiet_lightning
from ddt_apps.train.settings import Pretrain, TrainTokenizer
from ddt_apps.train.tokenizer import build
from ddt_data import SceneConfig, SceneGenerator, make_sample
from ddt_decoder import DDTDecoder
from ddt_llm import MultimodalLM, collate, collate_packed, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_llm.training import LanguageModelTraining
from ddt_tokenizer.training import TokenizerTraining

WARM = 3  # first pairs, that do not count
CODES = {"tiny": (16, 1024), "small": (64, 16_384)}  # K, V


def tokenizer(name: str, count: int) -> tuple[lightning.LightningModule, list]:
    """Tokenizer and decoder of a shipped configuration, past its continuous steps."""
    config = load_config(TrainTokenizer, name, ["data=none"])
    space = config.codec.latents
    side = config.codec.image_size // space.downscale
    batches = [torch.rand(config.batch_size, space.channels, side, side) * 2 - 1 for _ in range(count)]
    halves = build(config, None if space.pixels else space)
    training = replace(config.training, continuous_steps=0)
    return TokenizerTraining(*halves, training, cached_latents=not space.pixels), batches


def pretrain(name: str, count: int) -> tuple[lightning.LightningModule, list]:
    """LLaMA of a shipped configuration, on examples in its shares."""
    config, (num_tokens, codes) = load_config(Pretrain, name, ["data=none"]), CODES[name.partition("/")[0]]
    generator, rng = SceneGenerator(SceneConfig(), seed=0), random.Random(0)
    captions = [make_sample(generator, index)["text"] for index in range(600)]
    text = train_text_tokenizer(captions, config.text_vocabulary)
    backbone = tiny_llama(config.llama, text)
    lm = MultimodalLM(*expand_vocabulary(backbone, text, codebook_size=codes, num_tokens=num_tokens))

    def example():
        caption, ids = rng.choice(captions), torch.tensor(rng.choices(range(codes), k=num_tokens))
        kinds = (
            lambda: lm.sequences.text_to_image(caption, ids),
            lambda: lm.sequences.image_to_text(ids, caption),
            lambda: lm.sequences.text_only(caption),
        )
        shares = (config.tasks.text_to_image, config.tasks.image_to_text, config.tasks.text_only)
        return rng.choices(kinds, shares)[0]()

    join = partial(collate_packed, row_length=config.row_length) if config.row_length else collate
    batches = [join([example() for _ in range(config.batch_size)], pad_id=lm.sequences.pad) for _ in range(count)]
    return LanguageModelTraining(lm.model.train(), config.optimizer), batches


def compiled(networks: list[nn.Module]) -> None:
    for network in networks:
        for block in blocks(network):
            block.compile(dynamic=True, recompile_limit=GRAPHS)


class Alternately(lightning.Callback):
    """Every second step is compiled."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.compiler.set_stance("default" if batch_idx % 2 else "force_eager")
        self.begin = time.process_time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seconds.append(time.process_time() - self.begin)


def steps(name: str, pairs: int, precision: str) -> None:
    """Print a row for a configuration."""
    make = {"tokenizer": tokenizer, "pretrain": pretrain}[name.partition("/")[2]]
    module, batches = make(name, WARM + pairs)
    twice = [batch for batch in batches for _ in range(2)]
    compiled(module.networks)
    counters.clear()
    clock, children = Alternately(), os.times().children_user
    with quiet_lightning():
        lightning.Trainer(
            accelerator="cpu",
            precision={"fp32": "32-true", "bf16": "bf16-mixed"}[precision],
            max_steps=len(twice),
            max_epochs=-1,
            gradient_clip_val=1.0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(twice, batch_size=None))
    tell(name, clock.seconds, os.times().children_user - children)


def draw(pairs: int, precision: str) -> None:
    """Print a row for drawing in 25 steps, at two sizes of batch."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    config = load_config(TrainTokenizer, "small/tokenizer", ["data=none"]).codec.decoder
    pixels = replace(config.network, channels=3, patch_size=8)  # as many patches, and no autoencoder
    decoder = DDTDecoder(replace(config, network=pixels, latents=type(config.latents)())).eval().to(dtype)
    compiled([decoder.network])
    for batch in (4, 32):
        ids = torch.randint(config.codebook_size, (batch, decoder.num_tokens))
        counters.clear()
        children, seconds = os.times().children_user, []
        for index in range(2 * (WARM + pairs)):
            torch.compiler.set_stance("default" if index % 2 else "force_eager")
            begin = time.process_time()
            decoder.decode(ids, num_steps=25)
            seconds.append(time.process_time() - begin)
        tell(f"drawing {batch}", seconds, os.times().children_user - children)


def tell(name: str, seconds: list[float], of_compiler: float) -> None:
    written, ours = seconds[2 * WARM :: 2], seconds[2 * WARM + 1 :: 2]
    ratios = [mine / theirs for mine, theirs in zip(ours, written, strict=True)]
    first = sum(seconds[1 : 2 * WARM : 2]) - WARM * statistics.median(ours)
    print(
        f"{name}: {statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}] of "
        f"{statistics.median(written):.2f} s; compiling {first:.0f} s and g++ {of_compiler:.0f} s for "
        f"{counters['stats']['unique_graphs']} graphs",
        flush=True,
    )


def main() -> None:
    """Run the parts that are named, or all."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    options, named = settings(pairs=8, precision="fp32")
    parts: dict[str, Callable[[int, str], None]] = {
        **{f"{size}/{verb}": partial(steps, f"{size}/{verb}") for verb in ("tokenizer", "pretrain") for size in CODES},
        "draw": draw,
    }
    for part in named or parts:
        torch._dynamo.reset()
        parts[part](**options)


if __name__ == "__main__":
    main()
