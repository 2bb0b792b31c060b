"""DDTDecoder: ids or token vectors to images, by a rectified flow that sees V_1..V_k(t) at time t.

Shape letters: B batch, K tokens, D token width, V codebook size, C channels; H, W pixels, h, w latents.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from ddt_decoder.config import DecoderConfig
from ddt_decoder.flow import (
    FlowConfig,
    Sampler,
    coarsest,
    denoise,
    draw_prefixes,
    draw_times,
    draw_visible,
    noised,
    scale_gradient,
    shift_time,
    visible_share,
)
from ddt_decoder.limits import FiniteFloat, PositiveInt, Seed, check_setting
from ddt_decoder.mmdit import MMDiT
from ddt_decoder.precision import computing
from ddt_decoder.sd3 import fill_from_sd3
from ddt_decoder.seeding import Rows
from ddt_decoder.selftok import filled, read_selftok
from ddt_decoder.token_table import TokenTable

SMALLEST_TIME = 1e-3  # below it the clean estimate is x_t itself; keeps the velocity of x0 networks finite
logger = logging.getLogger(__name__)


class DDTDecoder(TokenTable):
    """A rectified-flow MMDiT with its ids -> vectors table, so that drawing needs no encoder.

    Example:
        >>> from ddt_decoder import MMDiTConfig
        >>> network = MMDiTConfig(width=32, depth=1, num_heads=2)
        >>> config = DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network)
        >>> decoder = DDTDecoder(config)
        >>> decoder.decode(torch.zeros(2, 4, dtype=torch.long), num_steps=2).shape
        torch.Size([2, 3, 16, 16])
        >>> decoder.decode(torch.zeros(2, 4, dtype=torch.long), num_steps=2, size=(24, 8)).shape
        torch.Size([2, 3, 24, 8])
    """

    kind = "decoder"

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.schedule = config.token_schedule()
        self.network = MMDiT(config.network, self.num_tokens, config.patch_grid)

    def loss(self, latents: Tensor, tokens: Tensor, nested: bool = True) -> Tensor:
        """Compute the flow-matching loss of clean latents [B, C, h, w] given their tokens [B, K, D]: a scalar.

        "x0" is the loss of DDT, |x0_hat - x0|^2; "velocity" the one of SD3 and Selftok, the same over t^2 (for networks
        that predict x0, over at least 0.05^2).

        Without `nested` no row is drawn from its coarsest tokens alone, whatever the config says: `prefix_share` and
        `coarse_share` are left out, so that nesting can begin later than training (Semanticist, arXiv:2503.08685).

        Raises:
            ValueError: If latents or tokens do not fit this decoder.
        """
        flow = self.config.flow if nested else replace(self.config.flow, prefix_share=0.0, coarse_share=0.0)
        self._check(latents)
        tokens = self.as_tokens(tokens)
        if flow.reweight_gradients:
            tokens = scale_gradient(tokens, 1 / visible_share(self.schedule, flow).to(tokens.device))

        # Some rows are drawn from their coarsest tokens alone, the rest at any noise.
        rows, errors = Rows.of_batch(len(latents), latents.device), []
        if flow.prefix_share:
            rows, groups = rows.spread(flow.prefix_share, flow.prefix_groups)
            for few, count in zip(groups, draw_prefixes(self.num_tokens, flow), strict=False):
                errors.append(self._prefix_errors(few, few.take(latents), few.take(tokens), count))
        errors.append(self._flow_errors(rows, rows.take(latents), rows.take(tokens), flow))
        return torch.cat(errors).mean()

    def _prefix_errors(self, rows: Rows, latents: Tensor, tokens: Tensor, count: int) -> Tensor:
        """Draw rows in one step, each from the `count` coarsest of its tokens: squared errors [B]."""
        first, start = self.num_tokens - count, torch.ones(len(rows), device=latents.device)
        noise = rows.noise(*latents.shape[1:])
        drawn = self.network(noise, start, tokens[:, first:], first=first).float()
        return (drawn - latents).square().mean(dim=(1, 2, 3))

    def _flow_errors(self, rows: Rows, latents: Tensor, tokens: Tensor, flow: FlowConfig) -> Tensor:
        """Compare at noise levels of the flow: squared errors [B]."""
        # Noise levels, and the tokens that are visible at each.
        t = draw_times(rows, flow)
        visible = draw_visible(rows, t, self.schedule, flow)
        shifted = shift_time(t, flow.time_shift)

        # Noisy latents x_t, for a share of the network's own estimate in place of the clean ones.
        noise = rows.noise(*latents.shape[1:])
        clean = latents
        if flow.own_estimates:
            chosen = (t < 1) & (rows.uniform() < flow.own_estimates)
            clean = latents.index_copy(0, *self._estimates(noise, tokens, chosen.nonzero().flatten()))
        x_t = noised(clean, noise, shifted)
        output = self.network(x_t, shifted, tokens, visible).float()

        # The error of x0 or of the velocity, whichever the network predicts: x0 = x_t - t v.
        times = shifted.view(-1, 1, 1, 1)
        if flow.prediction == flow.network_output:
            error = output - (latents if flow.prediction == "x0" else noise - latents)
        elif flow.prediction == "x0":
            error = x_t - times * output - latents
        else:
            error = (output - latents) / times.clamp(min=0.05)
        return error.square().mean(dim=(1, 2, 3)) / shifted.clamp(min=0.1) ** flow.time_power

    @torch.no_grad()
    def _estimates(self, noise: Tensor, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the given rows in one step from noise: rows, and clean latents [len(rows), C, h, w]."""
        pure, start = noise[rows], torch.ones(len(rows), device=noise.device)
        output = self.network(pure, start, tokens[rows]).to(noise.dtype)
        return rows, output if self.config.flow.network_output == "x0" else pure - output

    def velocity(self, x_t: Tensor, t: Tensor, tokens: Tensor, keep_tokens: int | None = None) -> Tensor:
        """Call the network once, for any times.

        Args:
            x_t: Noisy latents [B, C, h, w].
            t: Unshifted times [B] in [0, 1]; tokens [B, K, D] beyond k(t) are hidden here.
            keep_tokens: Show only the n coarsest of the visible tokens; None shows all, 0 none.

        Returns:
            The velocity noise - x0, [B, C, h, w].

        Raises:
            ValueError: If x_t or tokens do not fit this decoder.
        """
        self._check(x_t)
        visible = self.schedule.visible(t)
        if keep_tokens is not None:
            visible = visible & coarsest(torch.full_like(t, keep_tokens, dtype=torch.long), self.num_tokens)
        shifted = shift_time(t, self.config.flow.time_shift)
        return self._as_velocity(self.network(x_t, shifted, self.as_tokens(tokens), visible), x_t, shifted)

    def _velocity_of_seen(
        self, x_t: Tensor, t: Tensor, tokens: Tensor, keep_tokens: int, all_tokens: bool = False
    ) -> Tensor:
        """Compute `velocity` at one time, a scalar on the CPU, with the visible tokens alone: the same, cheaper."""
        first = self.num_tokens - keep_tokens
        visible = self.num_tokens if all_tokens else int(self.schedule.visible_count(t))
        seen = tokens[:, first : max(first, visible)]
        shifted = shift_time(t, self.config.flow.time_shift).to(x_t.device).expand(len(x_t))
        return self._as_velocity(self.network(x_t, shifted, seen, first=first), x_t, shifted)

    def _as_velocity(self, output: Tensor, x_t: Tensor, shifted: Tensor) -> Tensor:
        if self.config.flow.network_output == "velocity":
            return output.float()
        return (x_t - output.float()) / shifted.clamp(min=SMALLEST_TIME).view(-1, 1, 1, 1)

    @torch.inference_mode()
    def decode(
        self,
        ids: Tensor,
        num_steps: int | None = None,
        guidance_scale: float = 1.0,
        keep_tokens: int | None = None,
        seed: int | Sequence[int] = 0,
        sampler: Sampler = "euler",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        size: tuple[int, int] | None = None,
        all_tokens: bool = False,
    ) -> Tensor:
        """Draw images from ids [B, K], index K-1 the coarsest, or from token vectors [B, K, D].

        A step that sees k tokens computes k tokens.

        Args:
            num_steps: Network calls (twice as many for "heun"); 1 draws in one step, None in `config.usual_steps`.
            guidance_scale: 1 follows the tokens; above 1 exaggerates them (arXiv:2207.12598), for a second call a step.
            keep_tokens: Use only the n coarsest tokens, 0..K.
            seed: Of the noise: one for all images, or one each. An image does not depend on the others of its batch.
            sampler: See `ddt_decoder.flow.Sampler`.
            guidance_interval: Times from (low, high) between which guidance acts (arXiv:2404.07724).
            size: Height and width in pixels; None draws squares of image_size.
            all_tokens: Show all tokens at every step in place of V_1..V_k(t); a small decoder of many steps then keeps
                closer to its ids (this project's docs/results/order.md).

        Returns:
            Images float32 [B, 3, H, W] in [-1, 1].

        Raises:
            ValueError: If an argument is out of its range or has another shape.
        """
        steps = self.config.usual_steps if num_steps is None else num_steps
        keep = self.num_tokens if keep_tokens is None else keep_tokens
        low, high = guidance_interval
        if sampler not in get_args(Sampler):
            raise ValueError(f"sampler ({sampler!r}) must be one of {', '.join(get_args(Sampler))}")
        check_setting("num_steps", PositiveInt, steps)
        check_setting("guidance_scale", FiniteFloat, guidance_scale)
        if not 0 <= keep <= self.num_tokens:
            raise ValueError(f"keep_tokens ({keep_tokens}) must be 0 to {self.num_tokens}")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval ({guidance_interval}) must be two times, 0 <= low <= high <= 1")
        tokens = self.as_tokens(ids)
        fresh_noise = self._noise(seed, len(tokens), self._latent_shape(size))
        if not len(tokens):
            return tokens.new_zeros(0, 3, *(size or (self.config.image_size,) * 2))
        self.latent_space.load()  # now, so that a missing VAE is named before the work

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            v = self._velocity_of_seen(x, t, tokens, keep, all_tokens)
            if guidance_scale == 1.0 or not low <= t <= high:
                return v
            blind = self._velocity_of_seen(x, t, tokens, keep_tokens=0)
            return blind + guidance_scale * (v - blind)

        with computing(self.precision, tokens.device):
            for x in denoise(velocity, fresh_noise(), steps, self.config.flow.time_shift, sampler, fresh_noise):
                drawn = x
        return self.latent_space.decode(drawn).clamp(-1, 1).float()

    def _noise(self, seed: int | Sequence[int], count: int, shape: tuple[int, int, int]) -> Callable[[], Tensor]:
        """Make what draws noise [count, C, h, w], each image from a seed of its own."""
        seeds = [seed] * count if isinstance(seed, Real) else list(seed)
        if len(seeds) != count:
            raise ValueError(f"seed has {len(seeds)} values for {count} images; give one, or one for each")
        check_setting("seed", list[Seed], seeds)
        generators = [torch.Generator().manual_seed(value) for value in seeds]
        return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.codebook.device)

    def preview(self, ids: Tensor, num_steps: int = 1, seed: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield (n, images [B, 3, H, W]) drawn from the n coarsest tokens, n = 1..K, the order of an LLM."""
        for count in range(1, self.num_tokens + 1):
            yield count, self.decode(ids, num_steps=num_steps, keep_tokens=count, seed=seed)

    def swap(self, ids: Tensor, others: Tensor, start: int, stop: int, **settings: Any) -> Tensor:
        """Draw images whose tokens start..stop-1 (0 is finest) are taken from others: between two sets of images.

        Ids, others, settings and images are as for `decode`.

        Raises:
            ValueError: If the range is not one of 0..K.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(f"start ({start}) and stop ({stop}) must be 0 <= start <= stop <= {self.num_tokens}")
        mixed = self.as_tokens(ids).clone()
        mixed[:, start:stop] = self.as_tokens(others)[:, start:stop]
        return self.decode(mixed, **settings)

    def image_parameters(self) -> list[nn.Parameter]:
        """List the weights of the image stream and its patch embedding.

        Selftok gives them a lower learning rate than the rest (1e-5 against 5e-5) when they start from SD3.
        """
        inside = (".modulation.0.", ".qkv.0.", ".q_norm.0.", ".k_norm.0.", ".out.0.", ".mlp.0.")
        return [
            parameter
            for name, parameter in self.network.named_parameters()
            if name.startswith("patch_in.") or (name.startswith("blocks.") and any(part in name for part in inside))
        ]

    @classmethod
    def from_sd3(cls, folder: str | Path, config: DecoderConfig) -> Self:
        """Start from the image stream of Stable Diffusion 3; see `ddt_decoder.sd3.fill_from_sd3`.

        The network of `config` must have the shape of that in the folder, for example `DecoderConfig.selftok_512()`.
        The names of the weights that stay at their own start, those of the token stream, are logged.

        Raises:
            FileNotFoundError: If the folder holds no such model.
            ValueError: If the shapes differ.
        """
        decoder = cls(config)
        unfilled = fill_from_sd3(decoder.network, folder)
        logger.info("not filled from SD3: %s", ", ".join(unfilled))
        return decoder

    @classmethod
    def from_selftok(cls, path: str | Path, **config: Any) -> Self:
        """Read a published Selftok checkpoint (`tokenizer_512_ckpt.pth`): network and ids -> vectors table.

        Args:
            path: The `.pth` file; only tensors are read from it.
            config: `num_heads` (width / 64), `schedule` (that of `selftok_512`, or of `selftok_1024`), `image_size`
                (256, or what a renderer's canvas says), `vae` (folder or Hub id of SD3's): what the file does not tell.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, a key is missing or unknown, or a shape does not fit.
        """
        read, weights = read_selftok(path, **config)
        if "canvas" in weights:
            raise ValueError(f"'{path}' holds a renderer; use DDTRenderer.from_selftok")
        return filled(cls(read), weights, path)

    def _check(self, latents: Tensor) -> None:
        channels, patch = self.config.network.channels, self.config.network.patch_size
        fits = latents.ndim == 4 and latents.shape[1] == channels
        if not fits or latents.shape[2] % patch or latents.shape[3] % patch:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; this decoder takes [B, {channels}, h, w] with h and w "
                f"divisible by patch_size ({patch})"
            )

    def _latent_shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        height, width = size or (self.config.image_size, self.config.image_size)
        pixels, downscale = self.config.patch_pixels, self.config.latents.downscale
        if min(height, width) < pixels or height % pixels or width % pixels:
            raise ValueError(f"size ({height}, {width}) must be two multiples of {pixels} pixels")
        return self.config.network.channels, height // downscale, width // downscale
