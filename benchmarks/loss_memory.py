"""Peak memory and time of the loss over a large vocabulary: `ddt_llm`'s against the head and `torch`'s cross-entropy.

python benchmarks/loss_memory.py [rounds=3] [precision=bf16]

One forward and backward pass on one thread, 4,096 positions of width 512, 194,000 rows, in float32 or under autocast
(Linux; up to 12 GB). Each is a process of its own, and the two take turns; printed are the peak above the inputs,
gradients included, and the CPU time of plain over ours. A minute a round.
"""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from pairs import settings, take_turns
from transformers import LlamaConfig, LlamaForCausalLM

from ddt_llm.head import head_nats

POSITIONS, WIDTH, ROWS = 4096, 512, 194_000


def kilobytes(name: str) -> int:
    """A line of this process's status, such as VmHWM: the largest resident size so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def measure(kind: str, precision: str) -> None:
    """Print seconds and megabytes of one loss."""
    torch.set_num_threads(1)
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
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        if kind == "ddt":
            loss = head_nats(model, hidden, targets).mean()
        else:
            loss = F.cross_entropy(model.lm_head(hidden), targets)
    loss.backward()
    print(time.process_time() - begin, (kilobytes("VmHWM") - before) / 1024, loss.item())


def main() -> None:
    """Print both and their ratios."""
    options, _ = settings(rounds=3, precision="fp32")
    found = {}

    def in_a_process(kind: str) -> float:
        command = [sys.executable, __file__, "measure", kind, options["precision"]]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, *found[kind] = map(float, out.split())
        return seconds

    ways = {kind: partial(in_a_process, kind) for kind in ("ddt", "plain")}
    take_turns(f"{POSITIONS:,} positions, {ROWS:,} rows, {options['precision']}", ways, options["rounds"])
    for kind, (megabytes, loss) in found.items():
        print(f"{kind:>6}: {megabytes:7,.0f} MB above its inputs, loss {loss:.6f}")
    print(f"ddt needs {found['ddt'][0] / found['plain'][0]:.2f} of the memory of plain")


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["measure"] else main()
