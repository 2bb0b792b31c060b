"""Lightning module of pretraining and instruction tuning (extra `train`)."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ddt_llm.attention import attend_by_device
from ddt_llm.four_bits import leave_out_four_bits
from ddt_llm.head import vocabulary_weights
from ddt_llm.loss import token_loss
from ddt_llm.optimizer import VOCABULARY, OptimizerConfig, build_optimizer
from ddt_llm.ranks import num_ranks, rank
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModelTraining(LightningModule):
    """Trains a causal LM on batches of `collate` or `collate_packed`; the stages differ in their data alone.

    Randomness is a function of (seed, step, rank), so a resumed run continues exactly. Logs `loss` (nats a token),
    `bits_per_text_token`, `bits_per_visual_token` and `lr`; in validation the first three, with `validation_` before.

    `networks` are the parts with nearly all of the work, which a trainer may compile.

    With `keep_text` the rows of text tokens in embedding and head stay as they are, to the bit.

    Raises:
        ValueError: If the model has no visual vocabulary.
    """

    def __init__(self, model: "PreTrainedModel", config: OptimizerConfig, seed: int = 0, *, keep_text: bool = False):
        super().__init__()
        attend_by_device(model)
        self.model = model
        self.vocabulary = VisualVocabulary.from_config(model.config)
        self.config = config
        self.seed = seed
        self.keep_text = keep_text
        leave_out_four_bits(self)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model.base_model]

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Make dropout a function of (seed, step, rank), and of which batch of an accumulated step it is."""
        batches = self.trainer.accumulate_grad_batches
        step = self.global_step * batches + batch_idx % batches
        torch.manual_seed((self.seed * 1_000_003 + step + self.global_rank * 1_000_000_007) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross-entropy in nats of the trained positions, both modalities one to one."""
        loss = token_loss(self.model, self.vocabulary, **batch).of_all_ranks()
        bits = {"bits_per_text_token": loss.bits_per_text_token, "bits_per_visual_token": loss.bits_per_visual_token}
        self.log_dict({"loss": loss.mean, **bits, "lr": self.lr_schedulers().get_last_lr()[0]})
        return loss.mean

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold still what this step must not change: text rows, and at first all but the rows of visual tokens."""
        starting = self.global_step < self.config.new_rows_steps
        held = starting or self.keep_text
        tables = vocabulary_weights(self.model)
        if starting:
            new = {id(table) for table in tables}
            for parameter in self.model.parameters():
                if id(parameter) not in new:
                    parameter.grad = None  # the optimizer passes it over, decay included
        if held:
            for table in tables:
                gradient, first = _own_rows(table.grad)
                gradient[: max(0, self.vocabulary.text_size - first)] = 0
        for group in optimizer.param_groups:
            if group.get("name") == VOCABULARY:
                group["weight_decay"] = 0.0 if held else self.config.weight_decay

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the means over all validation tokens, each token with the same weight."""
        loss = token_loss(self.model, self.vocabulary, **batch)
        text, visual = int(loss.text_count), int(loss.visual_count)
        self.log("validation_loss", loss.mean, batch_size=text + visual)
        if text:
            self.log("validation_bits_per_text_token", loss.bits_per_text_token, batch_size=text)
        if visual:
            self.log("validation_bits_per_visual_token", loss.bits_per_visual_token, batch_size=visual)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build optimizer and schedule; the number of steps comes from the config, never from the trainer."""
        optimizer = build_optimizer(self.model, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.config.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _own_rows(table: Tensor) -> tuple[Tensor, int]:
    """Return the rows of a table that this rank has (FSDP2; else all), and the number of the first."""
    if not hasattr(table, "to_local"):
        return table, 0
    return table.to_local(), rank() * -(-len(table) // num_ranks())
