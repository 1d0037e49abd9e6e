"""Averages of checkpoints, written as a checkpoint that is laid out as the first of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..averager.averager import Averager
from ..weights.named import Weights
from .layout import Checkpoint, Shard
from .output import Assembly, check_target, sizes
from .plan import Plan, opened, room, settings_of
from .streaming import Job, Key, Place, Report, cut, stream

Merge = Callable[[Iterator[Weights]], Weights]

# An accumulator, its copy, a converted iterate and what is read and written.
_BYTES_AN_ELEMENT = 24


@dataclass(frozen=True)
class through:
    """The merge that shows the checkpoints to a new averager and takes its mean.

    >>> class Last(Averager):
    ...     settings = {}
    ...     def _allocate(self, like):
    ...         return {"last": dict(like)}
    ...     def _absorb(self, weights):
    ...         self._slots["last"] = dict(weights)
    ...     def mean(self):
    ...         return self._slots["last"]
    >>> through(Last)(iter([{"w": torch.zeros(1)}, {"w": torch.ones(1)}]))
    {'w': tensor([1.])}
    """

    make: Callable[[], Averager]

    def __call__(self, ingredients: Iterator[Weights]) -> Weights:
        averager = self.make()
        averager.check_finite = False  # the stream has looked, and knows the file
        for weights in ingredients:
            averager.update(weights)
        return averager.mean()


def plan_average(
    inputs: Sequence[str | Path | Checkpoint],
    out: str | Path,
    merge: Merge,
    *,
    dtype: torch.dtype | None = None,
    check_finite: bool = True,
) -> Plan:
    """Check an average without making it; `run` of the plan does. Arguments and errors as `average`."""
    checkpoints = opened(inputs)
    target = Path(out)
    check_target(target)
    if dtype is not None and dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be float64, float32, float16 or bfloat16, got {dtype}")
    shards = shards_of(checkpoints[0], target)
    read = sum(checkpoint.nbytes for checkpoint in checkpoints)
    shaped = {name: v for shard in shards for name, v in sizes(checkpoints[0].tensors, shard.names, dtype).items()}
    written = sum(d.itemsize * prod(shape) for d, shape in shaped.values())
    settings = settings_of(checkpoints, merge, dtype=str(dtype or "of the input").removeprefix("torch."))

    def run(plan: Plan, report: Report, restart: bool) -> None:
        room(plan)
        first = plan.checkpoints[0]
        ties = tied_names(plan.checkpoints)
        with Assembly(target, plan.settings, restart=restart) as assembly:
            places, aliases = room_for(assembly, first, shards, dtype, ties)
            names = [name for shard in shards for name in shard.names if name not in aliases]
            floats = [name for name in names if first.tensors[name].dtype.is_floating_point]
            others = [name for name in names if not first.tensors[name].dtype.is_floating_point]
            jobs = cut(plan.checkpoints, floats, _BYTES_AN_ELEMENT)
            copies = cut(plan.checkpoints[-1:], others, _BYTES_AN_ELEMENT)

            def averaged(ingredients: Iterator[Weights]) -> dict[Key, torch.Tensor]:
                return {("", name): tensor for name, tensor in merge(ingredients).items()}

            _pass(plan.checkpoints, jobs, 0, averaged, places, assembly, report, check_finite)
            _pass(plan.checkpoints[-1:], copies, len(jobs), _same, places, assembly, report, False)
            assembly.finish(lambda folder: beside(folder, first, shards, places, plan.settings))

    return Plan(checkpoints, target, read, written, settings, run)


def average(
    inputs: Sequence[str | Path | Checkpoint],
    out: str | Path,
    merge: Merge,
    *,
    dtype: torch.dtype | None = None,
    check_finite: bool = True,
    restart: bool = False,
    report: Report | None = None,
) -> Path:
    """Average checkpoints stretch by stretch in bounded memory, and write the result as a checkpoint.

    The result has the files, shard index, names and types of the first input; a distributed checkpoint becomes
    safetensors. Sums are kept in float32 or wider. Tensors other than floating-point ones are those of the last input.
    Small files beside the first input's weights, such as a configuration and a tokeniser, are copied. Given again after
    a kill, the same call goes on where it stopped and ends with the same bytes.

    Args:
        inputs: paths or opened checkpoints, the oldest first.
        out: a folder, or a file ending in `.safetensors`, `.pt`, `.pth` or `.bin`.
        merge: what reduces an iterator of weights to weights: `lowland.soup.uniform`,
            `functools.partial(lowland.soup.weighted, coefficients=...)`, `through(lowland.SWA)` or your own. It is
            called for every stretch, from several threads.
        dtype: of the floating-point tensors written; None keeps each tensor's own.
        check_finite: refuse NaN and infinities by file and tensor.
        restart: forget an unfinished run.
        report: called with numbers of bytes as they are read and written.

    Raises:
        ValueError: names, shapes or kinds of tensors differ, a value is not finite, or a file is damaged.
        OSError: the output is there already, or the disk has no room.

    >>> import tempfile
    >>> from safetensors.torch import load_file, save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step, value in enumerate((1.0, 2.0, 6.0)):
    ...     save_file({"w": torch.full((2,), value)}, folder / f"{step}.safetensors")
    >>> def mean(ingredients):
    ...     held = [weights["w"].clone() for weights in ingredients]
    ...     return {"w": torch.stack(held).mean(0)}
    >>> inputs = [folder / f"{step}.safetensors" for step in range(3)]
    >>> load_file(average(inputs, folder / "average.safetensors", mean))
    {'w': tensor([3., 3.])}
    """
    plan = plan_average(inputs, out, merge, dtype=dtype, check_finite=check_finite)
    return plan.run(report, restart=restart)


def shards_of(first: Checkpoint, target: Path) -> tuple[Shard, ...]:
    """Return the files of the output: those of the first input, or one if the target names a file."""
    if target.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        return first.shards
    names = tuple(name for shard in first.shards for name in shard.names)
    if target.suffix == ".safetensors":
        return (Shard(target.name, names, first.shards[0].metadata or {"format": "pt"}),)
    return (Shard(target.name, names, under=first.shards[0].under, torch=True),)


def _pass(
    checkpoints: Sequence[Checkpoint],
    jobs: list[Job],
    begin: int,
    work: Callable[[Iterator[Weights]], Mapping[Key, torch.Tensor]],
    places: Mapping[Key, Place],
    assembly: Assembly,
    report: Report,
    check_finite: bool,
) -> None:
    """Do the jobs numbered from `begin` on that the journal does not hold."""
    todo = [number for number in range(len(jobs)) if begin + number not in assembly.finished]
    found = sum(_read(checkpoints, jobs[n]) + _written(places, jobs[n]) for n in set(range(len(jobs))) - set(todo))
    report(found)

    def done(number: int) -> None:
        assembly.done(begin + number, _written(places, jobs[number]))

    stream(checkpoints, jobs, todo, work, places, done, report, check_finite=check_finite)


def _read(checkpoints: Sequence[Checkpoint], job: Job) -> int:
    return sum((p.stop - p.start) * c.tensors[p.name].dtype.itemsize for c in checkpoints for p in job)


def _written(places: Mapping[Key, Place], job: Job) -> int:
    return sum((piece.stop - piece.start) * places["", piece.name].dtype.itemsize for piece in job)


def _same(ingredients: Iterator[Weights]) -> dict[Key, torch.Tensor]:
    return {("", name): tensor for weights in ingredients for name, tensor in weights.items()}


def tied_names(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Return the names of tensors that share memory with an earlier name in every checkpoint."""
    ties = {}
    for group in checkpoints[0].ties():
        for name in group[1:]:
            places = ((c.tensors[group[0]].runs, c.tensors[name].runs) for c in checkpoints)
            if all(one == two for one, two in places):
                ties[name] = group[0]
    return ties


def room_for(
    assembly: Assembly, first: Checkpoint, shards: Sequence[Shard], dtype: torch.dtype | None, ties: Mapping[str, str]
) -> tuple[dict[Key, Place], set[str]]:
    """Make room for every shard and return the places; names that share another's room are given apart."""
    places: dict[Key, Place] = {}
    aliases: set[str] = set()
    for shard in shards:
        shaped = sizes(first.tensors, shard.names, dtype)
        if shard.torch:
            own = {name: to for name, to in ties.items() if name in shaped and to in shaped}
            aliases |= set(own)
            made = assembly.add_torch(shard.file, shaped, own, shard.under)
        else:
            made = assembly.add_safetensors(shard.file, shaped, shard.metadata)
        places |= {("", name): place for name, place in made.items()}
    return places, aliases


# What belongs to the run that wrote a checkpoint, or holds weights.
_LEFT = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state|random_states|trainer_state|latest|zero_to_fp32).*"
    r"|\..*|lowland_merge\.json|.*\.(safetensors|bin|pt|pth|ckpt|distcp|h5|msgpack|gguf|onnx|index\.json)"
)
_SMALL = 64 << 20


def beside(
    folder: Path, first: Checkpoint, shards: Sequence[Shard], places: Mapping[Key, Place], settings: Mapping[str, Any]
) -> None:
    """Put the shard index, the small files of the first input and a record of the merge into the output."""
    if first.path.is_dir():
        for file in sorted(first.path.iterdir()):
            if file.is_file() and not _LEFT.fullmatch(file.name) and file.stat().st_size <= _SMALL:
                shutil.copyfile(file, folder / file.name)
    if first.index is not None and shards == first.shards:
        name, content = first.index
        total = sum(place.numel * place.dtype.itemsize for place in places.values())
        metadata = {**content.get("metadata", {}), "total_size": total}
        _json(folder / name, {**content, "metadata": metadata})
    record = {**settings, "inputs": [entry["path"] for entry in settings["inputs"]]}
    _json(folder / "lowland_merge.json", record)


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
