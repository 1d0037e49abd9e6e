"""Checkpoints as they lie on a disk: which tensors, of which dtype and shape, at which bytes of which file.

Opening a checkpoint reads headers only, and runs nothing: pickled structure is read by a machine that knows no code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files.header import KEY, header_of
from .folders import STEP, below, chosen, is_weights, pipeline, with_parts
from .layout import DTYPES, TORCH_SUFFIXES, Checkpoint, Left, Run, Shard, Stored, is_torch_file, of_training


def open_checkpoint(
    path: str | Path, *, key: str | None = None, keep: Sequence[str] = (), drop: Sequence[str] = ()
) -> Checkpoint:
    """Read the headers of a checkpoint: a folder or a file.

    A folder is read by the first of these that it holds: a `*.safetensors.index.json`, one `.safetensors` file
    (`model.safetensors` before any other), the `.metadata` of `torch.distributed.checkpoint`, a `*.bin.index.json`, one
    `.bin`, `.pt`, `.pth` or `.ckpt` file with weights. Further models of the folder are parts of the checkpoint:
    `model_1`, sub-folders that `modules.json` or `model_index.json` names, further adapters. What else holds tensors is
    named in `left`.

    Args:
        key: under which the weights lie in a torch file, a distributed checkpoint or the names of a safetensors file,
            with dots from one mapping to the next; None looks for the usual ones.
        keep, drop: patterns such as `decoder.*`: only tensors that fit one of `keep`, and none that fit one of `drop`.

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
    opened = _open_file(source, key) if source.is_file() else _open_folder(source, key)
    asked = {"key": key, "keep": list(keep), "drop": list(drop)}
    return replace(
        chosen(opened, tuple(keep), tuple(drop)), asked={option: value for option, value in asked.items() if value}
    )


def _open_folder(source: Path, key: str | None) -> Checkpoint:
    main = _main(source, key)
    if main is not None:
        return with_parts(main, lambda path: _part(path, key))
    whole = pipeline(source, lambda path: _part(path, key))
    if whole is not None:
        return whole
    held = below(source)
    advice = f"; its sub-folders do: {', '.join(held[:4])}: name {source}/* or one of them" if held else ""
    raise ValueError(
        f"{source} holds no checkpoint: wanted *.safetensors, *.bin or *.pt, a shard index, or the .metadata of "
        f"torch.distributed.checkpoint{advice}"
    )


def _part(path: Path, key: str | None) -> Checkpoint:
    return _open_file(path, key) if path.is_file() else _open_folder(path, key)


def _main(source: Path, key: str | None) -> Checkpoint | None:
    """The first of a folder's models."""
    for pattern, opener in (("*.safetensors.index.json", _safetensors), ("*.bin.index.json", _torch_files)):
        found = sorted(source.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{source} holds {len(found)} shard indices ({_few(found)}): name the folder of one")
        if found:
            return _open_sharded(source, found[0], opener, key)
        single = _single(source, pattern)
        if single is not None:
            return opener(source, [single], None, key)
        if opener is _safetensors and (source / ".metadata").is_file():
            from .distributed import open_distributed

            return open_distributed(source, key)
    return None


def _single(folder: Path, pattern: str) -> Path | None:
    safe = "safetensors" in pattern
    found = sorted(p for p in folder.iterdir() if is_weights(p) and (p.suffix == ".safetensors") == safe)
    adapter = (folder / "adapter_config.json").is_file()
    for stems in (("adapter_model",) if adapter else (), ("model", "pytorch_model")):
        usual = [p for p in found if p.stem in stems]
        if len(usual) == 1:
            return usual[0]
    if safe and (folder / ".metadata").is_file():
        return None
    if len(found) > 1:
        steps = [p for p in found if STEP.fullmatch(p.stem)]
        advice = f"{folder}/*{steps[0].suffix} for all of them" if len(steps) == len(found) else "name one of them"
        raise ValueError(f"{folder} holds several files with weights and no index ({_few(found)}): {advice}")
    return next(iter(found), None)


def _open_file(path: Path, key: str | None) -> Checkpoint:
    if path.name.endswith(".index.json"):
        opener = _safetensors if path.name.endswith(".safetensors.index.json") else _torch_files
        return _open_sharded(path.parent, path, opener, key)
    if path.suffix == ".safetensors":
        return _safetensors(path, [path], None, key)
    if is_torch_file(path):
        return _torch_files(path, [path], None, key)
    raise ValueError(
        f"{path} is no checkpoint: wanted a folder, or a file {', '.join(('.safetensors', *TORCH_SUFFIXES))}"
    )


def _open_sharded(folder: Path, index: Path, opener: Callable[..., Checkpoint], key: str | None) -> Checkpoint:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map = dict(content["weight_map"])
        names = list(dict.fromkeys(map(str, weight_map.values())))
        if not names:
            raise ValueError("it names no shards")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no shard index ({type(error).__name__}: {error}): save the model anew") from None
    strangers = [name for name in names if Path(name).name != name or name in (".", "..")]
    if strangers:
        raise ValueError(f"{index} names files outside its folder: {[name[:100] for name in strangers[:3]]}")
    endless = [
        name for name in names if len(name.encode("utf-8", "surrogatepass")) > 255
    ]  # no file system has such a name
    if endless:
        raise ValueError(f"{index} is damaged, it names a file of {len(endless[0])} letters, {endless[0][:40]!r}...")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names shards that are not there: {missing[:5]}")
    opened = opener(folder, [folder / name for name in names], (index.name, content), key)
    place = {name: shard.file for shard in opened.shards for name in shard.names}
    wrong = [name for name in {**weight_map, **place} if place.get(name) != weight_map.get(name)]
    if wrong and key is None:
        raise ValueError(f"{index} and its shards disagree on where {wrong[:5]} lie: save the model anew")
    return opened


def _safetensors(
    path: Path, files: list[Path], index: tuple[str, Mapping[str, Any]] | None, key: str | None
) -> Checkpoint:
    tensors: dict[str, Stored] = {}
    shards, state, left = [], None, []
    for file in files:
        metadata, own = _safetensors_header(file)
        if metadata and KEY in metadata:
            state, used = _state(file, metadata, own)
            left += [Left(name, 1, "of the averager's state", file.name) for name in _others(own, used)]
            own, metadata = used, None
        own, more = _under(own, key, file)
        left += more
        shards.append(Shard(file.name, tuple(own), metadata))
        tensors |= _new(own, tensors, file)
    if not tensors:
        raise ValueError(f"{path} holds no tensors" + ("" if key is None else f" whose names begin with {key}."))
    kind = "sharded safetensors" if index else "safetensors"
    kind = f"lowland {state['class']}" if state else "adapter" if "adapter_config.json" in _beside(path) else kind
    indices = {index[0]: index[1]} if index and key is None else {}
    return Checkpoint(path, kind, tensors, tuple(s for s in shards if s.names), indices, state, tuple(left))


def _others(own: Mapping[str, Stored], used: Mapping[str, Stored]) -> list[str]:
    places = {stored.runs for stored in used.values()}
    return [name for name, stored in own.items() if stored.runs not in places]


def _under(own: Mapping[str, Stored], key: str | None, file: Path) -> tuple[dict[str, Stored], list[Left]]:
    """The tensors whose names begin with a key, without it; without a key those that are no training state."""
    if key is None:
        held = {name: stored for name, stored in own.items() if not ("." in name and of_training(name))}
        held = held or dict(own)
        return held, training_left(own, held, file)
    held = {name.removeprefix(f"{key}."): s for name, s in own.items() if name.startswith(f"{key}.")}
    return held, [Left(n, 1, f"not under {key}", file.name) for n in own if not n.startswith(f"{key}.")]


def _beside(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()} if path.is_dir() else set()


def training_left(own: Mapping[str, Stored], held: Mapping[str, Stored], file: Path) -> list[Left]:
    """Return what is left of a file, by the first part of its name."""
    gone = Counter(name.split(".", 1)[0] for name in own if name not in held)
    return [Left(root, count, "training state", file.name) for root, count in gone.items()]


def _safetensors_header(file: Path) -> tuple[dict[str, str] | None, dict[str, Stored]]:
    try:
        with safe_open(file, framework="pt") as checked:  # refuses wrong lengths, holes and overlaps
            metadata = checked.metadata()
        with file.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if is_pointer(file):
            raise ValueError(
                f"{file} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`"
            ) from None
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


def is_pointer(file: Path) -> bool:
    """Return whether a file is what Git LFS puts in the place of a large one that was not fetched."""
    try:
        with file.open("rb") as raw:
            return raw.read(64).startswith(b"version https://git-lfs")
    except OSError:
        return False


def _state(
    file: Path, metadata: Mapping[str, str], own: Mapping[str, Stored]
) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The average that a lowland state file holds, under the tensors' own names."""
    try:
        header = header_of(metadata) or {}
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


def _torch_files(
    path: Path, files: list[Path], index: tuple[str, Mapping[str, Any]] | None, key: str | None
) -> Checkpoint:
    from .torchfiles import read_torch_header

    tensors: dict[str, Stored] = {}
    shards, left = [], []
    for file in files:
        held = read_torch_header(file, key)
        own = {name: stored for name, stored in held.tensors.items() if not ("." in name and of_training(name))}
        own = own or held.tensors
        left += [*held.left, *training_left(held.tensors, own, file)]
        shards.append(Shard(file.name, tuple(own), under=held.under, torch=True, carried=held.carried))
        tensors |= _new(own, tensors, file)
    adapter = "adapter_config.json" in _beside(path)
    kind = "sharded torch files" if index else "adapter" if adapter else "torch file"
    indices = {index[0]: index[1]} if index else {}
    return Checkpoint(path, kind, tensors, tuple(shards), indices, left=tuple(left))


def _new(own: Mapping[str, Stored], tensors: Mapping[str, Stored], file: Path) -> Mapping[str, Stored]:
    twice = [name for name in own if name in tensors]
    if twice:
        raise ValueError(f"{file} holds tensors that another shard holds too: {twice[:5]}")
    return own


def _few(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:4])
    return shown if len(paths) <= 4 else f"{shown}, ..."
