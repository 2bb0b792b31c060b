"""Put trained models into the wheels of the packages under one name, with weights in bf16.

    python apps/scripts/ship.py ddt-small-64 --tokenizer runs/small
    python apps/scripts/ship.py ddt-small-64 --renderer runs/sharp --model runs/sft

The tokenizer first: rounded weights write other ids in a few places of a thousand, so it gets a fingerprint of its own,
and renderer and language model are trained on the shipped one (`tokenizer=ddt-small-64`). Model cards, README.md beside
the weights, are written by hand.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import nn

from ddt_decoder import DDTRenderer
from ddt_llm import MultimodalLM
from ddt_tokenizer import DDTTokenizer
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.weights_file import write_weights

PACKAGES = Path(__file__).parents[2] / "packages"


def folder(package: str, name: str, part: str) -> Path:
    return PACKAGES / package / "src" / package.replace("-", "_") / "weights" / name / part


def rounded(model: nn.Module) -> nn.Module:
    """Round all numbers of a model to bf16, in fp32 still."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())
    return model


def save(model: nn.Module, where: Path) -> None:
    """Save a part, and its weights in half the size."""
    shutil.rmtree(where, ignore_errors=True)
    model.save_pretrained(where)
    for file in where.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            about = tensors.metadata()
        write_weights(file, load(file.read_bytes()), torch.bfloat16, about)  # not mapped, since it is written anew
    print(f"{sum(file.stat().st_size for file in where.iterdir()) / 1e6:.1f} MB in {where}")


def at(model: nn.Module, vae: str | None) -> nn.Module:
    """Let a model find the autoencoder of its latents elsewhere."""
    model.config = replace(model.config, latents=replace(model.config.latents, vae=vae))
    return model


def ship_codec(name: str, run: Path) -> None:
    """Ship tokenizer and decoder, each with the autoencoder of their latents."""
    codec = Codec.from_pretrained(run)
    tokenizer, decoder = rounded(codec.tokenizer), rounded(codec.decoder)
    decoder.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
    vae = tokenizer.config.latents.vae
    for package, part, model in (("ddt-tokenizer", "tokenizer", tokenizer), ("ddt-decoder", "decoder", decoder)):
        if vae is not None:
            shutil.copytree(vae, folder(package, name, "vae"), dirs_exist_ok=True)
        save(at(model, vae and f"{name}/vae"), folder(package, name, part))


def ship_renderer(name: str, run: Path) -> None:
    """Ship a renderer of the shipped tokenizer."""
    renderer = DDTRenderer.from_pretrained(run / "renderer")
    check(name, run, renderer.tokenizer_fingerprint)
    save(at(rounded(renderer), renderer.config.latents.vae and f"{name}/vae"), folder("ddt-decoder", name, "renderer"))


def ship_language_model(name: str, run: Path) -> None:
    """Ship a language model of the ids of the shipped tokenizer."""
    lm = MultimodalLM.from_pretrained(run / "model")
    check(name, run, lm.visual_fingerprint)
    rounded(lm.model)
    save(lm, folder("ddt-llm", name, "model"))


def check(name: str, run: Path, fingerprint: str) -> None:
    """Stop where a run has learned other ids than those of the shipped tokenizer."""
    if (shipped := DDTTokenizer.from_pretrained(name).fingerprint()) != fingerprint:
        raise SystemExit(f"{run} has learned ids of {fingerprint}, and {name} is {shipped}; train it on those")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the model")
    parser.add_argument("--tokenizer", type=Path, help="finished run of ddt train-tokenizer")
    parser.add_argument("--renderer", type=Path, help="finished run of ddt train-renderer on it")
    parser.add_argument("--model", type=Path, help="finished run of ddt pretrain or ddt sft on its ids")
    args = parser.parse_args()
    for run, ship in (
        (args.tokenizer, ship_codec),
        (args.renderer, ship_renderer),
        (args.model, ship_language_model),
    ):
        if run is not None:
            ship(args.name, run)


if __name__ == "__main__":
    main()
