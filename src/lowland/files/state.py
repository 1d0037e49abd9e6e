"""State files: one safetensors file an object, written atomically, never unpickled.

The header carries, as JSON under the key `lowland`, the class, the hyper-parameters, the counts and the version of the
library; tensors are named `slot/name`, and those of a mixture's components `0/slot/name`, `1/slot/name` and so on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..averager.averager import KINDS, Averager
from ..averager.posteriors import COMPOSITES, Composite, Drawable
from ..weights.named import Weights, select_from, select_name
from . import tensorfile
from .header import header_of, written

FORMAT = 1


def save(obj: Averager | Composite | Weights, path: str | os.PathLike[str]) -> None:
    """Write an averager, a mixture or bare weights to one safetensors file.

    The file is written beside its destination, flushed to disk and renamed: a crash leaves the old file or the new one.
    It is written from the tensors themselves: 16 MB of memory suffice beside them.

    Of sharded weights (DTensors, as under `fully_shard`) every rank of their mesh must call this. The shards are sent
    to the first rank, 8 MB at a time, and it writes whole tensors: no rank ever holds the model.

    Raises:
        ValueError: the object cannot be saved; the message says what can. Or the name is that of a torch file.
        OSError: the folder does not exist or the disk is full; the old file, if any, is untouched.

    >>> import lowland, tempfile, torch
    >>> average = lowland.SWA()
    >>> average.update({"w": torch.ones(2)})
    >>> path = Path(tempfile.mkdtemp()) / "average.safetensors"
    >>> save(average, path)
    >>> load(path)
    SWA(select=parameters) after 1 updates
    """
    if Path(path).suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        raise ValueError(
            f"save writes safetensors, which {Path(path).name} says it is not: call it {Path(path).stem}.safetensors"
        )
    header, tensors = _pack(obj, "")
    header |= {"format": FORMAT, "version": _version()}
    tensorfile.write(path, tensors, written(header))


def load(path: str | os.PathLike[str], **given: Any) -> Any:
    """Read what `save` wrote: an averager that goes on where it stopped, a mixture, or a dictionary of tensors.

    Args:
        given: constructor arguments that no file can hold, such as `score=` of ASWA, or that you want otherwise:
            `device=`, `select=`, `check_finite=`. Hyper-parameters come from the file.

    Raises:
        ValueError: the file is truncated, foreign or damaged, or of a class that is not known.
        FileNotFoundError: there is no such file.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save({"w": torch.ones(2)}, path)
    >>> load(path)
    {'w': tensor([1., 1.])}
    """
    with _opened(path) as (header, file):
        return _unpack(header, file.read, given)


def load_into(averager: Averager, path: str | os.PathLike[str]) -> None:
    """Read what `save` wrote of one averager into another of the same class, which has weights or has `allocate`d.

    Tensors are placed as the averager's own are: of sharded ones (DTensors) each rank reads its shards and no more, on
    whatever number of ranks the file was written.

    Raises:
        ValueError: the file is no such state, or differs in class, hyper-parameters, names or shapes. Nothing is
            changed then.
        RuntimeError: the averager has no tensors yet.

    >>> import lowland, tempfile, torch
    >>> average, path = lowland.SWA(), Path(tempfile.mkdtemp()) / "average.safetensors"
    >>> average.update({"w": torch.ones(2)})
    >>> save(average, path)
    >>> other = lowland.SWA()
    >>> other.allocate({"w": torch.zeros(2)})
    >>> load_into(other, path)
    >>> other.count, other.mean()
    (1, {'w': tensor([1., 1.])})
    """
    own = averager._views()["slots"]
    if not own:
        raise RuntimeError(f"{type(averager).__name__} has no tensors to read into: call allocate(model) first")

    with _opened(path) as (header, file):
        averager._check_kind(header)
        _same_names(own, header)
        slots = {
            slot: {name: file.read_like(tensor, f"{slot}/{name}") for name, tensor in named.items()}
            for slot, named in own.items()
        }
        averager._adopt({**{k: header[k] for k in ("class", "count", "settings", "scalars")}, "slots": slots})


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], tensorfile.File]]:
    """The header and the tensors of a state file; what goes wrong in the block is said to be the file's fault."""
    source = Path(path)
    try:
        file = tensorfile.File(source)
    except ValueError as error:
        raise ValueError(f"{error}: write it anew with lowland.save") from None
    with file:
        try:
            header = header_of(file.metadata)
            if header is not None and header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, this version reads {FORMAT}")
        except ValueError as error:
            raise ValueError(f"{source} cannot be read as a lowland state: {error}") from None
        if header is None:
            raise ValueError(
                f"{source} is a safetensors file but not one of lowland.save; read it with safetensors.torch.load_file"
            )
        try:
            yield header, file
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{source} cannot be read as a lowland state: {error}") from None


def _same_names(own: Mapping[str, Weights], header: dict[str, Any]) -> None:
    if set(own) != set(header["slots"]):
        raise ValueError(f"it has the slots {header['slots']}, wanted {list(own)}: another version's")
    names = next(iter(own.values()))
    if set(names) != set(header["names"]):
        raise ValueError(
            f"tensors are named differently: missing {sorted(set(names) - set(header['names']))[:5]}, "
            f"unexpected {sorted(set(header['names']) - set(names))[:5]}"
        )


def described(averager: Averager) -> tuple[str, dict[str, Tensor]]:
    """Return what `save` would write about an averager, as text, and its tensors, `slot/name`; no file is made.

    >>> import torch
    >>> from lowland import SWA
    >>> average = SWA()
    >>> average.update({"w": torch.ones(2)})
    >>> list(described(average)[1])
    ['mean/w']
    """
    header, tensors = _pack(averager, "")
    return json.dumps(header | {"format": FORMAT, "version": _version()}), tensors


def _pack(obj: Drawable | Composite, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(obj, Composite) and type(obj).__name__ in COMPOSITES:
        parts: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for index, component in enumerate(obj.components):
            header, own = _pack(component, f"{prefix}{index}/")
            parts.append(header)
            tensors |= own
        return {"class": type(obj).__name__, "components": parts}, tensors
    if isinstance(obj, Averager):
        state = obj._views()
        slots = state.pop("slots")
        order = list(next(iter(slots.values()), {}))
        tensors = {f"{prefix}{slot}/{name}": t for slot, named in slots.items() for name, t in named.items()}
        header = {**state, "select": select_name(obj.select), "slots": list(slots), "names": order}
        return header, tensors
    if isinstance(obj, Mapping):
        tensors = {f"{prefix}weights/{name}": t for name, t in obj.items()}
        return {"class": "weights", "names": list(obj)}, tensors
    raise ValueError(
        f"save takes an averager, a Mixture of such, or a mapping of named tensors, got {type(obj).__name__}"
    )


def _unpack(header: dict[str, Any], read: Callable[[str], Tensor], given: dict[str, Any], prefix: str = "") -> Any:
    kind = header["class"]
    if kind in COMPOSITES:
        parts = enumerate(header["components"])
        return COMPOSITES[kind]([_unpack(part, read, given, f"{prefix}{index}/") for index, part in parts])
    if kind == "weights":
        return {name: read(f"{prefix}weights/{name}") for name in header["names"]}
    if kind not in KINDS:
        raise ValueError(f"it holds a {kind!r}, known are {sorted(KINDS)}: import the module that defines it first")
    slots = {slot: _Stored(read, f"{prefix}{slot}/", header["names"]) for slot in header["slots"]}
    select = select_from(header["select"], next(iter(slots.values()), {}))
    averager = KINDS[kind].build(header["settings"], **{"select": select, **given})
    averager._adopt({**{k: header[k] for k in ("class", "count", "settings", "scalars")}, "slots": slots})
    return averager


class _Stored(Mapping[str, Tensor]):
    """Tensors of a file, each read when it is asked for: so that they go to another device one by one."""

    def __init__(self, read: Callable[[str], Tensor], prefix: str, names: list[str]) -> None:
        self._read, self._prefix, self._names = read, prefix, names

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lowland")
    except PackageNotFoundError:
        return "unknown"
