"""Weights of Stable Diffusion 3 (arXiv:2403.03206) for the image stream of an MMDiT, from a diffusers folder."""

import re
from pathlib import Path

import torch
from torch import Tensor

from ddt_decoder.latents import load_diffusers
from ddt_decoder.mmdit import MMDiT

# What belongs to the text: its stream, its embedder and the pooled vector that is added to the time.
TEXT = ("context_embedder.", "time_text_embed.text_embedder.", "norm1_context.", "ff_context.", "to_add_out.")
TEXT += ("add_q_proj.", "add_k_proj.", "add_v_proj.", "norm_added_q.", "norm_added_k.")

# Layers by their name and ours: those in no block, and those of the image stream of a block.
ENDS = {"pos_embed.proj": "patch_in", "proj_out": "patch_out", "norm_out.linear": "final_modulation"}
ENDS |= {f"time_text_embed.timestep_embedder.linear_{i + 1}": f"time_in.{2 * i}" for i in (0, 1)}
LAYERS = {"norm1.linear": "modulation.0", "attn.to_out.0": "attention.out.0"}
LAYERS |= {"ff.net.0.proj": "mlp.0.0", "ff.net.2": "mlp.0.2"}
OF_TOKENS = re.compile(r"token_in\.|blocks\.\d+\.(.+\.1|position_in)\.")  # our weights that SD3 does not fill


def fill_from_sd3(network: MMDiT, folder: str | Path) -> list[str]:
    """Fill the image stream, time embedding, position table and output layer of a network, in place.

    With all tokens hidden the network then computes what SD3 does without text tokens and with a pooled text vector
    that adds nothing to the time embedding (`text_embedder.linear_2` zero). The folder is one of a diffusers
    `SD3Transformer2DModel`, or a Hub id, which may go on with a subfolder, as in owner/name/transformer.

    Returns:
        The names of the network's weights that SD3 does not fill: those of the token stream.

    Raises:
        FileNotFoundError: If the folder is missing, or has no weights in safetensors.
        ValueError: If it is damaged, the shapes differ, the folder holds weights that this network has no place for, or
            diffusers is not installed.
    """
    try:
        from diffusers import SD3Transformer2DModel
    except ModuleNotFoundError as error:
        raise ValueError(f"SD3 in '{folder}' needs {error.name}; install ddt-decoder[vae]") from error
    source = load_diffusers(SD3Transformer2DModel, str(folder))
    theirs = {name: tensor for name, tensor in source.state_dict().items() if not any(part in name for part in TEXT)}
    ours = _image_stream(theirs, source.config.num_layers)
    if theirs:
        raise ValueError(f"'{folder}' holds weights of another kind of SD3: {', '.join(sorted(theirs))}")
    state = network.state_dict()
    for name, tensor in ours.items():
        wanted = tuple(state[name].shape) if name in state else None
        if wanted != tuple(tensor.shape):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in '{folder}' and {wanted} here; give the network SD3's shape"
            )
    missing = {name for name in state if not OF_TOKENS.match(name)} - set(ours)
    if missing:
        raise ValueError(f"'{folder}' lacks {', '.join(sorted(missing))}; give the network SD3's shape")
    network.load_state_dict({**state, **ours})
    return sorted(set(state) - set(ours))


def channel_first(rows: Tensor, patch_size: int) -> Tensor:
    """Reorder rows of an output layer from SD3's order of a patch's values, channel last, to ours, channel first."""
    return rows.unflatten(0, (patch_size, patch_size, -1)).movedim(2, 0).flatten(0, 2)


def take_layers(
    theirs: dict[str, Tensor], layers: dict[str, str], kinds: tuple[str, ...] = ("weight", "bias")
) -> dict[str, Tensor]:
    """Take the weights of layers {their name: our name} out of `theirs`, under our names."""
    return {f"{our}.{kind}": theirs.pop(f"{their}.{kind}") for their, our in layers.items() for kind in kinds}


def _image_stream(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Take the image stream, and what is in no block, out of SD3's weights, under our names."""
    size = theirs["pos_embed.proj.weight"].shape[2]  # of [D, C, p, p]
    layers, norms = dict(ENDS), {}
    for i in range(depth):
        layers |= {f"transformer_blocks.{i}.{their}": f"blocks.{i}.{our}" for their, our in LAYERS.items()}
        for part in "qk":
            norms[f"transformer_blocks.{i}.attn.norm_{part}"] = f"blocks.{i}.attention.{part}_norm.0"
    norms = {their: our for their, our in norms.items() if f"{their}.weight" in theirs}
    ours = take_layers(theirs, layers) | take_layers(theirs, norms, ("weight",))
    ours["patch_in.weight"] = ours["patch_in.weight"].flatten(1)
    ours["patch_table"] = theirs.pop("pos_embed.pos_embed")[0]
    for kind in ("weight", "bias"):
        scale, shift = ours[f"final_modulation.{kind}"].chunk(2)
        ours[f"final_modulation.{kind}"] = torch.cat([shift, scale])
        ours[f"patch_out.{kind}"] = channel_first(ours[f"patch_out.{kind}"], size)
        for i in range(depth):
            qkv = [theirs.pop(f"transformer_blocks.{i}.attn.to_{part}.{kind}") for part in "qkv"]
            ours[f"blocks.{i}.attention.qkv.0.{kind}"] = torch.cat(qkv)
    return ours
