"""What a file or folder holds, from its headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files.header import header_of
from .adapters import read_config
from .layout import Checkpoint
from .sources import open_checkpoint


def describe(path: str | Path, *, key: str | None = None) -> dict[str, Any]:
    """Return plain data that says what a checkpoint or a state file holds; no tensor is read.

    Always `class`, `bytes` and `parts`. A part of a state has its class, updates, tensors, numbers, bytes and
    hyper-parameters; a checkpoint's parts are its files.

    Raises:
        FileNotFoundError: there is nothing under this path.
        ValueError: what lies there is no checkpoint and no state, or is damaged.

    >>> import tempfile, torch, lowland
    >>> file = Path(tempfile.mkdtemp()) / "average.safetensors"
    >>> average = lowland.SWA()
    >>> average.update({"w": torch.ones(2, 3)})
    >>> lowland.save(average, file)
    >>> described = describe(file)
    >>> described["class"], described["parts"][0]["updates"], described["parts"][0]["numbers"]
    ('SWA', 1, 6)
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    state = _state(source) if source.suffix == ".safetensors" and source.is_file() else None
    return state or _checkpoint(source, key)


def _state(source: Path) -> dict[str, Any] | None:
    try:
        with safe_open(source, framework="pt") as file:
            header = header_of(file.metadata())
            if header is None:
                return None
            slices = {key: file.get_slice(key) for key in file.keys()}
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            types = {key: str(part.get_dtype()) for key, part in slices.items()}
        parts = list(_parts(header, "", shapes, types))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is no whole safetensors file of lowland ({error}): write it anew") from None
    return {
        "class": header["class"],
        "bytes": sum(part["bytes"] for part in parts),
        "version": header.get("version"),
        "parts": parts,
    }


_BITS = {"BOOL": 8, "BF16": 16}


def _parts(header: Mapping[str, Any], prefix: str, shapes: Mapping[str, Any], types: Mapping[str, str]) -> Any:
    if "components" in header:
        for place, part in enumerate(header["components"]):
            yield from _parts(part, f"{prefix}{place}/", shapes, types)
        return
    slots = ["weights"] if header["class"] == "weights" else header["slots"]
    names = header["names"]
    keys = [f"{prefix}{slot}/{name}" for slot in slots for name in names]
    yield {
        "class": header["class"],
        "updates": header.get("count"),
        "tensors": len(names),
        "numbers": sum(prod(shapes[f"{prefix}{slots[0]}/{name}"]) for name in names) if slots else 0,
        "bytes": sum(prod(shapes[key]) * _itemsize(types[key]) for key in keys),
        "settings": header.get("settings", {}),
    }


def _itemsize(dtype: str) -> int:
    return _BITS.get(dtype, int("".join(filter(str.isdigit, dtype.split("_")[0])) or 8)) // 8


def _checkpoint(source: Path, key: str | None) -> dict[str, Any]:
    checkpoint = open_checkpoint(source, key=key)
    types: Counter[str] = Counter()
    for stored in checkpoint.tensors.values():
        types[_short(stored.dtype)] += stored.numel
    config = read_config(source)
    shown = ("peft_type", "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "base_model_name_or_path")
    return {
        "class": checkpoint.kind,
        "bytes": checkpoint.nbytes,
        "tensors": len(checkpoint.tensors),
        "numbers": dict(types),
        "tied": [list(group) for group in checkpoint.ties()],
        "parts": _files(checkpoint),
        "names": {n: {"dtype": _short(s.dtype), "shape": list(s.shape)} for n, s in checkpoint.tensors.items()},
        "left": [{"name": left.name, "tensors": left.tensors, "why": left.why} for left in checkpoint.left],
        **({"adapter": {k: config[k] for k in shown if config.get(k) is not None}} if config else {}),
    }


def _files(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The files in which the tensors lie: of a distributed checkpoint its own, not those of an average."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if all((folder / shard.file).is_file() for shard in checkpoint.shards):
        return [
            {
                "file": shard.file,
                "tensors": len(shard.names),
                "bytes": sum(checkpoint.tensors[name].nbytes for name in shard.names),
            }
            for shard in checkpoint.shards
        ]
    held: dict[str, dict[str, int]] = {}
    for stored in checkpoint.tensors.values():
        for file in {run.path.name for run in stored.runs}:
            own = held.setdefault(file, {"tensors": 0, "bytes": 0})
            own["tensors"] += 1
            own["bytes"] += sum(run.length * stored.dtype.itemsize for run in stored.runs if run.path.name == file)
    return [{"file": file, **numbers} for file, numbers in sorted(held.items())]


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
