"""Averages of sharded models: sharded checkpoints that load on another number of ranks, and one file of whole tensors.

Under DistributedDataParallel, FSDP2's `fully_shard`, tensor parallelism and meshes of several axes an averager is used
as on one process: every rank calls `update(model)`, and each averages its own shards. `mean()` and draws are DTensors
placed as the weights are; `applied` and `copy_to` write them into the model. Nothing is communicated but one number an
update for the check that all values are finite (`check_finite=False` omits it).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..averager.averager import Averager
from ..files import state as files
from ..files import tensorfile
from ..weights.named import Weights
from ..weights.shards import like, local

_KEY = "averager"


def save_sharded(averager: Averager, folder: str | os.PathLike[str]) -> None:
    """Write the averager's state as a sharded checkpoint: every rank writes its own shards, and every rank calls this.

    It is `torch.distributed.checkpoint.save({"averager": averager}, checkpoint_id=folder)`; an averager may as well
    stand in the dictionary that holds your model and optimiser.

    Raises:
        RuntimeError: there has been no update.

    >>> import lowland, tempfile, warnings
    >>> average = lowland.SWA()
    >>> average.update({"w": torch.ones(2)})
    >>> folder = tempfile.mkdtemp()
    >>> with warnings.catch_warnings(action="ignore"):  # torch's, that there is one process only
    ...     save_sharded(average, folder)
    ...     load_sharded(lowland.SWA(), {"w": torch.zeros(2)}, folder)
    SWA(select=parameters) after 1 updates
    """
    if not averager.count:
        raise RuntimeError(f"{type(averager).__name__} has no weights yet: call update(model) before it is saved")
    save({_KEY: averager}, checkpoint_id=folder)


def load_sharded(averager: Averager, model_or_weights: nn.Module | Weights, source: str | os.PathLike[str]) -> Averager:
    """Fill a new averager from a checkpoint of `save_sharded`, or from a file of `lowland.save`, and return it.

    Its tensors are placed as those of the model are now: the number of ranks, the mesh and the placements may differ
    from those at the time of saving. Every rank reads what it holds and no more.

    Args:
        averager: one without updates, under the hyper-parameters of the saved one.
        model_or_weights: gives names, shapes and placements; its values do not matter.
        source: the folder of `save_sharded` or the file of `lowland.save`.

    Raises:
        RuntimeError: the averager already holds weights.
        ValueError: a hyper-parameter, a name or a shape differs from the saved one.
        FileNotFoundError: there is no such folder or file.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or file {path}")
    averager.allocate(model_or_weights)
    if path.is_file():
        files.load_into(averager, path)
    else:
        load({_KEY: averager}, checkpoint_id=path)
    return averager


def export(
    weights: Weights,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights, such as `averager.mean()`, as whole tensors into one plain safetensors file.

    No rank holds the model: shards go to the first rank 8 MB at a time, and every rank of the mesh must call this.
    `safetensors.torch.load_file`, `from_pretrained` and the like read the file. (`lowland.save` writes the whole state
    of a sharded averager in the same way, for `lowland.load` and `load_sharded`.)

    Args:
        dtype: cast floating-point tensors to this; None keeps the average's own, float32 or wider.
        metadata: of the file; by default what the loaders of Transformers want.

    Raises:
        OSError: the folder does not exist or the disk is full; on every rank.

    >>> import tempfile
    >>> from safetensors.torch import load_file
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> export({"w": torch.ones(2)}, path, dtype=torch.bfloat16)
    >>> load_file(path)
    {'w': tensor([1., 1.], dtype=torch.bfloat16)}
    """
    cast = {name: tensor if dtype is None else _as(tensor, dtype) for name, tensor in weights.items()}
    tensorfile.write(path, cast, {"format": "pt"} if metadata is None else metadata)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return like(local(tensor).to(dtype), tensor) if tensor.is_floating_point() else tensor
