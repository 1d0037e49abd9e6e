"""Checkpoints as they lie on a disk: which tensors, of which dtype and shape, at which bytes of which file.

Opening a checkpoint reads headers only. Nothing is unpickled but plain data: `.pt` files go through
`torch.load(weights_only=True)`, and the metadata of `torch.distributed.checkpoint` through a list of allowed classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .layout import DTYPES, TORCH_SUFFIXES, Checkpoint, Run, Shard, Stored


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the headers of a checkpoint: a folder or a file.

    A folder is read by the first of these that it holds: a `*.safetensors.index.json`, one `.safetensors` file
    (`model.safetensors` before any other), a `*.bin.index.json`, one `.bin`, `.pt`, `.pth` or `.ckpt` file with
    weights, or the `.metadata` of `torch.distributed.checkpoint`.

    Raises:
        FileNotFoundError: there is nothing under this path.
        ValueError: what lies there is no checkpoint, or is damaged; the message names the file.

    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_file({"w": torch.ones(2, 3)}, folder / "model.safetensors")
    >>> checkpoint = open_checkpoint(folder)
    >>> checkpoint.kind, checkpoint.tensors["w"].shape, checkpoint.nbytes
    ('safetensors', (2, 3), 24)
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no checkpoint {source}")
    if source.is_file():
        return _open_file(source)
    for pattern, opener in (("*.safetensors.index.json", _safetensors), ("*.bin.index.json", _torch_files)):
        found = sorted(source.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{source} holds {len(found)} shard indices ({_few(found)}): name the folder of one")
        if found:
            return _open_sharded(source, found[0], opener)
        single = _single(source, pattern)
        if single is not None:
            return opener(source, [single], None)
    if (source / ".metadata").is_file():
        from .distributed import open_distributed

        return open_distributed(source)
    raise ValueError(
        f"{source} holds no checkpoint: wanted *.safetensors, *.bin or *.pt, a shard index, or the .metadata of "
        "torch.distributed.checkpoint"
    )


_TRAINER = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|random_states|global_step).*")


def _single(folder: Path, pattern: str) -> Path | None:
    suffixes = (".safetensors",) if "safetensors" in pattern else TORCH_SUFFIXES
    found = sorted(p for p in folder.iterdir() if p.suffix in suffixes and not _TRAINER.fullmatch(p.name))
    usual = [p for p in found if p.stem in ("model", "pytorch_model")]
    if len(usual or found) > 1:
        raise ValueError(f"{folder} holds several files with weights and no index ({_few(found)}): name one of them")
    return next(iter(usual or found), None)


def _open_file(path: Path) -> Checkpoint:
    if path.name.endswith(".index.json"):
        opener = _safetensors if path.name.endswith(".safetensors.index.json") else _torch_files
        return _open_sharded(path.parent, path, opener)
    if path.suffix == ".safetensors":
        return _safetensors(path, [path], None)
    if path.suffix in TORCH_SUFFIXES:
        return _torch_files(path, [path], None)
    raise ValueError(
        f"{path} is no checkpoint: wanted a folder, or a file {', '.join(('.safetensors', *TORCH_SUFFIXES))}"
    )


def _open_sharded(folder: Path, index: Path, opener: Callable[..., Checkpoint]) -> Checkpoint:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map = dict(content["weight_map"])
        names = list(dict.fromkeys(map(str, weight_map.values())))
        if not names:
            raise ValueError("it names no shards")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no shard index ({type(error).__name__}: {error}): save the model anew") from None
    strangers = [name for name in names if Path(name).name != name or name in (".", "..")]
    if strangers:
        raise ValueError(f"{index} names files outside its folder: {strangers[:3]}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names shards that are not there: {missing[:5]}")
    opened = opener(folder, [folder / name for name in names], (index.name, content))
    place = {name: shard.file for shard in opened.shards for name in shard.names}
    wrong = [name for name in {**weight_map, **place} if place.get(name) != weight_map.get(name)]
    if wrong:
        raise ValueError(f"{index} and its shards disagree on where {wrong[:5]} lie: save the model anew")
    return opened


def _safetensors(path: Path, files: list[Path], index: tuple[str, Mapping[str, Any]] | None) -> Checkpoint:
    tensors: dict[str, Stored] = {}
    shards, state = [], None
    for file in files:
        metadata, own = _safetensors_header(file)
        if metadata and "lowland" in metadata:
            state, own = _state(file, metadata["lowland"], own)
            metadata = None
        shards.append(Shard(file.name, tuple(own), metadata))
        tensors |= _new(own, tensors, file)
    kind = "sharded safetensors" if index else "safetensors"
    kind = f"lowland {state['class']}" if state else "adapter" if "adapter_config.json" in _beside(path) else kind
    return Checkpoint(path, kind, tensors, tuple(shards), index, state)


def _beside(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()} if path.is_dir() else set()


def _safetensors_header(file: Path) -> tuple[dict[str, str] | None, dict[str, Stored]]:
    try:
        with safe_open(file, framework="pt") as checked:  # refuses wrong lengths, holes and overlaps
            metadata = checked.metadata()
        with file.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}): copy or save it anew") from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} in {file} is of type {entry['dtype']}, which is not supported")
        shape = tuple(entry["shape"])
        run = Run(file, 8 + size + entry["data_offsets"][0], 0, prod(shape))
        tensors[name] = Stored(DTYPES[entry["dtype"]], shape, (run,))
    return metadata, tensors


def _state(file: Path, text: str, own: Mapping[str, Stored]) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The average that a lowland state file holds, under the tensors' own names."""
    try:
        header = json.loads(text)
        slot = "weights" if header["class"] == "weights" else "mean"
        if header["class"] != "weights" and "mean" not in header["slots"]:
            raise KeyError("mean")
        names = [str(name) for name in header["names"]]
        tensors = {name: own[f"{slot}/{name}"] for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is a lowland state without one average ({type(error).__name__}: {error}): load it with "
            "lowland.load and save the weights that you want"
        ) from None
    return header, tensors


def _torch_files(path: Path, files: list[Path], index: tuple[str, Mapping[str, Any]] | None) -> Checkpoint:
    from .torchfiles import read_torch_header

    tensors: dict[str, Stored] = {}
    shards = []
    for file in files:
        under, own = read_torch_header(file)
        shards.append(Shard(file.name, tuple(own), under=under, torch=True))
        tensors |= _new(own, tensors, file)
    return Checkpoint(path, "sharded torch files" if index else "torch file", tensors, tuple(shards), index)


def _new(own: Mapping[str, Stored], tensors: Mapping[str, Stored], file: Path) -> Mapping[str, Stored]:
    twice = [name for name in own if name in tensors]
    if twice:
        raise ValueError(f"{file} holds tensors that another shard holds too: {twice[:5]}")
    return own


def _few(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:4])
    return shown if len(paths) <= 4 else f"{shown}, ..."
