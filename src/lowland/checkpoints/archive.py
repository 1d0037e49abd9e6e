"""The zip archive of `torch.save`: its structure, and the bytes at which each storage lies.

One record holds a pickle of the structure, the others a storage each. Places are taken from the archive's directory, as
`torch.load` takes them; a record that is compressed, is missing or has another length than its storage is refused.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickles import Global, Object, loads

_STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    **{"Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64},
}
_BEFORE_16 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Storage:
    """A storage in the archive: its record, its type unless it holds plain bytes, and its length in elements."""

    key: str
    dtype: torch.dtype | None
    numel: int


@dataclass(frozen=True, eq=False)
class View:
    """A tensor in the archive; `strange` says in words why it is none that can be read."""

    storage: Storage | None
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    strange: str = ""


@dataclass(frozen=True)
class Archive:
    """What an archive holds, and where its storages lie in the file: offset and bytes by record."""

    content: Any
    places: dict[str, tuple[int, int]]


def read_archive(file: BinaryIO, what: str) -> Archive:
    """Read the structure of an archive; no storage is read and nothing is run.

    Raises:
        ValueError: it is no whole archive of torch, or of a kind that cannot be read in place.
    """
    try:
        return _read(file)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None
    except (
        OSError,
        RuntimeError,
        NotImplementedError,
        EOFError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"{what} cannot be read as plain tensors: a damaged archive ({error}); copy it again"
        ) from None


def _read(file: BinaryIO) -> Archive:
    file.seek(0)
    head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError("is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`")
    if head.startswith(_BEFORE_16) or head[:1] == b"\x80":
        raise ValueError(
            "cannot be read as plain tensors: it is in the format of torch before 1.6; load it and save it again with "
            "torch.save"
        )
    if not head:
        raise ValueError("cannot be read as plain tensors: it is empty; copy it again")
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        if head.startswith(b"PK\x03\x04"):
            raise ValueError("cannot be read as plain tensors: it is cut short; copy it again") from None
        raise ValueError("cannot be read as plain tensors: no file of torch.save; use that or safetensors") from None
    with archive:
        return _opened(file, archive)


def _opened(file: BinaryIO, archive: zipfile.ZipFile) -> Archive:
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in records:
            raise ValueError(f"cannot be read as plain tensors: it holds the record {info.filename!r} twice")
        records[info.filename] = info
    found = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise ValueError("cannot be read as plain tensors: it is no archive of torch.save; save a state_dict() with it")
    root = found[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records or any(name.startswith(f"{root}code/") for name in records):
        raise ValueError("cannot be read as plain tensors: it is a TorchScript program; save its state_dict()")
    order = _small(file, records, f"{root}byteorder")
    if order not in (None, b"little"):
        raise ValueError(
            f"cannot be read as plain tensors: its byte order is {order[:12]!r}, wanted little; load it with torch and "
            "save it again on this machine"
        )
    structure = _small(file, records, f"{root}data.pkl") or b""
    used: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        storage = _storage(identity)
        if used.setdefault(storage.key, storage) != storage:
            raise ValueError("a pickle that gives one storage two types")
        return storage

    try:
        content = loads(structure, persistent=persistent, make=_rebuilt)
    except ValueError as error:
        raise ValueError(f"cannot be read as plain tensors: {error}") from None
    places = {}
    for key, storage in used.items():
        record = records.get(f"{root}data/{key}")
        if record is None:
            raise ValueError(
                f"cannot be read as plain tensors: the record of storage {key!r} is missing; copy it again"
            )
        nbytes = storage.numel * (storage.dtype.itemsize if storage.dtype else 1)
        offset = _place(file, record)
        if record.file_size != nbytes:
            raise ValueError(
                f"cannot be read as plain tensors: the record of storage {key!r} has {record.file_size} bytes, wanted "
                f"{nbytes}; it is damaged"
            )
        places[key] = (offset, nbytes)
    return Archive(content, places)


def _place(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin; the record must be stored as it is."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise ValueError(
            "cannot be read as plain tensors: it was packed again with compression; load it with torch and save it anew"
        )
    file.seek(info.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise ValueError(f"cannot be read as plain tensors: the record {info.filename!r} is not where it should be")
    begin: int = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
    file.seek(0, 2)
    if begin + info.file_size > file.tell():
        raise ValueError("cannot be read as plain tensors: it is cut short; copy it again")
    return begin


def _small(file: BinaryIO, records: dict[str, zipfile.ZipInfo], name: str) -> bytes | None:
    info = records.get(name)
    if info is None:
        return None
    file.seek(_place(file, info))
    return file.read(info.file_size)


def _storage(identity: Any) -> Storage:
    kind, of, key, _, numel = identity
    if (
        kind != "storage"
        or not isinstance(of, Global)
        or not isinstance(key, str)
        or type(numel) is not int
        or numel < 0
    ):
        raise TypeError
    name = of.name.removeprefix("torch.storage.").removeprefix("torch.").removeprefix("cuda.")
    if name == "UntypedStorage":
        return Storage(key, None, numel)
    dtype = _STORAGES.get(name.removesuffix("Storage"))
    if dtype is None:
        raise ValueError(f"a storage of the type {of.name}, which cannot be averaged")
    return Storage(key, dtype, numel)


def _rebuilt(name: str, arguments: tuple[Any, ...]) -> Any:
    """Make a view of a call that rebuilds a tensor."""
    call = name.removeprefix("torch._utils.").removeprefix("torch._tensor.")
    if call in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return arguments[0]
    if call == "_rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        return _view(storage, storage.dtype, offset, shape, stride)
    if call == "_rebuild_tensor_v3":
        storage, offset, shape, stride, _, _, dtype = arguments[:7]
        return _view(storage, dtype_of(dtype), offset, shape, stride)
    if call.startswith("_rebuild_") or call == "_rebuild_from_type_v2":
        kind = call.removeprefix("_rebuild_").removesuffix("_no_storage").replace("_", " ")
        if call == "_rebuild_from_type_v2" and len(arguments) > 1 and isinstance(arguments[1], Global):
            kind = arguments[1].name
            if arguments[1].name in ("torch.nn.parameter.Parameter", "torch.Tensor", "torch.nn.parameter.Buffer"):
                return _rebuilt(arguments[0].name, arguments[2])
        return View(None, torch.float32, 0, (), (), kind)
    return None


def dtype_of(value: Any) -> torch.dtype:
    """Return the dtype that a stand-in names."""
    dtype = getattr(torch, value.name.removeprefix("torch."), None) if isinstance(value, Global) else None
    if not isinstance(dtype, torch.dtype):
        raise TypeError
    return dtype


def _view(storage: Any, dtype: torch.dtype | None, offset: Any, shape: Any, stride: Any) -> View:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or dtype is None or len(shape) != len(stride):
        raise TypeError
    if any(type(number) is not int or number < 0 or number >= 1 << 62 for number in numbers) or len(shape) > 64:
        raise TypeError
    size = storage.numel * (storage.dtype.itemsize if storage.dtype else 1)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if prod(shape) else offset - 1
    if (last + 1) * dtype.itemsize > size:
        raise ValueError("a tensor that reaches beyond its storage")
    return View(storage, dtype, offset, tuple(shape), tuple(stride))


def is_contiguous(view: View) -> bool:
    """Return whether the elements of a view lie side by side in their order."""
    wanted = 1
    for n, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if n != 1 and step != wanted:
            return not prod(view.shape)
        wanted *= n
    return True


def held_tensors(value: Any) -> int:
    """Return how many different tensors a value holds, at any depth.

    >>> held_tensors({"state": [Object("x", state={"a": View(None, torch.float32, 0, (), ())})]})
    1
    """
    seen: set[int] = set()
    found = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list | tuple | set | frozenset | Object | View):
            if id(item) in seen:
                continue
            seen.add(id(item))
        if isinstance(item, View | Tensor):
            found += 1
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
        elif isinstance(item, Object):
            waiting += [item.args, item.state, item.items]
    return found
