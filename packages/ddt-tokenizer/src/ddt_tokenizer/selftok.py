"""Import of Selftok's public checkpoints (https://github.com/selftok-team/SelftokTokenizer), the tokenizer's half.

A file holds `encoder.*` (encoder, quantizer and the norm after it) and `model.*` (the decoder, ignored here).
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddt_tokenizer.config import TokenizerConfig
from ddt_tokenizer.encoder import EncoderConfig
from ddt_tokenizer.latents import LatentConfig
from ddt_tokenizer.positions import cropped_table
from ddt_tokenizer.quantizers.vector import VectorConfig
from ddt_tokenizer.selftok_file import read_tensors

Model = TypeVar("Model", bound=nn.Module)
# Their name of a part of a block, and ours; 0 is the image, 1 the queries.
BLOCK = {
    "attn.qkv": "qkv.0",
    "attn.query_linear": "qkv.1",
    "attn.to_query_kv": "image_kv",
    "attn.q_norm": "q_norm.0",
    "attn.k_norm": "k_norm.0",
    "attn.query_qnorm": "q_norm.1",
    "attn.query_knorm": "k_norm.1",
    "attn.proj": "out.0",
    "attn.query_proj": "out.1",
    "mlp.fc1": "mlp.0.0",
    "mlp.fc2": "mlp.0.2",
    "q_mlp.fc1": "mlp.1.0",
    "q_mlp.fc2": "mlp.1.2",
    "t_embedder.mlp.0": "modulation.position_in.0",
    "t_embedder.mlp.2": "modulation.position_in.2",
    "adaLN_modulation.1": "modulation.out",
}
TOP = {
    "x_embedder.proj.weight": "encoder.patch_in.weight",
    "x_embedder.proj.bias": "encoder.patch_in.bias",
    "query_tokens": "encoder.queries",
    "final_layer_norm3.weight": "quantizer.norm.weight",
    "final_layer_norm3.bias": "quantizer.norm.bias",
    "quantizer.project_in.weight": "quantizer.project.weight",
    "quantizer.project_in.bias": "quantizer.project.bias",
    "quantizer._codebook.embed": "quantizer.codebook",
    "quantizer._codebook.cluster_size": "quantizer.counts",
    "quantizer._codebook.embed_avg": "quantizer.sums",
    "quantizer._codebook.timestep_p_over_c": "quantizer.histogram",
}
# Norms that the released configuration does not apply, counters, and the table of positions, which is computed.
UNUSED = {f"final_layer_norm{i}.{kind}" for i in ("", "2") for kind in ("weight", "bias")} | {
    "pos_embed",
    *(f"quantizer.{name}" for name in ("continuous", "steps", "count")),
    *(f"quantizer._codebook.{name}" for name in ("initted", "cluster_size_wo_react", "tpc_initted")),
}


@dataclass(frozen=True)
class SelftokCheckpoint:
    """A Selftok file under our names: the weights of a `DDTTokenizer`."""

    config: TokenizerConfig
    weights: dict[str, Tensor]
    path: str | Path

    def fill(self, model: Model) -> Model:
        """Return a model of this configuration with the weights, all of them, in evaluation mode.

        Raises:
            ValueError: If a name or a shape does not fit; names it.
        """
        ours = model.state_dict()
        unknown, missing = sorted(set(self.weights) - set(ours)), sorted(set(ours) - set(self.weights))
        missing += [name for name in set(ours) & set(self.weights) if ours[name].shape != self.weights[name].shape]
        if unknown or missing:
            raise ValueError(f"'{self.path}' is not a Selftok tokenizer of this shape: {_named(unknown, missing)}")
        model.load_state_dict(self.weights)
        return model.eval()


def read_selftok(
    path: str | Path,
    num_heads: int = 8,
    image_heads: int = 4,
    downscale: int = 8,
    vae: str | None = None,
) -> SelftokCheckpoint:
    """Read encoder, codebook and norm of a public Selftok checkpoint; sizes come from its tensors.

    Args:
        path: The `.pth` file; nothing but tensors is unpickled.
        num_heads: Attention heads of the queries.
        image_heads: Attention heads of the image.
        downscale: Pixels a latent, of the VAE.
        vae: Folder or Hub id of the VAE of SD3; None if only latents will be encoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, keys are unknown or missing, or shapes do not go together; names them.
    """
    found = read_tensors(path)
    theirs = {name.removeprefix("encoder."): tensor for name, tensor in found.items() if name.startswith("encoder.")}
    unknown = [name for name in found if not name.startswith(("encoder.", "model.", "diffusion."))]
    renamed = {name: _renamed(name) for name in theirs if name not in UNUSED}
    unknown += [f"encoder.{name}" for name, ours in renamed.items() if ours is None]
    depth = 1 + max((int(match[1]) for name in theirs if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    # Nobody reads the image after the last block, and only in joint attention do queries read its own projection.
    parts = ["out.0", "mlp.0"]
    if "blocks.0.attn.to_query_kv.weight" in theirs:
        parts += ["qkv.0", "q_norm.0", "k_norm.0"]
    unread = tuple(f"encoder.blocks.{depth - 1}.{part}" for part in parts)
    weights = {ours: theirs[name] for name, ours in renamed.items() if ours and not ours.startswith(unread)}
    needed = ("encoder.patch_in.weight", "encoder.queries", "quantizer.codebook", "quantizer.project.weight")
    missing = [key for key, ours in TOP.items() if ours in needed and ours not in weights]
    missing += [name for name in ("blocks.0", "pos_embed") if not any(key.startswith(name) for key in theirs)]
    if unknown or missing:
        raise ValueError(f"'{path}' is not a Selftok tokenizer: {_named(unknown, missing)}; see ddt_tokenizer.selftok")
    try:
        latents = replace(LatentConfig.sd3(vae), downscale=downscale)
        config = _config(weights, theirs["pos_embed"], depth, (num_heads, image_heads), latents)
        if "quantizer.histogram" in weights:
            weights["quantizer.histogram"] = weights["quantizer.histogram"].view(config.encoder.num_tokens, -1)
        for name in weights.keys() & {f"quantizer.{part}" for part in ("codebook", "counts", "sums")}:
            weights[name] = weights[name][0]
        weights["encoder.queries"] = weights["encoder.queries"][0]
        weights["encoder.patch_in.weight"] = weights["encoder.patch_in.weight"].flatten(1)
        return SelftokCheckpoint(config, weights, path)
    except (LookupError, RuntimeError, ArithmeticError, ValueError, TypeError) as error:
        raise ValueError(f"'{path}' is not a Selftok tokenizer: its shapes do not go together ({error})") from error


def _renamed(name: str) -> str | None:
    """Return our name of their tensor; None if it is not known."""
    if match := re.fullmatch(r"(blocks\.\d+)\.(.+)\.(weight|bias)", name):
        return f"encoder.{match[1]}.{BLOCK[match[2]]}.{match[3]}" if match[2] in BLOCK else None
    return TOP.get(name)


def _config(
    weights: dict[str, Tensor], table: Tensor, depth: int, heads: tuple[int, int], latents: LatentConfig
) -> TokenizerConfig:
    patch, queries = weights["encoder.patch_in.weight"], weights["encoder.queries"]
    side = round(table.shape[1] ** 0.5)
    if not torch.allclose(table[0], cropped_table(side, side, side, patch.shape[0]), atol=1e-5):
        raise ValueError(f"encoder.pos_embed is not the sin-cos table of {side} x {side}; such checkpoints are unknown")
    one_way = "encoder.blocks.0.image_kv.weight" in weights
    encoder = EncoderConfig(
        channels=patch.shape[1],
        patch_size=patch.shape[2],
        width=queries.shape[2],
        depth=depth,
        num_heads=heads[0],
        num_tokens=queries.shape[1],
        mlp_ratio=weights["encoder.blocks.0.mlp.1.0.weight"].shape[0] / queries.shape[2],
        attention="one_way" if one_way else "joint",
        image_width=patch.shape[0],
        image_heads=heads[1] if one_way else heads[0],
        query_position="adaln" if "encoder.blocks.0.modulation.out.weight" in weights else "learned",
        position_table=side,
        qk_norm="encoder.blocks.0.q_norm.1.weight" in weights,
        affine_norms=False,
        final_norm=False,
    )
    positional = "quantizer.histogram" in weights
    quantizer = VectorConfig(
        codebook_size=weights["quantizer.codebook"].shape[1],
        code_width=weights["quantizer.codebook"].shape[2],
        diversity=1.0 if positional else 0.0,
        replacement="position" if positional else "random",
        revived_share=0.2,
    )
    return TokenizerConfig(
        image_size=side // 2 * latents.downscale,  # the table's side in patches is twice that of the training latents
        encoder=encoder,
        quantizer=quantizer,
        latents=replace(latents, channels=patch.shape[1]),
    )


def _named(unknown: list[str], missing: list[str]) -> str:
    parts = []
    for what, names in (("unknown", unknown), ("missing or of another size", missing)):
        if names:
            parts.append(f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}")
    return " ".join("; ".join(parts).split())
