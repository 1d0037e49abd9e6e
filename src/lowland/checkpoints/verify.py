"""Is an output what its record says? The merge is made again from its ingredients, and compared bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..averager.averager import KINDS
from .average import Merge, plan_average, through
from .ingredients import found_again
from .layout import Checkpoint, is_file_name
from .names import same
from .output import record_of
from .sources import open_checkpoint
from .streaming import Report


@dataclass(frozen=True)
class Verified:
    """What a verification found: tensors compared, and what differs in words. It is right if nothing differs."""

    tensors: int
    differ: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether nothing differs."""
        return not self.differ


def verify(
    out: str | Path,
    merges: Iterable[Callable[..., Any]] = (),
    report: Report | None = None,
    *,
    runs: Sequence[str | Path] = (),
) -> Verified:
    """Make a merge again from the ingredients that its record names, and compare every tensor bit for bit.

    Ingredients whose hashes the record holds (`with_card`) are found by them, also where they were moved or renamed;
    one that has changed is named. The second copy lies beside the output while it is compared, and is removed.

    Args:
        merges: functions that the record may name, such as `lowland.soup.uniform` and `weighted`; averagers
            are known by their names.
        report: called with numbers of bytes as they are read and written.
        runs: folders in which ingredients lie now.

    Raises:
        FileNotFoundError: there is no record, or an ingredient is gone.
        ValueError: the record is damaged, or names a function of the user's own.

    >>> import tempfile, lowland
    >>> from safetensors.torch import save_file
    >>> from lowland.checkpoints import average
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (1.0, 2.0):
    ...     save_file({"w": torch.full((2,), step)}, folder / f"{step}.safetensors")
    >>> inputs = [folder / "1.0.safetensors", folder / "2.0.safetensors"]
    >>> verify(average(inputs, folder / "mean.safetensors", through(lowland.SWA)))
    Verified(tensors=1, differ=())
    """
    target = Path(out)
    record = read_record(target)
    inputs, differ = found_again(record, target, runs)
    name = str(record.get("dtype", ""))
    dtype = getattr(torch, name) if name in ("float64", "float32", "float16", "bfloat16") else None
    home = target.absolute().parent / f".{target.name}.verify"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    try:
        merge = merge_of(record["method"], merges)
        form = "dcp" if record.get("form") == "dcp" else "files"
        plan = plan_average(inputs, home / target.name, merge, dtype=dtype, check_finite=False, form=form)  # type: ignore[arg-type]
        one, two = _written(target, inputs[0]), _written(plan.run(report), inputs[0])
        missing = [name for name in two.tensors if name not in one.tensors]
        extra = [name for name in one.tensors if name not in two.tensors]
        differ += [f"{name} is missing" for name in missing] + [f"{name} is not of this merge" for name in extra]
        for name, stored in one.tensors.items():
            if name not in two.tensors:
                continue
            other = two.tensors[name]
            if (stored.shape, stored.dtype) != (other.shape, other.dtype):
                differ.append(f"{name} is {stored.dtype} {stored.shape} instead of {other.dtype} {other.shape}")
            elif not same(stored, other):
                differ.append(f"{name} has other values")
        return Verified(len(one.tensors), tuple(differ))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def read_record(target: Path) -> dict[str, Any]:
    """Return the record of a merge.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = record_of(target)
    if not target.exists() or not file.is_file():
        raise FileNotFoundError(f"there is no record {file}: verify takes what `lowland average` or soup wrote")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(path, str) for path in record["inputs"]) or not isinstance(record["method"], dict):
            raise TypeError("inputs or method")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no record of a merge ({error})") from None
    return dict(record)


def merge_of(method: Mapping[str, Any], merges: Iterable[Callable[..., Any]] = ()) -> Merge:
    """Return the merge that a record describes.

    Raises:
        ValueError: it is no averager, and none of `merges`.

    >>> merge_of({"name": "sum", "start": 1}, [sum])([2, 3])
    6
    """
    given = {key: value for key, value in method.items() if key != "name"}
    name = str(method.get("name"))
    functions: dict[str, Any] = {function.__name__: function for function in merges}
    if name in functions:
        return partial(functions[name], **given) if given else functions[name]
    if name in KINDS and all(isinstance(value, int | float | str) for value in given.values()):
        return through(partial(KINDS[name], **given))
    raise ValueError(f"the record names {name}, which is no averager and none of the merges given: pass it in merges=")


def _written(path: Path, first: Checkpoint) -> Checkpoint:
    """An output, whose weights lie under the same keys as those of the first input."""
    under = ".".join(first.shards[0].under) if first.shards and is_file_name(path) else ""
    key = first.asked.get("key")
    return open_checkpoint(path, key=under or (key if (path / ".metadata").is_file() else None))
