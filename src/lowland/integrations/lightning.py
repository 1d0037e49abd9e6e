"""Averages in Lightning's Trainer: one callback collects, validates and tests with the average, saves it and resumes.

    trainer = Trainer(..., callbacks=[AveragingCallback(SWA(), start="75%", every="1epoch")])

Learning rates are the run's own: no scheduler is replaced. A checkpoint's `state_dict` holds the averaged weights once
there are any, so that `load_from_checkpoint` gives what validation measured; the raw weights and the averager's state
stand beside it and a resumed run goes on with them bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..averager.averager import Averager
from ..batchnorm.refresh import refresh_bn
from ..weights.named import applied, copy_to
from .schedule import Schedule, When, schedule, span

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ImportError:
    raise ImportError("AveragingCallback needs Lightning: pip install 'lowland[lightning]'") from None

RAW = "raw_state_dict"  # in a checkpoint: the weights that training goes on with


class AveragingCallback(Callback):
    """Average the weights of a run; validate, test and predict with the average.

    The averager is updated after the optimiser's step: once a step however many batches were accumulated for it, and
    not when mixed precision skipped the step (the collection is then made after the next one). The last step of the
    last epoch counts like every other. Before the first update evaluations use the raw weights.

    Args:
        averager: what is averaged and how; it is updated in place.
        start: no collection before this many steps: a number, "50step", "3epoch" or "70%" of the training.
        every: from one collection to the next, written as `start`.
        evaluate: whether validation, test and prediction use the average; if not, `state_dict` of a checkpoint holds
            the raw weights.
        load_averaged: whether the module holds the average when the training has ended.
        bn_batches: training batches with which a module with BatchNorm gets the statistics of the averaged weights.

    Raises:
        ValueError: an argument is none of these; when the training begins: the schedule never collects, or the
            strategy shards the model.

    >>> from lowland import SWA
    >>> AveragingCallback(SWA(), start="75%", every="1epoch")
    AveragingCallback(SWA(select=parameters) after 0 updates, start='75%', every='1epoch')
    """

    def __init__(
        self,
        averager: Averager,
        start: When = 0,
        every: When = 1,
        *,
        evaluate: bool = True,
        load_averaged: bool = False,
        bn_batches: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(averager, Averager):
            raise ValueError(f"averager must be a SWA, EMA, SWAG or the like, got a {type(averager).__name__}")
        span(start, "start")
        if span(every, "every").amount == 0:
            raise ValueError(f"every must be at least one step, got {every!r}")
        self.averager = averager
        self.start, self.every = start, every
        self.evaluate = evaluate
        self.load_averaged = load_averaged
        self.bn_batches = bn_batches
        self._schedule: Schedule | None = None
        self._step = 0  # the last one looked at
        self._owed = False  # a collection whose step was skipped
        self._scale: float | None = None
        self._buffers: tuple[int, dict[str, Tensor]] = (-1, {})  # BatchNorm's under the average, and of which count
        self._swapped = ExitStack()
        self._is_swapped = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.averager!r}, start={self.start!r}, every={self.every!r})"

    # Collecting.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn `start` and `every` into steps."""
        strategy = type(trainer.strategy).__name__
        if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel")):
            raise ValueError(
                f"{strategy} shards the model, whose checkpoints this callback cannot write: "
                "update the averager in the module and save it as lowland.integrations.distributed says"
            )
        per_epoch = trainer.num_training_batches
        accumulated = trainer.accumulate_grad_batches
        total = trainer.estimated_stepping_batches
        self._schedule = schedule(
            self.start,
            self.every,
            total=int(total) if total not in (float("inf"), -1) else None,
            per_epoch=-(-int(per_epoch) // accumulated) if per_epoch != float("inf") else None,
        )
        self._scale = _scale(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect when a step of the optimiser has been taken and one is due."""
        step = trainer.global_step
        if step <= self._step or self._schedule is None:
            return
        # A step is due once, also where several optimisers step in one batch and the count moves by more than one.
        due = any(self._schedule.due(between) for between in range(self._step + 1, step + 1))
        self._step = step
        before, self._scale = self._scale, _scale(trainer)
        skipped = before is not None and self._scale is not None and self._scale < before
        self._owed = self._owed or due
        if self._owed and not skipped:
            self.averager.update(pl_module)
            self._owed = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, if asked to."""
        if self.load_averaged and self.averager.count:
            buffers = self._refreshed(pl_module)
            copy_to(pl_module, {**self.averager.mean(), **buffers})

    # Evaluating.

    @contextmanager
    def applied(self, pl_module: LightningModule) -> Iterator[nn.Module]:
        """Run a block with the averaged weights, and BatchNorm's statistics for them, in the module.

        Raises:
            RuntimeError: there has been no update.
        """
        buffers = self._refreshed(pl_module)
        with applied(pl_module, {**self.averager.mean(), **buffers}):
            yield pl_module

    def _refreshed(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """BatchNorm's buffers under the average, measured once for each update."""
        if self.bn_batches is None:
            return {}
        if self._buffers[0] != self.averager.count:
            before = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            # Validation runs in inference mode, whose tensors a later training step could not use.
            with torch.inference_mode(False), torch.no_grad(), applied(pl_module, self.averager.mean()):
                refresh_bn(pl_module, self.bn_batches)
                changed = {
                    name: buffer.clone()
                    for name, buffer in pl_module.named_buffers()
                    if buffer.is_floating_point() and not torch.equal(buffer, before[name])
                }
            self._buffers = (self.averager.count, changed)
        return self._buffers[1]

    def _swap_in(self, pl_module: LightningModule) -> None:
        self._swap_out()
        if self.evaluate and self.averager.count:
            self._swapped.enter_context(self.applied(pl_module))
            self._is_swapped = True

    def _swap_out(self) -> None:
        self._is_swapped = False
        self._swapped.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back."""
        self._swap_out()

    # Saving and resuming.

    @property
    def state_key(self) -> str:
        """What Lightning files the state under: averagers of one run must differ in kind, settings or schedule."""
        settings = ", ".join(f"{key}={value}" for key, value in self.averager.settings.items())
        return f"{type(self).__name__}({type(self.averager).__name__}({settings}), {self.start!r}, {self.every!r})"

    def state_dict(self) -> dict[str, Any]:
        """Return the averager's state and the place in the schedule."""
        return {"averager": self.averager.state_dict(), "step": self._step, "owed": self._owed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state made by `state_dict`.

        Raises:
            ValueError: it is of another averager.
        """
        self.averager.load_state_dict(state_dict["averager"])
        self._step, self._owed = int(state_dict["step"]), bool(state_dict["owed"])
        self._buffers = (-1, {})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the averaged weights under `state_dict`, where `load_from_checkpoint` looks, and the raw ones beside."""
        if not (self.evaluate and self.averager.count):
            return
        swapped = self._is_swapped
        self._swap_out()  # a checkpoint may be written in the middle of a validation
        checkpoint[RAW] = _copies(pl_module)
        with torch.inference_mode(False), self.applied(pl_module):
            averaged = _copies(pl_module)
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **averaged}
        if swapped:
            self._swap_in(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the module the raw weights to go on with; for a test or a prediction the averaged ones stay.

        Raises:
            ValueError: a run is resumed and the checkpoint holds no state of this averager.
        """
        if trainer.state.fn != "fit":
            return
        there = [key for key in checkpoint.get("callbacks", {}) if key.startswith(type(self).__name__)]
        if self.state_key not in there:
            raise ValueError(
                f"the checkpoint holds no state of {self.state_key}, it has {there}: resume with the averager, start "
                "and every of the run that wrote it"
            )
        if RAW in checkpoint:
            pl_module.load_state_dict(checkpoint[RAW])


def raw_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the weights that training would go on with, of a checkpoint that `torch.load` has read.

    >>> raw_weights({"state_dict": {"w": torch.zeros(1)}})
    {'w': tensor([0.])}
    """
    weights: Mapping[str, Tensor] = checkpoint.get(RAW, checkpoint["state_dict"])
    return weights


def _copies(pl_module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}


def _scale(trainer: Trainer) -> float | None:
    """The gradient scaler's factor, which falls when a step is skipped; None without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())
