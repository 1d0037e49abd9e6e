"""Small checkpoints of every kind, with the weights that they hold."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {"model_type": "tiny", "tie_word_embeddings": False}


def weights_at(step: int) -> dict[str, Tensor]:
    """Tensors of several types and shapes; some long enough to be cut where a test asks for short stretches."""
    g = torch.Generator().manual_seed(step)
    return {
        "embed.weight": torch.randn(300, 7, generator=g),
        "layer.weight": torch.randn(40, 33, generator=g).bfloat16(),
        "layer.bias": torch.randn(33, generator=g).half(),
        "scale": torch.randn((), generator=g, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "steps": torch.tensor([step, -step]),
        "mask": torch.tensor([step % 2 == 0, True, False]),
    }


def single(folder: Path, weights: dict[str, Tensor]) -> Path:
    """One safetensors file in a folder with a configuration and what a trainer leaves."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return _with_others(folder)


def sharded(folder: Path, weights: dict[str, Tensor]) -> Path:
    """Two safetensors shards and their index."""
    return _sharded(folder, weights, "model-{}-of-00002.safetensors", "model.safetensors.index.json", save_file)


def sharded_bin(folder: Path, weights: dict[str, Tensor]) -> Path:
    """Two torch shards and their index."""
    return _sharded(folder, weights, "pytorch_model-{}-of-00002.bin", "pytorch_model.bin.index.json", torch.save)


def nested(folder: Path, weights: dict[str, Tensor]) -> Path:
    """A training checkpoint of torch.save, with an optimiser beside the weights."""
    folder.mkdir()
    content = {"epoch": 3, "optimizer": {"state": {0: torch.ones(5)}}, "model": {"state_dict": weights}}
    torch.save(content, folder / "last.pt")
    return folder / "last.pt"


def distributed(folder: Path, weights: dict[str, Tensor]) -> Path:
    """A folder of torch.distributed.checkpoint with an optimiser beside the weights."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": weights, "optim": {"exp_avg": torch.ones(4)}, "epoch": 3}, checkpoint_id=folder)
    return folder


def state(folder: Path, weights: dict[str, Tensor]) -> Path:
    """A lowland state file of bare weights."""
    import lowland

    folder.mkdir()
    lowland.save(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


KINDS: list[Callable[[Path, dict[str, Tensor]], Path]] = [
    *(single, sharded, sharded_bin, nested, distributed, state),
]


def _sharded(
    folder: Path, weights: dict[str, Tensor], pattern: str, index: str, save: Callable[[dict[str, Tensor], Path], None]
) -> Path:
    folder.mkdir()
    names = sorted(weights)
    weight_map = {}
    for place, part in enumerate((names[:3], names[3:]), start=1):
        file = pattern.format(f"{place:05d}")
        save({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    (folder / index).write_text(
        json.dumps({"metadata": {"total_size": total, "note": "kept"}, "weight_map": weight_map})
    )
    return _with_others(folder)


def _with_others(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"not read")
    (folder / "trainer_state.json").write_text("{}")
    return folder
