"""Inputs that lie elsewhere: addresses that fsspec reads, and names on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from . import screen

_HUB = "hf://"
# What a merge reads and copies; what belongs to other frameworks or to the trainer stays where it is.
_LEFT_THERE = ("*.h5", "*.msgpack", "*.onnx", "*.gguf", "optimizer*", "rng_state*", "scheduler.pt", "*.tflite")


def local(inputs: Sequence[str]) -> list[str]:
    """Return inputs as paths on this machine: what lies elsewhere is fetched once, below the cache folder.

    `hf://organisation/name` and `hf://organisation/name@revision` are models on the hub; every other address with `://`
    is read by fsspec, a folder with all that lies in it.

    Raises:
        ImportError: the package that reads such addresses is not there.
        FileNotFoundError: there is nothing under an address.
        ValueError: a name of the hub has no organisation.

    >>> local(["runs/checkpoint-*"])
    ['runs/checkpoint-*']
    """
    return [_fetched(item) if "://" in item else item for item in inputs]


def _fetched(item: str) -> str:
    return _from_hub(item) if item.startswith(_HUB) else _from_fsspec(item)


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowland" / "remote"


def _from_hub(item: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(f"{item} is read by huggingface_hub: pip install 'lowland[remote]'") from None
    name, _, revision = item.removeprefix(_HUB).partition("@")
    if name.count("/") != 1:
        raise ValueError(f"a model on the hub is hf://organisation/name, with @revision if you like; got {item}")
    screen.err.print(f"fetching {item}", highlight=False, markup=False)
    return str(snapshot_download(name, revision=revision or None, ignore_patterns=list(_LEFT_THERE)))


def _from_fsspec(item: str) -> str:
    try:
        fsspec: Any = import_module("fsspec")
    except ImportError:
        raise ImportError(
            f"{item} is read by fsspec: pip install 'lowland[remote]', and what its scheme wants"
        ) from None
    files, path = fsspec.core.url_to_fs(item)
    from ..files.replacing import put

    if not files.exists(path):
        raise FileNotFoundError(f"there is nothing under {item}")
    key = hashlib.blake2b(item.encode(), digest_size=8).hexdigest()
    target = _home() / key / path.rstrip("/").rsplit("/", 1)[-1]
    names = [path] if files.isfile(path) else sorted(files.find(path))
    for name in names:
        inside = name[len(path) :].lstrip("/")
        if ".." in inside.split("/"):
            raise ValueError(f"{item} names a file outside its folder: {inside}")
        own = target / inside if inside else target
        size = files.size(name)
        if own.is_file() and size is not None and own.stat().st_size == size:
            continue
        own.parent.mkdir(parents=True, exist_ok=True)
        screen.err.print(f"fetching {item}: {inside or own.name}", highlight=False, markup=False)
        part = own.with_name(f".{own.name}.part")
        files.get_file(name, str(part))
        put(part, own)
    return str(target)
