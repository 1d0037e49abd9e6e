"""From the results of all cells to what metrics.json holds: tables over seeds, tests over pairs, curves, sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .cells import Cell, Result
from .kinds import Kind, Metric
from .statistics import gap, holm, signed_rank, spread

Pairs = dict[tuple[str, str], list[Result]]  # by data set and model: one result a seed, in the order of the seeds


def gather(kind: Kind, results: Mapping[Cell, Result]) -> dict[str, Any]:
    """Return the numbers of a study, plain data.

    `table` by data set, model, method, part and metric: mean, sd, n and values over seeds. `claims` by "ours - theirs"
    and metric, on test data: the gap of every pair with its interval over seeds, and Wilcoxon's test over pairs with
    Holm's correction over the claims of that metric. `generalisation`: training less test of the main metric.
    `decisions`: how often ASWA did what. `curves`, `sensitivity`: the main metric, over seeds.

    Raises:
        ValueError: there is no result, or pairs have different seeds.
    """
    if not results:
        raise ValueError("there is no cell: a study wants at least one data set, one model and one seed")
    pairs: Pairs = {}
    seeds: dict[tuple[str, str], list[int]] = {}
    for cell in sorted(results, key=lambda cell: cell.seed):
        pairs.setdefault(cell.pair, []).append(results[cell])
        seeds.setdefault(cell.pair, []).append(cell.seed)
    ordered = list(dict.fromkeys(cell.pair for cell in results))
    pairs = {pair: pairs[pair] for pair in ordered}
    if len({tuple(each) for each in seeds.values()}) > 1:
        raise ValueError(f"every pair of data set and model wants the same seeds, got {seeds}")
    claims = _claims(kind, pairs)
    found = {
        "study": kind.name,
        "kind": kind.plain(),
        "seeds": seeds[ordered[0]],
        "pairs": [list(pair) for pair in ordered],
        "table": _by_pair(pairs, lambda several: _table(kind, several)),
        "claims": claims,
        "generalisation": _by_pair(pairs, lambda several: _generalisation(kind, several)),
        "decisions": _by_pair(pairs, _decisions),
        "curves": _by_pair(pairs, _curves),
        "sensitivity": _by_pair(pairs, _sensitivity),
        "landscape": _by_pair(pairs, _landscape),
        "seconds": _by_pair(pairs, lambda several: spread([sum(one["seconds"].values()) for one in several])),
    }
    return {**found, "verdict": verdict(kind, claims, len(ordered), len(found["seeds"]))}


def _by_pair(pairs: Pairs, of: Callable[[list[Result]], Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (data, model), several in pairs.items():
        nested.setdefault(data, {})[model] = of(several)
    return nested


def _table(kind: Kind, several: list[Result]) -> dict[str, Any]:
    parts = list(several[0]["methods"][kind.methods[0]])
    return {
        method: {
            part: {m.key: spread([one["methods"][method][part][m.key] for one in several]) for m in kind.metrics}
            for part in parts
        }
        for method in kind.methods
    }


def _values(several: list[Result], method: str, metric: Metric, part: str = "test") -> list[float]:
    return [one["methods"][method][part][metric.key] for one in several]


def _claims(kind: Kind, pairs: Pairs) -> dict[str, Any]:
    claims: dict[str, Any] = {f"{ours} - {theirs}": {} for ours, theirs in kind.claims}
    for metric in kind.metrics:
        for ours, theirs in kind.claims:
            gaps = [
                {
                    "data": data,
                    "model": model,
                    **gap(_values(several, ours, metric), _values(several, theirs, metric)),
                }
                for (data, model), several in pairs.items()
            ]
            test = signed_rank([one["mean"] for one in gaps])
            better, worse = (test["above"], test["below"]) if metric.higher else (test["below"], test["above"])
            claims[f"{ours} - {theirs}"][metric.key] = {"pairs": gaps, **test, "better": better, "worse": worse}
        adjusted = holm({claim: each[metric.key]["p"] for claim, each in claims.items()})
        for claim, p in adjusted.items():
            claims[claim][metric.key]["p_holm"] = p
    return claims


def _generalisation(kind: Kind, several: list[Result]) -> dict[str, Any]:
    """Training less test, or test less training where less is better: how much worse test data are."""
    sign = 1 if kind.main.higher else -1
    return {
        method: spread(
            [
                sign * (one["methods"][method]["train"][kind.main.key] - one["methods"][method]["test"][kind.main.key])
                for one in several
            ]
        )
        for method in kind.methods
    }


def _decisions(several: list[Result]) -> dict[str, Any]:
    return {
        action: spread([sum(step["action"] == action for step in one["trace"]) for one in several])
        for action in ("first", "hard", "soft", "reject")
    }


def _curves(several: list[Result]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, first in several[0]["curves"].items():
        every = [one["curves"][name] for one in several if name in one["curves"]]
        if any(one["epoch"] != first["epoch"] for one in every):
            continue  # of different length: there is no mean to draw
        found[name] = {"epoch": first["epoch"]}
        for part in (key for key in first if key != "epoch"):
            columns = [spread(values) for values in zip(*(one[part] for one in every), strict=True)]
            found[name][part] = {"mean": [c["mean"] for c in columns], "sd": [c["sd"] for c in columns]}
    return found


def _sensitivity(several: list[Result]) -> dict[str, Any]:
    """By axis: rows of value, method, and the spread over seeds on validation and test data."""
    axes: dict[str, dict[tuple[str, float], list[dict[str, float]]]] = {}
    for one in several:
        for axis, rows in one["sensitivity"].items():
            for row in rows:
                axes.setdefault(axis, {}).setdefault((row["method"], row["value"]), []).append(row)
    return {
        axis: [
            {"method": method, "value": value} | {p: spread([row[p] for row in rows]) for p in ("validation", "test")}
            for (method, value), rows in sorted(found.items())
        ]
        for axis, found in axes.items()
    }


def _landscape(several: list[Result]) -> dict[str, Any] | None:
    """The line between two solutions over seeds: means of the values at each place, and where they are lowest."""
    found: list[dict[str, Any]] = [one["landscape"] for one in several if one.get("landscape")]
    if not found or any(one["t"] != found[0]["t"] for one in found):
        return None
    names = list(found[0]["values"])
    columns = {n: [spread(v) for v in zip(*(one["values"][n] for one in found), strict=True)] for n in names}
    over = {n: {key: [c[key] for c in cells] for key in ("mean", "sd")} for n, cells in columns.items()}
    shift = [one["lowest"]["test error"] - one["lowest"]["train loss"] for one in found]
    return {
        "t": found[0]["t"],
        "ends": found[0]["ends"],
        "values": over,
        "lowest": {n: spread([one["lowest"][n] for one in found]) for n in names},
        "shift": spread(shift),
        "length": spread([one["length"] for one in found]),
    }


def verdict(kind: Kind, claims: Mapping[str, Any], pairs: int, seeds: int) -> str:
    """Say of each claim, in the main metric, whether it holds over the pairs.

    >>> kind = Kind("toys", "toys", (Metric("score", "score", True),), "SGD", ("SGD", "SWA"), (("SWA", "SGD"),))
    >>> one = {"better": 8, "worse": 1, "side": 1, "mean": 0.02, "p_holm": 0.012}
    >>> print(verdict(kind, {"SWA - SGD": {"score": one}}, 9, 5))
    In score, SWA is better than SGD in 8 of 9 pairs of data set and model (mean +0.0200, p = 0.012). Means over 5
    seeds, Wilcoxon's signed-rank test over the pairs with Holm's correction for 1 claim.
    """
    metric = kind.main
    if pairs == 1:
        return _of_one_pair(kind, claims, seeds)
    phrases: list[str] = []
    for ours, theirs in kind.claims:
        found = claims[f"{ours} - {theirs}"][metric.key]
        settled = found["p_holm"] < 0.05
        favours = (found["side"] > 0) == metric.higher
        word = "not told apart from" if not settled else "better than" if favours else "worse than"
        count = found["worse"] if settled and not favours else found["better"]
        how = "" if settled else "better "
        phrases.append(
            f"{ours} is {word} {theirs}{':' if not settled else ''} {how}in {count} of {pairs}"
            f"{' pairs of data set and model' if not phrases else ''} "
            f"(mean {found['mean']:+.4f}, p = {found['p_holm']:.2g})"
        )
    floor = min(1.0, len(kind.claims) * 2 / 2**pairs)
    few = "" if floor < 0.05 else f" With so few pairs p cannot fall below {floor:.2g}: nothing can be told apart."
    claims_made = f"{len(kind.claims)} claim{'' if len(kind.claims) == 1 else 's'}"
    return (
        f"In {metric.label}, {'; '.join(phrases)}. Means over {seeds} seed{'' if seeds == 1 else 's'}, Wilcoxon's "
        f"signed-rank test over the pairs with Holm's correction for {claims_made}.{few}"
    )


def _of_one_pair(kind: Kind, claims: Mapping[str, Any], seeds: int) -> str:
    """The same where no test over pairs can tell anything: the paired intervals over seeds.

    >>> kind = Kind("toys", "toys", (Metric("score", "score", True),), "SGD", ("SGD", "SWA"), (("SWA", "SGD"),))
    >>> one = {"pairs": [{"mean": 0.02, "low": 0.01, "high": 0.03}]}
    >>> print(_of_one_pair(kind, {"SWA - SGD": {"score": one}}, 8))
    In score, SWA is better than SGD (+0.0200 [+0.0100, +0.0300]). One pair of data set and model: means over 8 seeds
    and 95 % intervals of the paired difference, with no correction for 1 claim.
    """
    phrases = []
    for ours, theirs in kind.claims:
        found = claims[f"{ours} - {theirs}"][kind.main.key]["pairs"][0]
        low, high = found["low"], found["high"]
        if low is None:
            phrases.append(f"{ours} less {theirs} is {found['mean']:+.4f}")
            continue
        favours = (found["mean"] > 0) == kind.main.higher
        told = low > 0 or high < 0
        word = "not told apart from" if not told else "better than" if favours else "worse than"
        phrases.append(f"{ours} is {word} {theirs} ({found['mean']:+.4f} [{low:+.4f}, {high:+.4f}])")
    claims_made = f"{len(kind.claims)} claim{'' if len(kind.claims) == 1 else 's'}"
    if seeds == 1:
        return f"In {kind.main.label}, {'; '.join(phrases)}. One pair and one seed: nothing can be told apart."
    return (
        f"In {kind.main.label}, {'; '.join(phrases)}. One pair of data set and model: means over {seeds} seeds and "
        f"95 % intervals of the paired difference, with no correction for {claims_made}."
    )
