"""Standing before a Trainer's own methods while it trains.

Callbacks hear of an evaluation when it is over, and not at all when it fails; of a checkpoint when it is already taken
for whole; and of Ctrl-C never.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

Evaluate = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def as_it_is(evaluate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Evaluate as the Trainer does."""
    return evaluate(*args, **kwargs)


def stand_before(
    trainer: Any,
    written: Callable[[Path, Callable[..., None]], None],
    *,
    evaluate: Evaluate = as_it_is,
    stopped: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """Hand evaluations to `evaluate`, call `written` inside each checkpoint, `stopped` at Ctrl-C; return the undoing.

    A method that takes the place of one of the Trainer's returns what that returns, and raises what it raises.
    """
    before = {name: vars(trainer).get(name) for name in ("evaluate", "save_model", "training_step")}
    own_evaluate, own_save, own_step = (getattr(trainer, name) for name in before)
    here = True  # another callback may have come to stand before us, and then we cannot leave but do nothing

    @functools.wraps(own_evaluate)
    def evaluating(*args: Any, **kwargs: Any) -> Any:
        return evaluate(own_evaluate, args, kwargs) if here else own_evaluate(*args, **kwargs)

    @functools.wraps(own_save)
    def saving(*args: Any, **kwargs: Any) -> None:
        own_save(*args, **kwargs)
        given = inspect.signature(own_save).bind(*args, **kwargs).arguments
        if here and given.get("_internal_call") and given.get("output_dir") is not None:
            written(Path(given["output_dir"]), own_save)

    @functools.wraps(own_step)
    def stepping(*args: Any, **kwargs: Any) -> Any:
        try:
            return own_step(*args, **kwargs)
        except KeyboardInterrupt:
            if here:
                stopped()
            raise

    ours = {"evaluate": evaluating, "save_model": saving, "training_step": stepping}
    vars(trainer).update(ours)

    def undo() -> None:
        nonlocal here
        here = False
        for name, value in before.items():
            if vars(trainer).get(name) is not ours[name]:
                continue
            if value is None:
                del vars(trainer)[name]
            else:
                setattr(trainer, name, value)

    return undo


def told_of_resume(trainer: Any) -> None:
    """Have `trainer.train` note what it is asked to resume, as `trainer._resumes`: callbacks are not told."""
    train = trainer.train

    @functools.wraps(train)
    def training(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(train).bind(*args, **kwargs).arguments
        trainer._resumes = given.get("resume_from_checkpoint")
        return train(*args, **kwargs)

    trainer.train = training
