"""What will be read and written, checked before anything is: names, shapes, room on the disk."""

from __future__ import annotations

import json
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
from .layout import Checkpoint, Stored
from .output import check_room
from .sources import open_checkpoint
from .streaming import Report, stretch

_MEASURED = 64 << 20  # bytes read and written to learn the disk's rates


@dataclass(frozen=True)
class Plan:
    """A run that was checked and not begun; `run` does it.

    Args:
        checkpoints: in the order in which they are taken. settings: plain data that says what is made of what.
    """

    checkpoints: tuple[Checkpoint, ...]
    target: Path
    bytes_read: int
    bytes_written: int
    settings: Mapping[str, Any]
    _run: Callable[[Plan, Report, bool], None] = field(repr=False)

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


def opened(inputs: Sequence[str | Path | Checkpoint]) -> tuple[Checkpoint, ...]:
    """Open what is not open yet, and check that all are of one architecture.

    Raises:
        ValueError: there is none; names, shapes or kinds of tensors differ, by name and file; adapters differ in scale.
    """
    if not inputs:
        raise ValueError("at least one checkpoint is wanted, got none")
    checkpoints = tuple(item if isinstance(item, Checkpoint) else open_checkpoint(item) for item in inputs)
    first = checkpoints[0]
    like = _shapes(first.tensors)
    strange = [
        f"{name} ({stored.dtype})"
        for name, stored in first.tensors.items()
        if stored.dtype.is_complex or (stored.dtype.is_floating_point and stored.dtype.itemsize < 2)
    ]
    if strange:
        raise ValueError(
            f"{first.path} holds tensors of types that cannot be averaged: {strange[:5]}; convert quantised weights "
            "to bfloat16 and complex ones to two real parts first"
        )
    for other in checkpoints[1:]:
        check_same(like, _shapes(other.tensors), what=f"{other.path} beside {first.path}")
        kinds = [
            f"{name} {other.tensors[name].dtype} instead of {stored.dtype}"
            for name, stored in first.tensors.items()
            if other.tensors[name].dtype != stored.dtype
            and not (other.tensors[name].dtype.is_floating_point and stored.dtype.is_floating_point)
        ]
        if kinds:
            raise ValueError(f"{other.path} beside {first.path}: tensors are of other types: {kinds[:5]}")
        _check_adapters(first.path, other.path)
    return checkpoints


def _shapes(tensors: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(stored.shape, device="meta") for name, stored in tensors.items()}


# What multiplies or reshapes an adapter's product beside its tensors.
_SCALES = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern")


def _check_adapters(first: Path, other: Path) -> None:
    one, two = _adapter(first), _adapter(other)
    differ = [f"{key} {two.get(key)!r} instead of {one.get(key)!r}" for key in _SCALES if one.get(key) != two.get(key)]
    if differ:
        raise ValueError(f"the adapter {other} is scaled otherwise than {first}: {', '.join(differ)}")


def _adapter(path: Path) -> dict[str, Any]:
    file = path / "adapter_config.json"
    if not path.is_dir() or not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is no adapter configuration ({error})") from None


def settings_of(checkpoints: Sequence[Checkpoint], method: object, **more: Any) -> dict[str, Any]:
    """Return the plain data that identifies a run: method, inputs with sizes and times, version."""
    inputs = [
        {
            "path": str(checkpoint.path),
            "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in checkpoint.files],
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
    check_room(plan.target.parent, plan.bytes_written, held)


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
    probe = plan.target.parent / f".{plan.target.name}.probe"
    begin = time.perf_counter()
    try:
        with probe.open("wb", buffering=0) as sink:
            sink.write(buffer)
            os.fsync(sink.fileno())
        write = len(buffer) / max(time.perf_counter() - begin, 1e-9)
    finally:
        probe.unlink(missing_ok=True)
    return Estimate(read, write, plan.bytes_read / read + plan.bytes_written / write)
