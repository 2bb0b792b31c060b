"""Image tokens per second: `MultimodalLM.generate_batch` against `transformers` `generate`, the same model and prompts.

python benchmarks/generation_speed.py

Both sample 64 visual tokens at temperature 1 after a short prompt, from random weights in float32. The two take
turns, so that what else the machine does falls on both; the median of the ratios is printed with the best speeds.
"""

import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ddt_llm import MultimodalLM, expand_vocabulary, train_text_tokenizer

K, CODEBOOK, ROUNDS = 64, 512, 7
SIZES = {"4 M": (192, 6, 6, 8192), "20 M": (384, 8, 6, 16384)}  # width, depth, heads, text rows
TARGETS = {("4 M", 1): 1.8, ("4 M", 16): 1.3, ("20 M", 1): 1.4, ("20 M", 16): 1.2}


def build(width: int, depth: int, heads: int, rows: int) -> MultimodalLM:
    """A random LLaMA with tied embeddings."""
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 32 * 32,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(["a red fox left of a bell"], 300)
    model, tokenizer = expand_vocabulary(LlamaForCausalLM(config), tokenizer, codebook_size=CODEBOOK, num_tokens=K)
    return MultimodalLM(model.eval(), tokenizer)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def compare(size: str, batch: int) -> None:
    """Print one row: tokens per second of both, and their ratio."""
    lm = build(*SIZES[size])
    text = "a red fox left of a bell"
    prompts = torch.tensor([[*lm.sequences.prompt([text], "caption"), lm.vocabulary.boi]] * batch)

    def ours() -> None:
        assert len(lm.generate_batch([text] * batch, output="image")[0].ids) == 1

    def theirs() -> None:
        lm.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=K,
            min_new_tokens=K,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )

    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    ratio = statistics.median(other / own for own, other in pairs)
    own, other = (batch * K / min(times) for times in zip(*pairs, strict=True))
    target = TARGETS[size, batch]
    print(f"{size:>5} {batch:>6} {own:>10.0f} {other:>14.0f} {ratio:>7.2f} {target:>7}")


def main() -> None:
    """Print the table."""
    print(f"{'size':>5} {'batch':>6} {'ddt-llm':>10} {'transformers':>14} {'ratio':>7} {'target':>7}   image tokens/s")
    for size, batch in TARGETS:
        compare(size, batch)


if __name__ == "__main__":
    main()
