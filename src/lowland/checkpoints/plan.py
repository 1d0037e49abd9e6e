"""What will be read and written, checked before anything is: names, shapes, room on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..weights.named import check_same
from .account import Account
from .layout import Checkpoint, Stored
from .mixing import differing_codes, differing_masks, obstacles
from .names import aligned
from .output import check_room, ground
from .ranks import Ranks
from .sources import open_checkpoint
from .streaming import Report, stretch

_MEASURED = 64 << 20  # bytes read and written to learn the disk's rates


@dataclass(frozen=True)
class Plan:
    """A run that was checked and not begun; `run` does it.

    Args:
        checkpoints: in the order in which they are taken. settings: plain data that says what is made of what.
        account: what becomes of every tensor of every input.
    """

    checkpoints: tuple[Checkpoint, ...]
    target: Path
    bytes_read: int
    bytes_written: int
    settings: Mapping[str, Any]
    account: Account
    _run: Callable[[Plan, Report, bool], None] = field(repr=False)
    ranks: Ranks = Ranks()

    def run(self, report: Report | None = None, *, restart: bool = False) -> Path:
        """Do it, or go on where a killed run stopped; return the file or folder written.

        Args:
            report: called with numbers of bytes as they are read and written, from several threads.
            restart: begin anew even if an unfinished run lies there.
        """
        self._run(self, report or (lambda _: None), restart)
        return self.target


class Estimate(NamedTuple):
    """Rates of the disk in bytes a second, as measured just now, and the time that a plan takes at them."""

    read: float
    write: float
    seconds: float


def opened(
    inputs: Sequence[str | Path | Checkpoint], *, posterior: bool = False
) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """Open what is not open yet, and check that all are of one architecture and can be averaged.

    Returns the checkpoints, their tensors named alike, and what was done for that in words.

    Raises:
        ValueError: there is none; names, shapes or kinds of tensors differ, by name and file; adapters differ in what
            their tensors mean; weights are quantised, or stored as a function of others that is not known.
    """
    if not inputs:
        raise ValueError("at least one checkpoint is wanted, got none")
    given = [item if isinstance(item, Checkpoint) else open_checkpoint(item) for item in inputs]
    found = obstacles(given, posterior=posterior)
    if found:
        raise ValueError(f"{found[0].says}: {found[0].do}")
    first = given[0]
    like = _shapes(first.tensors)
    checkpoints, said = [first], []
    for item in given[1:]:
        other, told = aligned(first, item)
        said += told
        check_same(like, _shapes(other.tensors), what=f"{other.path} beside {first.path}")
        kinds = [
            f"{name} {other.tensors[name].dtype} instead of {stored.dtype}"
            for name, stored in first.tensors.items()
            if other.tensors[name].dtype != stored.dtype
            and not (other.tensors[name].dtype.is_floating_point and stored.dtype.is_floating_point)
        ]
        if kinds:
            raise ValueError(f"{other.path} beside {first.path}: tensors are of other types: {kinds[:5]}")
        checkpoints.append(other)
    if len(checkpoints) > 1:
        codes = differing_codes(checkpoints)
        if codes:
            raise ValueError(
                f"{first.path} holds integers that differ from input to input, as codes of quantised weights do: "
                f"{codes[:5]}; dequantise the weights first"
            )
        masks = differing_masks(checkpoints)
        if masks:
            raise ValueError(
                f"{first.path} holds pruned weights whose masks differ from input to input: {masks[:5]}; make the "
                "pruning permanent (torch.nn.utils.prune.remove) before saving"
            )
    return tuple(checkpoints), tuple(said)


def types_of(checkpoints: Sequence[Checkpoint]) -> tuple[dict[str, torch.dtype], list[str]]:
    """Return the type of each tensor of an average, the widest that an input has, and in words where types differ."""
    types = {name: stored.dtype for name, stored in checkpoints[0].tensors.items()}
    wider: dict[str, None] = {}
    for checkpoint in checkpoints[1:]:
        for name, stored in checkpoint.tensors.items():
            if stored.dtype != types[name]:
                types[name] = torch.promote_types(types[name], stored.dtype)
                wider[name] = None
    if not wider:
        return types, []
    kinds = sorted({_short(c.tensors[name].dtype) for c in checkpoints for name in wider})
    result = sorted({_short(types[name]) for name in wider})
    return types, [
        f"types of {len(wider)} tensors differ ({', '.join(kinds)}): written as {', '.join(result)}; --dtype chooses"
    ]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shapes(tensors: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(stored.shape, device="meta") for name, stored in tensors.items()}


def settings_of(checkpoints: Sequence[Checkpoint], method: object, **more: Any) -> dict[str, Any]:
    """Return the plain data that identifies a run: method, inputs with sizes and times, version."""
    inputs = [
        {
            "path": str(checkpoint.path),
            "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in checkpoint.files],
            **({"asked": dict(checkpoint.asked)} if checkpoint.asked else {}),
        }
        for checkpoint in checkpoints
    ]
    return {"method": described(method), "inputs": inputs, "lowland": _version(), "stretch": stretch(), **more}


def described(method: object) -> Any:
    """Return plain data that says what a function, a partial one or a class is.

    >>> described(partial(round, ndigits=2))
    {'name': 'round', 'ndigits': 2}
    """
    if isinstance(method, partial):
        positional = {str(place): value for place, value in enumerate(method.args)}
        return {**described(method.func), **_plain({**positional, **method.keywords})}
    inner = getattr(method, "make", None)
    return described(inner) if inner is not None else {"name": getattr(method, "__qualname__", repr(method))}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    simple = (str, int, float, bool, type(None), list, tuple)
    return {key: value if isinstance(value, simple) else str(value) for key, value in values.items()}


def _version() -> str:
    try:
        return version("lowland")
    except PackageNotFoundError:
        return "unknown"


def room(plan: Plan) -> None:
    """Refuse a plan that the disk cannot hold.

    Raises:
        OSError: says how much is wanted and free.
    """
    part = plan.target.parent / f".{plan.target.name}.part"
    held = sum(f.stat().st_blocks * 512 for f in part.rglob("*") if f.is_file()) if part.exists() else 0
    check_room(ground(plan.target), plan.bytes_written, held)


def estimate(plan: Plan) -> Estimate:
    """Read and write a little to learn the disk's rates, and say how long the plan takes at them.

    The system may hold what is read in memory already; then the rate of reading is that of memory.
    """
    file = max(plan.checkpoints[-1].files, key=lambda path: path.stat().st_size)
    buffer = bytearray(min(_MEASURED, max(file.stat().st_size, 1)))
    begin = time.perf_counter()
    with file.open("rb", buffering=0) as source:
        got = source.readinto(buffer) or 1
    read = got / max(time.perf_counter() - begin, 1e-9)
    probe = ground(plan.target) / f".{plan.target.name}.probe"
    begin = time.perf_counter()
    try:
        with probe.open("wb", buffering=0) as sink:
            sink.write(buffer)
            os.fsync(sink.fileno())
        write = len(buffer) / max(time.perf_counter() - begin, 1e-9)
    finally:
        probe.unlink(missing_ok=True)
    return Estimate(read, write, plan.bytes_read / read + plan.bytes_written / write)
