"""Numbers over seeds and over pairs of data set and model: spreads, paired gaps, and Wilcoxon's signed-rank test.

Seeds repeat one test of a claim about methods, pairs make several. So a claim is judged by the means over seeds of
every pair, paired, with Wilcoxon's test (1945) as Demsar (2006) advises for comparisons over data sets, and by Holm's
step-down correction (1979) over the claims made at once. Pairs that share a data set or a model are not independent
either: p-values are a guide.

Needs scipy.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation (0 for one value), n and the values.

    >>> spread([1.0, 3.0])["sd"]
    1.4142135623730951
    """
    found = [float(value) for value in values]
    sd = statistics.stdev(found) if len(found) > 1 else 0.0
    return {"mean": statistics.fmean(found), "sd": sd, "n": len(found), "values": found}


def gap(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Return the spread of the paired differences over seeds and Student's interval; None where there is one seed.

    >>> found = gap([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    >>> round(found["mean"], 3), round(found["low"], 3), round(found["high"], 3)
    (2.0, -0.484, 4.484)
    """
    found = spread([a - b for a, b in zip(ours, theirs, strict=True)])
    if found["n"] < 2:
        return {**found, "low": None, "high": None}
    half = float(_scipy().t.ppf(0.5 + level / 2, found["n"] - 1)) * found["sd"] / found["n"] ** 0.5
    return {**found, "low": found["mean"] - half, "high": found["mean"] + half}


def signed_rank(differences: Sequence[float]) -> dict[str, Any]:
    """Return Wilcoxon's two-sided test of differences, ours less theirs, and how many lie above, below and at zero.

    Differences of zero are left out of the ranks; where none is left, p is 1. `side` is 1 where the ranks favour ours,
    -1 where they favour theirs, 0 for neither: one large difference moves the mean, not the ranks. The distribution is
    exact up to 50 differences without ties.

    >>> found = signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    >>> found["above"], found["below"], found["side"], round(found["p"], 4)
    (9, 0, 1, 0.0039)
    """
    stats, kept = _scipy(), [value for value in differences if value != 0]
    p = float(stats.wilcoxon(kept).pvalue) if kept else 1.0
    ranks = stats.rankdata([abs(value) for value in kept]) if kept else []
    balance = sum(rank if value > 0 else -rank for rank, value in zip(ranks, kept, strict=True))
    side = int(balance > 0) - int(balance < 0)
    above = sum(value > 0 for value in kept)
    counts = {"above": above, "below": len(kept) - above, "equal": len(differences) - len(kept)}
    return {"n": len(differences), **counts, "side": side, "mean": statistics.fmean(differences), "p": p}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values of tests that are looked at together.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p) - place) * value))
        adjusted[name] = highest
    return adjusted


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("the statistics of a study need scipy: pip install scipy") from error
    return stats
