"""Drawing image tokens: `MultimodalLM.generate_batch` against `transformers` `generate`, the same model and prompts.

python benchmarks/generation_speed.py [rounds=5] [precision=bf16]

Both sample 64 visual tokens at temperature 1 after a short prompt, from random weights in float32 or bf16, on one
thread. Printed are the CPU time of transformers over ours, and image tokens a second of CPU time. One minute.
"""

import statistics
import tempfile

import torch
from pairs import settings, take_turns, timed
from transformers import LlamaConfig, LlamaForCausalLM

from ddt_llm import MultimodalLM, expand_vocabulary, train_text_tokenizer

K, CODEBOOK = 64, 512
SIZES = {"4 M": (192, 6, 6, 8192), "20 M": (384, 8, 6, 16384)}  # width, depth, heads, text rows


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


def reopened(lm: MultimodalLM, precision: str) -> MultimodalLM:
    """The same in a precision."""
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        return MultimodalLM.from_pretrained(folder, precision=precision.removeprefix("fp"))


def compare(size: str, batch: int, rounds: int, precision: str) -> None:
    lm = reopened(build(*SIZES[size]), precision)
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

    found = take_turns(
        f"{size}, batch {batch}, {precision}",
        {"ddt-llm": timed(ours), "transformers": timed(theirs)},
        rounds,
    )
    rates = (f"{name} {batch * K / statistics.median(seconds):,.0f}" for name, seconds in found.items())
    print("  image tokens a second:", ", ".join(rates))


def main() -> None:
    torch.set_num_threads(1)
    options, _ = settings(rounds=5, precision="fp32")
    for size in SIZES:
        for batch in (1, 16):
            compare(size, batch, **options)


if __name__ == "__main__":
    main()
