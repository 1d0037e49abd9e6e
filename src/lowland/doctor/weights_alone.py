"""What the weights alone tell: names, shapes, types, values that are not finite, equal ones, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .findings import Finding, Level, few
from .survey import Signature, Surveyed, cosine, distance, norms, total, usual

STRANGERS = 0.3  # cosine of the matrices below which two ingredients share no start
SHIFT = 0.5  # standard deviations of a channel


def structure(names: Sequence[str], signatures: Sequence[Signature]) -> tuple[list[int], list[Finding]]:
    """Return the places of the ingredients that can be averaged at all, and why the others cannot.

    Names and shapes are held against those that most ingredients have; where no two agree, against the first.
    """
    found = []
    like = usual(signatures)
    wanted = signatures[like]
    kept = []
    for place, (name, own) in enumerate(zip(names, signatures, strict=True)):
        beside = (names[like], name)
        missing = [key for key in wanted.shapes if key not in own.shapes]
        extra = [key for key in own.shapes if key not in wanted.shapes]
        shapes = [
            f"{key} {own.shapes[key]} instead of {wanted.shapes[key]}"
            for key in wanted.shapes
            if key in own.shapes and own.shapes[key] != wanted.shapes[key]
        ]
        if missing or extra:
            parts = [f"lacks {few(missing)}"] * bool(missing) + [f"has {few(extra)} besides"] * bool(extra)
            says = f"{name} {' and '.join(parts)}, beside {names[like]}"
            do = f"average checkpoints of one architecture: leave {name} out, or rename its tensors"
            found.append(Finding("names", "error", says, do, beside, {"missing": missing, "unexpected": extra}))
        if shapes:
            do = f"{name} is of another size or has another head: leave it out"
            found.append(Finding("shapes", "error", f"in {name}: {few(shapes)}", do, beside, {"differ": shapes}))
        if own.broken:
            says = f"{name} holds NaN or infinities in {few(list(own.broken))}"
            do = f"leave {name} out: one such value spoils the whole average"
            found.append(Finding("finite", "error", says, do, (name,), {"tensors": list(own.broken)}))
        for kind in dict.fromkeys(own.unfit.values()):
            strange = [key for key, why in own.unfit.items() if why == kind]
            does, _, do = kind.partition(": ")
            says = f"{name} holds {few(strange)}, {does}: no average means anything"
            found.append(Finding("kinds", "error", says, do or f"leave {name} out", (name,), {"tensors": strange}))
        if not (missing or extra or shapes or own.broken or own.unfit):
            kept.append(place)
            types = [key for key, dtype in wanted.dtypes.items() if own.dtypes[key] != dtype]
            if types:
                told = f"{types[0]} is {_short(own.dtypes[types[0]])} instead of {_short(wanted.dtypes[types[0]])}"
                says = f"{name} has other types in {len(types)} tensors ({told})"
                do = "choose the type of the average, for instance --dtype float32"
                found.append(Finding("dtypes", "note", says, do, beside, {"tensors": types}))
    return kept, found


def pairs_of(n: int, most: int) -> list[tuple[int, int]]:
    """Return all pairs, or where these are more than `most` those of neighbours and the one of first and last.

    >>> pairs_of(3, 10), pairs_of(5, 6)
    ([(0, 1), (0, 2), (1, 2)], [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)])
    """
    every = [(i, j) for i in range(n) for j in range(i + 1, n)]
    return every if len(every) <= most else [*((i, i + 1) for i in range(n - 1)), (0, n - 1)]


def identical(names: Sequence[str], surveyed: Sequence[Surveyed]) -> list[Finding]:
    """Tell ingredients that are equal bit for bit."""
    groups: dict[tuple[bytes, ...], list[str]] = {}
    for place, name in enumerate(names):
        groups.setdefault(tuple(one.digests[place] for one in surveyed), []).append(name)
    found = []
    for group in groups.values():
        if len(group) > 1:
            says = f"{' = '.join(group)}, bit for bit"
            do = "nothing to average: was the model trained between them, and the right file saved?"
            if any(one.grid is not None for one in surveyed):
                do += " In low precision, steps below half a spacing are lost: keep master weights in float32"
            found.append(Finding("identical", "warning", says, do, tuple(group)))
    return found


def distances(
    names: Sequence[str], surveyed: Sequence[Surveyed], pairs: Sequence[tuple[int, int]]
) -> tuple[list[Finding], set[tuple[int, int]]]:
    """Tell how far ingredients lie apart, in all and by tensor, and which pairs look like strangers.

    A matrix that starts from random numbers keeps much of them: trained from one start, matrices of two ingredients
    point the same way, and of two starts they are nearly orthogonal. Vectors do not tell: gains begin at one.
    """
    gram, matrices = total(surveyed), [one for one in surveyed if len(one.shape) > 1]
    told = total(matrices) if matrices else gram
    size = norms(gram)
    found, strangers = [], set()
    for i, j in pairs:
        alike, apart = cosine(told, i, j), distance(gram, i, j) / max(math.sqrt(size[i] * size[j]), 1e-300)
        layers = sorted(
            (
                {
                    "tensor": one.name,
                    "cosine": cosine(one.gram, i, j),
                    "distance": distance(one.gram, i, j) / max(float(norms(one.gram).max()), 1e-300),
                }
                for one in surveyed
                if not one.is_statistic
            ),
            key=lambda row: -float(row["distance"]),  # type: ignore[arg-type]
        )
        farthest = layers[0]["tensor"] if layers else "none"
        says = f"{names[i]} and {names[j]}: cosine {alike:.3f}, distance {apart:.2g} of their size, most in {farthest}"
        far = bool(matrices) and alike < STRANGERS
        do = "they share no start or lost it: an average of them wants proof by a score" if far else ""
        values = {"cosine": alike, "distance": apart, "tensors": layers[:50]}
        found.append(Finding("distance", "error" if far else "ok", says, do, (names[i], names[j]), values))
        if far:
            strangers.add((i, j))
    return found, strangers


def statistics(names: Sequence[str], shifts: Sequence[tuple[int, int, str, float]]) -> list[Finding]:
    """Tell where running statistics of normalisation layers differ; `shifts` has two places, a layer, a shift each."""
    if not shifts:
        return []
    i, j, layer, shift = max(shifts, key=lambda row: row[3])
    values = {"layer": layer, "shift": shift}
    says = f"running statistics of {names[i]} and {names[j]} differ by up to {shift:.2g} standard deviations ({layer})"
    do = "the average needs statistics of its own: refresh_bn on training batches before it is used"
    level: Level = "warning" if shift > SHIFT else "note"
    return [Finding("norms", level, says, do, (names[i], names[j]), values)]


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
