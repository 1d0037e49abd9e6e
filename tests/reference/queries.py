"""Queries of several hops by enumeration: their answers, truths and ranks, each kind written out by hand."""

from collections.abc import Callable, Iterable
from itertools import product

Triples = set[tuple[int, int, int]]
Table = list[list[list[float]]]  # truth of a link: [relation][head][tail]


def answers(kind: str, anchors: tuple[int, ...], relations: tuple[int, ...], facts: Triples, entities: int) -> set[int]:
    """Every entity t for which some choice of the entities x between satisfies the kind's formula."""
    a, r = (*anchors, -1, -1), (*relations, -1, -1)
    everyone = range(entities)

    def fact(head: int, relation: int, tail: int) -> bool:
        return (head, relation, tail) in facts

    formulas: dict[str, Callable[[int, int, int], bool]] = {
        "2p": lambda x, y, t: fact(a[0], r[0], x) and fact(x, r[1], t),
        "3p": lambda x, y, t: fact(a[0], r[0], x) and fact(x, r[1], y) and fact(y, r[2], t),
        "2i": lambda x, y, t: fact(a[0], r[0], t) and fact(a[1], r[1], t),
        "3i": lambda x, y, t: fact(a[0], r[0], t) and fact(a[1], r[1], t) and fact(a[2], r[2], t),
        "ip": lambda x, y, t: fact(a[0], r[0], x) and fact(a[1], r[1], x) and fact(x, r[2], t),
        "pi": lambda x, y, t: fact(a[0], r[0], x) and fact(x, r[1], t) and fact(a[1], r[2], t),
        "2u": lambda x, y, t: fact(a[0], r[0], t) or fact(a[1], r[1], t),
        "up": lambda x, y, t: (fact(a[0], r[0], x) or fact(a[1], r[1], x)) and fact(x, r[2], t),
    }
    return {t for x, y, t in product(everyone, everyone, everyone) if formulas[kind](x, y, t)}


def truths(kind: str, anchors: tuple[int, ...], relations: tuple[int, ...], p: Table, t_norm: str) -> list[float]:
    """The truth of every entity: the largest one over the entities x between."""
    a, r = (*anchors, 0, 0), (*relations, 0, 0)
    everyone = range(len(p[0]))

    def both(*values: float) -> float:
        out = 1.0
        for value in values:
            out = out * value if t_norm == "product" else min(out, value)
        return out

    def either(u: float, v: float) -> float:
        return u + v - u * v if t_norm == "product" else max(u, v)

    formulas: dict[str, Callable[[int, int, int], float]] = {
        "2p": lambda x, y, t: both(p[r[0]][a[0]][x], p[r[1]][x][t]),
        "3p": lambda x, y, t: both(p[r[0]][a[0]][x], p[r[1]][x][y], p[r[2]][y][t]),
        "2i": lambda x, y, t: both(p[r[0]][a[0]][t], p[r[1]][a[1]][t]),
        "3i": lambda x, y, t: both(p[r[0]][a[0]][t], p[r[1]][a[1]][t], p[r[2]][a[2]][t]),
        "ip": lambda x, y, t: both(p[r[0]][a[0]][x], p[r[1]][a[1]][x], p[r[2]][x][t]),
        "pi": lambda x, y, t: both(p[r[0]][a[0]][x], p[r[1]][x][t], p[r[2]][a[1]][t]),
        "2u": lambda x, y, t: either(p[r[0]][a[0]][t], p[r[1]][a[1]][t]),
        "up": lambda x, y, t: both(either(p[r[0]][a[0]][x], p[r[1]][a[1]][x]), p[r[2]][x][t]),
    }
    return [max(formulas[kind](x, y, t) for x, y in product(everyone, everyone)) for t in everyone]


def ranks(values: list[float], found: Iterable[int], hard: Iterable[int]) -> list[float]:
    """The middle of the best and the worst rank of each hard answer among the entities that do not answer."""
    rivals = [value for entity, value in enumerate(values) if entity not in set(found)]
    out = []
    for entity in hard:
        best = 1 + sum(value > values[entity] for value in rivals)
        worst = 1 + sum(value >= values[entity] for value in rivals)
        out.append((best + worst) / 2)
    return out
