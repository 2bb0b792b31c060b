"""Whether a model keeps its text: perplexity of held-out text before, during and after training (extra `train`)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ddt_llm.every_steps import EverySteps
from ddt_llm.model import MultimodalLM
from ddt_llm.sequences import Example


class RetentionGuard(EverySteps):
    """Measures the perplexity of held-out text and stops a run that has lost too much of it.

    Logs `text_perplexity` (of a token, over the whole vocabulary, visual tokens included).

    Args:
        texts: Held-out text, for example from `lm.sequences.text_only`.
        limit: Largest factor by which the perplexity may grow over that before the first step.
        file: JSON of all measurements, such as `runs/mine/retention.json`; None to log only.

    Raises:
        ValueError: If the limit is not above 1; during training, if the perplexity exceeds it.
    """

    def __init__(
        self, lm: MultimodalLM, texts: Sequence[Example], limit: float, every: int, file: str | Path | None = None
    ):
        if limit <= 1:
            raise ValueError(f"limit ({limit}) must be above 1: text is never kept perfectly")
        self.lm, self.texts, self.limit, self.every = lm, texts, limit, every
        self.file = None if file is None else Path(file)
        self.measured: dict[int, float] = {}  # perplexity at a step

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far: a resumed run is compared with its own beginning."""
        return {"measured": dict(self.measured)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.measured = dict(state_dict["measured"])

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure before the first step."""
        super().on_train_start(trainer, module)
        if not self.measured:
            self._measure(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every so many steps and at the last one."""
        if not self.due(trainer, or_last=True):
            return
        self._measure(trainer)
        step = trainer.global_step
        module.log("text_perplexity", self.measured[step])
        before, now = next(iter(self.measured.values())), self.measured[step]
        if now > self.limit * before:
            raise ValueError(
                f"perplexity of held-out text rose from {before:.4g} to {now:.4g} at step {step}, beyond the limit of "
                f"{self.limit:.4g} times: lower the learning rate, train on more text, or raise the limit"
            )

    def _measure(self, trainer: Trainer) -> None:
        loss = self.lm.score(self.texts, batch_size=8)
        self.measured[trainer.global_step] = math.exp(loss.text_nats / loss.text_count)
        if self.file is not None and trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_name(f".{self.file.name}.part")
            rows = [{"step": step, "perplexity": value} for step, value in self.measured.items()]
            part.write_text(json.dumps({"limit": self.limit, "measured": rows}, indent=2) + "\n")
            part.replace(self.file)
