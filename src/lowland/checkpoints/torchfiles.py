"""Files of `torch.save`: where their tensors lie, and writing one without holding its tensors.

A torch file is an uncompressed zip archive with one record a storage. `torch.serialization.skip_data` writes its
structure and leaves the room of each storage open.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .archive import Archive, View, held_tensors, is_contiguous, read_archive
from .layout import NESTS, Left, Run, Stored, nest_of, of_training
from .pickles import Object, is_plain, strangers


@dataclass(frozen=True)
class Opened:
    """What a torch file holds, seen from its weights.

    Args:
        under: keys that lead to the weights. carried: plain data beside and among them, by the keys that lead to it.
        left: what else is there.
    """

    under: tuple[str, ...]
    tensors: dict[str, Stored]
    carried: dict[tuple[str, ...], Any]
    left: tuple[Left, ...]


def read_torch_header(path: Path, key: str | None = None) -> Opened:
    """Return the weights of a torch file, their places, and what lies beside them.

    The weights are those under `key`, in which dots lead from one mapping to the next. Without one they are those under
    the first of the keys `state_dict`, `model_state_dict`, `model`, `module`, `weights`, `net` that holds tensors, and
    so on inside it; without such a key, the tensors at the top.

    Raises:
        ValueError: the file is damaged, would run commands, is of torch before 1.6, or holds no such mapping.
    """
    with path.open("rb") as file:
        archive = read_archive(file, str(path))
    content: Any = archive.content
    chosen = _chosen(path, content, key)
    carried: dict[tuple[str, ...], Any] = {}
    left: list[Left] = []
    for place, name in enumerate(chosen):
        _beside(content, name, chosen[:place], carried, left, path)
        content = content[name]
    tensors: dict[str, Stored] = {}
    for name, value in content.items():
        if isinstance(value, View):
            if str(name) in tensors:
                raise ValueError(f"{path} holds two tensors by the name {name}: rename one of them")
            tensors[str(name)] = _stored(value, str(name), path, archive)
        else:
            _other((*chosen, name), value, carried, left, path)
    return Opened(chosen, tensors, carried, tuple(left))


def _chosen(path: Path, content: Any, key: str | None) -> tuple[str, ...]:
    """The keys that lead to the weights."""
    if isinstance(content, Object):
        raise ValueError(
            f"{path} cannot be read as plain tensors: it is a pickled {content.name}; load it in the code that it "
            "comes from and save its state_dict()"
        )
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping of names to tensors: got a {type(content).__name__}")
    if key is not None:
        under = _along(content, key)
        if under is None:
            raise ValueError(f"{path} has no weights under the key {key!r}: it has {_keys(content)}")
        return under
    under = ()
    while (name := _next(content)) is not None:
        under, content = (*under, name), content[name]
    if any(isinstance(value, View) for value in content.values()):
        return under
    models = _models(content)
    advice = f"; name one of its mappings: --key {models[0]} (of {models[:6]})" if models else ""
    raise ValueError(
        f"{path} holds no mapping of names to tensors, at its top or under one of {', '.join(NESTS)}: got "
        f"{_keys(content)}{advice}"
    )


def _next(content: dict[Any, Any]) -> str | None:
    """The key that leads on to the weights: one of the usual, or the only mapping with tensors that is a model's."""
    usual = nest_of(key for key, value in content.items() if isinstance(value, dict) and held_tensors(value))
    if usual is not None or any(isinstance(value, View) for value in content.values()):
        return usual
    models = _models(content)
    return models[0] if len(models) == 1 else None


def _models(content: dict[Any, Any]) -> list[str]:
    return [
        key
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, dict) and not of_training(key) and held_tensors(value)
    ]


def _along(content: Any, key: str) -> tuple[str, ...] | None:
    """The keys along a dotted one; a key of a mapping may have dots of its own."""
    if not isinstance(content, dict):
        return None
    if key in content and isinstance(content[key], dict):
        own = content[key]
        return (key,) if any(isinstance(value, View) for value in own.values()) else None
    for name in content:
        if isinstance(name, str) and key.startswith(f"{name}."):
            rest = _along(content[name], key[len(name) + 1 :])
            if rest is not None:
                return (name, *rest)
    return None


def _keys(content: dict[Any, Any]) -> list[str]:
    return sorted(map(str, content))[:8]


def _beside(
    content: dict[Any, Any], chosen: str, under: tuple[str, ...], carried: Any, left: list[Left], path: Path
) -> None:
    for name, value in content.items():
        if name != chosen:
            _other((*under, name), value, carried, left, path)


def _other(keys: tuple[Any, ...], value: Any, carried: Any, left: list[Left], path: Path) -> None:
    """Enter what is no weight among what is carried along or left."""
    name = ".".join(map(str, keys))
    count = held_tensors(value)
    if not count and is_plain(value) and not _RUN.fullmatch(str(keys[-1])) and all(type(key) is str for key in keys):
        carried[keys] = value
        return
    if count:
        maps = isinstance(value, dict) and any(isinstance(part, View) for part in value.values())
        training = of_training(str(keys[-1]))
        why = "training state" if training else f"--key {name} takes it" if maps else "beside the weights"
    else:
        named = strangers(value)
        why = f"holds {', '.join(named[:3])}, which is not read" if named else "of the run that wrote it"
    left.append(Left(name, count, why, path.name))


# Of the run that wrote a file rather than of the model. Hyper-parameters, versions, epochs and steps are kept.
_RUN = re.compile(
    r"loops|callbacks|lr_schedulers|.*optimizers?(_states?)?|.*scheduler.*|.*rng.*|.*random_state.*", re.I
)


def _stored(view: View, name: str, path: Path, archive: Archive) -> Stored:
    if view.storage is None:
        raise ValueError(
            f"{name} in {path} is a tensor of the kind {view.strange!r}, which cannot be averaged: save it as a plain "
            "tensor"
        )
    begin, length = archive.places[view.storage.key]
    return stored_at(view, path, begin, length)


def read_piece(file: BinaryIO, path: Path, base: int, what: str) -> Stored:
    """Return the place of the one tensor of an archive that begins `base` bytes into the file at `path`."""
    archive = read_archive(file, what)
    view = archive.content
    if not isinstance(view, View) or view.storage is None:
        raise ValueError(f"{what} is no plain tensor")
    begin, length = archive.places[view.storage.key]
    return stored_at(view, path, base + begin, length)


_EXPANDED = 1 << 30  # bytes of a view that is longer than its storage


def stored_at(view: View, path: Path, begin: int, length: int) -> Stored:
    """Return the place of a tensor whose storage has `length` bytes from byte `begin` on."""
    dtype, shape, stride, first = view.dtype, view.shape, view.stride, view.offset
    if is_contiguous(view):
        return Stored(dtype, shape, (Run(path, begin + first * dtype.itemsize, 0, prod(shape)),))
    if prod(shape) * dtype.itemsize > max(length, _EXPANDED):
        raise ValueError(f"{path} holds a tensor {shape} over {length} bytes: save it as a tensor of its own")

    def whole() -> Tensor:
        with path.open("rb") as file:
            file.seek(begin)
            flat = torch.frombuffer(bytearray(file.read(length)), dtype=dtype)
        return flat.as_strided(shape, stride, first).contiguous()

    return Stored(dtype, shape, (), whole)


def write_torch_skeleton(
    path: Path,
    like: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    ties: Mapping[str, str],
    under: tuple[str, ...],
    carried: Mapping[tuple[str, ...], Any],
) -> dict[str, int]:
    """Write a torch file with room for tensors, and return each one's offset in bytes.

    Args:
        ties: names whose tensor is that of another name. carried: plain data, by the keys that lead to it.
    """
    tensors: dict[str, Tensor] = {}
    # Untouched memory: the system gives pages only when they are written.
    for name, (dtype, shape) in like.items():
        tensors[name] = tensors[ties[name]] if name in ties else torch.empty(shape, dtype=dtype)
    content: Any = tensors
    for key in reversed(under):
        content = {key: content}
    for keys, value in carried.items():
        home: Any = content
        for key in keys[:-1]:
            home = home.setdefault(key, {})
        home.setdefault(keys[-1], value)
    with torch.serialization.skip_data():
        torch.save(content, path)
    with path.open("rb") as file:
        archive = read_archive(file, str(path))
    held: Any = archive.content
    for key in under:
        held = held[key]
    return {name: archive.places[held[name].storage.key][0] for name in like}


def mend_checksums(path: Path) -> None:
    """Write the CRC-32 of every record into the archive: torch does not look, other readers of zip files do."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.header_offset, info.file_size) for info in archive.infolist()]
        central = archive.start_dir
    with path.open("r+b") as file:
        for header, size in records:
            file.seek(header)
            local = file.read(30)
            begin = header + 30 + sum(struct.unpack("<HH", local[26:30]))
            crc = _crc(file, begin, size)
            if local[6] & 8:  # the checksum stands after the data, with or without its signature
                file.seek(begin + size)
                shift = 4 if file.read(4) == b"PK\x07\x08" else 0
                _put(file, begin + size + shift, crc)
            else:
                _put(file, header + 14, crc)
            file.seek(central)
            entry = file.read(46)
            _put(file, central + 16, crc)
            central += 46 + sum(struct.unpack("<HHH", entry[28:34]))
        file.flush()
        os.fsync(file.fileno())


def _crc(file: BinaryIO, begin: int, size: int) -> int:
    file.seek(begin)
    crc = 0
    while size > 0:
        block = file.read(min(size, 1 << 22))
        if not block:
            raise ValueError("a record of the archive ends early")
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def _put(file: BinaryIO, where: int, crc: int) -> None:
    file.seek(where)
    file.write(struct.pack("<I", crc))
