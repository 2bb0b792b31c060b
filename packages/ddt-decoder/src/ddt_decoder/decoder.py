"""DDTDecoder: ids or token vectors to images, by a rectified flow that sees V_1..V_k(t) at time t.

Shape letters: B batch, K tokens, D token width, V codebook size, C channels.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddt_decoder.flow import FlowConfig, coarsest, denoise, draw_times, draw_visible, noised, shift_time
from ddt_decoder.mmdit import MMDiT, MMDiTConfig
from ddt_decoder.schedule import TokenSchedule

FORMAT = 1
SMALLEST_TIME = 1e-3  # below it the clean estimate is x_t itself; keeps the velocity of x0 networks finite


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that a checkpoint needs to be rebuilt."""

    image_size: int = 64  # pixels, square; the latents of this decoder are pixels
    codebook_size: int = 512
    schedule: tuple[int, ...] = (64,)  # tokens revealed in each equal piece of time; they sum to K
    network: MMDiTConfig = field(default_factory=MMDiTConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)

    def __post_init__(self):
        if self.image_size % self.network.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be divisible by patch_size ({self.network.patch_size})"
            )


class DDTDecoder(nn.Module):
    """A rectified-flow MMDiT with its ids -> vectors table, so that drawing needs no encoder.

    Args:
        config: See `DecoderConfig`.

    Example:
        >>> network = MMDiTConfig(width=32, depth=1, num_heads=2)
        >>> config = DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network)
        >>> decoder = DDTDecoder(config)
        >>> decoder.decode(torch.zeros(2, 4, dtype=torch.long), num_steps=2).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.schedule = TokenSchedule(config.schedule)
        self.network = MMDiT(config.network)
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.network.token_width))
        self.tokenizer_fingerprint = ""  # of the tokenizer that the table was taken from

    @property
    def num_tokens(self) -> int:
        """K, the tokens of one image."""
        return self.schedule.num_tokens

    def _clean(self, x_t: Tensor, shifted: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """Estimate the clean latents [B, C, H, W]; the network's raw output is this estimate."""
        return self.network(x_t, shifted, tokens, visible).float()

    def loss(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Flow-matching loss of clean latents [B, C, H, W] given their tokens [B, K, D]: a scalar.

        "x0" is the loss of DDT, |x0_hat - x0|^2; "velocity" the one of SD3 and Selftok, the same over t^2 (t >= 0.05).
        """
        flow = self.config.flow
        t = draw_times(len(latents), flow, latents.device)
        visible = draw_visible(t, self.schedule, flow)
        shifted = shift_time(t, flow.time_shift)
        x_t = noised(latents, torch.randn_like(latents), shifted)
        error = (self._clean(x_t, shifted, tokens, visible) - latents).square().mean(dim=(1, 2, 3))
        if flow.prediction == "velocity":
            error = error / shifted.clamp(min=0.05).square()
        return error.mean()

    def velocity(self, x_t: Tensor, t: Tensor, tokens: Tensor, keep_tokens: int | None = None) -> Tensor:
        """Call the network once.

        Args:
            x_t: Noisy latents [B, C, H, W].
            t: Unshifted times [B] in [0, 1]; tokens beyond k(t) are hidden here.
            tokens: Token vectors [B, K, D].
            keep_tokens: Show only the n coarsest of the visible tokens; None shows all, 0 none.

        Returns:
            The velocity noise - x0, [B, C, H, W].
        """
        visible = self.schedule.visible(t)
        if keep_tokens is not None:
            visible = visible & coarsest(torch.full_like(t, keep_tokens, dtype=torch.long), self.num_tokens)
        shifted = shift_time(t, self.config.flow.time_shift)
        clean = self._clean(x_t, shifted, tokens, visible)
        return (x_t - clean) / shifted.clamp(min=SMALLEST_TIME).view(-1, 1, 1, 1)

    def embed(self, ids: Tensor) -> Tensor:
        """Look ids [B, K] up in the table: token vectors [B, K, D].

        Raises:
            ValueError: If the shape or a value does not fit this decoder.
        """
        if ids.ndim != 2 or ids.shape[1] != self.num_tokens:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; this decoder takes [B, {self.num_tokens}]")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.codebook_size:
            raise ValueError(
                f"ids span {int(ids.min())}..{int(ids.max())}; the codebook has {self.config.codebook_size} entries"
            )
        return self.codebook[ids]

    @torch.inference_mode()
    def decode(
        self,
        ids: Tensor,
        num_steps: int = 25,
        guidance_scale: float = 1.0,
        keep_tokens: int | None = None,
        seed: int | Sequence[int] = 0,
        sampler: Literal["euler", "heun", "ddpm"] = "euler",
    ) -> Tensor:
        """Draw images from ids [B, K], or from token vectors [B, K, D].

        Args:
            ids: Ids in tokenizer order (index K-1 coarsest), or their vectors.
            num_steps: Network calls (twice as many for "heun"); 1 draws in one step.
            guidance_scale: 1 follows the tokens; above 1 exaggerates them (arXiv:2207.12598).
            keep_tokens: Use only the n coarsest tokens, 0..K.
            seed: Of the noise: one for all images, or one each. An image does not depend on the others of its batch.
            sampler: "euler", "heun" or "ddpm".

        Returns:
            Images float32 [B, 3, H, W] in [-1, 1].

        Raises:
            ValueError: If an argument is out of its range or has another shape.
        """
        if sampler not in ("euler", "heun", "ddpm"):
            raise ValueError(f"sampler ({sampler!r}) must be euler, heun or ddpm")
        if num_steps < 1:
            raise ValueError(f"num_steps ({num_steps}) must be at least 1")
        if keep_tokens is not None and not 0 <= keep_tokens <= self.num_tokens:
            raise ValueError(f"keep_tokens ({keep_tokens}) must be 0 to {self.num_tokens}")
        if ids.is_floating_point() and ids.shape[1:] != (self.num_tokens, self.codebook.shape[1]):
            wanted = f"[B, {self.num_tokens}, {self.codebook.shape[1]}]"
            raise ValueError(f"token vectors have shape {tuple(ids.shape)}; this decoder takes {wanted}")
        tokens = (ids if ids.is_floating_point() else self.embed(ids)).to(self.codebook)
        seeds = [seed] * len(tokens) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(tokens):
            raise ValueError(f"seed has {len(seeds)} values for {len(tokens)} images; give one, or one for each")
        shape = (self.config.network.channels, self.config.image_size, self.config.image_size)
        generators = [torch.Generator().manual_seed(value) for value in seeds]

        def fresh_noise() -> Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(tokens)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times = t.expand(len(x))
            v = self.velocity(x, times, tokens, keep_tokens)
            if guidance_scale == 1.0:
                return v
            blind = self.velocity(x, times, tokens, keep_tokens=0)
            return blind + guidance_scale * (v - blind)

        if not len(tokens):
            return tokens.new_zeros(0, *shape)
        shift = self.config.flow.time_shift
        for x in denoise(velocity, fresh_noise(), num_steps, shift, sampler, fresh_noise):
            result = x
        return result.clamp(-1, 1).float()

    def preview(self, ids: Tensor, num_steps: int = 1, seed: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield (n, images [B, 3, H, W]) drawn from the n coarsest tokens, n = 1..K, the order of an LLM."""
        for count in range(1, self.num_tokens + 1):
            yield count, self.decode(ids, num_steps=num_steps, keep_tokens=count, seed=seed)

    def set_codebook(self, vectors: Tensor, tokenizer_fingerprint: str) -> None:
        """Take the ids -> vectors table [V, D] and the fingerprint of the tokenizer that it belongs to."""
        self.codebook.copy_(vectors)
        self.tokenizer_fingerprint = tokenizer_fingerprint

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, then `config.json`: a folder without a config is unfinished."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors.partial")
        (folder / "config.json").unlink(missing_ok=True)  # a folder without one is unfinished
        (folder / "model.safetensors.partial").rename(folder / "model.safetensors")
        config = {
            "format": FORMAT,
            "model": "ddt-decoder",
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            **asdict(self.config),
        }
        (folder / "config.json.partial").write_text(json.dumps(config, indent=2))
        (folder / "config.json.partial").rename(folder / "config.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DDTDecoder":
        """Load a folder written by `save_pretrained`, strictly, in fp32 and evaluation mode.

        Raises:
            FileNotFoundError: If the folder holds no decoder.
            ValueError: If it was written in another format, or is damaged.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"no decoder in '{folder}': {path} is missing")
        config = json.loads(path.read_text())
        if config.pop("model", None) != "ddt-decoder" or config.pop("format", None) != FORMAT:
            raise ValueError(f"'{folder}' does not hold a ddt-decoder of format {FORMAT}; see its config.json")
        try:
            fingerprint = config.pop("tokenizer_fingerprint")
            network, flow = MMDiTConfig(**config.pop("network")), FlowConfig(**config.pop("flow"))
            schedule = tuple(config.pop("schedule"))
            decoder = cls(DecoderConfig(network=network, flow=flow, schedule=schedule, **config))
            decoder.load_state_dict(load_file(path.with_name("model.safetensors")))
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the decoder in '{folder}' is damaged or incomplete ({error}); save it again") from error
        decoder.tokenizer_fingerprint = fingerprint
        return decoder.eval()
