"""Shards: the part of a distributed tensor that this rank holds, and where it lies in the whole.

Averages, deviations and draws are elementwise, so that a DTensor (FSDP2's `fully_shard`, tensor parallelism, meshes of
any number of axes) is handled by its local tensor alone, without communication. What is not sharded passes through
unchanged, and `torch.distributed.tensor` is imported by none of this: where it is not loaded there is no DTensor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layout import Run, held_of, runs_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Say whether `tensor` is a DTensor, whatever its placements.

    >>> is_sharded(torch.zeros(2))
    False
    """
    return _dtensor(tensor) is not None


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, sharing its memory; any other tensor is returned as it is.

    Raises:
        ValueError: the tensor holds partial sums, whose values no rank knows alone.

    >>> whole = torch.zeros(2)
    >>> local(whole) is whole
    True
    """
    sharded = _dtensor(tensor)
    if sharded is None:
        return tensor
    layout_of(sharded)
    with torch.no_grad():
        shard = sharded.to_local()
    wait = getattr(shard, "wait", None)  # the result of a collective still under way
    return shard if wait is None else wait()


def like(shard: Tensor, tensor: Tensor, leading: tuple[int, ...] = ()) -> Tensor:
    """Return `shard`, shaped (*leading, *local shape), as a part of a tensor placed as `tensor` is.

    Memory is shared and nothing is communicated. The global shape is (*leading, *tensor.shape), so that uneven shards
    are right; leading axes are not sharded. If `tensor` is no DTensor the result is `shard` itself.

    Raises:
        ValueError: the shapes do not fit, or the tensor holds partial sums.

    >>> part = torch.ones(3, 2)
    >>> like(part, torch.zeros(2), leading=(3,)) is part
    True
    """
    own = local(tensor)
    if shard.shape != (*leading, *own.shape):
        raise ValueError(
            f"a shard of a tensor of local shape {tuple(own.shape)} with leading axes {leading} must have the shape "
            f"{(*leading, *own.shape)}, got {tuple(shard.shape)}"
        )
    sharded = _dtensor(tensor)
    if sharded is None:
        return shard
    shape = torch.Size((*leading, *tensor.shape))
    # The global strides follow the local ones where those are a plain copy of the original's (channels last).
    stride = tensor.stride() if not leading and shard.stride() == own.stride() else _contiguous(shape)
    placements = [_shifted(placement, len(leading)) for placement in sharded.placements]
    mesh = sharded.device_mesh
    if shard.is_meta or shard.device.type == mesh.device_type:
        from torch.distributed.tensor import DTensor

        # The shape must be given: from evenly sharded ranks it would be inferred wrongly for uneven shards, and the
        # ranks would wait for each other for ever (NCAR/miles-credit#416).
        return DTensor.from_local(shard, mesh, placements, run_check=False, shape=shape, stride=stride)
    return _elsewhere(shard, mesh, placements, shape, stride)


def runs(tensor: Tensor) -> list[Run]:
    """Return where this rank's shard lies: runs `(global start, local start, length)` in elements.

    Both starts count in the flattened (row-major) global and local tensor; runs are disjoint, as long as can be and in
    the order of the local tensor. A plain tensor is one run, an empty shard none.

    Raises:
        ValueError: the tensor holds partial sums.

    >>> runs(torch.zeros(2, 3))
    [(0, 0, 6)]
    """
    sharded = _dtensor(tensor)
    if sharded is None:
        return [(0, 0, tensor.numel())] if tensor.numel() else []
    coordinate = sharded.device_mesh.get_coordinate()
    if coordinate is None:  # this rank is not in the mesh and holds nothing
        return []
    return runs_of(tuple(sharded.shape), tuple(sharded.device_mesh.shape), coordinate, layout_of(sharded))


def layout_of(tensor: Tensor) -> list[tuple[int, int] | None]:
    """Return the placements of a DTensor as plain numbers, as `runs_of` takes them; of another tensor none.

    Raises:
        ValueError: the tensor holds partial sums, or is placed in a way that is not known here.

    >>> layout_of(torch.zeros(2))
    []
    """
    layout: list[tuple[int, int] | None] = []
    sharded = _dtensor(tensor)
    for placement in () if sharded is None else sharded.placements:
        if placement.is_replicate():
            layout.append(None)
        elif placement.is_partial() or not hasattr(placement, "dim"):
            raise ValueError(
                f"it is placed as {placement} on the mesh, and no rank knows its values alone: "
                "redistribute it to Replicate() or Shard(dim) first"
            )
        else:
            layout.append((placement.dim % max(tensor.ndim, 1), getattr(placement, "split_factor", 1)))
    return layout


def part_of(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return this rank's part of the plain tensor `whole`, placed as `tensor` is; a copy where `tensor` is a DTensor.

    Raises:
        ValueError: the shapes differ, or `tensor` holds partial sums.

    >>> part_of(torch.ones(2), torch.zeros(2))
    tensor([1., 1.])
    """
    if whole.shape != tensor.shape:
        raise ValueError(f"a part is taken from a tensor of shape {tuple(tensor.shape)}, got {tuple(whole.shape)}")
    sharded = _dtensor(tensor)
    if sharded is None:
        return whole
    part, coordinate = whole, sharded.device_mesh.get_coordinate()
    if coordinate is None:
        return like(local(tensor).to(whole.dtype), tensor)
    held = held_of(tuple(whole.shape), tuple(sharded.device_mesh.shape), coordinate, layout_of(sharded))
    for dim, intervals in enumerate(held):
        pieces = [part.narrow(dim, start, length) for start, length in intervals] or [part.narrow(dim, 0, 0)]
        part = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return like(part.to(local(tensor).device).clone(memory_format=torch.contiguous_format), tensor)


def anywhere(flag: bool, weights: Mapping[str, Tensor]) -> bool:
    """Say whether `flag` is true on any rank that shares the DTensors among `weights`: one number is exchanged.

    Every rank of their meshes must call this. Without DTensors nothing is exchanged and the answer is `flag`.

    >>> anywhere(False, {"w": torch.zeros(2)})
    False
    """
    found = (_dtensor(tensor) for tensor in weights.values())
    meshes = list(dict.fromkeys(sharded.device_mesh for sharded in found if sharded is not None))
    # The largest last: where it covers the others, all its ranks know what any of them said.
    for mesh in sorted(meshes, key=lambda mesh: mesh.size()):
        for axis in range(mesh.ndim):
            if mesh.get_coordinate() is None or mesh.size(axis) == 1:
                continue
            said = torch.tensor(int(flag), device=mesh.device_type)
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=mesh.get_group(axis))
            flag = bool(said)
    return flag


def check_placements(weights: Mapping[str, Tensor]) -> None:
    """Refuse tensors whose values this rank does not hold.

    Raises:
        ValueError: partial sums, or a parameter that DeepSpeed's ZeRO-3 has taken away; the message names the tensor.

    >>> check_placements({"w": torch.zeros(2)})
    """
    for name, tensor in weights.items():
        sharded = _dtensor(tensor)
        if sharded is not None:
            try:
                layout_of(sharded)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        # Under ZeRO-3 a parameter outside its layer's forward is empty and averages of it were lost without a word
        # (deepspeedai/DeepSpeed#6987, huggingface/transformers#35994, OpenRLHF/OpenRLHF#1357).
        elif tensor.numel() == 0 and getattr(tensor, "ds_numel", None):
            raise ValueError(
                f"{name} is partitioned by DeepSpeed ZeRO-3 and empty here: update inside "
                "deepspeed.zero.GatheredParameters(model.parameters()), or shard with torch's fully_shard"
            )


def check_same_placements(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that are not placed as the ones of the same name.

    Raises:
        ValueError: a mesh or a placement differs, or one of two tensors is no DTensor; the message names the tensor.

    >>> check_same_placements({"w": torch.zeros(2)}, {"w": torch.ones(2)}, what="update")
    """
    for name, tensor in expected.items():
        one, two = _dtensor(tensor), _dtensor(got[name])
        if one is None and two is None:
            continue
        if one is None or two is None or one.placements != two.placements or one.device_mesh != two.device_mesh:
            raise ValueError(
                f"{what}: {name} is {_placed(two)} where {_placed(one)} was expected; of a module under fully_shard "
                "take the parameters when they are sharded: after optimizer.step(), or after model.reshard()"
            )


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let those of a model's modules that are under FSDP2's `fully_shard` give back the whole parameters of a forward.

    The root keeps them after a forward without a backward: what is read then is no shard, and what is written into
    them is lost, or stays when the shards are put back. Modules that are sharded already, and all others, are left.

    Raises:
        ValueError: a module is under FSDP1 (FullyShardedDataParallel), whose parameters are pieces of a flat vector.

    >>> reshard(nn.Linear(1, 1).modules())
    """
    package = sys.modules.get("torch.distributed.fsdp")
    if package is None:
        return
    second, first = getattr(package, "FSDPModule", ()), getattr(package, "FullyShardedDataParallel", ())
    for module in modules:
        if isinstance(module, second):
            module.reshard()
        elif isinstance(module, first) and module.training_state.name != "SUMMON_FULL_PARAMS":
            raise ValueError(
                "the parameters of a FullyShardedDataParallel (FSDP1) module are pieces of a flat vector: read and "
                "write them inside FullyShardedDataParallel.summon_full_params(model), or shard with fully_shard"
            )


def _dtensor(tensor: Tensor) -> DTensor | None:
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        return None
    package = sys.modules.get("torch.distributed.tensor")
    kind = getattr(package, "DTensor", None)
    return tensor if kind is not None and isinstance(tensor, kind) else None


def _shifted(placement: Any, by: int) -> Any:
    if not by or placement.is_replicate():
        return placement
    if hasattr(placement, "split_factor"):
        return type(placement)(placement.dim + by, split_factor=placement.split_factor)
    return type(placement)(placement.dim + by)


def _elsewhere(shard: Tensor, mesh: Any, placements: list[Any], shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """A DTensor whose shards lie on another device than its mesh, as FSDP2's own CPU offload keeps them."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    # from_local would move the shard to the mesh's device.
    spec = DTensorSpec(mesh, tuple(placements), tensor_meta=TensorMeta(shape, stride, shard.dtype))
    return DTensor(shard, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


def _placed(tensor: DTensor | None) -> str:
    return "a plain tensor" if tensor is None else f"a DTensor placed {tuple(tensor.placements)}"
