"""The study of links: graphs, PyKEEN's scores and ranks, the loss, and cells that choose by validation triples."""

import dataclasses
import json
import os
import random
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lowland.studies.grid.cells import Cell, check_result
from lowland.studies.links import KIND, LinksStudy, cells, from_mapping, read_config, run_cell
from lowland.studies.links.graphs import Graph, Tails, graph_of, load_graph, with_inverses
from lowland.studies.links.ranking import Ranking, metrics_of
from lowland.studies.links.training import epochs, loss_of
from lowland.studies.runs.settings import to_toml

pytest.importorskip("pykeen", reason="link prediction needs lowland[links]")

from lowland.studies.links.scorers import LINEAR, Scorer

Names = list[tuple[str, str, str]]


def triples(number: int = 90, entities: int = 12, relations: int = 3, seed: int = 0) -> Names:
    """Different triples; the first ones name every entity and every relation."""
    first = [(f"e{i}", f"r{i % relations}", f"e{(i + 1) % entities}") for i in range(entities)]
    every = [(f"e{h}", f"r{r}", f"e{t}") for h in range(entities) for r in range(relations) for t in range(entities)]
    rest = sorted(set(every) - set(first))
    random.Random(seed).shuffle(rest)
    return first + rest[: number - entities]


def small_graph() -> Graph:
    every = triples()
    return graph_of("small", every[:50], every[50:70], every[70:])


def write(folder: Path, train: Names, validation: Names, test: Names) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in (("train", train), ("valid", validation), ("test", test)):
        text = "".join("\t".join(triple) + "\n" for triple in part)
        (folder / f"{file}.txt").write_text(text, encoding="utf-8")
    return folder


def study_of(folder: Path, **sections: Any) -> LinksStudy:
    given: dict[str, dict[str, Any]] = {
        "data": {"graphs": ["own"], "paths": [f"own={folder}"], "train_triples": 20},
        "model": {"names": ["complex"], "dimension": 8},
        "training": {"epochs": 12, "learning_rate": 0.05, "batch_size": 16},
        "queries": {"number": 3, "kinds": ["2p", "2i"]},
        "evaluation": {"curve_every": 4},
        "sensitivity": {"seeds": []},
    }
    return from_mapping({name: given.get(name, {}) | sections.get(name, {}) for name in given | sections})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    every = triples()
    return write(tmp_path / "own", every[:50], every[50:70], every[70:])


def without_seconds(result: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in result.items() if key != "seconds"})


# Graphs


@pytest.mark.parametrize(
    ("name", "entities", "relations", "counts"),
    [
        ("umls", 135, 46, (5216, 652, 661)),
        ("kinships", 104, 25, (8544, 1068, 1074)),
        ("nations", 14, 55, (1592, 199, 201)),
    ],
)
def test_packaged_graphs_have_their_published_sizes(
    name: str, entities: int, relations: int, counts: tuple[int, ...]
) -> None:
    graph = load_graph(name)
    assert (len(graph.entities), len(graph.relations)) == (entities, relations)
    assert (len(graph.train), len(graph.validation), len(graph.test)) == counts
    assert torch.unique(graph.everything, dim=0).shape == (sum(counts), 3)  # no triple stands in two parts


@pytest.mark.parametrize(
    ("name", "entities", "relations", "counts"),
    [("fb15k237", 14541, 237, (272115, 17535, 20466)), ("wn18rr", 40943, 11, (86835, 3034, 3134))],
)
def test_the_archive_of_large_graphs(name: str, entities: int, relations: int, counts: tuple[int, ...]) -> None:
    path = Path(os.environ.get("LOWLAND_TEST_DATA", "")) / "kg_fb15k237_wn18rr.tar.xz"
    if not path.is_file():
        pytest.skip("LOWLAND_TEST_DATA names no folder with kg_fb15k237_wn18rr.tar.xz")
    graph = load_graph(name, path=path)
    assert (len(graph.entities), len(graph.relations)) == (entities, relations)
    assert (len(graph.train), len(graph.validation), len(graph.test)) == counts


def test_a_folder_and_an_archive_of_several_graphs(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "kg_Other-2", [("x", "is", "y")], [("y", "is", "x")], [("x", "is", "x")])
    with tarfile.open(tmp_path / "both.tar.xz", "w:xz") as archive:
        archive.add(folder, "kg_Own")
        archive.add(other, "kg_Other-2")
    for path in (folder, tmp_path / "both.tar.xz"):
        graph = load_graph("own", path=path)
        assert torch.equal(graph.everything, small_graph().everything)
        assert graph.entities == small_graph().entities
    assert load_graph("other2", path=tmp_path / "both.tar.xz").relations == ("is",)
    with pytest.raises(ValueError, match="holds the graphs kg_Other-2, kg_Own, none or several of them is 'third'"):
        load_graph("third", path=tmp_path / "both.tar.xz")


def test_paths_without_a_graph_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no packaged graph 'yago': take umls, kinships, nations"):
        load_graph("yago")
    with pytest.raises(ValueError, match="there is nothing at"):
        load_graph("own", path=tmp_path / "absent")
    with pytest.raises(ValueError, match="has no folder with train.txt, valid.txt and test.txt"):
        load_graph("own", path=tmp_path)
    (tmp_path / "broken.tar.xz").write_bytes(b"\xfd7zXZ\x00 and no more")
    with pytest.raises(ValueError, match="no tar archive, or a damaged one"):
        load_graph("own", path=tmp_path / "broken.tar.xz")
    place = write(tmp_path / "bad", [("a", "r", "b")], [("a", "r", "b")], [("a", "r", "b")])
    (place / "valid.txt").write_text("a\tr\tb\na r b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 of the validation triples of .* has 1 cells, wanted 3"):
        load_graph("own", path=place)
    (place / "valid.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="has no validation triples"):
        load_graph("own", path=place)


def test_tails_are_those_of_the_triples() -> None:
    graph = small_graph()
    rows = with_inverses(graph.train, len(graph.relations))
    tails = Tails(torch.cat([rows, rows[:5]]))  # a repeated triple counts once
    known: dict[tuple[int, int], set[int]] = {}
    for h, r, t in graph.train.tolist():
        known.setdefault((h, r), set()).add(t)
        known.setdefault((t, r + len(graph.relations)), set()).add(h)
    assert [tuple(pair) for pair in tails.pairs.tolist()] == sorted(known)
    asked = [(h, r) for h in range(len(graph.entities)) for r in range(2 * len(graph.relations))]
    heads, relations = torch.tensor(asked).unbind(1)
    found: dict[int, set[int]] = {}
    for row, tail in zip(*(column.tolist() for column in tails.of(heads, relations)), strict=True):
        assert tail not in found.setdefault(row, set())
        found[row].add(tail)
    assert {asked[row]: own for row, own in found.items()} == known


# Scores and ranks


@pytest.mark.parametrize("name", [*LINEAR, "transe", "tucker"])
def test_scores_are_those_of_pykeen(name: str) -> None:
    torch.manual_seed(0)
    graph = small_graph()
    scorer = Scorer(name, graph, dimension=8, spread=1.0).eval()
    heads, relations = torch.tensor([0, 3, 3, 11]), torch.tensor([0, 2, 5, 4])
    scores = scorer(heads, relations)
    wanted = scorer.model.score_t(torch.stack([heads, relations], dim=1))
    torch.testing.assert_close(scores, wanted)
    triple = torch.tensor([[3, 5, 7]])
    torch.testing.assert_close(scores[2, 7], scorer.model.score_hrt(triple).squeeze())
    assert sum(p.numel() for p in scorer.parameters() if p.shape[0] == 12) == 12 * 8  # real numbers of an entity


def test_scorers_that_cannot_be_built_are_named() -> None:
    with pytest.raises(ValueError, match="PyKEEN has no model 'bert': it has autosf"):
        Scorer("bert", small_graph())
    with pytest.raises(ValueError, match="the dimension of quate must be a multiple of 4, got 6"):
        Scorer("quate", small_graph(), dimension=6)
    with pytest.raises(ValueError, match="PyKEEN's nodepiece cannot be built for small with dimension 8"):
        Scorer("nodepiece", small_graph(), dimension=8)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_equal_those_of_pykeens_evaluator(name: str, ties: bool) -> None:
    from pykeen.evaluation import RankBasedEvaluator

    torch.manual_seed(1)
    graph = small_graph()
    relations = len(graph.relations)
    scorer = Scorer(name, graph, dimension=8, spread=1.0).eval()
    if ties:  # few values: whole numbers, which both ways of summing hold exactly
        with torch.no_grad():
            for parameter in scorer.parameters():
                parameter.clamp_(-1, 1).round_()
            if name == "quate":  # unit quaternions
                parameter = scorer.model.relation_representations[0]._embeddings.weight
                parameter.copy_(torch.eye(4)[torch.randint(4, (2 * relations, 2))].flatten(1))
    evaluator = RankBasedEvaluator(clear_on_finalize=False)
    result = evaluator.evaluate(
        model=scorer.model,
        mapped_triples=with_inverses(graph.test, relations),
        additional_filter_triples=[with_inverses(graph.everything, relations)],
        targets=("tail",),
        batch_size=7,
        use_tqdm=False,
    )
    ranking = Ranking(graph, graph.test)
    ranks = ranking.ranks(scorer)
    theirs = torch.cat([torch.from_numpy(part) for part in evaluator.ranks["tail", "realistic"]])
    assert bool((ranks % 1 == 0.5).any()) == ties
    assert ranks.tolist() == theirs.tolist()
    found = ranking.metrics(scorer)
    assert found["mrr"] == pytest.approx(result.get_metric("tail.realistic.inverse_harmonic_mean_rank"))
    for k in (1, 3, 10):
        assert found[f"hits@{k}"] == pytest.approx(result.get_metric(f"tail.realistic.hits_at_{k}"))


def test_ranks_do_not_depend_on_the_pieces_they_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graph()
    scores = torch.randn(12, 6, 12, generator=torch.Generator().manual_seed(0))

    def score(heads: Tensor, relations: Tensor) -> Tensor:
        return scores[heads, relations]

    whole = Ranking(graph, graph.test).ranks(score)
    monkeypatch.setattr("lowland.studies.links.ranking._PIECE", 3 * 4 * 12)  # three rows
    before = scores.clone()
    assert torch.equal(Ranking(graph, graph.test).ranks(score), whole)
    assert torch.equal(scores, before)


def test_equal_scores_stand_in_the_middle_and_no_number_is_refused() -> None:
    graph = small_graph()
    ranks = Ranking(graph, graph.test).ranks(lambda heads, relations: torch.zeros(len(heads), 12))
    assert 1.0 < float(ranks.min()) and float(ranks.max()) <= 6.5  # at best the middle of two, at worst of twelve
    assert metrics_of(torch.tensor([1.0, 2.5, 10.0]))["hits@3"] == pytest.approx(2 / 3)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(RuntimeError, match="a score is not finite: the weights have diverged"):
            Ranking(graph, graph.test).ranks(lambda heads, relations, bad=bad: torch.full((len(heads), 12), bad))


# Training


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_those_of_the_dense_targets(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (5 * torch.randn(6, 9, generator=generator, dtype=torch.float64)).requires_grad_()
    true = torch.rand(6, 9, generator=generator) < 0.3
    wanted = binary_cross_entropy_with_logits(scores, true.double() * (1 - smoothing) + smoothing / 9)
    found = loss_of(scores, *true.nonzero().unbind(1), smoothing=smoothing)
    torch.testing.assert_close(found, wanted)
    one, other = (torch.autograd.grad(loss, scores)[0] for loss in (found, wanted))
    torch.testing.assert_close(one, other)


def test_an_epoch_shows_every_pair_once_with_all_its_tails() -> None:
    graph, shown = small_graph(), []

    class Watched(Scorer):
        def forward(self, heads: Tensor, relations: Tensor) -> Tensor:
            shown.extend(zip(heads.tolist(), relations.tolist(), strict=True))
            return super().forward(heads, relations)

    tails = Tails(graph.both_ways)
    torch.manual_seed(0)
    scorer = Watched("distmult", graph, dimension=8)
    losses = epochs(scorer, tails, learning_rate=0.0, batch_size=8, generator=torch.Generator().manual_seed(1))
    loss = next(losses)
    first, shown[:] = list(shown), []
    assert next(losses) == pytest.approx(loss)  # the rate is zero, the batches are others
    assert sorted(first) == sorted(shown) == [tuple(pair) for pair in tails.pairs.tolist()]
    assert first != shown
    wanted = torch.zeros(12, 6, 12)
    for h, r, t in graph.train.tolist():
        wanted[h, r, t] = wanted[t, r + 3, h] = 1
    scores = scorer(*tails.pairs.unbind(1))
    dense = binary_cross_entropy_with_logits(scores, wanted[tails.pairs[:, 0], tails.pairs[:, 1]])
    assert loss == pytest.approx(float(dense.detach()))


# Cells


def test_a_cell_is_a_pure_function_and_leaves_the_random_state(folder: Path) -> None:
    study = study_of(folder, sensitivity={"seeds": [0], "rate": [50], "rank": [1, 3], "start": [50], "every": [1, 2]})
    cell = Cell("own", "complex", 0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = run_cell(study, cell)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert without_seconds(run_cell(study, cell)) == without_seconds(one)
    assert without_seconds(run_cell(study, Cell("own", "complex", 1))) != without_seconds(one)
    check_result(json.loads(json.dumps(one)), KIND, cell)


def test_what_a_cell_returns_hangs_together(folder: Path) -> None:
    study = study_of(folder, sensitivity={"seeds": [0], "rate": [50], "rank": [1, 3], "start": [50], "every": [1, 2]})
    result = run_cell(study, Cell("own", "complex", 0))
    methods, trace = result["methods"], result["trace"]
    running = [decision["running"] for decision in trace]
    assert len(trace) == 12
    assert result["chosen"]["best epoch"] == running.index(max(running)) + 1
    assert methods["best checkpoint"]["validation"]["mrr"] == max(running)
    assert methods["last iterate"]["validation"]["mrr"] == running[-1]
    taken = [d["ahead"] if d["action"] == "soft" else d["running"] for d in trace if d["action"] != "reject"]
    assert methods["ASWA"]["validation"]["mrr"] == max(taken) == taken[-1]
    assert result["chosen"]["averaged by ASWA"] == trace[-1]["averaged"]
    assert all(set(parts) == {"train", "validation", "test", "2p", "2i"} for parts in methods.values())
    curves = result["curves"]
    assert curves["last iterate"]["epoch"] == [1, 4, 8, 12]
    assert curves["SWA"]["epoch"] == [8, 12]  # it begins at epoch 6
    for name in ("last iterate", "SWA", "SWA from epoch 1", "EMA", "ASWA"):
        for part in ("train", "validation", "test"):
            assert curves[name][part][-1] == methods[name][part]["mrr"]
    rows = result["sensitivity"]
    find = {(axis, row["method"], row["value"]): row["test"] for axis in rows for row in rows[axis]}
    test = {name: parts["test"]["mrr"] for name, parts in methods.items()}
    assert find["start", "SWA", 50] == find["every", "SWA", 1] == test["SWA"]
    assert find["rank", "LAWA", 1] == test["last iterate"]
    assert find["rate", "ASWA", 0.05] == test["ASWA"]
    assert find["rate", "last iterate", 0.025] != test["last iterate"]


def test_the_averages_are_those_of_the_iterates(folder: Path) -> None:
    from lowland import applied, weights_of
    from lowland.studies.runs.randomness import derived_seed, stream

    study = study_of(folder, queries={"number": 0})
    result = run_cell(study, Cell("own", "complex", 3))
    graph = load_graph("own", path=folder)
    torch.manual_seed(derived_seed(3, "weights"))
    scorer = Scorer("complex", graph, dimension=8)
    steps = epochs(scorer, Tails(graph.both_ways), learning_rate=0.05, batch_size=16, generator=stream(3, "order"))
    iterates = []
    for _ in range(12):
        next(steps)
        iterates.append({name: tensor.clone() for name, tensor in weights_of(scorer).items()})
    ranking = Ranking(graph, graph.test)

    def mean(chosen: list[dict[str, Tensor]]) -> float:
        average = {name: torch.stack([one[name] for one in chosen]).mean(0) for name in chosen[0]}
        with applied(scorer, average):
            return ranking.metrics(scorer)["mrr"]

    test = {name: parts["test"]["mrr"] for name, parts in result["methods"].items()}
    assert test["last iterate"] == mean(iterates[-1:])
    assert test["SWA from epoch 1"] == pytest.approx(mean(iterates))
    assert test["SWA"] == pytest.approx(mean(iterates[5:]))  # half of 12 epochs are over at the end of the sixth


def test_test_triples_choose_nothing(tmp_path: Path) -> None:
    every = triples(120)
    one = write(tmp_path / "one", every[:50], every[50:70], every[70:90])
    other = write(tmp_path / "other", every[:50], every[50:70], every[90:])
    found = [run_cell(study_of(place), Cell("own", "complex", 0)) for place in (one, other)]
    for key in ("trace", "chosen"):
        assert found[0][key] == found[1][key]
    for method in KIND.methods:
        parts = [result["methods"][method] for result in found]
        assert parts[0]["validation"] == parts[1]["validation"]
    assert found[0]["methods"]["ASWA"]["test"] != found[1]["methods"]["ASWA"]["test"]


@pytest.mark.parametrize("model", ["complex", "tucker"])  # TuckER has BatchNorm and dropout
def test_looking_more_often_changes_no_weights(folder: Path, model: str) -> None:
    often = study_of(folder, model={"names": [model]}, evaluation={"curve_every": 1}, queries={"number": 0})
    seldom = dataclasses.replace(often, evaluation=dataclasses.replace(often.evaluation, curve_every=50))
    one, other = (run_cell(study, Cell("own", model, 0)) for study in (often, seldom))
    assert one["methods"] == other["methods"]
    assert one["trace"] == other["trace"]


def test_a_run_that_diverges_names_its_cell_and_epoch(folder: Path) -> None:
    study = study_of(folder, training={"learning_rate": 1e30})
    with pytest.raises(RuntimeError, match=r"cell own-complex-0 diverged in epoch 1 .*: lower training.learning_rate"):
        run_cell(study, Cell("own", "complex", 0))


# Configuration


def test_a_configuration_survives_its_file(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, training={"seeds": [3, 4], "smoothing": 0.1})
    (tmp_path / "study.toml").write_text(to_toml(study), encoding="utf-8")
    assert read_config(tmp_path / "study.toml") == study
    (tmp_path / "relative.toml").write_text('[data]\ngraphs = ["own"]\npaths = ["own=own"]\n', encoding="utf-8")
    assert read_config(tmp_path / "relative.toml").data.paths == (f"own={folder.resolve()}",)
    assert from_mapping(tomllib.loads(to_toml(LinksStudy()))) == LinksStudy()
    assert [cell.name for cell in cells(study)] == ["own-complex-3", "own-complex-4"]
    with pytest.raises(FileNotFoundError, match="there is no configuration"):
        read_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("data", "graphs", ["yago"], "data.graphs has 'yago', which is no packaged graph"),
        ("data", "graphs", [], "data.graphs must be one or more different names"),
        ("data", "paths", ["umls"], 'data.paths must be like "NAME=PATH"'),
        ("model", "names", ["complex", "complex"], "model.names must be one or more different names"),
        ("model", "spread", 0, "model.spread must be positive and finite, got 0.0"),
        ("training", "epochs", 1, "training.epochs must be at least 2, got 1"),
        ("training", "smoothing", 1, "training.smoothing must be at least 0 and below 1, got 1.0"),
        ("training", "seeds", [-1], "training.seeds must be different whole numbers"),
        ("averages", "start", 1.0, "averages.start must be at least 0 and below 1"),
        ("queries", "kinds", ["4p"], "queries.kinds has '4p'"),
        ("queries", "t_norm", "sum", 'queries.t_norm must be "product" or "min", got \'sum\''),
        ("sensitivity", "start", [150], "sensitivity.start must be per cents of the epochs"),
        ("sensitivity", "rate", [0], "sensitivity.rate must be numbers from 1 on"),
        ("evaluation", "curves", 3, r"evaluation.curves is no setting: \[evaluation\] has curve_every"),
    ],
)
def test_mistakes_in_a_configuration_are_named(section: str, key: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_mapping({section: {key: value}})
