"""Training of the one-step renderer, encoder and codebook frozen. Needs the `[train]` extra.

Shape letters: B batch, K tokens, D token width; H, W pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ddt_decoder.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from ddt_decoder.flow import FlowConfig, draw_prefixes
from ddt_decoder.perceptual import gradient_difference
from ddt_decoder.renderer import DDTRenderer
from ddt_decoder.renderer_training_config import RendererTrainingConfig
from ddt_decoder.seeding import Rows, seed_step


class RendererTraining(LightningModule):
    """Teaches a renderer images from their ids, or from their token vectors.

    A batch is (ids [B, K] or tokens [B, K, D], images [B, 3, H, W] in [-1, 1]), so no encoder takes part. In the second
    phase a discriminator learns beside the renderer, each with its own optimizer. What is random in a step, how many
    tokens a prefix has, is a function of (seed, step), so a resumed run continues exactly, and several ranks train as
    one process does on the whole batch. The Trainer must not clip gradients; `gradient_clip` does.

    `networks` are the parts with nearly all of the work, which a trainer may compile. `find_unused_parameters` is what
    DDP has to know: the discriminator is idle in the first phase. FSDP2 leaves it, `replicated`, whole.

    Args:
        renderer: Trained in place.
        perceptual: Difference (drawn, images) -> scalar. Pass LPIPS where its weights are at hand.
        seed: Of the discriminator's first weights and of prefixes.

    Example:
        >>> from ddt_decoder import DDTDecoder, DecoderConfig, MMDiTConfig
        >>> network = MMDiTConfig(width=32, depth=1, num_heads=2)
        >>> decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network))
        >>> training = RendererTraining(DDTRenderer.from_decoder(decoder), RendererTrainingConfig())
        >>> losses = training.losses(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 3, 16, 16), step=0)
        >>> sorted(losses)
        ['loss', 'mse', 'perceptual']
    """

    find_unused_parameters = True

    def __init__(
        self,
        renderer: DDTRenderer,
        config: RendererTrainingConfig,
        perceptual: Callable[[Tensor, Tensor], Tensor] = gradient_difference,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.renderer = renderer
        self.config, self.seed = config, seed
        self.perceptual = perceptual.requires_grad_(False) if isinstance(perceptual, nn.Module) else perceptual
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator(config.discriminator_width, config.discriminator_depth)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.renderer.network]

    @property
    def replicated(self) -> list[nn.Module]:
        return [self.discriminator]

    def on_fit_start(self) -> None:
        """Refuse fp16, whose scaled loss would spoil clipping and the discriminator's steps."""
        if self.trainer.precision == "16-mixed":
            raise ValueError(f"precision ({self.trainer.precision}) scales the loss; use bf16-mixed or 32-true")

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Make the randomness a function of (seed, step)."""
        seed_step(self, batch_idx)

    def losses(self, ids: Tensor, images: Tensor, step: int) -> dict[str, Tensor]:
        """Compute the renderer's loss at a step, and its parts by name.

        In the second phase the entry "drawn" holds the drawn images, without gradient, for the discriminator.
        """
        second = step >= self.config.second_phase_step
        perceptual_weight, adversarial_weight = self.config.second_phase if second else self.config.first_phase
        drawn, images = self._draw(ids, images)
        losses = {"mse": F.mse_loss(drawn, images), "perceptual": self.perceptual(drawn, images)}
        loss = losses["mse"] + perceptual_weight * losses["perceptual"]
        if adversarial_weight:
            losses["adversarial"] = adversarial_loss(self.discriminator(drawn))
            loss = loss + adversarial_weight * losses["adversarial"]
            losses["drawn"] = drawn.detach()
        return {"loss": loss, **losses}

    def _draw(self, ids: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draw all rows, some of them from prefixes: what is drawn, and the images in the same order."""
        if not self.config.prefix_share:
            return self.renderer.render(ids), images
        flow = FlowConfig()
        rest, groups = Rows.of_batch(len(ids)).spread(self.config.prefix_share, flow.prefix_groups)
        counts = draw_prefixes(self.renderer.num_tokens, flow)
        parts = [(rest, None), *zip(groups, counts, strict=False)]
        drawn = [self.renderer.render(rows.take(ids), count) for rows, count in parts]
        return torch.cat(drawn), torch.cat([rows.take(images) for rows, _ in parts])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Step the renderer, then, in the second phase, the discriminator."""
        ids, images = batch
        optimizer = self.optimizers()[0]
        # Stepped behind Lightning's back, so that `global_step` counts the renderer's steps alone.
        against = self.optimizers(use_pl_optimizer=False)[1]
        warmth = min(1.0, (self.global_step + 1) / self.config.warmup_steps)
        for each, rate in ((optimizer, self.config.lr), (against, self.config.discriminator_lr)):
            for group in each.param_groups:
                group["lr"] = rate * warmth

        self.discriminator.requires_grad_(False)
        losses = self.losses(ids, images, self.global_step)
        drawn = losses.pop("drawn", None)
        optimizer.zero_grad()
        self.manual_backward(losses["loss"])
        self.discriminator.requires_grad_(True)
        if drawn is not None:
            losses["discriminator"] = discriminator_loss(self.discriminator(images), self.discriminator(drawn))
            against.zero_grad()
            self.manual_backward(losses["discriminator"])
        # Neither steps before both have their gradients, so what looks at them before a step sees both.
        optimizer.step()
        if drawn is not None:
            against.step()
        self.log_dict({name: value.detach() for name, value in losses.items()})

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the renderer's gradients, once callbacks have seen them as they are."""
        nn.utils.clip_grad_norm_(self.renderer.parameters(), self.config.gradient_clip)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one AdamW for the renderer, one for the discriminator."""
        config, settings = self.config, {"betas": self.config.betas, "weight_decay": 0.0}
        return [
            torch.optim.AdamW(self.renderer.parameters(), config.lr, **settings),
            torch.optim.AdamW(self.discriminator.parameters(), config.discriminator_lr, **settings),
        ]
