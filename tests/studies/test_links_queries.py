"""Queries of several hops against a twin that enumerates; on UMLS; on many entities within bounds."""

import math
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowland.studies.links import answering
from lowland.studies.links.answering import METRICS, answer, rank_queries
from lowland.studies.links.graphs import Graph, load_graph
from lowland.studies.links.queries import Query, sample_queries
from lowland.studies.links.trees import KINDS, Facts

from ..reference import queries as twin

ENTITIES, RELATIONS = 9, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(entities: int = ENTITIES, relations: int = RELATIONS, triples: int = 60) -> Graph:
    codes = torch.randperm(entities * relations * entities, generator=seeded(3))[:triples]
    rows = torch.stack([codes // (relations * entities), codes // entities % relations, codes % entities], dim=1)
    train, validation, test = rows.split([triples // 2, triples // 4, triples - triples // 2 - triples // 4])
    names = tuple(map(str, range(max(entities, relations))))
    return Graph("random", names[:entities], names[:relations], train, validation, test)


def as_set(*parts: Tensor) -> set[tuple[int, int, int]]:
    return {(h, r, t) for part in parts for h, r, t in part.tolist()}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_graph()


@pytest.fixture(scope="module")
def queries(graph: Graph) -> list[Query]:
    return sample_queries(graph, list(KINDS), 12, seeded(), share=1.0)


@pytest.fixture(scope="module")
def table() -> Tensor:
    return 3 * torch.randn(RELATIONS, ENTITIES, ENTITIES, dtype=torch.float64, generator=seeded(1))


def of_kind(queries: list[Query], kind: str) -> list[Query]:
    return [query for query in queries if query.kind == kind]


def scores_of(table: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda heads, relations: table[relations, heads]


# Sampling.


@pytest.mark.parametrize("kind", KINDS)
def test_easy_and_hard_answers_are_those_of_enumeration(graph: Graph, queries: list[Query], kind: str) -> None:
    known, whole = as_set(graph.train, graph.validation), as_set(graph.train, graph.validation, graph.test)
    assert len(of_kind(queries, kind)) == 12
    for query in of_kind(queries, kind):
        asked = (kind, query.anchors, query.relations)
        found = twin.answers(*asked, whole, ENTITIES)
        easy = twin.answers(*asked, known, ENTITIES)
        assert query.hard and (set(query.easy), set(query.hard)) == (easy, found - easy)
        assert query.answers == tuple(sorted(found))


def test_validation_queries_know_training_triples_only_and_never_see_test_triples(graph: Graph) -> None:
    known, whole = as_set(graph.train), as_set(graph.train, graph.validation)
    for query in sample_queries(graph, ["2p", "pi"], 8, seeded(), part="validation", share=1.0):
        asked = (query.kind, query.anchors, query.relations)
        easy, found = (twin.answers(*asked, facts, ENTITIES) for facts in (known, whole))
        assert (set(query.easy), set(query.hard)) == (easy, found - easy)


def test_queries_differ_and_no_part_occurs_twice(queries: list[Query]) -> None:
    for kind in ("2i", "3i", "2u"):
        parts = [
            frozenset(zip(query.anchors, query.relations, strict=True)) for query in of_kind(queries, kind)
        ]  # the order of the parts asks nothing else
        assert len(set(parts)) == 12 and {len(part) for part in parts} == {int(kind[0])}
    assert len({(query.kind, query.anchors, query.relations) for query in queries}) == len(queries)


def test_the_same_generator_draws_the_same_queries(graph: Graph) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (sample_queries(graph, ["3p"], 5, seeded(seed)) for seed in (4, 4, 5))
    assert first == again and first != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_share_bounds_the_answers(graph: Graph) -> None:
    assert any(len(query.answers) > 3 for query in sample_queries(graph, ["2u", "3p"], 10, seeded(), share=1.0))
    few = sample_queries(graph, ["2u", "3p"], 10, seeded(), share=3 / ENTITIES)
    assert all(len(query.answers) <= 3 for query in few)


def test_a_step_back_draws_the_relation_first_then_the_head() -> None:
    # Of the four links that lead to 4, three have relation 0; the relation of half of all queries is 1 all the same.
    facts = Facts(
        torch.tensor([[0, 0, 4], [1, 0, 4], [2, 0, 4], [3, 1, 4], [3, 0, 0], [3, 0, 1], [3, 0, 2], [3, 0, 3]])
    )
    generator, drawn = seeded(), Counter()
    for _ in range(3000):
        anchors, relations = facts.slots("2i", generator)
        if facts.answers("2i", anchors, relations) == {4}:
            drawn[relations[0]] += 1
    n = drawn.total()
    assert n > 500 and abs(drawn[1] - n / 2) < 4 * math.sqrt(n / 4)


def test_facts_without_a_relation_do_not_mistake_it_for_another() -> None:
    facts = Facts(torch.tensor([[0, 0, 1], [1, 0, 2], [1, 0, 2]]))
    assert facts.tails(1, 0) == [2] and facts.tails(0, 1) == facts.tails(2, 0) == []
    assert facts.answers("2u", (0, 0), (0, 1)) == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ["2p", "4p"]}, "no kind of query '4p'"),
        ({"kinds": ["2p", "2p"]}, "names one twice"),
        ({"number": 0}, "number must be 1 or more, got 0"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0"),
        ({"part": "train"}, "'validation' or 'test', got 'train'"),
    ],
)
def test_arguments_of_sampling_are_checked(graph: Graph, change: dict, message: str) -> None:
    given = {"kinds": ["2p"], "number": 2, "generator": seeded(), **change}
    with pytest.raises(ValueError, match=message):
        sample_queries(graph, **given)


def test_a_graph_without_such_queries_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = torch.tensor([[0, 0, 1]]), torch.tensor([[2, 0, 3]])
    flat = Graph("flat", ("a", "b", "c", "d"), ("r",), one, one, other)
    for module in ("queries", "trees"):
        monkeypatch.setattr(f"lowland.studies.links.{module}.TRIES", 20)
    with pytest.raises(ValueError, match="no path that a 2p query could follow"):
        sample_queries(flat, ["2p"], 1, seeded())
    with pytest.raises(ValueError, match="1 more 2i queries"):
        sample_queries(flat, ["2i"], 1, seeded())


# Answering.


@pytest.mark.parametrize("t_norm", ["product", "min"])
@pytest.mark.parametrize("kind", KINDS)
def test_truths_are_those_of_enumeration(queries: list[Query], table: Tensor, kind: str, t_norm: str) -> None:
    batch = of_kind(queries, kind)
    truths = answer(scores_of(table), batch, t_norm).exp()
    assert truths.shape == (12, ENTITIES)
    plain = table.sigmoid().tolist()
    for row, query in zip(truths.tolist(), batch, strict=True):
        assert row == pytest.approx(twin.truths(kind, query.anchors, query.relations, plain, t_norm), rel=1e-12)


@pytest.mark.parametrize("t_norm", ["product", "min"])
def test_metrics_are_those_of_enumeration(queries: list[Query], table: Tensor, t_norm: str) -> None:
    # Scores of few values, so that many truths are equal and ranks lie in the middle of ties.
    coarse = table.round().clamp(-1, 1)
    found = rank_queries(scores_of(coarse), queries, t_norm)
    logs = {kind: answer(scores_of(coarse), of_kind(queries, kind), t_norm).tolist() for kind in KINDS}
    assert list(found) == list(KINDS)
    tied = 0
    for kind in KINDS:
        wanted: dict[str, list[float]] = {name: [] for name in METRICS}
        for row, query in zip(logs[kind], of_kind(queries, kind), strict=True):
            ranks = twin.ranks(row, query.answers, query.hard)
            tied += sum(rank % 1 == 0.5 for rank in ranks)
            wanted["mrr"].append(sum(1 / rank for rank in ranks) / len(ranks))
            for k in (1, 3, 10):
                wanted[f"hits@{k}"].append(sum(rank <= k for rank in ranks) / len(ranks))
        assert found[kind] == pytest.approx({name: sum(values) / 12 for name, values in wanted.items()}, rel=1e-12)
    assert tied > 10


def test_a_model_that_knows_all_triples_ranks_every_hard_answer_first(graph: Graph, queries: list[Query]) -> None:
    table = torch.full((RELATIONS, ENTITIES, ENTITIES), -20.0)
    heads, relations, tails = graph.everything.unbind(1)
    table[relations, heads, tails] = 20.0
    found = rank_queries(scores_of(table), queries)
    assert all(metrics == dict.fromkeys(METRICS, 1.0) for metrics in found.values())


def test_equal_scores_rank_in_the_middle(queries: list[Query]) -> None:
    flat = torch.zeros(RELATIONS, ENTITIES, ENTITIES)
    query = of_kind(queries, "2i")[0]
    middle = 1 + (ENTITIES - len(query.answers)) / 2
    assert rank_queries(scores_of(flat), [query])["2i"]["mrr"] == pytest.approx(1 / middle)
    # Truths of exactly zero, whose logarithm is infinite: the same.
    assert rank_queries(scores_of(flat - math.inf), [query])["2i"]["mrr"] == pytest.approx(1 / middle)


def test_a_full_beam_is_exact_and_a_smaller_one_is_a_lower_bound(queries: list[Query], table: Tensor) -> None:
    for kind in KINDS:
        batch = of_kind(queries, kind)
        exact = answer(scores_of(table), batch)
        assert torch.equal(answer(scores_of(table), batch, beam=ENTITIES), exact)
        below = answer(scores_of(table), batch, beam=2)
        assert (below <= exact).all()
        assert (kind in ("2i", "3i", "2u")) == torch.equal(below, exact)


def test_a_beam_keeps_the_best_entities_by_hand() -> None:
    p = torch.tensor([[[0.5, 0.6, 0.7], [0.9, 0.1, 0.1], [0.2, 0.3, 0.1]]]).logit()
    query = Query("2p", anchors=(0,), relations=(0, 0), easy=(), hard=(0,))
    # From 0 the truths are .5 .6 .7; two are kept, 2 and 1; the link 0 -> 2 with .5 * .7 is lost.
    assert answer(scores_of(p), query, beam=2).exp().tolist() == [pytest.approx([0.54, 0.21, 0.07])]
    assert answer(scores_of(p), query).exp().tolist() == [pytest.approx([0.54, 0.3, 0.35])]


@pytest.mark.parametrize("beam", [None, 3])
def test_pieces_change_nothing(
    queries: list[Query], table: Tensor, beam: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rank_queries(scores_of(table), queries, beam=beam)
    largest = 0

    def watched(heads: Tensor, relations: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(heads))
        return table[relations, heads]

    monkeypatch.setattr(answering, "_PIECE", 2 * ENTITIES * 8)
    monkeypatch.setattr(answering, "_TABLE", 0)
    assert rank_queries(watched, queries, beam=beam) == whole
    assert largest == 2


def test_sure_truths_in_float32_keep_their_order() -> None:
    # sigmoid(18) and sigmoid(20) are both 1 in float32, and a union of such truths is nearer to 1 still.
    table = torch.full((2, 4, 4), -20.0)
    table[:, 0] = torch.tensor([17.0, 18.0, 19.0, 20.0])
    for kind in ("2i", "2u"):
        truths = answer(scores_of(table), Query(kind, (0, 0), (0, 1), (), (0,)))[0]
        assert (truths.diff() > 0).all() and (truths < 0).all()


def test_many_entities_are_answered_from_a_beam_within_bounds() -> None:
    entities, width = 14_541, 8
    vectors = torch.randn(entities, width, generator=seeded())
    largest = 0

    def scores(heads: Tensor, relations: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(heads))
        return (vectors[heads] * (1 + relations[:, None])) @ vectors.T

    batch = [Query("3p", (n,), (0, 1, 2), (5,), (n + 1, n + 2)) for n in range(40)]
    began = time.perf_counter()
    found = rank_queries(scores, batch, beam=8)["3p"]
    assert time.perf_counter() - began < 30
    assert 0 < found["mrr"] <= 1
    assert largest * entities * 4 <= 1 << 26  # a table of all links would take 0.8 GB for each relation


@pytest.mark.parametrize("judge", [answer, rank_queries])
def test_arguments_of_answering_are_checked(judge: Callable[..., object]) -> None:
    def scores(heads: Tensor, relations: Tensor) -> Tensor:
        return torch.zeros(len(heads), 4)

    batch = [Query("2p", (0,), (0, 0), (), (1,))]
    with pytest.raises(ValueError, match="t_norm must be 'product' or 'min', got 'max'"):
        judge(scores, batch, t_norm="max")
    with pytest.raises(ValueError, match="beam must be 1 or more, or None, got 0"):
        judge(scores, batch, beam=0)
    with pytest.raises(RuntimeError, match="a score is not a number"):
        judge(lambda heads, relations: scores(heads, relations) + math.nan, batch)


def test_batches_are_checked() -> None:
    def scores(heads: Tensor, relations: Tensor) -> Tensor:
        return torch.zeros(len(heads), 4)

    with pytest.raises(ValueError, match=r"one kind, got \['2i', '2p'\]"):
        answer(scores, [Query("2p", (0,), (0, 0), (), (1,)), Query("2i", (0, 0), (0, 1), (), (1,))])
    with pytest.raises(ValueError, match="no query to rank"):
        rank_queries(scores, [])
    with pytest.raises(ValueError, match="has no hard answer"):
        rank_queries(scores, [Query("2p", (0,), (0, 0), (1,), ())])


# UMLS.


@pytest.fixture(scope="module")
def umls() -> Graph:
    try:
        return load_graph("umls")
    except ValueError as error:
        pytest.skip(f"UMLS is not here: {error}")


def test_hard_answers_on_umls_need_a_test_triple(umls: Graph) -> None:
    queries = sample_queries(umls, list(KINDS), 50, seeded())
    assert Counter(query.kind for query in queries) == dict.fromkeys(KINDS, 50)
    known, whole = as_set(umls.train, umls.validation), as_set(umls.everything)
    tails: dict[str, dict[tuple[int, int], set[int]]] = {"known": {}, "whole": {}}
    for name, facts in (("known", known), ("whole", whole)):
        for head, relation, tail in facts:
            tails[name].setdefault((head, relation), set()).add(tail)

    def paths(name: str, starts: set[int], relation: int) -> set[int]:
        return {tail for start in starts for tail in tails[name].get((start, relation), set())}

    for query in queries:
        (a, *more), r = query.anchors, query.relations
        found = {}
        for name in tails:
            first = paths(name, {a}, r[0])
            other = paths(name, set(more[:1]), r[2] if query.kind == "pi" else r[1])
            found[name] = {
                "2p": lambda name=name, first=first, r=r: paths(name, first, r[1]),
                "3p": lambda name=name, first=first, r=r: paths(name, paths(name, first, r[1]), r[2]),
                "2i": lambda first=first, other=other: first & other,
                "3i": lambda name=name, first=first, other=other, more=more, r=r: (
                    first & other & paths(name, {more[1]}, r[2])
                ),
                "ip": lambda name=name, first=first, other=other, r=r: paths(name, first & other, r[2]),
                "pi": lambda name=name, first=first, other=other, r=r: paths(name, first, r[1]) & other,
                "2u": lambda first=first, other=other: first | other,
                "up": lambda name=name, first=first, other=other, r=r: paths(name, first | other, r[2]),
            }[query.kind]()
        assert set(query.easy) == found["known"]
        assert set(query.hard) == found["whole"] - found["known"] != set()
        assert len(query.answers) <= 135 / 2


def test_umls_is_answered_fast(umls: Graph) -> None:
    queries = sample_queries(umls, list(KINDS), 50, seeded())
    heads, tails = torch.randn(2, len(umls.entities), 64, generator=seeded())
    middle = torch.randn(len(umls.relations), 64, generator=seeded(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fastest = math.inf
        for _ in range(3):
            began = time.process_time()
            rank_queries(lambda h, r: (heads[h] * middle[r]) @ tails.T, queries)
            fastest = min(fastest, time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert fastest < 0.5  # 0.05 to 0.1 s where it was written
