"""The doctor on pairs that were made to have each disease, and its arithmetic against plain code."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lowland
from lowland.doctor import Diagnosis, Scores, assign, autocorrelation, barrier, diagnose
from lowland.doctor.assignment import by_augmenting_paths, limit
from lowland.weights import clone_of

from . import doctor_pairs as pairs

# What the weights alone say, and what a score adds: verdict, and the checks that warn or refuse.
TEN: list[tuple[Callable[[], pairs.Pair], tuple[str, set[str]], tuple[str, set[str]]]] = [
    (pairs.same_run, ("averageable", set()), ("averageable", set())),
    (pairs.same_basin, ("averageable", set()), ("averageable", set())),
    (pairs.different_seeds, ("not averageable", {"distance"}), ("not averageable", {"distance", "barrier", "gain"})),
    (pairs.permuted_head, ("not averageable", {"permutation"}), ("not averageable", {"permutation", "score", "gain"})),
    (pairs.drifted_norms, ("doubtful", {"norms"}), ("doubtful", {"norms"})),
    (pairs.stalled, ("doubtful", {"stall"}), ("doubtful", {"stall"})),
    (pairs.tiny_rate, ("doubtful", {"point"}), ("doubtful", {"point"})),
    (pairs.wrong_shapes, ("not averageable", {"shapes"}), ("not averageable", {"shapes"})),
    (pairs.nan, ("not averageable", {"finite"}), ("not averageable", {"finite"})),
    (pairs.identical, ("doubtful", {"identical"}), ("doubtful", {"identical"})),
]


def said(found: Diagnosis) -> tuple[str, set[str]]:
    return found.verdict, {one.check for one in found.findings if one.level in ("warning", "error")}


@pytest.mark.parametrize(("make", "wanted", "_"), TEN, ids=lambda part: getattr(part, "__name__", ""))
def test_ten_pairs_by_their_weights_alone(
    make: Callable[[], pairs.Pair], wanted: tuple[str, set[str]], _: object
) -> None:
    found = diagnose(make().ingredients)
    assert said(found) == wanted, str(found)
    assert found.exit_code == {"averageable": 0, "doubtful": 1, "not averageable": 3}[found.verdict]
    assert all(one.do for one in found.findings if one.level in ("warning", "error")), "each says what to do"


@pytest.mark.parametrize(("make", "_", "wanted"), TEN, ids=lambda part: getattr(part, "__name__", ""))
def test_ten_pairs_with_a_score(make: Callable[[], pairs.Pair], _: object, wanted: tuple[str, set[str]]) -> None:
    pair = make()
    # Only a refresh tells what drifted statistics cost; the other pairs have none.
    more = {}
    if pair.build is pairs.normed:
        more = {"model": pair.build(), "batches": list(pairs.digits()[0].split(64))}
    found = diagnose(pair.ingredients, score=pair.score, **more)
    assert said(found) == wanted, str(found)
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == found.verdict


def test_the_order_of_a_permuted_head_is_found() -> None:
    pair = pairs.permuted_head()
    (finding,) = diagnose(pair.ingredients).of("permutation")
    assert finding.values["tensor"] == "4.weight" and finding.values["columns"] is None
    order = torch.tensor(finding.values["order"])
    assert torch.equal(pair.b["4.weight"][order], pairs.same_run().b["4.weight"])


def test_permuted_hidden_units_are_told_from_a_permuted_head() -> None:
    pair = pairs.permuted_units()
    found = diagnose(pair.ingredients).of("permutation")
    told = {one.values["tensor"]: one for one in found}
    assert {name: one.values["columns"] for name, one in told.items()} == {
        "0.weight": "2.weight",
        "2.weight": "4.weight",
    }
    first, second = (torch.tensor(told[name].values["order"]) for name in ("0.weight", "2.weight"))
    good = pairs.same_run().b
    assert torch.equal(pair.b["0.weight"][first], good["0.weight"])
    assert torch.equal(pair.b["2.weight"][second][:, first], good["2.weight"])


def test_drifted_statistics_are_compared_with_fresh_ones() -> None:
    pair = pairs.drifted_norms()
    model = pairs.made(pairs.normed, 5)
    before = clone_of(model.state_dict())
    found = diagnose(pair.ingredients, score=pair.score, model=model, batches=list(pairs.digits()[0].split(64)))
    one, other, mean = found.of("norms")
    assert (one.level, other.level, mean.level) == ("ok", "warning", "warning")
    assert other.values["shift"] > 1 and other.values["score_after"] > other.values["score_before"] + 1
    assert mean.values["score_after"] > mean.values["score_before"] + 1
    # With fresh statistics at every point there is no barrier.
    assert [one.level for one in found.of("barrier")] == ["ok"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_of_three_those_that_go_together_are_named() -> None:
    basin, other = pairs.same_basin(), pairs.different_seeds().b
    ingredients = {"one": basin.a, "other": other, "two": basin.b}
    for found in (diagnose(ingredients), diagnose(ingredients, score=basin.score)):
        assert found.verdict == "not averageable"
        assert found.groups == (("one", "two"), ("other",))
        assert "(but one, two are)" in str(found)


def test_the_majority_says_which_shapes_are_right() -> None:
    wrong, right = pairs.wrong_shapes(), pairs.same_run()
    found = diagnose({"wrong": wrong.b, "a": right.a, "b": right.b}, score=right.score)
    (finding,) = found.of("shapes")
    assert finding.about == ("a", "wrong")
    assert found.groups == (("a", "b"),) and found.of("barrier")[0].about == ("a", "b")


def test_missing_tensors_and_other_types() -> None:
    a = pairs.trained()
    lacking = {name: tensor for name, tensor in a.items() if name != "4.bias"}
    (finding,) = diagnose([a, lacking]).of("names")
    assert finding.level == "error" and "lacks 4.bias" in finding.says
    (finding,) = diagnose([a, {n: t.bfloat16() for n, t in a.items()}]).of("dtypes")
    assert finding.level == "note" and "bfloat16 instead of float32" in finding.says


def test_training_part_of_a_model_is_no_stall() -> None:
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(200, 16, generator=g).bfloat16()
    rows = embedding.clone()
    rows[:5] += 0.3 * torch.randn(5, 16, generator=g).bfloat16()
    body = torch.randn(50, 50, generator=g).bfloat16()
    assert not diagnose([{"e": embedding, "b": body}, {"e": rows, "b": body}]).of("stall")


def test_a_stall_shows_in_float32_copies_of_bfloat16_weights() -> None:
    pair = pairs.stalled()
    copies = [{name: tensor.float() for name, tensor in weights.items()} for weights in (pair.a, pair.b)]
    (finding,) = diagnose(copies).of("stall")
    assert finding.values["dtype"] == "bfloat16" and finding.values["unchanged"] > 0.9


# The assignment.


def best_by_trying(similarity: np.ndarray) -> float:
    n = len(similarity)
    return max(sum(similarity[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_an_assignment_is_the_best_of_all_orders(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Whole numbers, so that many orders tie.
    for similarity in (random.normal(size=(n, n)), random.integers(0, 4, (n, n)).astype(float)):
        order = assign(similarity)
        assert sorted(order) == list(range(n))
        assert similarity[np.arange(n), order].sum() == pytest.approx(best_by_trying(similarity))


@pytest.mark.parametrize("n", [2, 30, 120])
def test_the_own_solver_agrees_with_scipy(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    similarity = np.random.default_rng(n).standard_normal((n, n))
    _, columns = optimize.linear_sum_assignment(-similarity)
    assert assign(similarity).tolist() == columns.tolist()
    assert by_augmenting_paths(similarity).tolist() == columns.tolist()
    monkeypatch.setattr("lowland.doctor.assignment.find_spec", lambda name: None)
    assert assign(similarity).tolist() == columns.tolist() and limit() == 1024


def test_permutations_of_wide_layers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    assert limit() == 16_384
    g = torch.Generator().manual_seed(0)
    first = {"up.weight": torch.randn(3072, 24, generator=g), "down.weight": torch.randn(24, 3072, generator=g)}
    order = torch.randperm(3072, generator=g)
    second = {"up.weight": first["up.weight"][order], "down.weight": first["down.weight"][:, order]}
    found = [one for one in diagnose({"a": first, "b": second}).findings if one.check == "permutation"]
    undone = torch.tensor(found[0].values["order"])
    assert found[0].level == "error" and torch.equal(order[undone], torch.arange(3072))
    monkeypatch.setattr("lowland.doctor.assignment.find_spec", lambda name: None)
    told = [one for one in diagnose({"a": first, "b": second}).findings if one.check == "permutation"]
    assert [one.level for one in told] == ["note"] and "more than 1024 rows" in told[0].says


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3)), np.full((2, 2), np.nan), np.zeros(4), np.broadcast_to(0.0, (16_385, 16_385))]
)
def test_an_assignment_refuses(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="an assignment"):
        assign(bad)


# Distances and correlations.


def test_distances_and_cosines_against_plain_vectors() -> None:
    g = torch.Generator().manual_seed(0)
    first = {"a": torch.randn(5, 7, generator=g), "b": torch.randn(3, generator=g)}
    others = [{n: t + 1e-6 * torch.randn(t.shape, generator=g) for n, t in first.items()} for _ in range(2)]
    found = diagnose([first, *others]).of("distance")
    flat = [torch.cat([t.flatten() for t in w.values()]).double() for w in (first, *others)]
    matrices = [w["a"].flatten().double() for w in (first, *others)]
    for finding, (i, j) in zip(found, [(0, 1), (0, 2), (1, 2)], strict=True):
        size = (flat[i].norm() * flat[j].norm()).sqrt()
        assert finding.values["distance"] == pytest.approx(float((flat[i] - flat[j]).norm() / size), rel=1e-9)
        assert finding.values["cosine"] == pytest.approx(
            float(nn.functional.cosine_similarity(matrices[i], matrices[j], dim=0)), rel=1e-12
        )


def walk(steps: int, memory: float, size: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """A stationary autoregressive row: w_{t+1} = memory w_t + noise."""
    g = torch.Generator().manual_seed(seed)
    now = torch.randn(size, generator=g)
    row = []
    for _ in range(steps):
        row.append({"w": now.clone()})
        now = memory * now + (1 - memory**2) ** 0.5 * torch.randn(size, generator=g)
    return row


def naive_effective(rows: np.ndarray) -> float:
    n = len(rows)
    dev = rows - rows.mean(0)
    rho = [sum(dev[i] @ dev[i + k] for i in range(n - k)) / (n - k) / ((dev**2).sum() / n) for k in range(n)]
    last = n
    for lag in range(2, n, 2):
        if rho[lag] + (rho[lag + 1] if lag + 1 < n else 0) <= 0:
            last = lag
            break
    return min(float(n), float(n / (1 + 2 * sum((1 - k / n) * rho[k] for k in range(1, last)))))


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_effective_number_against_plain_code_and_theory(memory: float) -> None:
    n, size = 400, 200
    row = walk(n, memory, size)
    (finding,) = diagnose(row, trajectory=True, most_pairs=0).of("autocorrelation")
    rows = np.stack([weights["w"].double().numpy() for weights in row])
    assert finding.values["effective"] == pytest.approx(naive_effective(rows), rel=1e-6)
    # Its expectation, bias of the rows' own mean included, is what the exact covariances give; 200 columns each.
    centre = np.eye(n) - 1 / n
    covariance = memory ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))) if memory else np.eye(n)
    expected = autocorrelation(centre @ covariance @ centre).effective
    assert finding.values["effective"] == pytest.approx(expected, rel=0.1)
    assert expected == pytest.approx(n * (1 - memory) / (1 + memory), rel=0.25)
    assert finding.values["autocorrelation"][1] == pytest.approx(memory, abs=0.05)
    assert finding.level == "ok"


def test_a_straight_line_counts_as_few() -> None:
    line = [{"w": torch.ones(3) * step} for step in range(1, 21)]
    (finding,) = diagnose(line, trajectory=True).of("autocorrelation")
    assert finding.level == "warning" and finding.values["effective"] < 3
    assert not diagnose(line).of("autocorrelation"), "only where they are said to be a row"
    assert not diagnose(line[:3], trajectory=True).of("autocorrelation"), "three are too few"


def test_equal_iterates_have_no_correlation() -> None:
    with pytest.raises(ValueError, match="do not differ"):
        autocorrelation(np.zeros((4, 4)))


# Scores.


def double_well(weights: lowland.weights.Weights) -> float:
    return -float((weights["w"][0] ** 2 - 1) ** 2)


def at(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value, 3.0])}


def test_the_barrier_of_a_double_well() -> None:
    # S = -(w^2 - 1)^2: from -1 to 1 the ridge is 1 high in the middle; from -1 to 2, whose score is -9, the straight
    # line is -9 t at w = 3 t - 1, and of t = 1/4, 1/2, 3/4 only the first lies below it, by 0.878906 - 2.25 < 0.
    assert barrier(Scores([at(-1.0), at(1.0)], score=double_well), 0, 1, 3) == (1.0, 0.5, None)
    assert barrier(Scores([at(-1.0), at(2.0)], score=double_well), 0, 1, 3) == (0.0, 0.0, None)
    found = diagnose([at(-1.0), at(1.0)], score=double_well)
    assert said(found) == ("not averageable", {"barrier", "gain"})
    # Weights of zero stand on the ridge: training gained 1.
    assert found.of("barrier")[0].values["share"] == 1.0


def test_what_counts_as_high_can_be_said() -> None:
    assert said(diagnose([at(-1.0), at(1.0)], score=double_well, tolerance=0.5)) == ("doubtful", {"barrier", "gain"})
    assert said(diagnose([at(-1.0), at(1.0)], score=double_well, tolerance=2.0)) == ("averageable", set())


def test_a_score_that_cannot_take_weights_of_zero() -> None:
    def score(weights: lowland.weights.Weights) -> float:
        if not bool(weights["w"].any()):
            raise ZeroDivisionError("no norm")
        return -100 + double_well(weights)

    found = diagnose([at(0.5), at(1.5)], score=score)
    assert found.verdict == "averageable"
    assert found.of("barrier")[0].values["tolerance"] == pytest.approx(0.02 * 100.5625, rel=1e-3)


def test_each_mixture_is_scored_once_and_ingredients_are_left_alone() -> None:
    seen: list[float] = []

    def score(weights: lowland.weights.Weights) -> float:
        seen.append(float(weights["w"][0]))
        value = double_well(weights)
        weights["w"].zero_()
        return value

    given = [at(0.9), at(1.0), at(1.1)]
    diagnose(given, score=score)
    assert [float(weights["w"][0]) for weights in given] == pytest.approx([0.9, 1.0, 1.1])
    # Three ends, zero, three points on each of three lines, the mean, and halfway from each end to it.
    assert len(seen) == 3 + 1 + 9 + 1 + 3


def test_the_gain_and_its_interval() -> None:
    # Examples x with loss (w - x)^2: the mean of 0 and 2 gains 1 over the mean ingredient on every example, exactly.
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 0.5 + 1

    def score(weights: lowland.weights.Weights) -> torch.Tensor:
        return -((weights["w"][0] - x) ** 2)

    (finding,) = diagnose([at(0.0), at(2.0)], score=score).of("gain")
    assert finding.values["over_mean"] == pytest.approx(1.0, abs=1e-5)
    assert finding.values["over_mean_interval"] == pytest.approx([1.0, 1.0], abs=1e-5)
    low, high = finding.values["over_best_interval"]
    # Against w = 0, example by example: 2x - 1, of standard deviation 1; 1.96 standard errors are 0.098.
    assert low < finding.values["over_best"] < high and high - low == pytest.approx(4 * 0.5 * 1.96 / 20, rel=0.6)
    again = diagnose([at(0.0), at(2.0)], score=score).of("gain")[0]
    assert again == finding, "the same seed, the same interval"


def test_a_barrier_within_the_noise_is_none() -> None:
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1))

    def score(weights: lowland.weights.Weights) -> torch.Tensor:
        # A ridge of height 0.2 under noise whose standard error is ten times that.
        return (
            0.2 * (weights["w"][0] ** 2 - 1)
            + 15 * (1 - weights["w"][0] ** 2) * noise
            - 100 * (weights["w"][1] - 3) ** 2
        )

    found = diagnose([at(-1.0), at(1.0)], score=score, tolerance=0.01)
    assert [one.level for one in found.of("barrier")] == ["ok"]


def test_scores_that_are_not_finite() -> None:
    found = diagnose([at(1.0), at(2.0)], score=lambda weights: float("nan") if weights["w"][0] > 1.9 else 1.0)
    (finding,) = found.of("score")
    assert (finding.level, finding.about) == ("error", ("b",)) and not found.of("barrier")
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_outputs_say_whether_a_spread_is_a_point() -> None:
    # Tiny steps of large effect: the outputs multiply them by 1e5.
    model = nn.Linear(1, 2)
    batches = [torch.linspace(-1, 1, 8).reshape(8, 1)]
    near = [{"weight": torch.tensor([[100.0], [100.0 + step]]), "bias": torch.zeros(2)} for step in (0.0, 1e-3)]
    assert diagnose(near).of("point")

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = module(x)
        return (out[:, :1] - out[:, 1:]) * 1e3 + x.sign()

    assert not diagnose(near, model=model, batches=batches, forward=forward).of("point")
    assert diagnose(near, model=model, batches=batches).of("point")


# Arguments.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"score": double_well, "mixture": lambda places, shares: 0.0}, "exclude each other"),
        ({"model": nn.Linear(1, 1)}, "belong together"),
        ({"mixture": lambda places, shares: 0.0, "model": nn.Linear(1, 1), "batches": []}, "refreshes its own"),
        ({"score": double_well, "points": 0}, "points must be a whole number of at least 1"),
        ({"score": double_well, "tolerance": -1.0}, "tolerance must be at least 0"),
        ({"score": lambda weights: torch.zeros(2, 2)}, "a number, or one an example"),
        ({"score": lambda weights: [0.0] * (1 + int(weights["w"][0] > 0))}, "of one length"),
    ],
)
def test_arguments_are_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose([at(-1.0), at(1.0)], **more)  # type: ignore[arg-type]


def test_too_few_ingredients() -> None:
    for given in ([], [at(1.0)]):
        with pytest.raises(ValueError, match="at least two ingredients"):
            diagnose(given)
    with pytest.raises(ValueError, match="holds no tensors"):
        diagnose([at(1.0), {}])
    with pytest.raises(ValueError, match="is a tensor"):
        diagnose(at(1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no floating-point"):
        diagnose([{"n": torch.tensor(1)}, {"n": torch.tensor(2)}])


def test_an_error_of_the_score_is_told() -> None:
    def score(weights: lowland.weights.Weights) -> float:
        raise KeyError("validation")

    with pytest.raises(RuntimeError, match="ingredient 0 failed with KeyError"):
        diagnose([at(-1.0), at(1.0)], score=score)


def test_files_are_read(tmp_path: Path) -> None:
    pair = pairs.same_run()
    lowland.save(pair.a, tmp_path / "a.safetensors")
    torch.save(dict(pair.b), tmp_path / "b.pt")
    found = diagnose([tmp_path / "a.safetensors", tmp_path / "b.pt"], score=pair.score)
    expected = diagnose(pair.ingredients, score=pair.score)
    # Scores of weights at other addresses may differ in the last digits, and what a finding says shows three.
    assert found.verdict == expected.verdict and found.exit_code == expected.exit_code
    assert [(f.check, f.level) for f in found.findings] == [(f.check, f.level) for f in expected.findings]
