"""What a checkpoint is: its tensors, the files that they lie in, and the bytes of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The keys under which training code puts the model's weights, in the order in which they are looked for.
NESTS = ("state_dict", "model_state_dict", "model", "module", "weights", "net")


DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
}


DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Run:
    """Elements of a tensor that lie side by side in a file: `length` of them from element `start` on."""

    path: Path
    offset: int  # bytes from the beginning of the file
    start: int  # elements, in the flattened tensor
    length: int  # elements


@dataclass(frozen=True)
class Stored:
    """A tensor in its files. One that no runs describe, such as a transposed view, is read by `whole` at once."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    runs: tuple[Run, ...]
    whole: Callable[[], Tensor] | None = field(default=None, compare=False)

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes that the elements take."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Left:
    """What a checkpoint holds and does not give to an average: `tensors` of them, and why."""

    name: str
    tensors: int
    why: str
    file: str = ""


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint and the names of its tensors in their order.

    Args:
        file: below the checkpoint's folder. prefix: what stands before the names of a second model's tensors here, and
            not in its file. carried: plain data that a torch file holds beside its weights, by the keys to it.
    """

    file: str
    names: tuple[str, ...]
    metadata: Mapping[str, str] | None = None  # of a safetensors header
    under: tuple[str, ...] = ()  # keys that lead to the weights inside a torch file
    torch: bool = False  # written by torch.save, else safetensors
    prefix: str = ""
    carried: Mapping[tuple[str, ...], Any] = field(default_factory=dict)


Path_ = tuple[str, ...]
Pieces = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # offsets and sizes of each


@dataclass(frozen=True)
class Distributed:
    """How a distributed checkpoint holds its tensors: under which keys and in which pieces, by name, what objects
    belong to the model's state, by their keys, and the names of the files of all that.
    """

    keys: Mapping[str, Path_]
    pieces: Mapping[str, Pieces]
    objects: Mapping[Path_, Run]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What lies under a path, and how it is laid out in files.

    Args:
        kind: in words. indices: content of the files that say which shard holds which tensor, by name. left: what else
            lies under the path. folders: sub-folders that belong to the model.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Stored]
    shards: tuple[Shard, ...]
    indices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None  # header of a lowland state file
    left: tuple[Left, ...] = ()
    folders: tuple[str, ...] = ()
    distributed: Distributed | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)  # key, keep and drop, where they were given

    def distributed_layout(self) -> tuple[Mapping[str, Path_], Mapping[str, Pieces], Mapping[Path_, Run]]:
        """Return keys, pieces and objects of a distributed checkpoint; of another kind, a name and a piece each."""
        if self.distributed is None:
            return {name: (name,) for name in self.tensors}, {}, {}
        return self.distributed.keys, self.distributed.pieces, self.distributed.objects

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors; one that has two names counts once."""
        tied = {name for group in self.ties() for name in group[1:]}
        return sum(stored.nbytes for name, stored in self.tensors.items() if name not in tied)

    @property
    def files(self) -> list[Path]:
        """Return the files that hold the tensors."""
        folder = self.path if self.path.is_dir() else self.path.parent
        own = {run.path for stored in self.tensors.values() for run in stored.runs}
        if self.distributed is not None:  # a tensor that is cut across has no runs
            own |= {folder / name for name in self.distributed.files}
        return sorted(own | {path for shard in self.shards if (path := folder / shard.file).is_file()})

    def ties(self) -> list[tuple[str, ...]]:
        """Return the groups of names that share one place in the files."""
        groups: dict[tuple[Run, ...], list[str]] = {}
        for name, stored in self.tensors.items():
            if stored.runs and stored.numel:
                groups.setdefault(stored.runs, []).append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]


TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def is_torch_file(path: Path) -> bool:
    """Return whether a name is one of those that torch files have, `.pth.tar` among them."""
    return path.suffix in TORCH_SUFFIXES or (path.suffix == ".tar" and Path(path.stem).suffix in TORCH_SUFFIXES)


def is_file_name(path: Path) -> bool:
    """Return whether an output of this name is one file rather than a folder.

    >>> is_file_name(Path("mean.ckpt")), is_file_name(Path("epoch-1.5"))
    (True, False)
    """
    return path.suffix == ".safetensors" or is_torch_file(path)


# The first part of the name of what belongs to training and not to the model.
_TRAINING = re.compile(
    r"(\w*_)?optim(s|izers?)?(_states?|_state_dicts?|_\d+|_[gd])*|(lr_|opt_param_)?schedulers?(_states?|_state_dict)?"
    r"|lr_sched(ulers?|s)?|rng(_states?)?|\w*_rng(_states?)?|train_states?|trainer_states?|data_?loaders?(_states?)?"
    r"|(grad_)?scalers?(_state_dict)?|chained_\d+|rerun_state_machine\w*|amp",
    re.IGNORECASE,
)


def of_training(name: str) -> bool:
    """Return whether what has this name belongs to training rather than to the model, by the first part of the name.

    >>> [of_training(name) for name in ("optimizer.state.w.exp_avg", "rng_state/shard_0_1", "decoder.optim.weight")]
    [True, True, False]
    """
    return _TRAINING.fullmatch(re.split(r"[./]", name, maxsplit=1)[0]) is not None


def nest_of(keys: Iterable[str]) -> str | None:
    """Return the first of the usual keys of a model's weights that is among `keys`."""
    held = set(keys)
    return next((key for key in NESTS if key in held), None)
