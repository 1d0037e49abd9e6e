"""Averages in Lightning's Trainer: one callback collects, validates and tests with the average, saves it and resumes.

    trainer = Trainer(..., callbacks=[AveragingCallback(SWA(), start="75%", every="1epoch")])

Learning rates are the run's own: no scheduler is replaced. A checkpoint's `state_dict` holds the averaged weights once
there are any, also in a file of weights only, so that `load_from_checkpoint` gives what validation measured; the raw
weights and the averager's state stand beside it and a resumed run goes on with them bit for bit.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...averager.averager import Averager
from ...batchnorm.refresh import refresh_bn
from ...weights.named import applied, copy_to
from ..collecting import Choice
from ..schedule import Schedule, When, check_resumed, schedule, span, tell_empty
from ..statistics import kept_still, left_alone, warn_of_stale
from .saving import RAW, as_saved, copies, stand_around, stopped
from .steps import Steps

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ImportError:
    raise ImportError("AveragingCallback needs Lightning: pip install 'lowland[lightning]'") from None

_log = logging.getLogger(__name__)


class AveragingCallback(Callback):
    """Average the weights of a run; validate, test and predict with the average.

    The averager is updated after the optimiser's step: once a step however many batches were accumulated for it, and
    not when mixed precision skipped the step (the collection is then made after the next one). The last step of the
    last epoch counts like every other. Before the first update evaluations use the raw weights. Under manual
    optimisation a step is a training batch; a collection waits for one in which an optimiser stepped. What is averaged
    is chosen at the first update: a layer that is frozen later stays in the average.

    Args:
        averager: what is averaged and how; it is updated in place.
        start: no collection before this many steps: a number, "50step", "3epoch" or "70%" of the training.
        every: from one collection to the next, written as `start`.
        evaluate: which weights validation, test, prediction and a checkpoint's `state_dict` use: "average", once there
            is one, or "raw". A test or prediction of a file (`ckpt_path=`) uses the weights that the file holds.
        load_averaged: whether the module holds the average when the training has ended.
        bn_batches: training batches with which a module with BatchNorm gets the statistics of the averaged weights;
            layers that stand in eval mode while the module trains keep theirs. Without batches a warning names the
            layers whose statistics are not the average's.

    Raises:
        ValueError: an argument is none of these; when the training begins: the schedule never collects, the checkpoint
            was collected by another one, the strategy shards the model, or a second callback evaluates an average.

    >>> from lowland import SWA
    >>> AveragingCallback(SWA(), start="75%", every="1epoch")
    AveragingCallback(SWA(select=parameters) after 0 updates, start='75%', every='1epoch', evaluate='average')
    """

    def __init__(
        self,
        averager: Averager,
        start: When = 0,
        every: When = 1,
        *,
        evaluate: Literal["average", "raw"] = "average",
        load_averaged: bool = False,
        bn_batches: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(averager, Averager):
            raise ValueError(f"averager must be a SWA, EMA, SWAG or the like, got a {type(averager).__name__}")
        span(start, "start")
        if span(every, "every").amount == 0:
            raise ValueError(f"every must be at least one step, got {every!r}")
        if evaluate not in ("average", "raw"):
            raise ValueError(f'evaluate must be "average" or "raw" (Lightning validates once), got {evaluate!r}')
        self.averager = averager
        self.start, self.every, self.evaluate = start, every, evaluate
        self.load_averaged = load_averaged
        self.bn_batches = bn_batches
        self._choice = Choice(averager)
        self._schedule: Schedule | None = None
        self._resumed: dict[str, Any] | None = None  # the schedule of the run that is resumed
        self._steps = Steps()
        self._owed = False  # a collection whose step was skipped
        self._buffers: tuple[int, dict[str, Tensor]] = (-1, {})  # BatchNorm's under the average, and of which count
        self._still: frozenset[str] = frozenset()  # BatchNorm layers that the module keeps in eval mode
        self._told = False
        self._swapped = ExitStack()
        self._is_swapped = False
        self._from_file = False  # the weights in the module are those of a file that is being tested
        self._raw: dict[str, Any] | None = None  # while the Trainer writes a file

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.averager!r}, start={self.start!r}, every={self.every!r}, "
            f"evaluate={self.evaluate!r})"
        )

    def attach(self, trainer: Trainer) -> None:
        """Join a Trainer that has been made, before it trains; `callbacks=[...]` does the same."""
        callbacks: list[Callback] = vars(trainer)["callbacks"]
        if self not in callbacks:
            callbacks.insert(0, self)  # before those that write checkpoints

    # Collecting.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand where files are written and read."""
        self._from_file = False
        others = vars(trainer).get("callbacks", [])
        measured = [c for c in others if isinstance(c, AveragingCallback) and c.evaluate == "average"]
        if len(measured) > 1:
            raise ValueError(
                f"{len(measured)} AveragingCallbacks would put their averages into one module to evaluate and save "
                'them: pass evaluate="raw" to all but one'
            )
        stand_around(trainer, self, self._written, self._read)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn `start` and `every` into steps."""
        strategy = type(trainer.strategy).__name__
        if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel")):
            raise ValueError(
                f"{strategy} shards the model, whose checkpoints this callback cannot write: "
                "update the averager in the module and save it as lowland.integrations.distributed says"
            )
        self._steps.begin(trainer, pl_module)
        self._schedule = schedule(self.start, self.every, total=self._steps.length, per_epoch=self._steps.per_epoch)
        if self._resumed is not None:
            check_resumed(self._resumed, self._schedule, self.averager.count, "the checkpoint")
            self._resumed = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect when a step of the optimiser has been taken and one is due."""
        if self._schedule is None:
            return
        ended, moved = self._steps.after_batch(trainer)
        # A step is due once, also where the count moves by more than one.
        self._owed = self._owed or any(self._schedule.due(step) for step in ended)
        if self._owed and moved:
            self._still = kept_still(pl_module)
            self.averager.update(self._choice.of(pl_module))
            self._owed = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, if asked to; the last checkpoint has been written by now."""
        if self._schedule is not None:
            tell_empty(self._schedule, self.averager.count, trainer.global_step)
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
            if not self._told:
                self._told = True
                warn_of_stale(pl_module, self.averager.mean(), self._still)
            return {}
        if self._buffers[0] != self.averager.count:
            before = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            # Validation runs in inference mode, whose tensors a later training step could not use.
            with torch.inference_mode(False), torch.no_grad(), applied(pl_module, self.averager.mean()):
                with left_alone(pl_module, self._still):
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
        if self._has_its_turn:
            self._swapped.enter_context(self.applied(pl_module))
            self._is_swapped = True

    def _swap_out(self) -> None:
        self._is_swapped = False
        self._swapped.close()

    @property
    def _has_its_turn(self) -> bool:
        """Whether the average, and not what the module holds, is evaluated and saved now."""
        return self.evaluate == "average" and self.averager.count > 0 and not self._from_file

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back; after Ctrl-C say what is kept."""
        self._swap_out()
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit":
            _log.warning(stopped(trainer, self._steps.now, self.averager.count))

    # Saving and resuming.

    @property
    def state_key(self) -> str:
        """What Lightning files the state under: averagers of one run must differ in kind, settings or schedule."""
        return f"{self._kind}, {self.start!r}, {self.every!r})"

    @property
    def _kind(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.averager.settings.items())
        return f"{type(self).__name__}({type(self.averager).__name__}({settings})"

    def state_dict(self) -> dict[str, Any]:
        """Return the averager's state and the place in the schedule."""
        own = None if self._schedule is None else {"start": self._schedule.start, "every": self._schedule.every}
        return {
            **{"averager": self.averager.state_dict(), "step": self._steps.now, "owed": self._owed},
            **{"schedule": own, "still": sorted(self._still)},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state made by `state_dict`.

        Raises:
            ValueError: it is of another averager.
        """
        if self._from_file and self.averager.count:
            return  # a test of a file is no reason to lose what has been collected
        self.averager.load_state_dict(state_dict["averager"])
        self._steps, self._owed = Steps(int(state_dict["step"])), bool(state_dict["owed"])
        self._resumed, self._still = state_dict.get("schedule"), frozenset(state_dict.get("still", ()))
        self._buffers = (-1, {})
        if self.averager.count:
            self._choice.fix(self.averager.mean())

    @contextmanager
    def _written(self, trainer: Trainer) -> Iterator[None]:
        """Have the average in the module while the Trainer writes a file, whichever kind of file it is."""
        pl_module = trainer.lightning_module
        if pl_module is None or not self._has_its_turn or self._raw is not None:
            yield
            return
        swapped = self._is_swapped
        self._swap_out()  # a checkpoint may be written in the middle of a validation
        self._raw = copies(pl_module)
        try:
            with torch.inference_mode(False), self.applied(pl_module):
                yield
        finally:
            self._raw = None
            if swapped:
                self._swap_in(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the raw weights beside the averaged ones, which the module holds at this moment."""
        if self._raw is not None:
            checkpoint[RAW] = as_saved(pl_module, checkpoint, self._raw)

    def _read(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Choose among the weights of a file: the raw ones to go on with, else those that it was written for."""
        if trainer.state.fn != "fit":
            self._from_file = True
        elif RAW in checkpoint:
            checkpoint["state_dict"] = checkpoint.pop(RAW)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the state of this averager.

        Raises:
            ValueError: a run is resumed and the checkpoint holds no state of this averager.
        """
        if trainer.state.fn != "fit":
            return
        states: dict[str, Any] = checkpoint.get("callbacks", {})
        there = [key for key in states if key.startswith(type(self).__name__)]
        if self.state_key in there:
            return
        alike = [key for key in there if key.startswith(f"{self._kind},")]
        if len(alike) != 1:
            raise ValueError(
                f"the checkpoint holds no state of {self.state_key}, it has {there}: resume with the averager, start "
                "and every of the run that wrote it"
            )
        self.load_state_dict(copy.deepcopy(states[alike[0]]))  # the schedule is written otherwise, and checked later
