"""What an averaging callback has to know of the Trainer's inside, in one place."""

from __future__ import annotations

import functools
import inspect
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...averager.averager import Averager
from ...files.replacing import put, write_bytes
from ...files.state import load, save
from ...weights.named import Select, Weights, copy_to
from ..schedule import Schedule, check_resumed

AVERAGED, STATE, SCHEDULE = "averaged", "averager.safetensors", "averaging.json"


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return the newest whole checkpoint of a run, or None: what a killed run is resumed from.

        trainer.train(resume_from_checkpoint=last_checkpoint("out"))

    `resume_from_checkpoint=True` takes the newest folder, also one that the killed run had only begun to write.

    >>> last_checkpoint("no such folder") is None
    True
    """
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(folder).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / "trainer_state.json").exists()
    ]
    for _, path in sorted(found, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except ValueError:
            continue
        return str(path)
    return None


def running(callback: object, attached: Any = None) -> tuple[Any, str | None]:
    """Return the Trainer that is calling and the checkpoint that it resumes: callbacks are handed neither."""
    if attached is not None and hasattr(attached, "_resumes"):
        asked = attached._resumes
        return attached, asked if isinstance(asked, str) else None
    frame, trainer = inspect.currentframe(), None
    while frame is not None:
        caller = frame.f_locals.get("self")
        if trainer is None and callback in getattr(getattr(caller, "callback_handler", None), "callbacks", ()):
            trainer = caller
        resumed = frame.f_locals.get("resume_from_checkpoint")
        if trainer is not None and caller is trainer and isinstance(resumed, str):
            return trainer, resumed
        frame = frame.f_back
    if trainer is None:
        raise RuntimeError(f"{type(callback).__name__} is called by a Trainer: pass it as callbacks=[...] of one")
    return trainer, None


def refuse(trainer: Any, callback: object, state: Any) -> None:
    """Name what would go wrong without a sound."""
    others = [c for c in trainer.callback_handler.callbacks if isinstance(c, type(callback)) and c is not callback]
    if others:
        raise ValueError(f"two AveragingCallbacks would write the same {AVERAGED}/: give a Trainer one of them")
    refuse_sharded(trainer, "AveragingCallback")
    if state.is_hyper_param_search:
        raise ValueError("a search over hyper-parameters would put all trials into one average: search without it")
    if is_peft(trainer.model) and AVERAGED in trainer.model.peft_config and not state.global_step:
        raise ValueError(f"an adapter called {AVERAGED!r} would share its folder with the average: rename it")


def refuse_sharded(trainer: Any, what: str) -> None:
    """Refuse a model that FSDP or DeepSpeed has sharded."""
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
        raise ValueError(
            f"{what} writes whole models and this one is sharded: update the averager in a loop of your own, where it "
            "averages each shard beside its parameter"
        )


def steps_per_epoch(loader: Any, accumulated: int) -> int | None:
    """Return the optimiser's steps in an epoch, or None for a stream without a length."""
    try:
        return max(-(-len(loader) // accumulated), 1)
    except TypeError:
        return None


def is_peft(model: Any) -> bool:
    """Return whether it is a PEFT model; PEFT is not loaded for the question."""
    peft = sys.modules.get("peft")  # a PEFT model cannot exist before PEFT is loaded
    return peft is not None and isinstance(model, peft.PeftModel)


def skip_averaged(model: Any) -> None:
    """Keep a resume from loading `averaged/`: the Trainer loads every folder of an adapter inside a checkpoint."""
    original = model.load_adapter

    @functools.wraps(original)
    def load_adapter(path: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        caller = inspect.currentframe()
        caller = caller.f_back if caller is not None else None
        if adapter_name == AVERAGED and caller is not None and caller.f_code.co_name == "_load_from_checkpoint":
            return None
        return original(path, adapter_name, *args, **kwargs)

    model.load_adapter = load_adapter


def moving(select: Select) -> Select:
    """Return the predicate of what a PEFT model trains, and of the buffers, among what `select` chooses."""

    def trained(name: str, tensor: Tensor) -> bool:
        return select(name, tensor) and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))

    return trained


def evaluations(args: Any, state: Any, per_epoch: int | None) -> Iterator[int]:
    """Yield the steps at which a run will evaluate, as far as its arguments tell; 0 is before the first step."""
    if args.eval_on_start:
        yield 0
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    each = {"steps": state.eval_steps or args.eval_steps, "epoch": per_epoch}.get(strategy)
    if each:
        yield from range(int(each), state.max_steps + 1, int(each))


def refuse_to_wait(steps: Iterable[int], plan: Schedule) -> None:
    """Refuse a learning rate that is cut by a metric of the average at evaluations from before there is one.

    Raises:
        ValueError: one of the steps is before the first collection.
    """
    if any(step < plan.first for step in steps):
        raise ValueError(
            "lr_scheduler_type='reduce_lr_on_plateau' would take each evaluation before the first collection, at step "
            f"{plan.first}, for one without progress, as its metric is that of the average: let it watch a metric of "
            "the raw weights, collect from before the first evaluation on, or choose another scheduler"
        )


def stopped(trainer: Any, updates: int) -> str:
    """Say what is kept of a training that Ctrl-C has ended, and how it goes on."""
    found = last_checkpoint(trainer.args.output_dir)
    go_on = (
        f"go on with trainer.train(resume_from_checkpoint={found!r})"
        if found is not None
        else "no checkpoint has been written: lowland.save(averager, path) keeps the average"
    )
    return (
        f"stopped after step {trainer.state.global_step}: the model holds the raw weights, the averager {updates} "
        f"updates; {go_on}"
    )


def write_state(averager: Averager, plan: Schedule, waiting: bool, step: int, checkpoint: Path) -> None:
    """Put the averager's state and its schedule into a checkpoint; each file appears whole or not at all."""
    record = {
        **{"start": plan.start, "every": plan.every, "waiting": waiting, "step": step},
        **{"updates": averager.count, "averager": repr(averager)},
    }
    write_bytes(checkpoint / SCHEDULE, (json.dumps(record, indent=2) + "\n").encode())
    save(averager, checkpoint / STATE)


def read_state(averager: Averager, plan: Schedule, model: Weights, step: int, checkpoint: Path) -> bool:
    """Give an averager the state in a checkpoint; return whether a collection is waiting.

    Raises:
        ValueError: the checkpoint lacks the state although collections had begun, or it was collected otherwise.
    """
    if not ((checkpoint / STATE).exists() and (checkpoint / SCHEDULE).exists()):
        if plan.start > step:
            return False  # nothing has been missed
        raise ValueError(
            f"{checkpoint} holds no averager ({STATE}), and collections began at step {plan.start}: resume from a "
            f"checkpoint that this callback wrote, or average from here on with start={step + 1}"
        )
    record = json.loads((checkpoint / SCHEDULE).read_text(encoding="utf-8"))
    check_resumed(record, plan, record["updates"], str(checkpoint))
    state = load(checkpoint / STATE, **_given(averager)).state_dict()
    if averager.device is None:
        state["slots"] = {
            slot: {name: tensor.to(model[name].device) if name in model else tensor for name, tensor in own.items()}
            for slot, own in state["slots"].items()
        }
    averager.load_state_dict(state)
    return bool(record["waiting"])


def _given(averager: Averager) -> dict[str, Any]:
    """What no file can hold: a predicate, and the score of ASWA."""
    return {name: getattr(averager, name) for name in ("select", "check_finite", "score") if hasattr(averager, name)}


def flatten(folder: Path, model: Any) -> None:
    """Bring up the adapter that PEFT writes into a folder inside unless it is called "default"."""
    from ..peft.folders import active_adapter

    inside = folder / active_adapter(model)
    if not (folder / "adapter_config.json").exists() and inside.is_dir():
        for path in list(inside.iterdir()):
            put(path, folder / path.name)
        inside.rmdir()


def load_folder(model: nn.Module, folder: Path, averager: Averager) -> None:
    """Put the weights of an `averaged/` folder into the model, in place."""
    if is_peft(model):
        from ..peft.folders import read_adapter

        state_file = folder.parent / STATE
        try:
            weights: Weights = read_adapter(model, folder)
        except ValueError:  # such as the prompt that p-tuning computes: the averager itself has the parameters
            if not state_file.exists():
                raise
            weights = load(state_file, **_given(averager)).mean()
        copy_to(model, weights)
        return
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    result = model.load_state_dict(state, strict=False)
    if result.unexpected_keys or not state:
        raise RuntimeError(f"{folder} holds other tensors than the model: {result.unexpected_keys[:5]}")


@contextmanager
def own_randomness() -> Iterator[None]:
    """Put every global random state back: loaders and random layers draw from them."""
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
