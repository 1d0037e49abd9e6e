"""State files: one safetensors file an object, written atomically, never unpickled.

The header carries, as JSON under the key `lowland`, the class, the hyper-parameters, the counts and the version of the
library; tensors are named `slot/name`, and those of a mixture's components `0/slot/name`, `1/slot/name` and so on.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .averager import COMPOSITES, KINDS, Averager, Composite, Drawable
from .weights import Weights, select_from, select_name

FORMAT = 1


def save(obj: Averager | Composite | Weights, path: str | os.PathLike[str]) -> None:
    """Write an averager, a mixture or bare weights to one safetensors file.

    The file is written beside its destination, flushed to disk and renamed: a crash leaves the old file or the new one.

    Raises:
        ValueError: the object cannot be saved; the message says what can.
        OSError: the folder does not exist or the disk is full; the old file, if any, is untouched.

    >>> import lowland, torch
    >>> average = lowland.SWA()
    >>> average.update({"w": torch.ones(2)})
    >>> path = Path(tempfile.mkdtemp()) / "average.safetensors"
    >>> save(average, path)
    >>> load(path)
    SWA(select=parameters) after 1 updates
    """
    header, tensors = _pack(obj, "")
    header |= {"format": FORMAT, "version": _version()}
    target = Path(path)
    if not target.parent.is_dir():
        raise OSError(f"cannot write {target}: the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise OSError(f"cannot write {target}: it is a folder; name a file in it")
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OSError(
            f"cannot write {target}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free; "
            "make room or choose another disk"
        )
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, name, metadata={"lowland": json.dumps(header)})
        _flush(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
        _flush(target.parent)
    except SafetensorError as error:
        raise OSError(f"cannot write {target}: {error}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def load(path: str | os.PathLike[str], **given: Any) -> Any:
    """Read what `save` wrote: an averager that goes on where it stopped, a mixture, or a dictionary of tensors.

    Args:
        given: constructor arguments that no file can hold, such as `score=` of ASWA, or that you want otherwise:
            `device=`, `select=`, `check_finite=`. Hyper-parameters come from the file.

    Raises:
        ValueError: the file is truncated, foreign or damaged, or of a class that is not known.
        FileNotFoundError: there is no such file.

    >>> import torch
    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save({"w": torch.ones(2)}, path)
    >>> load(path)
    {'w': tensor([1., 1.])}
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{source} is no whole safetensors file ({error}): write it anew with lowland.save") from None
    try:
        header = json.loads(metadata["lowland"])
    except (KeyError, json.JSONDecodeError):
        raise ValueError(
            f"{source} is a safetensors file but not one of lowland.save; read it with safetensors.torch.load_file"
        ) from None
    try:
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, this version reads {FORMAT}")
        return _unpack(header, tensors, given)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source} cannot be read as a lowland state: {error}") from None


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
        state = obj.state_dict()
        slots = state.pop("slots")
        order = list(next(iter(slots.values()), {}))
        tensors = {f"{prefix}{slot}/{name}": t for slot, named in slots.items() for name, t in named.items()}
        header = {**state, "select": select_name(obj.select), "slots": list(slots), "names": order}
        return header, {key: t.contiguous() for key, t in tensors.items()}
    if isinstance(obj, Mapping):
        # A clone each: views of one storage cannot be written side by side.
        tensors = {f"{prefix}weights/{name}": t.detach().clone().contiguous() for name, t in obj.items()}
        return {"class": "weights", "names": list(obj)}, tensors
    raise ValueError(
        f"save takes an averager, a Mixture of such, or a mapping of named tensors, got {type(obj).__name__}"
    )


def _unpack(header: dict[str, Any], tensors: dict[str, Tensor], given: dict[str, Any], prefix: str = "") -> Any:
    kind = header["class"]
    if kind in COMPOSITES:
        parts = enumerate(header["components"])
        return COMPOSITES[kind]([_unpack(part, tensors, given, f"{prefix}{index}/") for index, part in parts])
    if kind == "weights":
        return {name: tensors[f"{prefix}weights/{name}"] for name in header["names"]}
    if kind not in KINDS:
        raise ValueError(f"it holds a {kind!r}, known are {sorted(KINDS)}: import the module that defines it first")
    slots = {slot: {name: tensors[f"{prefix}{slot}/{name}"] for name in header["names"]} for slot in header["slots"]}
    first = next(iter(slots.values()), {})
    averager = KINDS[kind].build(header["settings"], **{"select": select_from(header["select"], first), **given})
    averager.load_state_dict({**{k: header[k] for k in ("class", "count", "settings", "scalars")}, "slots": slots})
    return averager


def _flush(path: Path) -> None:
    """Ask the system to put a file's or a folder's content on the disk before we rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lowland")
    except PackageNotFoundError:
        return "unknown"
