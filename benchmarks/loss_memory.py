"""Peak memory of the loss over a large vocabulary: `ddt_llm`'s against the head and `torch`'s cross-entropy.

python benchmarks/loss_memory.py

One forward and backward pass, 4,096 positions of width 512, 194,000 rows in float32 (Linux; up to 12 GB). Each is a
process of its own; what is printed is the peak above the inputs, gradients included, and the CPU time of one pass.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from ddt_llm.head import head_nats

POSITIONS, WIDTH, ROWS = 4096, 512, 194_000


def kilobytes(name: str) -> int:
    """A line of this process's status, such as VmHWM: the largest resident size so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def measure(kind: str) -> None:
    """Print megabytes and seconds of one loss."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=0, tie_word_embeddings=True
    )
    model = LlamaForCausalLM(config)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    targets = torch.randint(ROWS, (POSITIONS,))
    (torch.randn(WIDTH, WIDTH) @ torch.randn(WIDTH, WIDTH)).sum()  # what a first product allocates
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, begin = kilobytes("VmRSS"), time.process_time()
    loss = (
        head_nats(model, hidden, targets).mean() if kind == "ddt" else F.cross_entropy(model.lm_head(hidden), targets)
    )
    loss.backward()
    print((kilobytes("VmHWM") - before) / 1024, time.process_time() - begin, loss.item())


def main() -> None:
    """Print both and their ratio."""
    found = {}
    for kind in ("plain", "ddt"):
        out = subprocess.run([sys.executable, __file__, kind], check=True, capture_output=True, text=True).stdout
        megabytes, seconds, loss = found[kind] = [float(number) for number in out.split()]
        print(
            f"{kind:>6}: {megabytes:7,.0f} MB above its inputs, {seconds:.1f} s of CPU time, loss {loss:.6f}",
            flush=True,
        )
    print(f"memory ratio {found['ddt'][0] / found['plain'][0]:.2f} (target: at most 0.25)")


if __name__ == "__main__":
    measure(sys.argv[1]) if sys.argv[1:] else main()
