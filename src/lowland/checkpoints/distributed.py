"""Folders of `torch.distributed.checkpoint`: each saved piece of a tensor is a torch file inside a larger one."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .archive import dtype_of
from .layout import NESTS, Checkpoint, Distributed, Left, Path_, Run, Shard, Stored, nest_of, of_training
from .pickles import LONGEST, Object, loads
from .torchfiles import read_piece

# Shards of the output, as a distributed checkpoint is written as safetensors.
SHARD_BYTES = 5 * 10**9
_MODULE = "torch.distributed.checkpoint."


def open_distributed(folder: Path, key: str | None = None) -> Checkpoint:
    """Read the metadata of a folder that `torch.distributed.checkpoint.save` wrote.

    The weights are those under `key`, else under the first of the usual keys of a model's weights at the first or the
    second level (`model`, `app.model`), without that key; else everything but optimisers, schedulers and the other
    state of training. The output is written as safetensors shards.

    Raises:
        ValueError: the metadata is damaged or holds foreign classes, a file is missing or cut short, or there are
            several models.
    """
    file = folder / ".metadata"
    try:
        if file.stat().st_size > LONGEST:
            raise ValueError(f"it has more than {LONGEST} bytes")
        metadata = loads(file.read_bytes())
        pieces, held, paths, objects = _entries(metadata)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{file} cannot be read as metadata of torch.distributed.checkpoint ({type(error).__name__}: {error}): "
            "copy or save it anew"
        ) from None
    everything = paths
    paths, left = _weights(folder, paths, key)
    ends: dict[str, int] = {}
    for info in pieces.values():
        ends[info.file] = max(ends.get(info.file, 0), info.offset + info.length)
    for part, end in ends.items():
        if Path(part).name != part or not (folder / part).is_file():
            raise ValueError(f"{file} names the file {part!r}, which is not in its folder")
        if (folder / part).stat().st_size < end:
            raise ValueError(f"{folder / part} is cut short: copy or save it anew")
    tensors: dict[str, Stored] = {}
    for name, path in paths.items():
        own = ".".join(path)
        if own in tensors:
            raise ValueError(f"{folder} holds two tensors by the name {own}: take one with --key")
        tensors[own] = _tensor(folder, name, held[name], pieces)
    if not tensors:
        raise ValueError(f"{folder} holds no tensors")
    shards, index = _layout(tensors)
    stored = {".".join(path): name for name, path in paths.items()}
    one = next(iter(paths))
    held_objects = _of_model(objects, everything[one][: len(everything[one]) - len(paths[one])])
    return Checkpoint(
        folder,
        "torch.distributed.checkpoint",
        tensors,
        shards,
        {index[0]: index[1]} if index else {},
        left=left,
        distributed=Distributed(
            {name: everything[key] for name, key in stored.items()},
            {name: held[key].chunks for name, key in stored.items()},
            _runs(folder, held_objects, pieces),
            (".metadata", *sorted({pieces[name, where].file for name in paths for where, _ in held[name].chunks})),
        ),
    )


def _of_model(objects: Mapping[str, Path_], prefix: Path_) -> dict[str, Path_]:
    """The objects that lie where the model's tensors do."""
    depth = len(prefix)
    return {
        name: path
        for name, path in objects.items()
        if path[:depth] == prefix and len(path) > depth and (depth or not _of_training(path))
    }


def _runs(folder: Path, objects: Mapping[str, Path_], pieces: Mapping[Any, _Info]) -> dict[Path_, Run]:
    found = {}
    for name, path in objects.items():
        info = pieces.get((name, ()))
        if info is not None and not info.compressed:
            found[path] = Run(folder / info.file, info.offset, 0, info.length)
    return found


@dataclass(frozen=True)
class _Info:
    """Where a piece lies."""

    file: str
    offset: int
    length: int
    compressed: bool


@dataclass(frozen=True)
class _Entry:
    """A tensor of the metadata: its type, its shape, and where each piece begins and its shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def _entries(
    metadata: Any,
) -> tuple[dict[Any, _Info], dict[str, _Entry], dict[str, Path_], dict[str, Path_]]:
    if not isinstance(metadata, Object) or metadata.name != f"{_MODULE}metadata.Metadata":
        raise ValueError(f"it holds {getattr(metadata, 'name', type(metadata).__name__)}")
    pieces = {}
    for index, info in (metadata.get("storage_data") or {}).items():
        file = info.get("relative_path") if isinstance(info, Object) else None
        if file is not None and isinstance(index, Object):
            where = index.get("offset")
            offset, length = _whole(info.get("offset")), _whole(info.get("length"))
            pieces[str(index.get("fqn")), _shape(where or ())] = _Info(
                str(file), offset, length, bool(info.get("transform_descriptors"))
            )
    held, objects = {}, []
    for name, entry in metadata.get("state_dict_metadata").items():
        if isinstance(entry, Object) and entry.get("chunks") is not None:
            chunks = tuple((_shape(c.get("offsets")), _shape(c.get("sizes"))) for c in entry.get("chunks"))
            properties = entry.get("properties")
            state = properties.state
            dtype = dtype_of(state[0] if isinstance(state, tuple) else properties.get("dtype"))
            held[str(name)] = _Entry(dtype, _shape(entry.get("size")), chunks)
        else:
            objects.append(str(name))
    planned = metadata.get("planner_data") or {}
    if not isinstance(planned, dict):
        planned = {}

    def path(name: str) -> Path_:
        return tuple(map(str, planned.get(name) or (name,)))

    return pieces, held, {name: path(name) for name in held}, {name: path(name) for name in objects}


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise TypeError(f"a place must be a whole number, got {type(value).__name__}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if len(value) > 64:
        raise TypeError("a shape has at most 64 axes")
    return tuple(_whole(number) for number in value)


def _weights(folder: Path, paths: dict[str, Path_], key: str | None) -> tuple[dict[str, Path_], tuple[Left, ...]]:
    """The tensors of the model by their paths inside it, and what is left."""
    everything = paths
    if key is not None:
        paths = _inside(paths, key)
        if not paths:
            raise ValueError(f"{folder} has no tensors under the key {key!r}: it has {sorted(everything)[:5]}")
    else:
        outer = _second_level(folder, paths)
        if outer is not None:
            paths = {name: path[1:] for name, path in paths.items() if path[0] == outer and len(path) > 1}
        nested = False
        while paths and (nest := nest_of(path[0] for path in paths.values() if len(path) > 1)) is not None:
            paths = {name: path[1:] for name, path in paths.items() if path[0] == nest and len(path) > 1}
            nested = True
        if not nested:
            paths = {name: path for name, path in paths.items() if not _of_training(path)}
            if not paths and everything:
                raise ValueError(f"{folder} holds no tensors but those of training state: {sorted(everything)[:4]}")
    gone = Counter(_root(everything[name]) for name in everything if name not in paths)
    left = tuple(
        Left(root, count, "training state" if _of_training((root,)) else f"--key {root} takes it", ".metadata")
        for root, count in gone.items()
    )
    return paths, left


def _inside(paths: dict[str, Path_], key: str) -> dict[str, Path_]:
    found = {}
    for name, path in paths.items():
        for length in range(1, len(path)):
            if ".".join(path[:length]) == key:
                found[name] = path[length:]
                break
        else:
            whole = ".".join(path)
            if whole.startswith(f"{key}."):
                found[name] = (whole[len(key) + 1 :],)
    return found


def _second_level(folder: Path, paths: dict[str, Path_]) -> str | None:
    """The key of an application's state that holds the model beside its optimiser, if none of the usual is on top."""
    if nest_of(path[0] for path in paths.values() if len(path) > 1) is not None:
        return None
    found = {path[0] for path in paths.values() if len(path) > 2 and path[1] in NESTS and not _of_training(path)}
    if len(found) > 1:
        raise ValueError(f"{folder} holds several models, {sorted(found)}: take one with --key {min(found)}.model")
    return next(iter(found), None)


def _of_training(path: Path_) -> bool:
    return any(of_training(part) for part in (path[0], path[0].split(".", 1)[0]))


def _root(path: Path_) -> str:
    """What names a part of the state that is left: the first key, with the second where an application is the first."""
    first = path[0].split(".", 1)[0] if len(path) == 1 else path[0]
    return f"{first}.{path[1]}" if len(path) > 2 and not of_training(first) else first


def _tensor(folder: Path, name: str, entry: _Entry, pieces: dict[Any, _Info]) -> Stored:
    shape, dtype = entry.shape, entry.dtype
    runs: list[Run] = []
    parts: list[tuple[tuple[int, ...], Stored]] = []
    for where, extent in entry.chunks:
        info = pieces.get((name, where))
        if info is None:
            raise ValueError(f"{folder / '.metadata'} does not say where {name} from {where} on lies")
        if info.compressed:
            raise ValueError(f"{name} in {folder} is stored compressed, which is not supported: save it plainly")
        part = _piece(folder, name, info)
        if part.shape != extent or part.dtype != dtype:
            raise ValueError(
                f"{name} in {folder}: the metadata says {dtype} {extent}, the file {part.dtype} {part.shape}"
            )
        parts.append((where, part))
        start = _flat_start(shape, where, part.shape)
        runs += [Run(run.path, run.offset, start, run.length) for run in part.runs if start >= 0]
    if sum(part.numel for _, part in parts) != prod(shape):
        raise ValueError(f"{name} in {folder} is not whole: its pieces do not cover {shape}")
    if len(runs) == len(parts):
        return Stored(dtype, shape, tuple(sorted(runs, key=lambda run: run.start)))

    def whole() -> Tensor:
        result = torch.empty(shape, dtype=dtype)
        for where, part in parts:
            target = result[tuple(slice(o, o + n) for o, n in zip(where, part.shape, strict=True))]
            target.copy_(part.whole() if part.whole is not None else _load(part))
        return result

    return Stored(dtype, shape, (), whole)


def _flat_start(shape: Sequence[int], where: Sequence[int], sizes: Sequence[int]) -> int:
    """Where a piece begins in the flattened tensor, or -1 if it is not one stretch of it."""
    axes = [axis for axis in range(len(shape)) if sizes[axis] != shape[axis]]
    if not axes:
        return 0
    last = axes[-1]
    if any(sizes[axis] != 1 for axis in range(last)):
        return -1
    return sum(offset * prod(shape[axis + 1 :]) for axis, offset in enumerate(where))


def _piece(folder: Path, name: str, info: _Info) -> Stored:
    file = folder / info.file
    with file.open("rb") as raw:
        window = io.BufferedReader(_Window(raw, info.offset, info.length))
        return read_piece(window, file, info.offset, f"{name} in {file}")


def _load(part: Stored) -> Tensor:
    run = part.runs[0]
    with run.path.open("rb") as file:
        file.seek(run.offset)
        return torch.frombuffer(bytearray(file.read(part.nbytes)), dtype=part.dtype).view(part.shape)


def _layout(tensors: dict[str, Stored]) -> tuple[tuple[Shard, ...], tuple[str, dict[str, Any]] | None]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, stored in tensors.items():
        if groups[-1] and size + stored.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += stored.nbytes
    if len(groups) == 1:
        return (Shard("model.safetensors", tuple(groups[0]), {"format": "pt"}),), None
    files = [f"model-{place:05d}-of-{len(groups):05d}.safetensors" for place in range(1, len(groups) + 1)]
    shards = tuple(Shard(f, tuple(names), {"format": "pt"}) for f, names in zip(files, groups, strict=True))
    weight_map = {name: shard.file for shard in shards for name in shard.names}
    return shards, ("model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.place = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + (0, self.place, self.length)[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.place)
        want = min(len(buffer), max(self.length - self.place, 0))
        content = self.file.read(want)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)
