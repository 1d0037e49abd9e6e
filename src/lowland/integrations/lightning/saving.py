"""Which weights Lightning's files hold and which it reads back, whatever way it writes and reads them.

A file's `state_dict` holds the averaged weights, also a file of weights only, of which callbacks are told nothing: the
Trainer writes it while they are in the module. The raw ones stand beside it under `raw_state_dict`. A resume puts them
under `state_dict` as the file is read: the module's own `on_load_checkpoint`, a partial state and an overridden
`load_state_dict` are then Lightning's and the module's business, as without averages.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

RAW = "raw_state_dict"  # in a checkpoint: the weights that training goes on with


def raw_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the weights that training would go on with, of a checkpoint that `torch.load` has read.

    >>> import torch
    >>> raw_weights({"state_dict": {"w": torch.zeros(1)}})
    {'w': tensor([0.])}
    """
    weights: Mapping[str, Tensor] = checkpoint.get(RAW, checkpoint["state_dict"])
    return weights


def copies(pl_module: nn.Module) -> dict[str, Any]:
    """Return what the module saves of itself, copied; not every entry need be a tensor."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in pl_module.state_dict().items()
    }


def as_saved(pl_module: Any, checkpoint: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` as the module's own `on_save_checkpoint` would leave it: its counterpart will be asked to undo it.

    The hook is called once more, with the entries of `checkpoint` and this state.
    """
    if getattr(type(pl_module), "on_save_checkpoint", None) is _nothing_to_do():
        return state
    seen = {**checkpoint, "state_dict": state}
    pl_module.on_save_checkpoint(seen)
    found: dict[str, Any] = seen["state_dict"]
    return found


def _nothing_to_do() -> object:
    from lightning.pytorch import LightningModule

    return LightningModule.on_save_checkpoint


def stand_around(
    trainer: Any,
    owner: object,
    averaged: Callable[[Any], AbstractContextManager[object]],
    loading: Callable[[Any, dict[str, Any]], None],
) -> None:
    """Have a Trainer write its files inside `averaged(trainer)`, and hand what it reads to `loading` first; once."""
    owners: list[object] = vars(trainer).setdefault("_averaged_by", [])
    if owner in owners:
        return
    owners.append(owner)
    save, strategy = trainer.save_checkpoint, trainer.strategy
    load = strategy.load_checkpoint

    @functools.wraps(save)
    def saving(*args: Any, **kwargs: Any) -> None:
        with averaged(trainer):
            save(*args, **kwargs)

    @functools.wraps(load)
    def reading(*args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint: dict[str, Any] = load(*args, **kwargs)
        loading(trainer, checkpoint)
        return checkpoint

    trainer.save_checkpoint, strategy.load_checkpoint = saving, reading


def stopped(trainer: Any, step: int, updates: int) -> str:
    """Say what is kept of a training that Ctrl-C has ended, and how it goes on."""
    paths = [
        getattr(writer, "last_model_path", "") or getattr(writer, "best_model_path", "")
        for writer in trainer.checkpoint_callbacks
    ]
    written = [path for path in paths if path]
    go_on = (
        f"go on with trainer.fit(..., ckpt_path={written[0]!r})"
        if written
        else "no checkpoint has been written: lowland.save(averager, path) keeps the average"
    )
    return (
        f"stopped after step {step}: the module holds the raw weights, the callback's averager {updates} updates; "
        f"{go_on}"
    )
