"""What a step is in Lightning, and how long the training and its epochs are in them.

Under automatic optimisation a step is one of the optimiser. Under manual optimisation, where several optimisers may
step in one batch or one in several batches, it is a training batch: `trainer.global_step` counts every optimiser there.
"""

from __future__ import annotations

from typing import Any


class Steps:
    """Counts the steps of a run, and notices those that were left out.

    `now` is the step after the latest batch; `length` and `per_epoch` are None where they are not known.
    """

    def __init__(self, now: int = 0) -> None:
        self.now = now
        self.length: int | None = None
        self.per_epoch: int | None = None
        self._manual = False
        self._counted = 0  # of all optimisers, by the Trainer
        self._scale: float | None = None

    def begin(self, trainer: Any, pl_module: Any) -> None:
        """Measure the run that starts or goes on."""
        self._manual = not getattr(pl_module, "automatic_optimization", True)
        self._counted = trainer.global_step
        if not self._manual or not self._counted:  # by hand only we know the batches; a new run begins at none
            self.now = self._counted
        self._scale = _scale(trainer)
        batches = trainer.num_training_batches
        known = batches != float("inf")
        if self._manual:
            self.per_epoch = int(batches) if known else None
            # A limit in steps counts every optimiser's: how many batches it comes to is known when they are over.
            endless = trainer.max_epochs in (None, -1) or trainer.max_steps not in (None, -1)
            self.length = None if endless or not known else int(batches) * trainer.max_epochs
            return
        changing = [c for c in getattr(trainer, "callbacks", ()) if hasattr(c, "get_accumulate_grad_batches")]
        if changing and known and trainer.max_epochs not in (None, -1):
            # The Trainer's own estimate takes what is accumulated in the first epoch for that of all.
            found = {epoch: changing[0].get_accumulate_grad_batches(epoch) for epoch in range(trainer.max_epochs)}
            total = sum(-(-int(batches) // accumulated) for accumulated in found.values())
            self.length = min(total, trainer.max_steps) if trainer.max_steps != -1 else total
            self.per_epoch = -(-int(batches) // found[0]) if len(set(found.values())) == 1 else None
            return
        total = trainer.estimated_stepping_batches
        self.length = int(total) if total not in (float("inf"), -1) else None
        self.per_epoch = -(-int(batches) // trainer.accumulate_grad_batches) if known else None

    def after_batch(self, trainer: Any) -> tuple[range, bool]:
        """Return the steps that this batch has ended, and whether an optimiser has moved the weights in it."""
        counted = trainer.global_step
        moved = counted > self._counted
        self._counted = counted
        before, self._scale = self._scale, _scale(trainer)
        skipped = before is not None and self._scale is not None and self._scale < before
        last, self.now = self.now, self.now + 1 if self._manual else max(counted, self.now)
        return range(last + 1, self.now + 1), moved and not skipped


def _scale(trainer: Any) -> float | None:
    """The gradient scaler's factor, which falls when a step is skipped; None without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())
