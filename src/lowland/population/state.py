"""Checkpoints of populations over ranks, by torch.distributed.checkpoint: every rank writes its own member.

A folder holds the members by number, so that what ranks have written one process can read, and the other way round.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..weights.shards import is_sharded
from .population import Population

_TENSOR = "tensor of this checkpoint"


def save_members(population: Population, folder: str | os.PathLike[str]) -> None:
    """Write the population's state into a folder; over ranks every one calls this.

    Raises:
        ValueError: a member is itself sharded.

    >>> import tempfile, warnings
    >>> from lowland.population import LocalSGD
    >>> population = Population([torch.nn.Linear(2, 1) for _ in range(2)], LocalSGD(every=1))
    >>> _ = population.step()
    >>> folder = tempfile.mkdtemp()
    >>> with warnings.catch_warnings(action="ignore"):  # torch's, that there is one process only
    ...     save_members(population, folder)
    ...     again = Population([torch.nn.Linear(2, 1) for _ in range(2)], LocalSGD(every=1))
    ...     load_members(again, folder)
    >>> again.steps
    1
    """
    state = population.state_dict()
    flat: dict[str, Any] = {}
    for number in population.here:
        # One member an entry, as ranks that write the same key would write it once.
        tensors: list[Tensor] = []
        own = state["members"][str(number)]
        shared = {key: value for key, value in state.items() if key != "members"}
        told = {**shared, "members": {str(number): _mapped(own, _taken(tensors))}}
        flat[f"member {number}"] = _written(told)
        flat |= {f"member {number}, tensor {place}": tensor for place, tensor in enumerate(tensors)}
    save(flat, checkpoint_id=Path(folder), no_dist=not population.over_ranks)


def load_members(population: Population, folder: str | os.PathLike[str]) -> None:
    """Take up what `save_members` wrote; every rank reads its own member, one process all of them.

    Raises:
        ValueError: as `Population.load_state_dict`, or the folder holds no such members; nothing is changed.
        FileNotFoundError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    known = FileSystemReader(path).read_metadata().state_dict_metadata
    names = [f"member {number}" for number in population.here]
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"{path} lacks {missing}: it is no population's checkpoint, or one of fewer members")
    wanted: dict[str, Tensor] = {}
    for key, found in known.items():
        if key.partition(",")[0] in names and isinstance(found, TensorStorageMetadata):
            wanted[key] = torch.empty(found.size, dtype=found.properties.dtype)
    load(wanted, checkpoint_id=path, no_dist=not population.over_ranks)
    told = {name: torch.load(io.BytesIO(wanted[name].numpy().tobytes()), weights_only=True) for name in names}
    state = {**told[names[0]], "members": {}}
    for name in names:
        for number, own in told[name]["members"].items():
            state["members"][number] = _mapped(own, lambda thing, name=name: _given(thing, name, wanted))  # type: ignore[misc]
    population.load_state_dict(state)


def _written(thing: dict[str, Any]) -> Tensor:
    """What holds no tensors, as one: torch.distributed.checkpoint takes dictionaries apart."""
    file = io.BytesIO()
    torch.save(thing, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _taken(tensors: list[Tensor]) -> Callable[[Any], Any]:
    def take(thing: Any) -> Any:
        if not isinstance(thing, Tensor):
            return thing
        if is_sharded(thing):
            raise ValueError(
                "a member is sharded over ranks of its own: save its model and its optimiser by "
                "torch.distributed.checkpoint.state_dict, and load them before population.load_state_dict"
            )
        tensors.append(thing)
        return {_TENSOR: len(tensors) - 1}

    return take


def _mapped(thing: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure, every leaf changed."""
    if isinstance(thing, dict) and _TENSOR not in thing:
        return {key: _mapped(value, change) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return type(thing)(_mapped(value, change) for value in thing)
    return change(thing)


def _given(thing: Any, name: str, wanted: dict[str, Tensor]) -> Any:
    return wanted[f"{name}, tensor {thing[_TENSOR]}"] if isinstance(thing, dict) else thing
