"""One safetensors file, written from the tensors themselves and read into new ones, a few megabytes at a time.

    8 bytes: length of the header   |   header, JSON: {name: {dtype, shape, data_offsets}}   |   the tensors' bytes

A file is written beside its destination, flushed to disk and renamed: a crash leaves the old file or the new one.
Nothing is gathered: whole tensors go from where they are to their place in the file. Of DTensors every rank of their
meshes takes part; the first rank writes, and the others send it their shards, 8 MB at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..weights.layout import Run, runs_of
from ..weights.shards import is_sharded, layout_of, like, local, runs
from .replacing import Replacing

CHUNK = 8 << 20  # bytes on their way at a time

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@torch.no_grad()
def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors to one safetensors file, in place of what is there, or leave that as it is.

    Memory beside the tensors is 16 MB at most, whatever their size, device, strides and shards. If one is a DTensor
    every rank of its mesh must call this, with the same names; only the first rank needs to reach the path.

    Raises:
        ValueError: a dtype that safetensors does not know, or a tensor without values (meta).
        OSError: the folder does not exist or the disk is full; on every rank.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "w.safetensors"
    >>> write(path, {"w": torch.ones(2)}, {"made": "by hand"})
    >>> with File(path) as file:
    ...     file.read("w"), file.metadata
    (tensor([1., 1.]), {'made': 'by hand'})
    """
    header, places = _plan(tensors, metadata)
    ranks = sorted({rank for t in tensors.values() if is_sharded(t) for rank in _mesh(t).mesh.flatten().tolist()})
    if not ranks:
        with Replacing(Path(path), places.end) as file:
            _put(file, 0, header)
            _put_plain(file, tensors, places)
        return
    me, first = dist.get_rank(), ranks[0]
    if me != first:
        for tensor in _sharded_in_order(tensors, places):
            _send(tensor, me, first)
        problem = [None]
    else:
        problem = [_collect(Path(path), header, tensors, places, first)]  # type: ignore[list-item]
    for rank in ranks[1:]:  # no rank goes on before the file is there, or known not to be
        if me == first:
            dist.send_object_list(problem, dst=rank)
        elif me == rank:
            dist.recv_object_list(problem, src=first)
    if problem[0] is not None:
        raise OSError(problem[0])


class File:
    """A safetensors file open for reading; tensors come one at a time, into memory of their own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "w.safetensors"
    >>> write(path, {"w": torch.arange(3)}, {})
    >>> with File(path) as file:
    ...     file.names, file.read("w")
    (['w'], tensor([0, 1, 2]))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"there is no file {self.path}")
        try:
            with safe_open(self.path, framework="pt"):  # checks lengths, offsets, dtypes; reads no tensor
                pass
            self._file = self.path.open("rb", buffering=0)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is no whole safetensors file ({error})") from None
        length = int.from_bytes(self._file.read(8), "little")
        self._entries: dict[str, Any] = json.loads(self._file.read(length))
        self._data = 8 + length
        self.metadata: dict[str, str] = self._entries.pop("__metadata__", {})

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return list(self._entries)

    def read(self, name: str) -> Tensor:
        """Return a tensor, read once, without a copy.

        Raises:
            KeyError: the file has no such tensor.
            ValueError: this torch has no such dtype.
        """
        entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} has the dtype {entry['dtype']}, which is none of torch's {sorted(_DTYPES)}")
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="cpu")
        self._fill(tensor, entry, [(0, 0, tensor.numel())])
        return tensor

    @torch.no_grad()
    def read_like(self, tensor: Tensor, name: str) -> Tensor:
        """Return a tensor on the device and in the placement of `tensor`; of a DTensor only this rank's shard is read.

        Raises:
            KeyError: the file has no such tensor.
            ValueError: the shape or the dtype differs.
        """
        entry = self._entries[name]
        if entry["shape"] != list(tensor.shape) or entry["dtype"] != _NAMES.get(tensor.dtype):
            raise ValueError(
                f"{name} is {entry['dtype']} of shape {tuple(entry['shape'])} in {self.path.name}, got "
                f"{_NAMES.get(tensor.dtype, tensor.dtype)} of shape {tuple(tensor.shape)} to read it into"
            )
        own = local(tensor)
        shard = torch.empty(own.shape, dtype=own.dtype, device="cpu")
        self._fill(shard, entry, runs(tensor))
        return like(shard.to(own.device), tensor)

    def _fill(self, tensor: Tensor, entry: dict[str, Any], found: list[Run]) -> None:
        if not tensor.numel():
            return
        view, size = memoryview(_bytes(tensor.view(-1))), tensor.element_size()
        for there, here, length in found:
            self._file.seek(self._data + entry["data_offsets"][0] + there * size)
            target = view[here * size : (here + length) * size]
            while target:
                count = self._file.readinto(target)
                if not count:
                    raise ValueError(f"{self.path} ends within a tensor: it was changed while being read")
                target = target[count:]

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class _Places:
    starts: dict[str, int]  # of each tensor's first byte, in the order of the file
    end: int


def _plan(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, _Places]:
    """The first bytes of the file, and where each tensor goes."""
    for name, tensor in tensors.items():
        given: object = tensor
        if not isinstance(given, Tensor) or tensor.is_nested:
            kind = "a nested tensor" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise ValueError(f"{name} is {kind}: safetensors holds dense tensors alone")
        if tensor.dtype not in _NAMES or tensor.is_meta or tensor.layout != torch.strided:
            what = "without values" if tensor.is_meta else f"of {tensor.dtype}, {tensor.layout}"
            raise ValueError(f"{name} is a tensor {what}: safetensors holds dense tensors of {list(_NAMES.values())}")
    # Wide elements first, as safetensors does: every tensor is then aligned to its own elements.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, end = {}, 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        starts[name] = start
        entries[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, _Places({name: len(header) + start for name, start in starts.items()}, len(header) + end)


def _collect(path: Path, header: bytes, tensors: Mapping[str, Tensor], places: _Places, me: int) -> str | None:
    """Write what this rank holds and what the others send; returns what went wrong."""
    incoming = (
        (places.starts[name] + begin * piece.element_size(), piece)
        for name in places.starts
        if is_sharded(tensors[name])
        for begin, piece in _received(tensors[name], me)
    )
    try:
        with Replacing(path, places.end) as file:
            _put(file, 0, header)
            _put_plain(file, tensors, places)
            for place, piece in incoming:
                _put(file, place, _bytes(piece))
    except Exception as error:  # whatever it is: the others go on sending and wait for a word, and must not for ever
        for _ in incoming:
            pass
        return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return None


def _put_plain(file: FileIO, tensors: Mapping[str, Tensor], places: _Places) -> None:
    for name, start in places.starts.items():
        tensor = tensors[name]
        if not is_sharded(tensor):
            step = CHUNK // tensor.element_size()
            for begin in range(0, tensor.numel(), step):
                piece = _flat(tensor.detach(), begin, min(begin + step, tensor.numel()))
                _put(file, start + begin * tensor.element_size(), _bytes(piece.cpu()))


def _sharded_in_order(tensors: Mapping[str, Tensor], places: _Places) -> Iterator[Tensor]:
    return (tensors[name] for name in places.starts if is_sharded(tensors[name]))


def _owners(tensor: Tensor) -> Iterator[tuple[int, list[Run]]]:
    """The ranks that together hold the tensor once, each with its runs."""
    mesh, layout = _mesh(tensor), layout_of(tensor)
    # Of replicas the first.
    for place in product(*(range(1 if entry is None else n) for n, entry in zip(mesh.shape, layout, strict=True))):
        yield int(mesh.mesh[place]), runs_of(tuple(tensor.shape), tuple(mesh.shape), place, layout)


def _received(tensor: Tensor, me: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces of the tensor from every rank that holds some, each with its first element's place in the whole."""
    step = CHUNK // tensor.element_size()
    for rank, found in _owners(tensor):
        numel = sum(length for *_, length in found)
        for begin in range(0, numel, step):
            if rank == me:
                piece = _flat(local(tensor).detach(), begin, min(begin + step, numel)).cpu()
            else:
                buffer = torch.empty(min(step, numel - begin), dtype=tensor.dtype, device=_mesh(tensor).device_type)
                dist.recv(_plain(buffer), src=rank)
                piece = buffer.cpu()
            for there, here, length in found:
                low, high = max(here, begin), min(here + length, begin + len(piece))
                if low < high:
                    yield there + low - here, piece[low - begin : high - begin]


def _send(tensor: Tensor, me: int, to: int) -> None:
    own, step = local(tensor), CHUNK // tensor.element_size()
    for rank, _ in _owners(tensor):
        if rank == me:
            for begin in range(0, own.numel(), step):
                piece = _flat(own.detach(), begin, min(begin + step, own.numel()))
                dist.send(_plain(piece.to(_mesh(tensor).device_type).contiguous()), dst=to)


def _flat(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The elements from `start` to `stop` in row-major order, whatever the strides; no more than those are copied."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = prod(tensor.shape[1:])
    pieces = []
    while start < stop:
        index, inside = divmod(start, row)
        whole = (stop - start) // row
        if inside or not whole:
            taken = min(row - inside, stop - start)
            pieces.append(_flat(tensor[index], inside, inside + taken))
        else:
            taken = whole * row
            pieces.append(tensor[index : index + whole].reshape(-1))
        start += taken
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()


def _bytes(piece: Tensor) -> Any:
    return _plain(piece).numpy()


def _plain(piece: Tensor) -> Tensor:
    """The same memory as bytes, which every backend and numpy know."""
    return piece.view(torch.uint8)


def _put(file: FileIO, place: int, content: Any) -> None:
    file.seek(place)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _mesh(tensor: Any) -> Any:
    return tensor.device_mesh
