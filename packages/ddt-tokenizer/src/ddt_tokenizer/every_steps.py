"""What "after step n" means to all that watches a training run. Needs the `[train]` extra."""

from lightning.pytorch import Callback, LightningModule, Trainer

from .limits import PositiveInt, check_setting


class EverySteps(Callback):
    """A callback that acts after every n-th optimizer step, once, however many batches make a step.

    Step n has just ended when the trainer has counted n steps, so a resumed run acts at the same steps.

    Attributes:
        every: Steps between two actions.

    Example:
        >>> class Printer(EverySteps):
        ...     every = 100
        ...
        ...     def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        ...         if self.due(trainer):
        ...             print(trainer.global_step)
    """

    every: int = 1

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Count from the step that training starts or resumes at; raises ValueError if `every` is none."""
        check_setting("every", PositiveInt, self.every)
        self._seen = trainer.global_step

    def due(self, trainer: Trainer, or_last: bool = False) -> bool:
        """Return whether an n-th step, or with `or_last` the last one, has just ended. Call it once after a batch."""
        before, self._seen = self._seen, trainer.global_step
        last = or_last and self._seen == trainer.max_steps
        return self._seen != before and (self._seen % self.every == 0 or last)
