"""Folders of `torch.distributed.checkpoint`: each saved piece of a tensor is a torch file inside a larger one."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layout import Checkpoint, Run, Shard, Stored, nest_of
from .torchfiles import load_structure, stored_at

# Shards of the output, as a distributed checkpoint is written as safetensors.
SHARD_BYTES = 5 * 10**9

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path", "WindowsPath"},
    "collections": {"OrderedDict"},
    "builtins": {"set", "frozenset", "getattr"},
}


class _Metadata(pickle.Unpickler):
    """Reads the metadata of a distributed checkpoint and no other class."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _ALLOWED.get(module, ()) and name != "getattr":
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def open_distributed(folder: Path) -> Checkpoint:
    """Read the metadata of a folder that `torch.distributed.checkpoint.save` wrote.

    If its tensors lie under one of the usual keys of a model's weights, those are taken without that key; optimisers
    and the like are left. The output is written as safetensors shards.

    Raises:
        ValueError: the metadata is damaged or holds foreign classes, or a file is missing or cut short.
    """
    try:
        with (folder / ".metadata").open("rb") as file:
            metadata = _Metadata(file).load()
        pieces = {
            (index.fqn, tuple(index.offset or ())): info
            for index, info in metadata.storage_data.items()
            if hasattr(info, "relative_path")
        }
        held = {name: entry for name, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")}
        paths = {name: tuple(map(str, (metadata.planner_data or {}).get(name, (name,)))) for name in held}
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(
            f"{folder / '.metadata'} cannot be read as metadata of torch.distributed.checkpoint "
            f"({type(error).__name__}: {error})"
        ) from None
    while len(paths) > 0 and (key := nest_of(path[0] for path in paths.values() if len(path) > 1)) is not None:
        paths = {name: path[1:] for name, path in paths.items() if path[0] == key and len(path) > 1}
    ends: dict[str, int] = {}
    for info in pieces.values():
        ends[str(info.relative_path)] = max(ends.get(str(info.relative_path), 0), info.offset + info.length)
    for part, end in ends.items():
        if Path(part).name != part or not (folder / part).is_file():
            raise ValueError(f"{folder / '.metadata'} names the file {part!r}, which is not in its folder")
        if (folder / part).stat().st_size < end:
            raise ValueError(f"{folder / part} is cut short: copy or save it anew")
    tensors = {".".join(path): _tensor(folder, name, held[name], pieces) for name, path in paths.items()}
    if not tensors:
        raise ValueError(f"{folder} holds no tensors")
    return Checkpoint(folder, "torch.distributed.checkpoint", tensors, *_layout(tensors))


def _tensor(folder: Path, name: str, entry: Any, pieces: dict[Any, Any]) -> Stored:
    shape, dtype = tuple(entry.size), entry.properties.dtype
    runs: list[Run] = []
    parts: list[tuple[tuple[int, ...], Stored]] = []
    for chunk in entry.chunks:
        where = tuple(chunk.offsets)
        info = pieces.get((name, where))
        if info is None:
            raise ValueError(f"{folder / '.metadata'} does not say where {name} from {where} on lies")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{name} in {folder} is stored compressed, which is not supported: save it plainly")
        part = _piece(folder, name, info)
        if part.shape != tuple(chunk.sizes) or part.dtype != dtype:
            raise ValueError(
                f"{name} in {folder}: the metadata says {dtype} {tuple(chunk.sizes)}, "
                f"the file {part.dtype} {part.shape}"
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


def _piece(folder: Path, name: str, info: Any) -> Stored:
    file = folder / str(info.relative_path)
    with file.open("rb") as raw:
        content = load_structure(_Window(raw, info.offset, info.length), f"{name} in {file}")
    if not isinstance(content, Tensor):
        raise ValueError(f"{name} in {file} is no tensor")
    return stored_at(content, file, info.offset)


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
