"""Lines and curves: coefficients and lengths against the twin, what training moves, known answers, resume."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowland import applied, load, refresh_bn, save, weights_of
from lowland.batchnorm import bn_reference
from lowland.cycles import swa_linear
from lowland.landscape import Curve, CurveTraining, Walk, along, bezier, chain, classification, line, measured
from lowland.landscape.curve import Kind

from ..problems import Small
from ..reference import landscape as naive

SGD = partial(torch.optim.SGD, lr=0.1)
KINDS: tuple[Kind, ...] = ("bezier", "chain")


def random_points(number: int, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(number)
    shapes = {"a": (3, 2), "b": (4,)}
    return [{name: torch.randn(s, generator=g, dtype=dtype) for name, s in shapes.items()} for _ in range(number)]


def flat(weights: dict[str, Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat([tensor.double().flatten() for tensor in weights.values()]).numpy()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    pairs = [(a[name], b[name]) for name in a]
    return a.keys() == b.keys() and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def squared(target: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """L(w) = 1/2 ||w - target||^2 of a module without inputs."""
    return lambda model, batch: 0.5 * (model.weight - target).square().sum()  # type: ignore[operator, union-attr]


def quadratic(a: float, b: float, kind: Kind = "bezier", **options: Any) -> tuple[Curve, CurveTraining[Tensor]]:
    model = nn.Linear(1, 1, bias=False).double()
    ends = [{"weight": torch.tensor([[end]], dtype=torch.float64)} for end in (a, b)]
    curve = {"bezier": bezier, "chain": chain}[kind](*ends)
    generator = torch.Generator().manual_seed(0)
    return curve, CurveTraining(
        curve, model, squared(3.0), options.pop("optimizer", SGD), generator=generator, **options
    )


def small_ends() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first, second = ({n: t.clone() for n, t in weights_of(Small(seed)).items()} for seed in (1, 2))
    return first, second


def small_loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 1).square().mean()


def inputs(number: int, size: int = 6) -> list[Tensor]:
    return list(torch.randn(number, size, 4, generator=torch.Generator().manual_seed(5)))


# --- coefficients, points, lengths ---------------------------------------------------------------------------------


def test_three_points_at_a_quarter() -> None:
    ends = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    assert bezier(*ends).coefficients(0.25) == (0.5625, 0.375, 0.0625)
    assert chain(*ends).coefficients(0.25) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, 3, 5])
def test_weights_and_lengths_equal_the_twins(kind: Kind, number: int) -> None:
    points = random_points(number)
    curve = Curve(kind, points)
    places = [k / 20 for k in range(21)]
    for t in places:
        assert curve.coefficients(t) == pytest.approx(naive.coefficients(kind, number, t), abs=1e-15)
        assert sum(curve.coefficients(t)) == pytest.approx(1, abs=1e-14)
        np.testing.assert_allclose(flat(curve.at(t)), naive.at(kind, [flat(p) for p in points], t), atol=1e-13)
    values = iter([math.sin(7 * t) for t in places])
    found = along(curve, lambda weights: next(values), points=21)
    length, mean = naive.by_length([naive.at(kind, [flat(p) for p in points], t) for t in places], found.values["loss"])
    assert found.length == pytest.approx(length, rel=1e-12)
    assert found.summary().by_length == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_the_given_weights_bit_for_bit(kind: Kind, dtype: torch.dtype) -> None:
    a, b = ({n: t.to(dtype) for n, t in p.items()} for p in random_points(2))
    a["b"][0], b["b"][0] = 1e-40, -0.0
    curve = {"bezier": bezier, "chain": chain}[kind](a, b, free=3)
    assert same(curve.at(0), a) and same(curve.at(1), b)
    assert torch.equal(torch.signbit(curve.at(1)["b"]), torch.signbit(b["b"]))
    assert curve.points[1]["a"].dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("make", [bezier, chain])
@pytest.mark.parametrize("free", [1, 2, 4])
def test_a_new_curve_is_the_straight_line(make: Callable[..., Curve], free: int) -> None:
    a, b = random_points(2)
    curve = make(a, b, free=free)
    for t in (0.1, 0.5, 0.83):
        np.testing.assert_allclose(flat(curve.at(t)), (1 - t) * flat(a) + t * flat(b), atol=1e-14)


def test_whole_numbers_are_those_of_the_nearer_end_and_have_no_length() -> None:
    a, b = ({"w": torch.tensor([w]), "n": torch.tensor(n)} for w, n in ((0.0, 10), (1.0, 20)))
    curve = chain(a, b)
    assert [int(curve.at(t)["n"]) for t in (0.0, 0.2, 0.9, 1.0)] == [10, 10, 20, 20]
    assert curve.at(0.3)["n"].dtype == torch.int64
    assert line(a, b, lambda weights: 0.0, points=3).length == 1.0


def test_a_curve_owns_its_memory() -> None:
    a, b = random_points(2)
    kept = copy.deepcopy(a)
    curve = bezier(a, b)
    a["a"].zero_()
    curve.at(0)["a"].zero_()
    assert same(curve.at(0), kept)


# --- walks ---------------------------------------------------------------------------------------------------------


def test_the_barrier_stands_above_the_line_between_the_ends() -> None:
    walk = Walk((-1.0, 0.0, 0.25, 1.0, 2.0), {"loss": (99.0, 1.0, 4.0, 3.0, 99.0), "error": (0.0,) * 5}, (1.0,) * 4)
    assert walk.barrier() == 4.0 - 1.5
    assert walk.barrier("error") == 0.0
    found = walk.summary()
    assert (found.worst, found.min, found.max, found.mean) == (-1.0, 1.0, 99.0, pytest.approx(41.2))
    assert "barrier 2.5" in str(walk)


def test_a_line_may_go_beyond_its_ends() -> None:
    a, b = {"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}
    found = line(a, b, lambda weights: weights["w"].item(), points=[-0.5, 0, 1, 1.5])
    assert found.values["loss"] == (-1.0, 0.0, 2.0, 3.0)
    assert found.pieces == (1.0, 2.0, 1.0)


def test_a_measure_may_write_into_what_it_gets() -> None:
    a, b = random_points(2)
    kept = copy.deepcopy((a, b))

    def spoil(weights: Any) -> float:
        value = float(weights["b"].sum())
        for tensor in weights.values():
            tensor.zero_()
        return value

    found = line(a, b, spoil, points=3)
    assert found.values["loss"][1] == pytest.approx(float((a["b"] + b["b"]).sum()) / 2)
    assert same(a, kept[0]) and same(b, kept[1]) and found.length > 0


def test_walks_refuse() -> None:
    a, b = random_points(2)
    with pytest.raises(ValueError, match="missing .'b'."):
        line(a, {"a": b["a"]}, lambda weights: 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        line(a, b, lambda weights: 0.0, points=1)
    with pytest.raises(ValueError, match="ascending"):
        line(a, b, lambda weights: 0.0, points=[0, 1, 0.5])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        along(bezier(a, b), lambda weights: 0.0, points=[0, 2])
    with pytest.raises(ValueError, match="both must be measured"):
        line(a, b, lambda weights: 0.0, points=[0, 0.9]).barrier()
    with pytest.raises(ValueError, match="'x' was not measured"):
        line(a, b, lambda weights: 0.0).barrier("x")
    with pytest.raises(ValueError, match="the ends have the values"):
        line(a, b, lambda weights: math.nan).barrier()
    names = iter("ab")
    with pytest.raises(ValueError, match="named"):
        line(a, b, lambda weights: {next(names): 0.0}, points=2)


def test_curves_refuse() -> None:
    a, b = random_points(2)
    with pytest.raises(ValueError, match="kind"):
        Curve("spline", [a, b])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two ends"):
        Curve("chain", [a])
    with pytest.raises(ValueError, match="free must be"):
        bezier(a, b, free=0)
    with pytest.raises(ValueError, match="make them alike"):
        bezier(a, {name: tensor.float() for name, tensor in b.items()})
    b["b"][1] = math.nan
    with pytest.raises(ValueError, match="second end: b holds a NaN"):
        bezier(a, b)


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_by_hand(kind: Kind) -> None:
    curve, training = quadratic(1.0, 5.0, kind, weight_decay=0.25)
    t = float(torch.rand((), generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    c = curve.coefficients(t)
    phi = c[0] * 1.0 + c[1] * 3.0 + c[2] * 5.0
    assert training.step(torch.empty(0)) == pytest.approx(0.5 * (phi - 3) ** 2)
    # d/dP of 1/2 (phi - 3)^2 + wd/2 phi^2, with the norm squared
    assert curve.points[1]["weight"].item() == pytest.approx(3.0 - 0.1 * c[1] * ((phi - 3) + 0.25 * phi))


def test_a_quadratic_has_a_known_best_curve() -> None:
    # The expectation over t is quadratic in the free point: theta = 5/2 c - 3/4 (a + b), with c = 3 / (1 + wd).
    rate = swa_linear(1200, 0.01)
    curve, training = quadratic(1.0, 2.0, weight_decay=0.5, optimizer=partial(torch.optim.SGD, lr=0.5), schedule=rate)
    for _ in range(1200):
        training.step(torch.empty(0))
    # Near the end the spread of the free point is about sqrt(rate) of that of one gradient: below 0.02.
    assert curve.points[1]["weight"].item() == pytest.approx(2.5 * 3 / 1.5 - 0.75 * 3.0, abs=0.08)


def test_a_curve_goes_round_a_hill_that_the_line_crosses() -> None:
    model = nn.Linear(2, 1, bias=False)
    ends = [{"weight": torch.tensor([w])} for w in ([1.0, 0.0], [-1.0, 0.0])]

    def ring(weights: Any) -> Tensor:  # zero on the unit circle; slightly tilted, as the hill's top has no slope
        x, y = weights["weight"][0]
        return (x**2 + y**2 - 1) ** 2 - 0.01 * y

    def measure(weights: Any) -> float:
        return float(ring(weights))

    curve = bezier(*ends, free=2)
    training = CurveTraining(curve, model, lambda m, _: ring({"weight": m.weight}), partial(torch.optim.Adam, lr=0.05))
    torch.manual_seed(0)
    for _ in range(300):
        training.step(None)
    straight, round_it = line(*ends, measure), along(curve, measure)
    assert straight.barrier() == pytest.approx(1.0, abs=1e-6)
    assert round_it.barrier() < 0.05
    assert round_it.length > straight.length


def test_only_the_free_points_move() -> None:
    model = Small(3).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    a, b = small_ends()
    kept = copy.deepcopy((a, b))
    curve = bezier(a, b, free=2)
    middle = curve.state_dict()["points"][1:-1]
    training = CurveTraining(curve, model, small_loss, SGD, weight_decay=1e-3)
    for x in inputs(5):
        training.step(x)
    assert same(curve.at(0), kept[0]) and same(curve.at(1), kept[1]) and same(a, kept[0])
    for old, new in zip(middle, curve.points[1:-1], strict=True):
        assert all(not torch.equal(old[name], new[name]) for name in old), "BatchNorm's weights move like all others"
    assert same(before, dict(model.state_dict())), "running statistics and counters too"
    assert all(p.grad is None for p in model.parameters())
    assert not any(t.requires_grad for point in curve.points for t in point.values())
    assert not any(t.requires_grad for t in curve.at(0.5).values())


def test_gradients_equal_those_of_the_mixed_model() -> None:
    model, (a, b), (x,) = Small(3).train(), small_ends(), inputs(1)
    curve = bezier(a, b)
    start = curve.points[1]["embed.weight"].clone()
    t = float(torch.rand((), generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    CurveTraining(curve, model, small_loss, SGD, generator=torch.Generator().manual_seed(4)).step(x)
    twin = copy.deepcopy(model)
    with applied(twin, bezier(a, b).at(t)):
        small_loss(twin, x).backward()
    for name, p in twin.named_parameters():
        moved = curve.points[1][name] - bezier(a, b).points[1][name]
        torch.testing.assert_close(moved, -0.1 * curve.coefficients(t)[1] * p.grad, atol=1e-7, rtol=1e-4)
    assert not torch.equal(curve.points[1]["embed.weight"], start)


def test_parameters_that_are_frozen_or_not_of_the_curve_stay() -> None:
    model = Small(3).train()
    model.token.requires_grad_(False)
    a, b = ({n: t for n, t in end.items() if n != "norm.bias"} for end in small_ends())
    curve = bezier(a, b)
    frozen = curve.points[1]["token"].clone()
    CurveTraining(curve, model, small_loss, SGD).step(inputs(1)[0])
    assert torch.equal(curve.points[1]["token"], frozen)
    assert not torch.equal(curve.points[1]["norm.weight"], bezier(a, b).points[1]["norm.weight"])
    assert model.norm.bias.grad is None


def test_tied_weights_stay_tied() -> None:
    model = Small(3).train()
    a, b = ({**end, "head.weight": end["embed.weight"].clone()} for end in small_ends())
    curve = chain(a, b)
    training = CurveTraining(curve, model, small_loss, SGD)
    for x in inputs(3):
        training.step(x)
    found = curve.at(0.4)
    assert torch.equal(found["head.weight"], found["embed.weight"])
    assert not torch.equal(found["head.weight"], chain(a, b).at(0.4)["head.weight"])
    b["head.weight"] += 1
    with pytest.raises(ValueError, match=r"ties head.weight to embed.weight"):
        CurveTraining(chain(a, b), model, small_loss, SGD)


def test_whole_state_dicts_with_statistics_and_counters() -> None:
    models = [Small(seed).train() for seed in (1, 2)]
    for model, x in zip(models, inputs(2), strict=True):
        model(x)
    a, b = (dict(model.state_dict()) for model in models)
    curve = bezier(a, b)
    training = CurveTraining(curve, Small(3).train(), small_loss, SGD)
    for x in inputs(4):
        training.step(x)
    assert same(curve.at(0), dict(models[0].state_dict())) and same(curve.at(1), dict(models[1].state_dict()))
    assert torch.equal(curve.points[1]["norm.running_mean"], bezier(a, b).points[1]["norm.running_mean"])
    assert int(curve.at(0.5)["norm.num_batches_tracked"]) == 1


def test_half_precision_moves_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    ends = [{"weight": torch.tensor([[w]], dtype=torch.bfloat16)} for w in (256.0, 256.0)]
    curve = bezier(*ends)
    training = CurveTraining(curve, model, squared(0.0), partial(torch.optim.SGD, lr=1e-5))
    for _ in range(5):
        training.step(torch.empty(0))
    assert 255.9 < curve.points[1]["weight"].item() < 256.0
    assert curve.at(0.5)["weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_file_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    a, b = small_ends()
    batches = inputs(8)

    def fresh() -> tuple[Curve, CurveTraining[Tensor]]:
        curve = {"bezier": bezier, "chain": chain}[kind](a, b, free=2)
        optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        g = torch.Generator().manual_seed(1)
        schedule = swa_linear(8, 0.1)
        return curve, CurveTraining(curve, Small(3).train(), small_loss, optimizer, schedule=schedule, generator=g)

    whole, training = fresh()
    for x in batches[:4]:
        training.step(x)
    torch.save(training.state_dict(), tmp_path / "state.pt")
    losses = [training.step(x) for x in batches[4:]]
    resumed, other = fresh()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [other.step(x) for x in batches[4:]] == losses
    assert other.steps == 8
    for one, two in zip(whole.points, resumed.points, strict=True):
        assert same(one, two)
    assert same(Curve.from_state_dict(other.state_dict()["curve"]).at(0.3), whole.at(0.3))
    save(whole.at(0.3), tmp_path / "point.safetensors")
    assert same(load(tmp_path / "point.safetensors"), whole.at(0.3))


def test_foreign_states_are_refused_and_change_nothing() -> None:
    a, b = small_ends()
    curve, model = bezier(a, b), Small(3).train()
    training = CurveTraining(curve, model, small_loss, SGD)
    state = training.state_dict()
    kept = curve.at(0.5)
    refused = [
        (CurveTraining(bezier(a, b), model, small_loss, SGD, weight_decay=0.1), "weight_decay"),
        (CurveTraining(chain(a, b), model, small_loss, SGD), "bezier of 3 points"),
        (CurveTraining(bezier(a, b, free=2), model, small_loss, SGD), "bezier of 4"),
        (CurveTraining(bezier(b, a), model, small_loss, SGD), "other ends"),
        (CurveTraining(bezier(a, b), model, small_loss, SGD, generator=torch.Generator()), "generator"),
    ]
    for other, message in refused:
        before = other.curve.at(0.5)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert same(other.curve.at(0.5), before)
    assert same(curve.at(0.5), kept)


def test_training_refuses() -> None:
    a, b = small_ends()
    model = Small(3).train()
    with pytest.raises(ValueError, match="weight decay of 0.01"):
        CurveTraining(bezier(a, b), model, small_loss, torch.optim.AdamW)
    with pytest.raises(ValueError, match="nothing can move"):
        CurveTraining(Curve("chain", [a, b]), model, small_loss, SGD)
    with pytest.raises(ValueError, match="no tensor named"):
        CurveTraining(bezier({"x": torch.ones(1)}, {"x": torch.ones(1)}), model, small_loss, SGD)
    with pytest.raises(ValueError, match="make them alike"):
        CurveTraining(bezier(a, b), Small(3, torch.float64), small_loss, SGD)
    with pytest.raises(ValueError, match="weight_decay"):
        CurveTraining(bezier(a, b), model, small_loss, SGD, weight_decay=-1.0)
    with pytest.raises(RuntimeError, match="train"):
        CurveTraining(bezier(a, b), Small(3).eval(), small_loss, SGD).step(inputs(1)[0])
    curve = bezier(a, b)
    kept = curve.at(0.5)
    training = CurveTraining(curve, model, small_loss, SGD)
    with pytest.raises(ValueError, match="no point has moved"):
        training.step(torch.full((6, 4), math.nan))
    assert same(curve.at(0.5), kept) and training.steps == 0


def test_global_randomness_is_left_alone() -> None:
    _, training = quadratic(1.0, 5.0)
    before = torch.random.get_rng_state()
    training.step(torch.empty(0))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- measures ------------------------------------------------------------------------------------------------------


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def test_a_measure_is_that_of_the_refreshed_model_and_leaves_no_trace() -> None:
    model = normalised().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    weights = {n: t + 0.5 for n, t in weights_of(model).items()}
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    found = measured(model, batches, classification, refresh=lambda m: refresh_bn(m, batches))(weights)
    twin = copy.deepcopy(model)
    twin.load_state_dict({**before, **weights})
    refresh_bn(twin, batches)
    logits = twin.eval()(x)
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y).detach()), rel=1e-5)
    assert found["error"] == pytest.approx(float((logits.argmax(1) != y).float().mean()))
    assert same(before, dict(model.state_dict())) and model.training


def test_a_control_variate_may_refresh() -> None:
    model = normalised().train()
    batches = [(x, torch.zeros(6, dtype=torch.int64)) for x in inputs(4)]
    reference = bn_reference(model, batches)
    other = {n: t * 1.01 for n, t in weights_of(model).items()}
    exact = measured(model, batches, classification, refresh=lambda m: refresh_bn(m, batches))(other)
    quick = measured(model, batches, classification, refresh=reference.refresh)(other)
    assert quick["loss"] == pytest.approx(exact["loss"], rel=0.05)


def test_statistics_of_other_weights_are_refused() -> None:
    model = normalised()
    batches = [(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64))]
    measure = measured(model, batches, classification)
    with pytest.raises(ValueError, match="running statistics of 1"):
        measure(weights_of(model))
    assert measure(dict(model.state_dict()))["loss"] > 0
    with pytest.raises(ValueError, match="iterator"):
        measured(model, iter(batches), classification)
    with pytest.raises(ValueError, match="empty"):
        measured(model, [], classification, refresh=lambda m: None)(weights_of(model))


def test_whole_numbers_are_asked_for_in_one_way() -> None:
    from lowland.landscape import Plane, Work, perturbed, rays, window

    w = {"w": torch.zeros(2)}
    plane = Plane.spanned(w, {"w": torch.eye(2)[0]}, {"w": torch.eye(2)[1]})

    def size(weights: dict[str, Tensor]) -> float:
        return float(weights["w"].square().sum())

    for wrong in (0, True, 2.5):
        for name, call in {
            "points": lambda n: line(w, w, size, points=n),
            "draws": lambda n: perturbed(w, size, std=1.0, draws=n),
            "the number of columns": lambda n: window(plane, size, (0.0, 1.0), (0.0, 1.0), points=(n, 3)),
            "jobs": lambda n: Work(jobs=n),
            "directions": lambda n: rays(w, size, directions=n, places=[1.0]),
        }.items():
            if isinstance(wrong, float) and name in ("points", "directions"):
                continue  # what is no whole number stands for places, and for weights
            with pytest.raises(ValueError, match=f"{name} must be .*a whole number of at least [12], got {wrong}"):
                call(wrong)
