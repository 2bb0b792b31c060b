"""What blocks of 8 and 4 bits cost a language model: size of the file, held-out bits of ids, time of llama.cpp.

    pip install './packages/ddt-llm[gguf]' xllamacpp
    python benchmarks/gguf_kinds.py runs/lm [--pictures 200] [--texts 20]

Bits are those of this project's own network with each matrix rounded as the file rounds it; the time is that of
llama.cpp, which writes 64 tokens after a caption, one thread, kinds in turns, with the ratio to f32.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from copy import deepcopy
from pathlib import Path

import gguf
import numpy as np
import torch
import xllamacpp
from rich.progress import track

from ddt_apps.evaluation.heldout import held_out_scenes
from ddt_apps.evaluation.models import visual_bits
from ddt_apps.models import load_pair
from ddt_data import render
from ddt_llm import MultimodalLM
from ddt_llm.gguf_file import write_gguf
from ddt_tokenizer.images import to_tensor

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")


def rounded(lm: MultimodalLM, file: Path) -> MultimodalLM:
    """Copy a model with its matrices as a file holds them."""
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors}
    lm = deepcopy(lm)
    for name, weight in lm.model.named_parameters():
        if weight.ndim == 2:
            kind = types.get("token_embd.weight" if "embed" in name else "output.weight", types["token_embd.weight"])
            kind = types["blk.0.ffn_up.weight"] if "layers" in name else kind
            array = weight.detach().numpy().astype(np.float32)
            weight.data = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind))
    return lm


class Server:
    """llama.cpp with a file, one thread."""

    def __init__(self, file: Path):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 256, 1, False
        params.special, params.verbosity, params.cpuparams.n_threads = True, 0, 1
        self.server = xllamacpp.Server(params)

    def write(self, prompt: str, seed: int) -> float:
        """Write 64 tokens; return the seconds that they took."""
        asked = {"prompt": prompt, "n_predict": 64, "ignore_eos": True, "seed": seed, "cache_prompt": False}
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            self.server.listening_address + "/completion", json.dumps(asked).encode(), head
        )
        start = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            answer.read()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="of ddt pretrain")
    parser.add_argument("--pictures", type=int, default=200, help="held-out scenes whose ids are foretold")
    parser.add_argument("--texts", type=int, default=20, help="written by llama.cpp for each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm, codec = load_pair(args.run, None)
    scenes, config = held_out_scenes("standard", codec.image_size, args.pictures, seed=0)
    ids = codec.encode(to_tensor([render(s.scene, config) for s in scenes]))
    captions = [s.describe(config) for s in scenes]
    with tempfile.TemporaryDirectory() as folder:
        sizes, bits, servers = {}, {}, {}
        for kind in track(KINDS, "bits"):
            file = Path(folder) / f"{kind}.gguf"
            write_gguf(lm, file, kind)
            sizes[kind] = file.stat().st_size / 1e6
            own = rounded(lm, file)
            with torch.inference_mode():
                parts = zip(ids.split(50), [captions[i : i + 50] for i in range(0, len(captions), 50)], strict=True)
                bits[kind] = torch.cat([visual_bits(own, *part).mean(1) for part in parts])
            servers[kind] = Server(file)
        seconds = {kind: [] for kind in KINDS}
        for seed in track(range(args.texts + 1), "llama.cpp"):
            for kind in KINDS:
                took = servers[kind].write(captions[0], seed)
                if seed:  # the first warms up
                    seconds[kind].append(took)
    print("| kind | MB | bits an id | more than f32 | time over f32's |\n|---|---|---|---|---|")
    for kind in KINDS:
        more = bits[kind] - bits["f32"]
        error = float(more.std() / len(more) ** 0.5)
        ratio = statistics.median(a / b for a, b in zip(seconds[kind], seconds["f32"], strict=True))
        print(
            f"| {kind} | {sizes[kind]:.1f} | {float(bits[kind].mean()):.3f} | {float(more.mean()):+.4f} ± {error:.4f} "
            f"| {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
