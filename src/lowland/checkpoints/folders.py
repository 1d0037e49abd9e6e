"""What lies in a folder beside its first file of weights: further models, sub-folders, and what belongs to the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .layout import Checkpoint, Left, is_torch_file

# Files of a training run; Accelerate numbers the models of one state: model, model_1, ...
TRAINER = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state|random_states|global_step|custom_checkpoint|sampler|common).*"
)
_NUMBERED = re.compile(r"(pytorch_)?model_\d+")
STEP = re.compile(r"(checkpoint|ckpt|step|iter|epoch|global_step)[-_=]?\d.*", re.IGNORECASE)
_SMALL_JSON = 16 << 20


def is_weights(path: Path) -> bool:
    """Return whether a file's name is that of a file of weights; those of a trainer are none."""
    # What macOS leaves beside a file begins with "._".
    return (
        (path.suffix == ".safetensors" or is_torch_file(path))
        and not TRAINER.fullmatch(path.name)
        and not path.name.startswith(".")
    )


def holds_weights(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint itself."""
    return any(p.name == ".metadata" or (is_weights(p) and p.is_file()) for p in folder.iterdir())


def with_parts(main: Checkpoint, open_part: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Return a folder's checkpoint with its further models as parts, and what is left out by name.

    Parts are the files `model_1`, `model_2`, ..., the sub-folders that `modules.json` or `model_index.json` names, and
    the further adapters of a PEFT model. Their tensors' names begin with the part's.
    """
    folder = main.path
    used = {(folder / shard.file).resolve() for shard in main.shards} | {p.resolve() for p in main.files}
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and is_weights(p) and p.resolve() not in used]
    named = named_folders(folder)
    extra = [p for p in files if _NUMBERED.fullmatch(p.stem)]
    left = [_left(p, "a second file of weights: name it to average it") for p in files if p not in extra]
    left += [
        Left(p.name, 0, "training state", p.name)
        for p in sorted(folder.iterdir())
        if p.is_file() and TRAINER.fullmatch(p.name) and (is_torch_file(p) or p.suffix in (".pkl", ".safetensors"))
    ]
    adapter = (folder / "adapter_config.json").is_file()
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if sub.name in named or (adapter and sub.name != "averaged" and (sub / "adapter_config.json").is_file()):
            continue
        if not TRAINER.fullmatch(sub.name) and _anywhere(sub):
            left.append(_left(sub, "a sub-folder with weights: name it to average it"))
        elif TRAINER.fullmatch(sub.name) and _anywhere(sub):
            left.append(Left(sub.name, 0, "training state", sub.name))
    folders = [name for name in named if (folder / name).is_dir()]
    if adapter:
        folders += [
            p.name
            for p in sorted(folder.iterdir())
            if p.is_dir() and p.name not in (*folders, "averaged") and (p / "adapter_config.json").is_file()
        ]
    whole = replace(main, left=(*main.left, *left), folders=tuple(folders))
    for path in extra:
        whole = _joined(whole, open_part(path), path.stem, "")
    for name in folders:
        if _anywhere(folder / name, depth=1):
            whole = _joined(whole, open_part(folder / name), name, f"{name}/")
    return whole


def _left(path: Path, why: str) -> Left:
    return Left(path.name, 0, why, path.name)


def named_folders(folder: Path) -> list[str]:
    """Return the sub-folders that a pipeline's `modules.json` or `model_index.json` names."""
    found: list[str] = []
    modules, index = _json(folder / "modules.json"), _json(folder / "model_index.json")
    if isinstance(modules, list):
        found += [str(entry["path"]) for entry in modules if isinstance(entry, dict) and entry.get("path")]
    if isinstance(index, dict):
        found += [name for name, entry in index.items() if isinstance(entry, list) and not name.startswith("_")]
    inside = [name for name in found if Path(name).parts == (name,) and name not in (".", "..")]
    return [name for name in dict.fromkeys(inside) if (folder / name).is_dir()]


def _json(path: Path) -> Any:
    if not path.is_file() or path.stat().st_size > _SMALL_JSON:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} cannot be read as JSON: mend it or remove it") from None


def _anywhere(folder: Path, depth: int = 2) -> bool:
    if holds_weights(folder) or any(p.name.endswith(".index.json") for p in folder.iterdir()):
        return True
    return depth > 0 and any(_anywhere(sub, depth - 1) for sub in folder.iterdir() if sub.is_dir())


def _joined(whole: Checkpoint, part: Checkpoint, name: str, folder: str) -> Checkpoint:
    prefix = f"{name}/"
    shards = tuple(
        replace(
            shard,
            file=f"{folder}{shard.file}",
            names=tuple(f"{prefix}{own}" for own in shard.names),
            prefix=f"{prefix}{shard.prefix}",
        )
        for shard in part.shards
    )
    more = {f"{folder}{file}": content for file, content in part.indices.items()}
    return replace(
        whole,
        tensors={**whole.tensors, **{f"{prefix}{own}": stored for own, stored in part.tensors.items()}},
        shards=(*whole.shards, *shards),
        indices={**whole.indices, **more},
        left=(*whole.left, *(replace(left, name=f"{prefix}{left.name}") for left in part.left)),
    )


def pipeline(folder: Path, open_part: Callable[[Path], Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint of a folder that holds its models in named sub-folders only, or None."""
    if not any(_anywhere(folder / name, depth=0) for name in named_folders(folder)):
        return None
    return with_parts(Checkpoint(folder, "pipeline", {}, ()), open_part)


def below(folder: Path) -> list[str]:
    """Return the names of sub-folders that hold weights."""
    return [p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".") and _anywhere(p, 1)]


def chosen(checkpoint: Checkpoint, keep: tuple[str, ...], drop: tuple[str, ...]) -> Checkpoint:
    """Return a checkpoint with only those tensors whose names fit a pattern of `keep` and none of `drop`.

    Raises:
        ValueError: nothing is left.
    """
    if not keep and not drop:
        return checkpoint
    gone = [
        name
        for name in checkpoint.tensors
        if (keep and not any(fnmatchcase(name, p) for p in keep)) or any(fnmatchcase(name, p) for p in drop)
    ]
    held = {name: stored for name, stored in checkpoint.tensors.items() if name not in set(gone)}
    if not held:
        raise ValueError(
            f"--keep and --drop leave no tensor of {checkpoint.path}: it has {list(checkpoint.tensors)[:5]}"
        )
    shards = tuple(replace(s, names=tuple(n for n in s.names if n in held)) for s in checkpoint.shards)
    indices = {file: _without(file, content, set(gone)) for file, content in checkpoint.indices.items()}
    left = [Left(name, 1, "by --keep and --drop") for name in gone]
    return replace(
        checkpoint,
        tensors=held,
        shards=tuple(shard for shard in shards if shard.names),
        indices=indices,
        left=(*checkpoint.left, *left),
    )


def _without(file: str, index: Any, gone: set[str]) -> Any:
    prefix = "".join(f"{part}/" for part in Path(file).parts[:-1])
    kept = {name: where for name, where in index["weight_map"].items() if f"{prefix}{name}" not in gone}
    return {**index, "weight_map": kept}
