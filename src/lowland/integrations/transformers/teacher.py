"""A teacher in Transformers' Trainer, and in TRL's trainers that distil a model from itself.

    args = SDFTConfig(teacher_model_kind="live", ...)
    trainer = SDFTTrainer(model, args, ..., callbacks=[TeacherCallback(EMA(0.95))])

TRL's own teacher is a second model in the student's dtype, or a second adapter that begins at zero; this one is the
student's module with the average of its trained weights in it, kept in float32. A checkpoint holds it:

    checkpoint-N/teacher.safetensors    the averager's state, from which a resumed run goes on bit for bit
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...averager.averager import Averager
from ...files.state import load, save
from ...teacher import Teacher
from ...weights.running import unwrapped
from ..schedule import When, schedule, span
from .standing import stand_before
from .trainer import refuse_sharded, running, steps_per_epoch

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError("TeacherCallback needs Transformers: pip install 'lowland[text]'") from None

STATE = "teacher.safetensors"
CONTEXT = "_get_teacher_context_for_self_distillation"  # where TRL asks for the teacher's weights


class TeacherCallback(TrainerCallback):
    """Let a teacher follow the model that a Trainer trains, and save and resume it.

    In a `compute_loss` of your own ask `callback.teacher.weights()`. TRL's `SDFTTrainer` and `SDPOTrainer` are given
    the teacher where they ask for theirs: create them with `teacher_model_kind="live"`, which makes no second model.

    Args:
        averager: how the teacher follows, such as `EMA(0.95)` for TRL's `teacher_update_rate=0.05`.
        start: no update before this many steps: a number, "50step", "3epoch" or "70%" of the training.
        every: from one update to the next, written as `start`; TRL's `teacher_sync_steps`.

    Raises:
        ValueError: an argument is none of these; when the training begins: the trainer has a teacher of its own, the
            model is sharded, or the checkpoint that is resumed holds no teacher.

    >>> from lowland import EMA
    >>> TeacherCallback(EMA(0.95), every=2)
    TeacherCallback(EMA(decay=0.95, select=parameters) after 0 updates, start=0, every=2)
    """

    def __init__(self, averager: Averager, start: When = 0, every: When = 1) -> None:
        if not isinstance(averager, Averager):
            raise ValueError(f"averager must be an EMA or the like, got a {type(averager).__name__}")
        span(start, "start")
        if span(every, "every").amount == 0:
            raise ValueError(f"every must be at least one step, got {every!r}")
        self.averager, self.start, self.every = averager, start, every
        self._teacher: Teacher | None = None
        self._undo: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.averager!r}, start={self.start!r}, every={self.every!r})"

    @property
    def teacher(self) -> Teacher:
        """The teacher of the training that has begun.

        Raises:
            RuntimeError: none has.
        """
        if self._teacher is None:
            raise RuntimeError("there is no teacher before the training has begun: call trainer.train()")
        return self._teacher

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the teacher a copy of the student, or the one that the checkpoint holds."""
        trainer, resumed = running(self)
        refuse_sharded(trainer, type(self).__name__)
        self._trainer = trainer
        per_epoch = steps_per_epoch(kwargs.get("train_dataloader"), args.gradient_accumulation_steps)
        self._schedule = schedule(self.start, self.every, total=state.max_steps, per_epoch=per_epoch)
        if state.global_step:
            self._take(Path(resumed or Path(args.output_dir) / f"checkpoint-{state.global_step}") / STATE)
        self._teacher = Teacher(self.averager, unwrapped(trainer.model, compiled=True))
        self._leave()
        self._undo = [stand_before(trainer, self._write)]
        if hasattr(trainer, CONTEXT):
            self._stand_for_theirs(trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Follow, if it is time and the step was taken."""
        if self._schedule.due(state.global_step) and not self._trainer.accelerator.optimizer_step_was_skipped:
            self.teacher.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the Trainer as it was; the teacher stays."""
        self._leave()

    # Private helpers.

    def _take(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(f"{path} is not there: resume from a checkpoint that this callback wrote")
        self.averager.load_state_dict(load(path, select=self.averager.select).state_dict())

    def _write(self, checkpoint: Path, save_model: Callable[..., None]) -> None:
        if self._trainer.args.should_save:
            save(self.averager, checkpoint / STATE)

    def _leave(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _stand_for_theirs(self, trainer: Any) -> None:
        kind = trainer.args.teacher_model_kind
        if kind != "live" or getattr(trainer.args, "use_teacher_server", False):
            raise ValueError(
                f"teacher_model_kind={kind!r} gives {type(trainer).__name__} a teacher of its own: pass "
                "teacher_model_kind='live', and use_teacher_server=False, so that it asks this one"
            )
        setattr(trainer, CONTEXT, self.teacher.weights)
        self._undo.append(lambda: vars(trainer).pop(CONTEXT, None))
