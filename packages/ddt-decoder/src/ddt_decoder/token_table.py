"""What all that draw from ids share: the table ids -> vectors, so that drawing needs no encoder, and a folder on disk.

Shape letters: B batch, K tokens, D token width, V codebook size.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ddt_decoder.checkpoint import load_model, read_config, save_folder
from ddt_decoder.config import DecoderConfig
from ddt_decoder.hub import OnHub, local_folder, model_card
from ddt_decoder.latents import LatentSpace
from ddt_decoder.limits import check_setting
from ddt_decoder.precision import Precision
from ddt_decoder.shipped import folder_of


class TokenTable(nn.Module, OnHub):
    """A module that owns the vectors [V, D] of the ids, with any norm behind the codebook already applied.

    Attributes:
        kind: What it is, in a word.
        arguments: What the class takes beside the config and a checkpoint records, with the type of each; attributes
            of the same name. Where a checkpoint has none of a name, it is older than that, and the default is meant.
        precision: In which `decode` computes. In "bf16" the network's products are; what it denoises, and the images,
            stay float32.

    Example:
        >>> TokenTable(DecoderConfig(schedule=(4,))).embed(torch.zeros(2, 4, dtype=torch.long)).shape
        torch.Size([2, 4, 12])
    """

    kind: ClassVar[str]
    arguments: ClassVar[dict[str, Any]] = {}
    precision: Precision = "32"

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.num_tokens = sum(config.schedule)
        self.latent_space = LatentSpace(config.latents)
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.network.token_width))
        self.tokenizer_fingerprint = ""  # of the tokenizer that the table was taken from

    def set_codebook(self, vectors: Tensor, tokenizer_fingerprint: str) -> None:
        """Take the ids -> vectors table [V, D] and the fingerprint of the tokenizer that it belongs to."""
        self.codebook.copy_(vectors)
        self.tokenizer_fingerprint = tokenizer_fingerprint

    def embed(self, ids: Tensor) -> Tensor:
        """Return the token vectors [B, K, D] of ids [B, K].

        Raises:
            ValueError: If the shape or a value does not fit this decoder.
        """
        if ids.ndim != 2 or ids.shape[1] != self.num_tokens:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; this decoder takes [B, {self.num_tokens}]")
        size = len(self.codebook)
        # A graph that is traced, to be compiled or exported, has no place for a question about values.
        if not torch.compiler.is_compiling() and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ValueError(f"ids span {int(ids.min())}..{int(ids.max())}; the codebook has {size} entries")
        return self.codebook[ids]

    def as_tokens(self, ids: Tensor) -> Tensor:
        """Return the vectors of ids as `embed` does; vectors [B, K, D] are returned as they are.

        Raises:
            ValueError: If the shape or a value does not fit this decoder.
        """
        if not ids.is_floating_point():
            return self.embed(ids)
        if ids.ndim != 3 or ids.shape[1:] != (self.num_tokens, self.codebook.shape[1]):
            wanted = f"[B, {self.num_tokens}, {self.codebook.shape[1]}]"
            raise ValueError(f"token vectors have shape {tuple(ids.shape)}; this decoder takes {wanted}")
        return ids.to(self.codebook)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, then `config.json`: a folder without a config is unfinished."""
        recorded = {name: getattr(self, name) for name in ("tokenizer_fingerprint", *self.arguments)}
        save_folder(folder, self, f"ddt-{self.kind}", {**recorded, **asdict(self.config)})

    def card(self, repo_id: str, licence: str | None = None) -> str:
        """Return its model card; see `ddt_decoder.hub.model_card`."""
        config, name = self.config, type(self).__name__
        one_step = self.kind == "renderer" or config.usual_steps == 1
        facts = {
            "images": f"{config.image_size} x {config.image_size} pixels",
            "drawn from": f"{self.num_tokens} ids of {config.codebook_size:,}, or the coarsest of them",
            "in": "one step" if one_step else f"{config.usual_steps} steps",
            "weights": f"{sum(weight.numel() for weight in self.parameters()):,}",
            "ids of the tokenizer with the fingerprint": self.tokenizer_fingerprint or "(none)",
        }
        what = "Discrete diffusion timestep tokens to images (arXiv:2504.14666)."
        usage = f"""from ddt_decoder import {name}

{self.kind} = {name}.from_pretrained("{repo_id}")
images = {self.kind}.decode(ids)  # int64 [B, {self.num_tokens}] -> float32 [B, 3, H, W] in [-1, 1]"""
        return model_card(repo_id.rpartition("/")[2], what, usage, facts, licence, ["ddt", "image-generation"])

    @classmethod
    def from_pretrained(cls, folder: str | Path, vae: str | None = None, precision: Precision = "32") -> Self:
        """Load a folder written by `save_pretrained`, strictly, with weights in fp32 and in evaluation mode.

        Args:
            folder: Of the model, an id of the Hub (`owner/name/decoder`), or one that comes along, by name.
            vae: Where the VAE lies on this machine, if not where it did when the folder was written.
            precision: In which `decode` computes: "32", or "bf16".

        Raises:
            FileNotFoundError: If the folder holds no such model.
            ValueError: If it was written in another format, is damaged, or there is no such precision.
        """
        check_setting("precision", Precision, precision)
        folder = local_folder(folder_of(folder, cls.kind))
        config = read_config(folder, f"ddt-{cls.kind}")
        try:
            fingerprint = config.pop("tokenizer_fingerprint")
            arguments = {name: config.pop(name) for name in cls.arguments if name in config}
            for name, value in arguments.items():
                check_setting(name, cls.arguments[name], value)
            config = DecoderConfig.from_dict(config).with_vae(vae)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"config.json in '{folder}' is damaged ({error}); save the {cls.kind} again") from error
        model = load_model(folder, lambda: cls(config, **arguments))
        model.tokenizer_fingerprint, model.precision = fingerprint, precision
        return model.eval()
