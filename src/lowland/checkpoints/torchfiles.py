"""Files of `torch.save`: where their tensors lie, and writing one without holding its tensors.

A torch file is an uncompressed zip archive with one record a storage. `torch.load` under fake tensors returns the
structure with each storage's offset and reads no data; `torch.serialization.skip_data` writes the structure and leaves
the room of each storage open.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .layout import NESTS, Run, Stored, nest_of


def read_torch_header(path: Path) -> tuple[tuple[str, ...], dict[str, Stored]]:
    """Return the keys that lead to the weights, and the weights' places by name.

    The weights are the file's mapping if its values are tensors only, else the mapping under the first of the keys
    `state_dict`, `model_state_dict`, `model`, `module`, `weights`, `net` that is there, and so on inside it.

    Raises:
        ValueError: the file is damaged, holds code, is of torch before 1.6, or holds no such mapping.
    """
    content: Any = load_structure(path, str(path))
    under: tuple[str, ...] = ()
    while isinstance(content, Mapping) and not _only_tensors(content):
        key = nest_of(key for key, value in content.items() if isinstance(value, Mapping))
        if key is None:
            break
        under, content = (*under, key), content[key]
    if not isinstance(content, Mapping) or not _only_tensors(content):
        held = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{path} holds no mapping of names to tensors, at its top or under one of {', '.join(NESTS)}: got {held}"
        )
    return under, {str(name): stored_at(tensor, path, 0) for name, tensor in content.items()}


def load_structure(file: Any, what: str) -> Any:
    """Return what `torch.load` gives, with fake tensors whose storages know their offset; no data is read."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and torch have no common class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{what} cannot be read as plain tensors ({type(error).__name__}: {reason}): save a state_dict() with "
            "torch.save, or use safetensors"
        ) from None


def stored_at(tensor: Tensor, path: Path, base: int) -> Stored:
    """Return the place of a fake tensor from `load_structure`; `base` is where its archive begins in the file."""
    storage = tensor.untyped_storage()
    offset = getattr(storage, "_checkpoint_offset", None)
    if offset is None:
        raise ValueError(f"{path} is in the format of torch before 1.6: load it and save it again with torch.save")
    begin = base + int(offset)
    place = begin + int(tensor.storage_offset()) * tensor.dtype.itemsize
    if begin + storage.nbytes() > path.stat().st_size:
        raise ValueError(f"{path} is cut short: copy or save it anew")
    shape = tuple(tensor.shape)
    if tensor.is_contiguous():
        return Stored(tensor.dtype, shape, (Run(path, place, 0, tensor.numel()),))
    dtype, stride, first = tensor.dtype, tensor.stride(), int(tensor.storage_offset())
    length = storage.nbytes()

    def whole() -> Tensor:
        with path.open("rb") as file:
            file.seek(begin)
            flat = torch.frombuffer(bytearray(file.read(length)), dtype=dtype)
        return flat.as_strided(shape, stride, first).contiguous()

    return Stored(dtype, shape, (), whole)


def _only_tensors(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def write_torch_skeleton(
    path: Path, like: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], ties: Mapping[str, str], under: tuple[str, ...]
) -> dict[str, int]:
    """Write a torch file with room for tensors, and return each one's offset in bytes.

    Args:
        ties: names whose tensor is that of another name.
    """
    tensors: dict[str, Tensor] = {}
    # Untouched memory: the system gives pages only when they are written.
    for name, (dtype, shape) in like.items():
        tensors[name] = tensors[ties[name]] if name in ties else torch.empty(shape, dtype=dtype)
    content: Any = tensors
    for key in reversed(under):
        content = {key: content}
    with torch.serialization.skip_data():
        torch.save(content, path)
    _, places = read_torch_header(path)
    return {name: place.runs[0].offset for name, place in places.items()}


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
