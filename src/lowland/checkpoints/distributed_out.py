"""A distributed checkpoint written by torch's own planner: same keys, shapes and pieces as the one that was read."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from .average import STAGE
from .layout import Checkpoint, Pieces, Run

_CARRIED = ("common.pt",)  # of Megatron: what its loader wants beside the tensors


class _Planner(DefaultSavePlanner):
    """Writes tensors in given pieces, and objects as the bytes that they were."""

    def __init__(self, pieces: Mapping[str, Pieces], objects: Mapping[str, Run]) -> None:
        super().__init__()
        self.pieces, self.objects = pieces, objects

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items: list[WriteItem] = []
        for item in plan.items:
            chunks = self.pieces.get(item.index.fqn, ())
            if len(chunks) < 2 or item.tensor_data is None:
                items.append(item)
                continue
            whole: Tensor = self.state_dict[item.index.fqn]
            for offsets, sizes in chunks:
                where = torch.Size(offsets)
                data = TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=where, sizes=torch.Size(sizes)),
                    properties=TensorProperties.create_from_tensor(whole),
                    size=whole.size(),
                )
                items.append(WriteItem(MetadataIndex(item.index.fqn, where), WriteItemType.SHARD, tensor_data=data))
        self.plan: SavePlan = dataclasses.replace(plan, items=items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            run = self.objects[write_item.index.fqn]
            with run.path.open("rb") as file:
                file.seek(run.offset)
                return io.BytesIO(file.read(run.length))
        whole: Tensor = self.state_dict[write_item.index.fqn]
        if write_item.tensor_data is None:
            return whole
        chunk = write_item.tensor_data.chunk
        places = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        return whole[places].clone() if places else whole.clone()


def write_distributed(folder: Path, first: Checkpoint, last: Checkpoint, record: Mapping[str, Any]) -> None:
    """Write the tensors of the stage in `folder` as a distributed checkpoint, and remove the stage.

    Keys and pieces are those of the first input; one that was no distributed checkpoint gives its names, a piece each.
    Objects of the model's state, such as extra states of layers, are those of the last input.
    """
    keys, pieces, objects = first.distributed_layout()
    _, _, last_objects = last.distributed_layout()
    content: dict[str, Any] = {}
    for path in objects:
        _put(content, path, b"")
    with safe_open(folder / STAGE, framework="pt") as stage:
        for name in first.tensors:
            _put(content, keys[name], stage.get_tensor(name))
        runs = {".".join(path): last_objects.get(path, run) for path, run in objects.items()}
        by_key = {".".join(keys[name]): pieces[name] for name in first.tensors if name in pieces}
        writer = FileSystemWriter(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of saving without a process group, which is meant
            save(content, storage_writer=_same_bytes(writer, record), planner=_Planner(by_key, runs), no_dist=True)
    (folder / STAGE).unlink()
    for name in _CARRIED:
        if first.path.is_dir() and (last.path / name).is_file() and (first.path / ".metadata").is_file():
            shutil.copyfile(last.path / name, folder / name)


def _same_bytes(writer: FileSystemWriter, record: Mapping[str, Any]) -> FileSystemWriter:
    """Let the writer's number of a save follow from the recipe, so that the same merge has the same bytes."""
    number = hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()
    writer.reset = lambda checkpoint_id=None: None  # type: ignore[method-assign]
    writer.save_id = number
    meta = writer.storage_meta

    def told() -> Any:
        made = meta()
        if made is not None:
            made.checkpoint_id, made.save_id = None, number
        return made

    writer.storage_meta = told  # type: ignore[method-assign]
    return writer


def _put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value
