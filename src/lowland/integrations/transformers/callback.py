"""Averages in Transformers' Trainer: one callback collects, evaluates, saves and resumes.

    trainer = Trainer(model, args, ..., callbacks=[AveragingCallback(SWA(), start="50%", every="10step")])

What a run with the callback leaves in `output_dir`:

    checkpoint-N/                        the raw weights, as without the callback
    checkpoint-N/averaged/               the averaged weights, for `from_pretrained`: a model, or a PEFT adapter
    checkpoint-N/averager.safetensors    the averager's state, from which a resumed run goes on bit for bit
    checkpoint-N/averaging.json          the schedule of collections and the number of updates

All of it is there before `trainer_state.json`, which the Trainer writes last: what can be resumed is whole.
Learning rates are the run's own: choose the scheduler by TrainingArguments, or one of `lowland.cycles`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...averager.averager import Averager
from ...batchnorm.refresh import refresh_bn
from ...files.replacing import put
from ...weights.named import applied, bare_name, copy_to
from ...weights.running import unwrapped
from ..collecting import Choice
from ..schedule import Schedule, When, schedule, span, tell_empty
from ..statistics import kept_still, left_alone, warn_of_stale
from .standing import stand_before, told_of_resume
from .trainer import (
    AVERAGED,
    evaluations,
    flatten,
    is_peft,
    load_folder,
    moving,
    own_randomness,
    read_state,
    refuse,
    refuse_to_wait,
    running,
    skip_averaged,
    steps_per_epoch,
    stopped,
    write_state,
)
from .trainer import last_checkpoint as last_checkpoint

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError("AveragingCallback needs Transformers: pip install 'lowland[text]'") from None

_log = logging.getLogger(__name__)


class AveragingCallback(TrainerCallback):
    """Average the weights of a Trainer's run; evaluate with the average, save it and resume it.

    The averager is updated after the optimiser's step: once a step however many batches were accumulated for it, and
    not when mixed precision skipped the step (the collection is then made after the next one). Of a PEFT model only
    what is trained is averaged, whatever the averager selects: the rest does not move. What is averaged is chosen when
    the training begins: a layer that is frozen later stays in the average.

    After the training the model holds what the Trainer leaves, the raw weights of the last step or of the best
    checkpoint; but the averaged ones of the best checkpoint, if `load_best_model_at_end` chose it by a metric that was
    measured on the average. `holds` says which.

    Args:
        averager: what is averaged and how; it is updated in place and holds the average of all collections at the end.
        start: no collection before this many steps: a number, "50step", "3epoch" or "70%" of the training.
        every: from one collection to the next, written as `start`.
        evaluate: which weights the run's evaluations use: "raw"; "average", whose metrics are then called `eval_*` (raw
            weights before the first update); or "both", as `eval_*` and `eval_avg_*` (NaN before the first update).
        load_averaged: whether the model holds the average in the end also otherwise, that of the best checkpoint if
            there is one.
        bn_batches: training batches with which a model with BatchNorm gets the statistics of the averaged weights;
            layers that stand in eval mode while the model trains keep theirs. Without batches a warning names the
            layers whose statistics are not the average's.

    Raises:
        ValueError: an argument is none of these; when the training begins: the schedule never collects, the checkpoint
            holds no averager or one collected by another schedule, the model is sharded, the adapter's folder would
            not hold all that is averaged, or a learning rate would wait for a metric of an average that is not there.

    >>> from lowland import SWA
    >>> AveragingCallback(SWA(), start="70%", every="50step", evaluate="both")
    AveragingCallback(SWA(select=parameters) after 0 updates, start='70%', every='50step', evaluate='both')
    """

    def __init__(
        self,
        averager: Averager,
        start: When = 0,
        every: When = 1,
        *,
        evaluate: Literal["raw", "average", "both"] = "raw",
        load_averaged: bool = False,
        bn_batches: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(averager, Averager):
            raise ValueError(f"averager must be a SWA, EMA, SWAG or the like, got a {type(averager).__name__}")
        span(start, "start")
        if span(every, "every").amount == 0:
            raise ValueError(f"every must be at least one step, got {every!r}")
        if evaluate not in ("raw", "average", "both"):
            raise ValueError(f'evaluate must be "raw", "average" or "both", got {evaluate!r}')
        self.averager = averager
        self.start, self.every, self.evaluate = start, every, evaluate
        self.load_averaged = load_averaged
        self.bn_batches = bn_batches
        self.holds = "raw weights"
        self._schedule = Schedule(0, 1)
        self._trainer: Any = None
        self._due = False  # a collection that waits for a step which is not skipped
        self._busy = False  # inside an evaluation or a saving of our own
        self._buffers: tuple[int, dict[str, Tensor]] | None = None  # refreshed statistics, and of which update
        self._choice = Choice(averager)
        self._still: frozenset[str] = frozenset()  # BatchNorm layers that the model keeps in eval mode
        self._told = False
        self._begun: dict[str, Any] | None = None  # the averager's state when this training began
        self._undo: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.averager!r}, start={self.start!r}, every={self.every!r}, "
            f"evaluate={self.evaluate!r})"
        )

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Run a block with the averaged weights in `model`, such as an evaluation of one's own.

            with callback.applied(trainer.model):
                trainer.evaluate()

        Everything is put back bit for bit, also after an exception.

        Raises:
            RuntimeError: there has been no update.
        """
        with applied(model, self.averager.mean()):
            self._refresh(model)
            busy, self._busy = self._busy, True
            try:
                yield model
            finally:
                self._busy = busy

    def attach(self, trainer: Any) -> None:
        """Join a Trainer that has been made, before it trains; `callbacks=[...]` does the same.

        Attached, the callback knows its Trainer and what is resumed; else it looks for them among its callers.
        """
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
            self.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
        told_of_resume(trainer)

    # What the Trainer calls.

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the Trainer's resume from loading `averaged/` as one more adapter."""
        model = kwargs.get("model")
        if is_peft(model):
            skip_averaged(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fix the schedule, take up the checkpoint's state, and stand where evaluations and savings pass."""
        trainer, resumed = running(self, self._trainer)
        self._trainer = trainer
        refuse(trainer, self, state)
        model: Any = self._model
        self._choice = Choice(self.averager, moving(self.averager.select) if is_peft(model) else None)
        if is_peft(model):
            # Whatever `on_init_end` put there, and what came in if we were added later.
            vars(model).pop("load_adapter", None)
            if AVERAGED in model.peft_config:
                model.delete_adapter(AVERAGED)
            from ..peft.folders import check_method, held_names

            check_method(model)
            saved = {name for adapter in model.peft_config for name in held_names(model, adapter)}
            lost = [name for name in self._choice.of(model) if name not in saved]
            if lost:
                raise ValueError(
                    f"{lost[:5]} ({len(lost)} in all) are trained and no part of an adapter, so {AVERAGED}/ would not "
                    "hold them: name their layers in modules_to_save of the PEFT configuration"
                )
        per_epoch = steps_per_epoch(kwargs.get("train_dataloader"), args.gradient_accumulation_steps)
        self._schedule = schedule(self.start, self.every, total=state.max_steps, per_epoch=per_epoch)
        self._due, self._buffers, self._told = False, None, False
        if self._begun is None:
            self._begun = self.averager.state_dict()
        elif not state.global_step:  # the run before this one never ended: what it collected is not of this run
            self.averager.load_state_dict(self._begun)
        if state.global_step:
            checkpoint = Path(resumed or Path(args.output_dir) / f"checkpoint-{state.global_step}")
            self._due = read_state(self.averager, self._schedule, self._choice.of(model), state.global_step, checkpoint)
            if self.averager.count:
                self._choice.fix(self.averager.mean())  # what has been frozen since is still collected
        if self._waits_for_the_average(args):
            refuse_to_wait(evaluations(args, state, per_epoch), self._schedule)
        if self._undo is not None:
            self._undo()
        self._undo = stand_before(trainer, self._write, evaluate=self._evaluated, stopped=self._stopped)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collect, if it is time."""
        self._due |= self._schedule.due(state.global_step)
        if self._due and not self._trainer.accelerator.optimizer_step_was_skipped:
            self._still = kept_still(self._model)
            self.averager.update(self._choice.of(self._model))
            self._due = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Name as the average's what a Trainer of another package adds to the log under `eval_`."""
        if self._busy and self.evaluate == "both" and logs is not None and any("eval_avg_" in key for key in logs):
            for record in (logs, *state.log_history[-1:]):
                for key in [key for key in record if key.startswith("eval_") and not key.startswith("eval_avg_")]:
                    record[f"eval_avg_{key.removeprefix('eval_')}"] = record.pop(key)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the Trainer as it was, with the weights in the model that `load_averaged` asks for."""
        tell_empty(self._schedule, self.averager.count, state.global_step)
        if self._undo is not None:
            self._undo()
        self._undo, self._begun = None, None
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        chose = best is not None and self._measures_average(args.metric_for_best_model or "loss")
        wanted = self.load_averaged or chose
        self.holds = f"raw weights of {best or f'step {state.global_step}'}"
        if wanted and best is not None:
            folder = Path(best) / AVERAGED
            if folder.is_dir():
                load_folder(self._model, folder, self.averager)
                self.holds = f"averaged weights of {folder}"
        elif wanted and self.averager.count:
            copy_to(self._model, self.averager.mean())
            self._refresh(self._model)
            self.holds = f"averaged weights after {self.averager.count} updates"
        _log.info("the model holds the %s", self.holds)

    # Private helpers.

    @property
    def _model(self) -> nn.Module:
        return unwrapped(self._trainer.model, compiled=True)

    def _refresh(self, model: nn.Module) -> None:
        """Give BatchNorm the average's statistics: computed once an update, so that what is saved was measured."""
        if self.bn_batches is None:
            if not self._told:
                self._told = True
                warn_of_stale(model, self.averager.mean(), self._still)
            return
        named = {bare_name(name): buffer for name, buffer in model.named_buffers()}
        with torch.no_grad(), own_randomness():
            if self._buffers is None or self._buffers[0] != self.averager.count:
                with left_alone(model, self._still):
                    refresh_bn(unwrapped(model, compiled=True), self.bn_batches)
                self._buffers = self.averager.count, {name: buffer.clone() for name, buffer in named.items()}
            for name, buffer in self._buffers[1].items():
                named[name].copy_(buffer)

    def _measures_average(self, metric: str) -> bool:
        return self.evaluate == "average" or (
            self.evaluate == "both" and metric.removeprefix("eval_").startswith("avg_")
        )

    def _waits_for_the_average(self, args: Any) -> bool:
        """Whether the learning rate is cut by a metric that is no number before the first collection."""
        kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        metric = args.metric_for_best_model or "loss"
        return kind == "reduce_lr_on_plateau" and self.evaluate == "both" and self._measures_average(metric)

    def _stopped(self) -> None:
        _log.warning(stopped(self._trainer, self.averager.count))

    def _evaluated(self, evaluate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate with the weights that are asked for. Several sets of data come back here one by one: as they are."""
        if self._busy or self.evaluate == "raw" or (self.evaluate == "average" and not self.averager.count):
            return evaluate(*args, **kwargs)
        if self.evaluate == "average":
            with self.applied(self._model):
                return evaluate(*args, **kwargs)
        self._busy = True
        try:
            metrics: dict[str, float] = evaluate(*args, **kwargs)
        finally:
            self._busy = False
        given = inspect.signature(evaluate).bind(*args, **kwargs)
        prefix = given.arguments.get("metric_key_prefix", "eval")
        if not self.averager.count:
            if self._waits_for_the_average(self._trainer.args):
                refuse_to_wait([0], self._schedule)
            # A number that no comparison prefers: a checkpoint without an average is never the best by an average.
            measured = [key.removeprefix(f"{prefix}_") for key in metrics if key.startswith(f"{prefix}_")]
            return metrics | {f"{prefix}_avg_{key}": float("nan") for key in measured}
        given.arguments["metric_key_prefix"] = f"{prefix}_avg"
        # The raw run goes on as if there had been no second evaluation.
        with own_randomness(), self.applied(self._model):
            return metrics | evaluate(*given.args, **given.kwargs)

    def _write(self, checkpoint: Path, save_model: Callable[..., None]) -> None:
        """Put the average and the averager's state into a checkpoint that the Trainer is writing."""
        if self._busy:
            return
        args = self._trainer.args
        if self.averager.count:
            part, target = checkpoint / f".{AVERAGED}.part", checkpoint / AVERAGED
            with self.applied(self._model):
                save_model(str(part), _internal_call=True)
            if args.should_save:
                if is_peft(self._model):
                    flatten(part, self._model)
                put(part, target)
        if args.should_save and not args.save_only_model:
            write_state(self.averager, self._schedule, self._due, self._trainer.state.global_step, checkpoint)
