"""A visual tokenizer for language models: one encoder and one decoder that belong together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_decoder import DDTDecoder
from ddt_tokenizer import DDTTokenizer


class Codec:
    """Pictures to ids and back; what `ddt_llm` calls a `VisualTokenizer`.

    Args:
        tokenizer: Writes ids.
        decoder: Draws them.
        num_steps: Denoising steps of `decode`.

    Raises:
        ValueError: The two do not belong together; names what differs.
    """

    def __init__(self, tokenizer: DDTTokenizer, decoder: DDTDecoder, num_steps: int = 1):
        self.tokenizer, self.decoder, self.num_steps = tokenizer.eval(), decoder.eval(), num_steps
        self.codebook_size, self.num_tokens = tokenizer.codebook_size, tokenizer.num_tokens
        self.image_size = tokenizer.config.image_size
        self.fingerprint = tokenizer.fingerprint()
        for name, mine, theirs in (
            ("codebook_size", self.codebook_size, decoder.config.codebook_size),
            ("num_tokens", self.num_tokens, decoder.num_tokens),
            ("image_size", self.image_size, decoder.config.image_size),
            ("fingerprint", self.fingerprint, decoder.tokenizer_fingerprint),
        ):
            if mine != theirs:
                raise ValueError(
                    f"tokenizer and decoder do not belong together ({name}: {mine}, {theirs}); load both from one run"
                )

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu", num_steps: int = 1) -> "Codec":
        """Load the `tokenizer` and `decoder` folders of a `ddt train-tokenizer` run.

        Raises:
            FileNotFoundError: The run is missing or unfinished.
            ValueError: The two do not belong together.
        """
        folder = Path(folder)
        if not (folder / "decoder" / "config.json").is_file():
            raise FileNotFoundError(f"no finished tokenizer run in '{folder}'; train one with: ddt train-tokenizer")
        tokenizer = DDTTokenizer.from_pretrained(folder / "tokenizer").to(device)
        return cls(tokenizer, DDTDecoder.from_pretrained(folder / "decoder").to(device), num_steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What id shards record of the tokenizer that wrote them."""
        return {
            "fingerprint": self.fingerprint,
            "codebook_size": self.codebook_size,
            "num_tokens": self.num_tokens,
        }

    @torch.inference_mode()
    def encode(self, images: Sequence[Any] | Tensor) -> Tensor:
        """Write pictures (PIL, paths, tensors [3, H, W], or one tensor [N, 3, H, W] in [-1, 1]) as ids [N, K]."""
        if not isinstance(images, Tensor) and all(isinstance(image, Tensor) for image in images):
            images = torch.stack(list(images))
        return self.tokenizer.encode(images).cpu()

    def decode(self, ids: Tensor, keep_tokens: int | None = None, **settings: Any) -> Tensor:
        """Draw ids [N, K], or their n coarsest, as images float32 [N, 3, H, W] in [-1, 1].

        Settings are those of `DDTDecoder.decode`.
        """
        ids = ids.to(self.decoder.codebook.device)
        return self.decoder.decode(ids, keep_tokens=keep_tokens, **{"num_steps": self.num_steps} | settings).cpu()


def to_tensor(pictures: Sequence[Any]) -> Tensor:
    """Stack uint8 pictures [H, W, 3] into float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Any:
    """Turn images [N, 3, H, W] in [-1, 1] into a uint8 array [N, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
