"""The state of an averager that has seen a row of checkpoints, streamed into a file that `lowland.load` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..averager.averager import Averager
from ..files.state import described
from ..weights.named import Select, Weights
from .account import account_of
from .beside import record_for
from .layout import Checkpoint, Left
from .output import Assembly, check_target
from .plan import Plan, opened, room, settings_of
from .streaming import Job, Key, Place, Report, cut, stream


def plan_posterior(
    inputs: Sequence[str | Path | Checkpoint],
    out: str | Path,
    make: Callable[[], Averager],
    *,
    select: Select | None = None,
    check_finite: bool = True,
) -> Plan:
    """Check a state without making it; `run` of the plan does. Arguments and errors as `posterior`."""
    checkpoints, said = opened(inputs, posterior=True)
    target = Path(out)
    if target.suffix != ".safetensors":
        raise ValueError(f"a state is one file: name it something.safetensors, got {target.name}")
    check_target(target)
    first = checkpoints[0]
    tied = {name for group in first.ties() for name in group[1:]}
    names = [
        name
        for name, stored in first.tensors.items()
        if stored.dtype.is_floating_point
        and name not in tied
        and (select is None or select(name, torch.empty(stored.shape, dtype=stored.dtype, device="meta")))
    ]
    if not names:
        raise ValueError(
            f"the selection holds no floating-point tensor of {first.path}: it has {list(first.tensors)[:5]}"
        )
    state = _state_of(make, checkpoints, names)
    read = sum(checkpoint.tensors[name].nbytes for checkpoint in checkpoints for name in names)
    written = sum(first.tensors[name].numel * state.bytes_an_element(name) for name in names)
    settings = settings_of(checkpoints, make, state=state.header, names=names)
    gone = [n for n in first.tensors if n not in set(names) and n not in tied]
    why = "not among the numbers of a posterior"
    also = [(Left(n, 1, why), tuple(range(len(checkpoints)))) for n in gone]
    account = account_of(checkpoints, names, said, also=also)

    def run(plan: Plan, report: Report, restart: bool) -> None:
        room(plan)
        with Assembly(target, plan.settings, restart=restart) as assembly:
            shaped = {
                f"{slot}/{name}": (dtype, (*leading, *first.tensors[name].shape))
                for slot, entries in state.slots.items()
                for name, (dtype, leading) in entries.items()
            }
            made = assembly.add_safetensors(target.name, shaped, {"lowland": state.header})
            places: dict[Key, Place] = {}
            for slot, entries in state.slots.items():
                for name in entries:
                    place = made[f"{slot}/{name}"]
                    places[slot, name] = Place(place.path, place.offset, first.tensors[name].numel, place.dtype)
            widest = max(state.bytes_an_element(name) for name in names)
            jobs = cut(plan.checkpoints, names, 24 + 2 * widest)

            def absorbed(ingredients: Iterator[Weights]) -> dict[Key, Tensor]:
                slots = _fed(make, ingredients).state_dict()["slots"]
                return {(slot, name): tensor for slot, tensors in slots.items() for name, tensor in tensors.items()}

            def nbytes(job: Job) -> int:
                return sum((piece.stop - piece.start) * state.bytes_an_element(piece.name) for piece in job)

            todo = [number for number in range(len(jobs)) if number not in assembly.finished]
            report(sum(nbytes(jobs[number]) for number in assembly.finished) * (read + written) // max(written, 1))
            stream(
                plan.checkpoints,
                jobs,
                todo,
                absorbed,
                places,
                lambda number: assembly.done(number, nbytes(jobs[number])),
                report,
                check_finite=check_finite,
            )
            assembly.finish(lambda folder: None, record_for(plan))

    return Plan(checkpoints, target, read, written, settings, account, run)


def posterior(
    inputs: Sequence[str | Path | Checkpoint],
    out: str | Path,
    make: Callable[[], Averager],
    *,
    select: Select | None = None,
    check_finite: bool = True,
    restart: bool = False,
    report: Report | None = None,
) -> Path:
    """Show checkpoints to an averager stretch by stretch, and write the state that it would have saved.

    Args:
        inputs: paths or opened checkpoints, the oldest first.
        out: a `.safetensors` file; `lowland.load` reads it.
        make: returns a new averager, such as `functools.partial(lowland.SWAG, rank=10)`. Its arithmetic must treat each
            number by itself, as that of all averagers without a score does.
        select: which floating-point tensors, by name; None takes all. Of tied names the first is taken.
        check_finite, restart, report: as in `average`.

    Raises:
        ValueError: as `average`; or the selection is empty.
        OSError: the output is there already, or the disk has no room.

    >>> import tempfile, lowland
    >>> from safetensors.torch import save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step, value in enumerate((1.0, 2.0, 6.0)):
    ...     save_file({"w": torch.full((2,), value)}, folder / f"{step}.safetensors")
    >>> inputs = [folder / f"{step}.safetensors" for step in range(3)]
    >>> lowland.load(posterior(inputs, folder / "posterior.safetensors", lambda: lowland.SWAG(rank=3))).count
    3
    """
    plan = plan_posterior(inputs, out, make, select=select, check_finite=check_finite)
    return plan.run(report, restart=restart)


@dataclass(frozen=True)
class _State:
    """The header of a state file, and dtype and leading axes of each slot's tensors."""

    header: str
    slots: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]]

    def bytes_an_element(self, name: str) -> int:
        places = (entries[name] for entries in self.slots.values() if name in entries)
        return sum(dtype.itemsize * prod(leading) for dtype, leading in places)


def _state_of(make: Callable[[], Averager], checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> _State:
    """Let an averager see one number of each tensor, and ask what a file of it would say."""
    types = {name: torch.promote_types(checkpoints[0].tensors[name].dtype, torch.float32) for name in names}
    averager = _fed(make, ({name: torch.zeros(1, dtype=types[name]) for name in names} for _ in checkpoints))
    header, tensors = described(averager)
    slots: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    for key, tensor in tensors.items():
        slot, name = key.split("/", 1)
        slots.setdefault(slot, {})[name] = (tensor.dtype, tuple(tensor.shape[:-1]))
    return _State(header, slots)


def _fed(make: Callable[[], Averager], ingredients: Iterator[Weights]) -> Averager:
    averager = make()
    averager.check_finite = False  # the stream looks at the result, and knows the files
    for weights in ingredients:
        averager.update(weights)
    return averager
