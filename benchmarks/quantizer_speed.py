"""A training step of the vector quantizer: time against vector-quantize-pytorch at equal settings, and peak memory.

pip install vector-quantize-pytorch, then: python benchmarks/quantizer_speed.py [rounds=5]

Both take unit vectors, have cosine codebooks with moving averages, and replace dead codes. The comparison runs at a
size at which the other's similarities and one-hot matrix (N x V floats each) fit into memory; our memory is measured
at 65,536 codes and 48 images of 512 tokens, and at the 32,768 codes and settings of Selftok-512. One thread, float32,
as quantizers compute under any precision. Printed are the CPU time of a forward and backward pass of the other over
ours, and peaks in megabytes (Linux). One minute.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch
from pairs import settings, take_turns, timed
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from ddt_tokenizer import VectorConfig, VectorQuantizer

WIDTH = 16
PEAKS = {
    "65,536 codes x 16": VectorConfig(codebook_size=65_536, code_width=WIDTH),
    "65,536 codes x 16 with a rate": VectorConfig(codebook_size=65_536, code_width=WIDTH, rate=0.001),
    "Selftok-512": VectorConfig(codebook_size=32_768, code_width=WIDTH, diversity=1.0, replacement="position"),
}


def start(config: VectorConfig, images: int, tokens: int) -> VectorQuantizer:
    """Skip k-means: the codebook counts as seen, but so little that entries without vectors die in the first step."""
    quantizer = VectorQuantizer(WIDTH, config, tokens)
    quantizer.counts.fill_(config.dead_share * images * tokens / config.codebook_size)
    quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    if quantizer.histogram is not None:  # positions that use one code each, so that the diversity term is on
        quantizer.histogram.copy_(torch.eye(1, config.codebook_size).expand_as(quantizer.histogram))
    return quantizer.train()


def train_once(quantizer: nn.Module, vectors: torch.Tensor) -> None:
    """One forward and backward pass."""
    quantized, _, loss = quantizer(vectors.requires_grad_())
    (quantized.sum() + loss.sum()).backward()


def peak_kilobytes() -> int:
    """Largest resident size of this process so far; `getrusage` would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def measure_peak(config: VectorConfig, images: int, tokens: int) -> None:
    """Print megabytes above the inputs of one training step, and its seconds; for a process of its own."""
    quantizer = start(config, images, tokens)
    vectors = torch.randn(images, tokens, WIDTH)
    (torch.randn(512, 512) @ torch.randn(512, 512)).sum()  # what a first product allocates
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (Linux)
    before, begin = peak_kilobytes(), time.process_time()
    train_once(quantizer, vectors)
    print(
        f"{(peak_kilobytes() - before) / 1024:.0f} MB above its inputs, {time.process_time() - begin:.1f} s of CPU "
        f"time, {quantizer.revived:,} codes replaced"
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    options, _ = settings(rounds=5)
    for codes, images, tokens in ((8192, 16, 256), (16_384, 16, 512)):
        ours = start(VectorConfig(codebook_size=codes, code_width=WIDTH), images, tokens)
        theirs = VectorQuantize(
            dim=WIDTH, codebook_size=codes, decay=0.99, use_cosine_sim=True, threshold_ema_dead_code=0.1
        ).train()
        ways = {
            name: timed(lambda quantizer=quantizer: train_once(quantizer, torch.randn(images, tokens, WIDTH)))  # noqa: B023
            for name, quantizer in (("ours", ours), ("vector-quantize-pytorch", theirs))
        }
        take_turns(f"{codes:,} codes x {WIDTH}, {images * tokens:,} vectors", ways, options["rounds"])
        print(f"  {ours.revived:,} codes replaced", flush=True)
    for name in PEAKS:
        print(f"{name}, 24,576 vectors: ", end="", flush=True)
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    measure_peak(PEAKS[sys.argv[1]], 48, 512) if sys.argv[-1] in PEAKS else main()
