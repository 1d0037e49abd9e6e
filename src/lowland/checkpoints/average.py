"""Averages of checkpoints, written as a checkpoint that is laid out as the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from ..averager.averager import Averager
from ..weights.named import Weights
from .account import account_of
from .beside import beside, record_for
from .card import card, hashes_of
from .layout import Checkpoint, Left, Shard, is_file_name
from .manifold import derived, groups_of, ingredients_of
from .output import Assembly, check_target, sizes
from .plan import Plan, opened, room, settings_of, types_of
from .streaming import Job, Key, Piece, Place, Report, cut, stream

STAGE = "lowland-stage.safetensors"  # what a distributed checkpoint is written from

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
    form: Literal["files", "dcp"] = "files",
    with_card: bool = False,
    scores: Sequence[float] | None = None,
    notes: Sequence[str] = (),
    also_left: Sequence[tuple[Left, tuple[int, ...]]] = (),
    also_written: Mapping[str, str] | None = None,
) -> Plan:
    """Check an average without making it; `run` of the plan does. Arguments and errors as `average`.

    Args:
        form: "files" as the first input has them, or "dcp": a folder that `torch.distributed.checkpoint` loads,
            under the keys and in the pieces of the first input.
        with_card: write a README.md with the recipe and the hashes of the inputs, which are read once more.
        scores: of the inputs alone, for the card. notes: further sentences of it.
        also_left: what the choice of inputs left out, for the account.
        also_written: names and texts of further small files of an output folder.
    """
    checkpoints, said = opened(inputs)
    target = Path(out)
    check_target(target)
    if dtype is not None and dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be float64, float32, float16 or bfloat16, got {dtype}")
    first = checkpoints[0]
    types, differ = types_of(checkpoints)
    if dtype is not None:
        types = {name: dtype if own.is_floating_point else own for name, own in types.items()}
        differ = []
    if with_card and is_file_name(target):
        raise ValueError(f"a card lies in a folder: name the output without a suffix, got {target.name}")
    if form == "dcp":
        if is_file_name(target):
            raise ValueError(f"a distributed checkpoint is a folder: name it without a suffix, got {target.name}")
        shards: tuple[Shard, ...] = (Shard(STAGE, tuple(first.tensors), {"format": "pt"}),)
    else:
        shards = shards_of(checkpoints, target)
    read = sum(checkpoint.nbytes for checkpoint in checkpoints)
    shaped = {name: v for shard in shards for name, v in sizes(first.tensors, shard.names, types).items()}
    written = sum(d.itemsize * prod(shape) for d, shape in shaped.values()) * (2 if form == "dcp" else 1)
    known = groups_of(first.tensors)
    kept = "the widest of the inputs" if differ else "of the input"
    settings = settings_of(checkpoints, merge, dtype=str(dtype or kept).removeprefix("torch."), form=form)
    names = [name for shard in shards for name in shard.names]
    floats = [name for name in names if first.tensors[name].dtype.is_floating_point]
    others = [name for name in names if not first.tensors[name].dtype.is_floating_point]
    kinds = [f"{g.names[0]} and what belongs to it: averaged as the weight of a {g.kind}" for g in known[:1]]
    copy = ["one input: its weights are copied, not averaged"] if len(checkpoints) == 1 else []
    beside_weights = [".".join(keys) for shard in shards for keys in shard.carried]
    objects = [".".join(path) for path in first.distributed_layout()[2]]
    also = list(also_left)
    if form == "dcp":
        beside_weights = objects
    elif objects:
        told = f"{len(objects)} objects such as {objects[0]}" if len(objects) > 1 else objects[0]
        also.append((Left(told, 0, "no tensor; --as dcp carries it along"), tuple(range(len(checkpoints)))))
    account = account_of(
        checkpoints, floats, [*said, *differ, *kinds, *copy], carried=[*others, *beside_weights], also=also
    )

    def run(plan: Plan, report: Report, restart: bool) -> None:
        ranks = plan.ranks
        if ranks.rank:
            ranks.barrier()  # until the first has made room
        else:
            room(plan)
        ties = tied_names(plan.checkpoints)
        with Assembly(target, plan.settings, restart=restart and not ranks.rank, ranks=ranks) as assembly:
            places, aliases = room_for(assembly, first, shards, types, ties)
            if ranks.world > 1 and not ranks.rank:
                ranks.barrier()
            grouped = {name for group in known for name in group.names}
            alone = [name for name in floats if name not in aliases and name not in grouped]
            jobs = cut(plan.checkpoints, alone, _BYTES_AN_ELEMENT)
            jobs += [tuple(Piece(name, 0, first.tensors[name].numel) for name in group.names) for group in known]
            copies = cut(plan.checkpoints[-1:], [name for name in others if name not in aliases], _BYTES_AN_ELEMENT)

            def averaged(ingredients: Iterator[Weights]) -> dict[Key, torch.Tensor]:
                mean = derived(merge(ingredients_of(ingredients, known)), known) if known else merge(ingredients)
                return {("", name): tensor for name, tensor in mean.items()}

            _pass(plan.checkpoints, jobs, 0, averaged, places, assembly, report, check_finite)
            _pass(plan.checkpoints[-1:], copies, len(jobs), _same, places, assembly, report, False)
            record = record_for(plan)
            if with_card and not ranks.rank:
                record["hashes"] = {str(c.path): hashes_of(c) for c in plan.checkpoints}

            def complete(folder: Path) -> None:
                beside(folder, first, shards, places, record)
                if form == "dcp":
                    from .distributed_out import write_distributed

                    write_distributed(folder, first, plan.checkpoints[-1], record)
                if with_card:
                    (folder / "README.md").write_text(card(record, scores, notes), encoding="utf-8")
                for name, text in (also_written or {}).items():
                    (folder / name).write_text(text, encoding="utf-8")

            assembly.finish(complete, record)

    return Plan(checkpoints, target, read, written, settings, account, run)


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

    The result has the files, shard index and names of the first input; a distributed checkpoint becomes safetensors.
    Where types differ, the widest is written. Sums are kept in float32 or wider. Tensors other than floating-point ones
    are those of the last input, and so is the plain data beside a torch file's weights. Weights stored under weight
    norm or spectral norm are averaged as weights. Small files beside the first input's weights, such as a configuration
    and a tokeniser, are copied. The merge file says what became of every tensor. Given again after a kill, the same
    call goes on where it stopped and ends with the same bytes.

    Args:
        inputs: paths or opened checkpoints, the oldest first.
        out: a folder, or a file ending in `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`.
        merge: what reduces an iterator of weights to weights: `lowland.soup.uniform`,
            `functools.partial(lowland.soup.weighted, coefficients=...)`, `through(lowland.SWA)` or your own. It is
            called for every stretch, from several threads.
        dtype: of the floating-point tensors written; None keeps each tensor's own, or the widest of the inputs.
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


def shards_of(checkpoints: Sequence[Checkpoint], target: Path) -> tuple[Shard, ...]:
    """Return the files of the output: those of the first input, or one if the target names a file."""
    first, last = checkpoints[0], checkpoints[-1]
    shards = tuple(replace(s, carried=_carried(s, last) if s.torch else {}) for s in first.shards)
    if not is_file_name(target):
        return shards
    parts = [shard.prefix.rstrip("/") for shard in shards if shard.prefix]
    if parts:
        raise ValueError(f"{first.path} holds several models, {parts[:4]} among them: name a folder as output, no file")
    names = tuple(name for shard in shards for name in shard.names)
    if target.suffix == ".safetensors":
        return (Shard(target.name, names, shards[0].metadata or {"format": "pt"}),)
    carried = {keys: value for shard in shards for keys, value in shard.carried.items()}
    return (Shard(target.name, names, under=shards[0].under, torch=True, carried=carried),)


def _carried(own: Shard, last: Checkpoint) -> dict[tuple[str, ...], Any]:
    """What the last input's file holds beside its weights, under the keys of the first input's."""
    beside = next((s for s in last.shards if s.torch and s.file == own.file), None)
    beside = beside or next((s for s in last.shards if s.torch), None)
    if beside is None:
        return {}
    depth = len(beside.under)
    return {
        (*own.under, *keys[depth:]) if keys[:depth] == beside.under else keys: value
        for keys, value in beside.carried.items()
    }


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
    todo = assembly.ranks.share(todo)

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
    assembly: Assembly,
    first: Checkpoint,
    shards: Sequence[Shard],
    types: Mapping[str, torch.dtype],
    ties: Mapping[str, str],
) -> tuple[dict[Key, Place], set[str]]:
    """Make room for every shard and return the places; names that share another's room are given apart."""
    places: dict[Key, Place] = {}
    aliases: set[str] = set()
    for shard in shards:
        shaped = sizes(first.tensors, shard.names, types)
        bare = {name: name.removeprefix(shard.prefix) for name in shaped}
        inside = {bare[name]: entry for name, entry in shaped.items()}
        if shard.torch:
            own = {name: to for name, to in ties.items() if name in shaped and to in shaped}
            aliases |= set(own)
            tied = {bare[name]: bare[to] for name, to in own.items()}
            made = assembly.add_torch(shard.file, inside, tied, shard.under, shard.carried)
        else:
            made = assembly.add_safetensors(shard.file, inside, shard.metadata)
        places |= {("", name): made[bare[name]] for name in shaped}
    return places, aliases
