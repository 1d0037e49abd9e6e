"""What is written beside the weights: small files of the first input, shard indices, and the record of the merge."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .layout import Checkpoint, Shard
from .plan import Plan
from .streaming import Key, Place

# What belongs to the run that wrote a checkpoint, or holds weights.
_LEFT = re.compile(
    r"(optimizer|scheduler(?!_config)|scaler|training_args|rng_state|random_states|trainer_state|latest|zero_to_fp32"
    r"|custom_checkpoint|sampler).*"
    r"|\..*|lowland_merge\.json|.*\.(safetensors|bin|pt|pth|ckpt|tar|distcp|h5|msgpack|gguf|onnx|index\.json)"
)
_PIPELINE = ("model_index.json",)  # a name that looks like that of a shard index
_SMALL = 64 << 20


def record_for(plan: Plan) -> dict[str, Any]:
    """Return the record of a merge: method, inputs, and what became of every tensor."""
    inputs = [entry["path"] for entry in plan.settings["inputs"]]
    asked = {entry["path"]: entry["asked"] for entry in plan.settings["inputs"] if "asked" in entry}
    more = {"asked": asked} if asked else {}
    return {**plan.settings, "inputs": inputs, **more, "account": plan.account.as_dict()}


def beside(
    folder: Path, first: Checkpoint, shards: Sequence[Shard], places: Mapping[Key, Place], record: Mapping[str, Any]
) -> None:
    """Put the shard indices, the small files of the first input and the record of the merge into the output."""
    types = {key[1]: place.dtype for key, place in places.items()}
    if first.path.is_dir():
        _copy(first.path, folder, first, types)
        for name in first.folders:
            _copy(first.path / name, folder / name, first, types)
    if first.indices and [s.file for s in shards] == [s.file for s in first.shards]:
        for name, content in first.indices.items():
            home = Path(name).parent
            files = {shard.file for shard in shards if Path(shard.file).parent == home}
            own = {n for shard in shards if shard.file in files for n in shard.names}
            held = {(p.path, p.offset): p.numel * p.dtype.itemsize for (_, n), p in places.items() if n in own}
            metadata = {**content.get("metadata", {}), "total_size": sum(held.values())}
            _json(folder / name, {**content, "metadata": metadata})
    _json(folder / "lowland_merge.json", record)


def _copy(source: Path, target: Path, first: Checkpoint, types: Mapping[str, torch.dtype]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        left = _LEFT.fullmatch(file.name) and file.name not in _PIPELINE
        if not file.is_file() or left or file.stat().st_size > _SMALL:
            continue
        if file.name.endswith("config.json"):
            text = _config(file, first, types)
            if text is not None:
                (target / file.name).write_text(text, encoding="utf-8")
                continue
        shutil.copyfile(file, target / file.name)


def _config(file: Path, first: Checkpoint, types: Mapping[str, torch.dtype]) -> str | None:
    """A configuration whose statement about the weights' type is that of the output; None where it stands."""
    changed = {_short(s.dtype): _short(types[n]) for n, s in first.tensors.items() if types.get(n, s.dtype) != s.dtype}
    if not changed:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return json.dumps(_retyped(content, changed), indent=2, ensure_ascii=False) + "\n"


def _retyped(content: Any, changed: Mapping[str, str], depth: int = 0) -> Any:
    if not isinstance(content, dict) or depth > 8:
        return content
    made = {}
    for key, value in content.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            bare = value.removeprefix("torch.")
            made[key] = value.replace(bare, changed.get(bare, bare))
        else:
            made[key] = _retyped(value, changed, depth + 1)
    return made


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
