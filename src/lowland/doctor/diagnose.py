"""All checks in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..arguments import whole
from ..retroactive.records import Source
from . import along, files, norms, permutation, weights_alone
from . import trajectory as steps
from .diagnosis import Diagnosis, grouped
from .findings import Finding, Level, few
from .scoring import Mixed, Scored, Scores
from .survey import Surveyed, cosine, signature, survey


@torch.no_grad()
def diagnose(
    ingredients: Sequence[Source] | Mapping[str, Source],
    *,
    score: Scored | None = None,
    mixture: Mixed | None = None,
    model: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
    trajectory: bool = False,
    tolerance: float | None = None,
    points: int = 3,
    most_pairs: int = 15,
    seed: int = 0,
) -> Diagnosis:
    """Tell whether these weights can be averaged, and what to do if not.

    Without a score the verdict rests on the weights alone: it finds what makes an average meaningless for certain
    (shapes, NaN, another order of classes), and takes matrices of nearly no common direction for trainings from
    different starts. Only a score can tell that two ingredients of one start lie in one basin.

    Args:
        ingredients: named weights, or paths of checkpoints and of lowland's own files, which are read tensor by tensor;
            a mapping gives them names.
        score: takes named weights and returns how good they are, higher is better: one number, or one for each
            validation example, in the same order every time, which gives intervals. Such as -loss.
        mixture: instead of `score`, takes places of ingredients and their shares and scores that mixture itself;
            a single share of zero asks for weights of zero.
        model, batches, forward: training batches, a list or a loader that can be read again, and how the model runs on
            one (see `refresh_bn`). BatchNorm statistics are refreshed before each score and handed to it with the
            weights, and statistics are compared before and after. The model is put back each time.
        trajectory: the ingredients are iterates of one run, the oldest first: at least four for an autocorrelation.
        tolerance: difference of scores that does not matter; None: 2 % of what the best ingredient gained over weights
            of zero. A barrier above five times that is an error.
        points: scored between the ends of each line. most_pairs: if there are more pairs, only neighbours and the first
            with the last are looked at.
        seed: of the bootstrap.

    Raises:
        ValueError: there are fewer than two ingredients, one is empty, or an argument does not fit.
        RuntimeError: the score of an ingredient or of a mixture raised.

    >>> a, b = {"w": torch.tensor([[1.0, 2.0]])}, {"w": torch.tensor([[1.2, 2.0]])}
    >>> found = diagnose({"a": a, "b": b}, score=lambda weights: -float((weights["w"][0, 0] - 1.1) ** 2))
    >>> print(found)
    averageable: a, b
    ok       distance: a and b: cosine 0.997, distance 0.088 of their size, most in w
    ok       barrier: a and b: barrier 0 (0.0% of what training gained) on the line between them
    ok       gain: the average scores +0.01 against the mean ingredient, +0.01 against the best (no interval: ...)
    """
    names, sources = _named(ingredients)
    _check(names, score, mixture, model, batches, points, tolerance)
    given, sound, first = files.read(names, sources)
    whole = [names[place] for place in sound]
    if len(given) < 2:
        return Diagnosis(tuple(names), tuple(first), tuple((name,) for name in whole))
    signatures = [signature(weights) for weights in given]
    empty = [name for name, one in zip(whole, signatures, strict=True) if not one.shapes]
    if empty:
        raise ValueError(f"{few(empty)} holds no tensors")
    fit, findings = weights_alone.structure(whole, signatures)
    findings = [*first, *findings]
    kept = [sound[place] for place in fit]
    if len(kept) < 2:
        return Diagnosis(tuple(names), tuple(findings), tuple((names[place],) for place in kept))
    known = [names[place] for place in kept]
    held = [given[place] for place in fit]
    surveyed = survey(held, list(signatures[fit[0]].shapes))
    if not any(one.numel for one in surveyed):
        raise ValueError(f"{few(known)} hold no floating-point numbers: there is nothing to average")
    pairs = weights_alone.pairs_of(len(kept), most_pairs)
    findings += weights_alone.identical(known, surveyed)
    far, strangers = weights_alone.distances(known, surveyed, pairs)
    orders = {pair: _orders(known, held, surveyed, pair) for pair in pairs}
    stalls = _stalls(known, surveyed)

    scores = Scores(held, score=score, mixture=_placed(mixture, kept), model=model, batches=batches, forward=forward)
    scored: list[Finding] = along.useless(known, scores) if scores.asks else []
    apart: dict[tuple[int, int], bool] = {pair: bool(orders[pair]) or pair in strangers for pair in pairs}
    scale = effect = None
    weak: set[int] = set()
    if scores.asks and not scored:
        scale = along.scale_of(scores, tolerance)
        heights, levels = along.barriers(known, scores, pairs, points, scale)
        weaker, weak = along.poor(known, scores, scale)
        scored = [*weaker, *heights, *along.gain(known, scores, scale, seed)]
        effect = along.effect(scores, scale)
        # What the score says of a pair outweighs what its weights look like.
        apart = {pair: level == "error" for pair, level in levels.items()}
        far = [_judged(one, levels[pair]) for one, pair in zip(far, pairs, strict=True)]
        # A line that begins at a bad score shows no barrier: there an order found in the weights stands.
        told = {pair: "error" if weak & set(pair) else level for pair, level in levels.items()}
        apart = {pair: apart[pair] or (told[pair] == "error" and bool(orders[pair])) for pair in pairs}
        orders = {pair: [_judged(one, told[pair]) for one in own] for pair, own in orders.items()}
    findings += far
    findings += [one for own in orders.values() for one in own]
    drifted = norms.drift(known, scores, scale)
    findings += drifted or weights_alone.statistics(known, norms.between(held, surveyed, pairs))
    findings += stalls or _point(known, surveyed, scores, effect)
    findings += _correlated(known, surveyed) if trajectory else []
    findings += scored
    return Diagnosis(tuple(names), tuple(findings), grouped(names, kept, apart))


def _named(ingredients: Sequence[Source] | Mapping[str, Source]) -> tuple[list[str], list[Any]]:
    if isinstance(ingredients, Mapping):
        names, sources = list(ingredients), list(ingredients.values())
    else:
        sources = list(ingredients)
        names = [chr(97 + place) if len(sources) <= 26 else str(place) for place in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        if isinstance(source, torch.Tensor):
            raise ValueError(f"{name} is a tensor, wanted named weights: pass a list of ingredients or a dict of them")
    return names, sources


def _check(
    names: Sequence[str], score: object, mixture: object, model: object, batches: object, points: int, tolerance: Any
) -> None:
    if len(names) < 2:
        raise ValueError(f"a diagnosis wants at least two ingredients, got {len(names)}")
    if score is not None and mixture is not None:
        raise ValueError("score and mixture exclude each other: pass one")
    if (model is None) != (batches is None):
        raise ValueError("model and batches belong together: pass both or neither")
    if mixture is not None and model is not None:
        raise ValueError("a mixture refreshes its own statistics: pass score with model and batches")
    points = whole("points", points, 1)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")


def _placed(mixture: Mixed | None, kept: Sequence[int]) -> Mixed | None:
    """The mixture over the ingredients that were kept."""
    return None if mixture is None else lambda places, shares: mixture([kept[place] for place in places], shares)


def _orders(
    names: Sequence[str], held: Sequence[Any], surveyed: Sequence[Surveyed], pair: tuple[int, int]
) -> list[Finding]:
    matches, left = permutation.permutations(held[pair[0]], held[pair[1]], surveyed)
    return permutation.describe((names[pair[0]], names[pair[1]]), matches, _unlike(surveyed, left, pair))


def _unlike(surveyed: Sequence[Surveyed], names: Sequence[str], pair: tuple[int, int]) -> list[str]:
    """Those tensors among `names` in which two ingredients are so unlike that an order may be the cause."""
    return [one.name for one in surveyed if one.name in names and cosine(one.gram, *pair) < 0.9]


def _stalls(names: Sequence[str], surveyed: Sequence[Surveyed]) -> list[Finding]:
    return steps.stalled(names, surveyed)


def _correlated(names: Sequence[str], surveyed: Sequence[Surveyed]) -> list[Finding]:
    return steps.correlated(names, surveyed)


def _point(names: Sequence[str], surveyed: Sequence[Surveyed], scores: Scores, effect: float | None) -> list[Finding]:
    return steps.point(names, surveyed, effect, _output_effect(scores))


def _output_effect(scores: Scores) -> float | None:
    """How far the outputs of the ingredients lie from their mean, against the spread of outputs over examples."""
    found = [scores.outputs((place,), (1.0,)) for place in range(len(scores.ingredients))]
    outputs = [one for one in found if one is not None]
    if len(outputs) < len(found):
        return None
    together = torch.stack(outputs)
    middle = together.mean(0)
    spread = float((middle - middle.mean(0)).norm())
    return float((together - middle).norm() / len(outputs) ** 0.5) / spread if spread > 0 else None


def _judged(finding: Finding, level: Level) -> Finding:
    """What the weights look like, beside what the score says of the pair."""
    if finding.level != "error":
        return finding
    if finding.check == "distance" and level != "error":
        return replace(finding, level="note", do="nothing: the score decides, below")
    if finding.check == "distance":
        return replace(finding, do="the score agrees, below")
    if level == "error":
        return finding
    return replace(finding, level="warning")
