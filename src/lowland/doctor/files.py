"""What ingredients are before their numbers are looked at: files that can be read, and things that can be averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.layout import Checkpoint, Stored
from ..checkpoints.mixing import differing_codes, differing_masks, obstacles, tensor_of
from ..checkpoints.names import aligned
from ..checkpoints.sources import open_checkpoint
from ..checkpoints.streaming import Reader
from ..retroactive.records import Source, opened
from ..weights.kinds import check_tensors
from ..weights.named import Weights
from .findings import Finding


class _Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint; one is read when asked for."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        with Reader() as reader:
            return tensor_of(reader, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read(names: Sequence[str], sources: Sequence[Source]) -> tuple[list[Weights], list[int], list[Finding]]:
    """Return the ingredients that can be averaged at all, their places, and what stands in the way of the others."""
    weights: dict[int, Weights] = {}
    files: dict[int, Checkpoint] = {}
    found = []
    for place, (name, source) in enumerate(zip(names, sources, strict=True)):
        if isinstance(source, Mapping):
            try:
                check_tensors(source, name)
            except ValueError as error:
                found.append(Finding("kinds", "error", str(error), f"leave {name} out", (name,)))
                continue
            weights[place] = opened(source)
            tensors = {key: Stored(t.dtype, tuple(t.shape), ()) for key, t in source.items()}
            files[place] = Checkpoint(Path("memory") / name, "in memory", tensors, ())
            continue
        try:
            files[place] = open_checkpoint(Path(source))
            weights[place] = _Stored(files[place].tensors)
        except ValueError as error:
            do = f"copy or save {name} anew, or leave it out"
            found.append(Finding("file", "error", f"{name} cannot be read: {error}", do, (name,)))
    lone = {o.places[0] for place in files for o in _alone(place, files, names, found)}
    kept = [place for place in files if place not in lone]
    for place in list(kept[1:]):
        first = kept[0]
        pair = [o for o in obstacles([files[first], files[place]]) if len(o.places) > 1]
        found += [Finding(o.check, "error", o.says, o.do, (names[first], names[place])) for o in pair]
        if pair:
            kept.remove(place)
        elif not isinstance(sources[first], Mapping) and not isinstance(sources[place], Mapping):
            other, said = aligned(files[first], files[place])
            weights[place] = _Stored(other.tensors)
            files[place] = other
            found += [Finding("names", "note", sentence, "", (names[first], names[place])) for sentence in said]
    found += _products([place for place in kept if not isinstance(sources[place], Mapping)], files, names, kept)
    return [weights[place] for place in kept], kept, found


def _alone(place: int, files: Mapping[int, Checkpoint], names: Sequence[str], found: list[Finding]) -> list[Any]:
    told = obstacles([files[place]])
    # A type of its own is no obstacle for the doctor, who looks at the numbers.
    told = [one for one in told if one.check != "quantised" or "types that cannot" not in one.says]
    for one in told:
        found.append(Finding(one.check, "error", one.says, one.do, (names[place],)))
    return [type(one)(one.check, one.says, one.do, (place,)) for one in told]


def _products(
    places: Sequence[int], files: Mapping[int, Checkpoint], names: Sequence[str], kept: list[int]
) -> list[Finding]:
    """Codes without scales beside them and masks of pruned weights, that differ."""
    found = []
    for place in places[1:]:
        pair = [files[places[0]], files[place]]
        shapes = [{name: stored.shape for name, stored in one.tensors.items()} for one in pair]
        if shapes[0] != shapes[1]:
            continue
        about = (names[places[0]], names[place])
        codes, masks = differing_codes(pair), differing_masks(pair)
        if codes:
            says = f"{about[1]} has other integers than {about[0]} in {codes[:4]}, as codes of quantised weights are"
            found.append(Finding("quantised", "error", says, "dequantise the weights first", about))
        if masks:
            says = f"{about[1]} is pruned otherwise than {about[0]}: {masks[:4]}"
            found.append(Finding("pruning", "error", says, "make the pruning permanent before saving", about))
        if codes or masks:
            kept.remove(place)
    return found
