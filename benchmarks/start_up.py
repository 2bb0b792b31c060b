"""CPU seconds of `ddt generate`, `edit`, `ask`, `caption` and `reconstruct` until their first token or picture.

python benchmarks/start_up.py [rounds=5]

Models are tiny and random, so nearly all of it is the loading of code. Beside it stands what torch and transformers
alone take to load a LLaMA of that size: what a verb takes above that is ours. One process after the other in turns, on
one thread, in float32. Printed is the CPU time of each over that of torch and transformers. Two minutes.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from pairs import settings, take_turns
from PIL import Image

from ddt_decoder import DDTDecoder, DecoderConfig
from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_tokenizer import Codec, DDTTokenizer, TokenizerConfig

FLOOR = """
import time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained("pretrain/model"), AutoTokenizer.from_pretrained("pretrain/model")
print(time.process_time())
"""
# Ends the process where work on the first token, or on the ids of pictures, begins.
VERB = """
import os, sys, time
import ddt_llm.generation, ddt_tokenizer.codec
from ddt_apps.cli import app

def stop(*arguments, **settings):
    print(time.process_time(), flush=True)
    os._exit(0)

ddt_llm.generation.network_for = ddt_tokenizer.codec.Codec.decode = stop
app(sys.argv[1:])
"""
MODEL = ["--tokenizer", "tokenizer", "--model"]
VERBS = {
    "generate": ["a red fox", *MODEL, "pretrain", "--out", "out.png"],
    "edit": ["fox.png", "make it blue", *MODEL, "sft", "--out", "out.png"],
    "ask": ["fox.png", "what is this?", *MODEL, "sft"],
    "caption": ["fox.png", *MODEL, "pretrain"],
    "reconstruct": ["fox.png", "--tokenizer", "tokenizer", "--out", "out.png"],
}


def make_runs(folder: Path) -> None:
    """Write runs of a random tokenizer and of random language models, and a picture."""
    tokenizer, decoder = DDTTokenizer(TokenizerConfig.tiny()).eval(), DDTDecoder(DecoderConfig.tiny())
    decoder.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
    Codec(tokenizer, decoder).save_pretrained(folder / "tokenizer")
    text = train_text_tokenizer(["a red fox left of a bell"], 300)
    backbone = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), text, seed=0)
    sizes = {"codebook_size": tokenizer.codebook_size, "num_tokens": tokenizer.num_tokens}
    model, text = expand_vocabulary(backbone, text, **sizes)
    for run, template in (("pretrain", "caption"), ("sft", "instruction")):
        MultimodalLM(model, text, template, tokenizer.fingerprint()).save_pretrained(folder / run / "model")
    Image.new("RGB", (32, 32), "red").save(folder / "fox.png")


def start(code: str, arguments: list[str], folder: str) -> float:
    """Return the CPU time that the code prints."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print one line for each verb."""
    options, _ = settings(rounds=5)
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder))
        ways = {
            "torch and transformers": partial(start, FLOOR, [], folder),
            "torch": partial(start, "import time, torch; print(time.process_time())", [], folder),
            **{f"ddt {verb}": partial(start, VERB, [verb, *arguments], folder) for verb, arguments in VERBS.items()},
        }
        take_turns("start", ways, options["rounds"])


if __name__ == "__main__":
    main()
