"""Draws from a saved posterior, written as checkpoints that are laid out as a given one."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..averager.averager import KINDS
from ..averager.posteriors import Posterior, check_draws, draws
from ..files.header import header_of
from ..files.replacing import alone, put
from ..files.state import load
from ..weights.kinds import FLOATS, check_writable
from ..weights.named import Weights, bare_name, check_same
from .account import Account
from .average import room_for, tied_names
from .beside import beside
from .layout import Checkpoint
from .output import Assembly, check_room, check_target, ground
from .sources import open_checkpoint
from .streaming import Key, Place, Reader, Report

View = Callable[[Any], Posterior]


def sample(
    posterior: str | Path,
    like: str | Path | Checkpoint,
    samples: int,
    out: str | Path,
    *,
    seed: int = 0,
    view: View | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Draw from a saved posterior and write each draw as a checkpoint: `out/sample-0`, `out/sample-1`, ...

    A checkpoint has the files, names and types of `like`, whose tensors that the posterior does not hold are copied.
    Draws are those of `lowland.load(posterior).sample(samples, generator=torch.Generator().manual_seed(seed))`.
    The state of one averager is read tensor by tensor: memory is that of the largest tensor's state and its draws. A
    mixture is loaded whole.

    Args:
        like: a checkpoint or adapter of the same architecture. The names that PEFT gives a live model's adapter are
            found under those that it saves.
        view: makes another posterior of the loaded one, such as `lambda swag: swag.tempered(0.5)`.

    Raises:
        ValueError: the posterior cannot be drawn from, or a tensor of it is not in `like` or has another shape there.
        OSError: the output is there already, or the disk has no room.
    """
    check_draws(samples, None)
    target = Path(out)
    check_target(target)
    first = like if isinstance(like, Checkpoint) else open_checkpoint(like)
    source = Path(posterior)
    held = _Held.read(source)
    named = _named(held, first, source)
    shards = first.shards
    size = sum(stored.nbytes for stored in first.tensors.values())
    check_room(ground(target), samples * size)
    report = report or (lambda _: None)
    settings = {
        "method": {"name": "sample", "posterior": str(source), "seed": seed, "header": held.header},
        "inputs": [{"path": str(first.path)}],
    }
    others = [name for name in first.tensors if name not in {own for names in named.values() for own in names}]
    account = Account(tuple(held.shapes), tuple(others), tuple((left, (0,)) for left in first.left))
    record = {**settings, "inputs": [str(first.path)], "account": account.as_dict()}
    with _staged(target) as folder, ExitStack() as stack:
        made = [
            stack.enter_context(Assembly(folder / f"sample-{number}", {**settings, "draw": number}))
            for number in range(samples)
        ]
        places = [room_for(assembly, first, shards, {}, tied_names([first]))[0] for assembly in made]
        with torch.no_grad():
            for number, weights in held.drawn(source, samples, seed, view):
                for name, tensor in weights.items():
                    for own in named[name]:
                        _put(places[number]["", own], tensor, report, name=own)
            _copy(first, others, places, report)
        for assembly, own_places in zip(made, places, strict=True):
            assembly.finish(partial(beside, first=first, shards=shards, places=own_places, record=record))
    return [target / f"sample-{number}" for number in range(samples)]


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A hidden folder that becomes the target if all goes well, and vanishes if not."""
    # Not the name of an average's unfinished run, which would be lost.
    folder = target.parent / f".{target.name}.draws"
    with alone(folder, target):
        check_target(target)  # another process may have written it since
        # Draws are made anew rather than gone on with: what a killed run left is of no use.
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield folder
            put(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Held:
    """The header of a posterior's file and the shapes that a draw has."""

    header: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    floating: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> _Held:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                header = header_of(file.metadata())
                if header is None:
                    raise ValueError("another program wrote it")
                names, prefix = _names(header)
                slices = {name: file.get_slice(f"{prefix}/{name}") for name in names}
                shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
                floating = frozenset(name for name, one in slices.items() if "F" in one.get_dtype())
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} holds no posterior of lowland ({type(error).__name__}: {error}): make one with "
                "`lowland posterior` or lowland.save"
            ) from None
        return cls(header, shapes, floating)

    def drawn(self, path: Path, samples: int, seed: int, view: View | None) -> Iterator[tuple[int, Weights]]:
        """Yield parts of the draws and the number of the draw that each belongs to."""
        if self.header["class"] not in KINDS:
            loaded = load(path)
            generator = torch.Generator().manual_seed(seed)
            yield from enumerate(draws(loaded if view is None else view(loaded), samples, generator))
            return
        try:
            yield from self._parts(path, samples, seed, view)
        except (SafetensorError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{path} is no whole state of a {self.header['class']} ({type(error).__name__}: {error}): write it anew"
            ) from None

    def _parts(self, path: Path, samples: int, seed: int, view: View | None) -> Iterator[tuple[int, Weights]]:
        with safe_open(path, framework="pt") as file:
            for names in _together(self.header["names"]):
                averager = KINDS[self.header["class"]].build(self.header["settings"])
                slots = {
                    slot: {name: file.get_tensor(f"{slot}/{name}") for name in names} for slot in self.header["slots"]
                }
                state = {key: self.header[key] for key in ("class", "count", "settings", "scalars")}
                averager.load_state_dict({**state, "slots": slots})
                source = averager if view is None else view(averager)
                if not isinstance(source, Posterior):
                    raise ValueError(
                        f"{path} holds a {self.header['class']}, which is one point: use the average itself, or make a "
                        "posterior with `lowland posterior`"
                    )
                # The key of the counter-based stream is drawn first: the same for every tensor.
                drawn = source.sample(samples, generator=torch.Generator().manual_seed(seed))
                for number in range(samples):
                    yield number, {name: tensor[number] for name, tensor in drawn.items()}


def _names(header: Mapping[str, Any]) -> tuple[list[str], str]:
    """The names of a state's tensors and the prefix of one that is shaped as they are."""
    prefix = ""
    while "components" in header:
        header, prefix = header["components"][0], f"{prefix}0/"
    slot = "weights" if header["class"] == "weights" else header["slots"][0]
    return [str(name) for name in header["names"]], prefix + slot


def _together(names: Iterable[str]) -> list[list[str]]:
    """Names one by one, and those whose numbers in the random stream depend on each other in one group."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(zlib.crc32(name.encode()), []).append(name)
    return list(groups.values())


def _named(held: _Held, first: Checkpoint, source: Path) -> dict[str, list[str]]:
    """The names in the checkpoint of each of the posterior's tensors, those tied to it among them."""
    ties = {name: group for group in first.ties() for name in group}
    found = {}
    for name in held.shapes:
        bare = bare_name(name)
        spellings = (name, bare, bare.replace(".modules_to_save.default", "").replace(".default", ""))
        own = next((spelling for spelling in spellings if spelling in first.tensors), None)
        if own is None:
            raise ValueError(f"{source} holds {name}, which is not in {first.path}: it has {list(first.tensors)[:5]}")
        if name in held.floating and first.tensors[own].dtype not in FLOATS:
            raise ValueError(
                f"{own} is of {first.tensors[own].dtype} in {first.path}, which holds no draw: give --like a "
                "checkpoint of floating-point weights"
            )
        found[name] = list(ties.get(own, (own,)))
    check_same(
        {name: torch.empty(first.tensors[own[0]].shape, device="meta") for name, own in found.items()},
        {name: torch.empty(shape, device="meta") for name, shape in held.shapes.items()},
        what=f"{source} beside {first.path}",
    )
    return found


def _copy(first: Checkpoint, names: Sequence[str], places: Sequence[Mapping[Key, Place]], report: Report) -> None:
    with Reader() as reader:
        for name in names:
            stored = first.tensors[name]
            most = stored.numel if stored.whole is not None else 1 << 22
            for start in range(0, stored.numel, max(most, 1)):
                stop = min(start + most, stored.numel)
                target = torch.empty(stop - start, dtype=stored.dtype)
                reader.read(stored, start, stop, target)
                for own in places:
                    _put(own["", name], target, report, start)


def _put(place: Place, tensor: Tensor, report: Report, start: int = 0, name: str = "") -> None:
    if name:
        check_writable({name: torch.empty(tensor.shape, dtype=place.dtype)}, {name: tensor}, "a draw")
    content = tensor.to(place.dtype).contiguous().flatten().view(torch.uint8).numpy().data
    with place.path.open("r+b") as file:
        file.seek(place.offset + start * place.dtype.itemsize)
        file.write(content)
    report(len(content))
