"""Published Selftok checkpoints (arXiv:2505.07538): the decoder half of the public `.pth` layout.

Shape letters: K tokens, D width, V codebook size, L patches.
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddt_decoder.config import DecoderConfig
from ddt_decoder.flow import FlowConfig
from ddt_decoder.latents import LatentConfig
from ddt_decoder.limits import Depth, check_setting
from ddt_decoder.mmdit import MMDiTConfig
from ddt_decoder.positions import exact_sincos, token_positions
from ddt_decoder.sd3 import channel_first, take_layers
from ddt_decoder.selftok_file import read_tensors

Model = TypeVar("Model", bound=nn.Module)
PATCH_SIZE = 2
# Layers by their name and ours: in no block; of the last block's tokens; of any stream {}; of the tokens' place.
ENDS = {"context_embedder": "network.token_in", "final_layer.linear": "network.patch_out"}
ENDS |= {"final_layer.adaLN_modulation.1": "network.final_modulation"}
ENDS |= {f"t_embedder.mlp.{i}": f"network.time_in.{i}" for i in (0, 2)}
LAST = {"adaLN_modulation.1": "modulation.{}", "attn.qkv": "attention.qkv.{}"}
LAYERS = LAST | {"attn.proj": "attention.out.{}", "mlp.fc1": "mlp.{}.0", "mlp.fc2": "mlp.{}.2"}
PLACE = {f"t_embedder.mlp.{i}": f"position_in.{i}" for i in (0, 2)}


def filled(model: Model, weights: dict[str, Tensor], path: str | Path) -> Model:
    """Return the model with all weights that `read_selftok` read from a path, in evaluation mode.

    Raises:
        ValueError: If a shape does not fit.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"'{path}' holds weights of other shapes ({' '.join(str(error).split())})") from error
    return model.eval()


def read_selftok(
    path: str | Path,
    num_heads: int | None = None,
    schedule: tuple[int, ...] | None = None,
    image_size: int | None = None,
    vae: str | None = None,
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Read a Selftok checkpoint; sizes come from its tensors.

    The encoder belongs to ddt-tokenizer. Of it only the codebook and the norm behind it are read, as the table
    ids -> vectors. Not read either: the pooled-text embedder, which the public code never calls, and the last block's
    position embedder, whose output it never uses.

    Settings are those of `DDTDecoder.from_selftok`. Nothing but tensors and plain values is unpickled.

    Returns:
        The configuration, and the weights under our names: of a `DDTDecoder`, or of a `DDTRenderer` if one is "canvas".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, a key is missing or unknown, or a setting does not fit.
    """
    state = read_tensors(path)
    try:
        return _read(state, num_heads, schedule, image_size, vae)
    except (LookupError, RuntimeError, ArithmeticError, TypeError, ValueError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"'{path}' is not a Selftok checkpoint of the public layout: {said}") from error


def _read(
    state: dict[str, Tensor],
    num_heads: int | None,
    schedule: tuple[int, ...] | None,
    image_size: int | None,
    vae: str | None,
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    theirs = {name.removeprefix("model."): state.pop(name) for name in list(state) if name.startswith("model.")}
    codebook = state["encoder.quantizer._codebook.embed"].squeeze(0).float()
    gain, bias = (state[f"encoder.final_layer_norm3.{kind}"].float() for kind in ("weight", "bias"))
    table = F.layer_norm(codebook, gain.shape, gain, bias, eps=1e-6)
    num_tokens, shape = _shape(theirs)
    renderer = "mask_token" in theirs
    weights = _start(theirs, renderer) | _trunk(theirs, shape["depth"], shape["qk_norm"])
    order = theirs.pop("context_pos_embed")[0]
    unknown = [*theirs, *(name for name in state if not name.startswith(("encoder.", "diffusion.")))]
    if unknown:
        raise ValueError(f"it holds weights that this decoder has no place for: {', '.join(sorted(unknown))}")
    positions = token_positions(num_tokens, torch.device("cpu"))
    if not torch.allclose(order, exact_sincos(positions, shape["width"]), atol=1e-4):
        raise ValueError("its tokens do not stand at positions 1000 + 8 k; it is of another Selftok")
    for released in (DecoderConfig.selftok_512(), DecoderConfig.selftok_1024()):
        if schedule is None and sum(released.schedule) == num_tokens:
            schedule = released.schedule
    if schedule is None or sum(schedule) != num_tokens:
        raise ValueError(f"schedule ({schedule}) must sum to its {num_tokens} tokens; give schedule=(...)")
    config = DecoderConfig(
        image_size=image_size or (math.isqrt(len(weights["places"])) * PATCH_SIZE * 8 if renderer else 256),
        codebook_size=len(table),
        schedule=tuple(schedule),
        network=MMDiTConfig(
            num_heads=num_heads or shape["width"] // 64,
            patch_size=PATCH_SIZE,
            token_modulation="position",
            tokens_see_patches=not renderer,  # the public code runs its renderer so
            open_gates=False,
            **shape,
        ),
        flow=FlowConfig(prediction="velocity", network_output="velocity"),
        latents=replace(LatentConfig.sd3(vae), channels=shape["channels"]),
    )
    return config, {"codebook": table, **weights}


def _shape(theirs: dict[str, Tensor]) -> tuple[int, dict[str, Any]]:
    """Infer K and the shape of the network."""
    width, token_width = theirs["context_embedder.weight"].shape
    depth = 1 + max((int(name.split(".")[1]) for name in theirs if name.startswith("joint_blocks.")), default=-1)
    check_setting("depth", Depth, depth)
    shape = {
        "channels": len(theirs["final_layer.linear.bias"]) // PATCH_SIZE**2,
        "width": width,
        "depth": depth,
        "token_width": token_width,
        "mlp_ratio": len(theirs["joint_blocks.0.x_block.mlp.fc1.bias"]) / width,
        "qk_norm": "joint_blocks.0.x_block.attn.ln_q.weight" in theirs,
        "table_side": None if "mask_token" in theirs else math.isqrt(theirs["pos_embed"].shape[1]),
    }
    return theirs["context_pos_embed"].shape[1], shape


def _start(theirs: dict[str, Tensor], renderer: bool) -> dict[str, Tensor]:
    """Take a renderer's canvas [1 or L, D] and places [L, D], or a decoder's patch embedding and position table."""
    if renderer:
        theirs.pop("pos_embed", None)  # not used
        return {"canvas": theirs.pop("mask_token")[0], "places": theirs.pop("positional_embedding")}
    return {
        "network.patch_in.weight": theirs.pop("x_embedder.proj.weight").flatten(1),
        "network.patch_in.bias": theirs.pop("x_embedder.proj.bias"),
        "network.patch_table": theirs.pop("pos_embed")[0],
    }


def _trunk(theirs: dict[str, Tensor], depth: int, qk_norm: bool) -> dict[str, Tensor]:
    """Take everything else of the network, and drop what the public code never uses."""
    unused = re.compile(rf"y_embedder\.|joint_blocks\.{depth - 1}\.context_block\.t_embedder\.")
    for name in [name for name in theirs if unused.match(name)]:
        del theirs[name]
    layers, norms = dict(ENDS), {}
    for i in range(depth):
        of_tokens = LAYERS | PLACE if i < depth - 1 else LAST  # nobody reads the tokens of the last block
        for stream, (block, names) in enumerate((("x_block", LAYERS), ("context_block", of_tokens))):
            their, our = f"joint_blocks.{i}.{block}", f"network.blocks.{i}"
            layers |= {f"{their}.{name}": f"{our}.{here.format(stream)}" for name, here in names.items()}
            norms |= {f"{their}.attn.ln_{part}": f"{our}.attention.{part}_norm.{stream}" for part in "qk" if qk_norm}
    ours = take_layers(theirs, layers) | take_layers(theirs, norms, ("weight",))
    for name in ("network.patch_out.weight", "network.patch_out.bias"):
        ours[name] = channel_first(ours[name], PATCH_SIZE)
    return ours
