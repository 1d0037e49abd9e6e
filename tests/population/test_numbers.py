"""Numbers worked out beforehand, and naive twins."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from lowland.arithmetic import kernels
from lowland.population import DART, IMWA, PAPA, PAPA2, WASH, DiLoCo, LocalSGD, PAPAAll, Population, layers, streams
from lowland.population.alone import Alone
from lowland.population.passes import all_finite
from lowland.population.repair import repair_

from ..reference import population as naive
from .models import Point, points, sgd, values

ROWS = [(0.0, 10.0), (2.0, 0.0), (4.0, 5.0)]


def test_a_push_of_papa() -> None:
    models = points(ROWS)
    Population(models, PAPA(every=1, follow="nothing")).step()
    expected = torch.tensor([(0.02, 9.95), (2, 0.05), (3.98, 5)], dtype=torch.float64)
    assert torch.allclose(values(models), expected, atol=1e-15)
    assert torch.allclose(naive.papa(torch.tensor(ROWS, dtype=torch.float64), 0.99), expected, atol=1e-15)
    assert torch.allclose(values(models).mean(0), torch.tensor([2.0, 5.0], dtype=torch.float64), atol=1e-15)
    assert 1 - PAPA().push(0.5) == pytest.approx(0.995, abs=1e-15)
    assert 1 - PAPA().push(1e-4 / 0.1) == pytest.approx(0.99999, abs=1e-15)


def test_pushes_of_papa_along_a_cosine() -> None:
    models = points([(-1.0,), (3.0,)])
    for model in models:
        model.register_buffer("seen", torch.tensor(7))
        model.register_buffer("running", model.w.detach()[0].float())
    optimizers = sgd(models)
    for model in models:
        model.w.grad = torch.zeros_like(model.w)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 46, eta_min=1e-4) for o in optimizers]
    population = Population(models, PAPA(every=10, epoch=23), optimizers=optimizers)
    alphas, spread = [], 4.0
    for _ in range(46):
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        population.step()
        now = float(values(models).diff(dim=0))
        if now != spread:
            alphas.append(now / spread)
        spread = now
    assert alphas == pytest.approx(
        [0.990011644, 0.991344474, 0.994314848, 0.995335871, 0.998404353, 0.999943476], abs=1e-9
    )
    assert spread / 4 == pytest.approx(0.9697066874, abs=1e-10)
    assert models[0].seen.item() == 7 and models[0].seen.dtype == torch.int64  # type: ignore[union-attr]
    assert float(models[1].running - models[0].running) == pytest.approx(4 * 0.9697066874, abs=1e-5)  # type: ignore[operator, arg-type]


def test_papa2_by_all_choices_of_pairs() -> None:
    weights = torch.tensor([0.0, 1, 3, 4, 7], dtype=torch.float64)[:, None]
    every = list(combinations(range(5), 2))
    means, distances = [], []
    for chosen in combinations(every, 5):
        children = naive.pairs(weights, list(chosen))
        means.append(float(children.mean()))
        distances.append(float((children - 3).square().mean()))
    assert len(means) == 252
    assert (min(means), max(means)) == pytest.approx((1.7, 4.3)) and sum(means) / 252 == pytest.approx(3)
    assert sum(distances) / 252 / float((weights - 3).square().mean()) == pytest.approx(0.375)


def test_papa2_draws_from_all_pairs() -> None:
    # The authors' code permutes 0 .. N - 1 in place of 0 .. N (N - 1) / 2 - 1: SamsungSAILMontreal/PAPA@47ad83a.
    seen: dict[tuple[int, int], int] = {}
    for step in range(1000):
        chosen = streams.pairs(3, step, 5)
        assert len(set(chosen)) == 5
        for pair in chosen:
            seen[pair] = seen.get(pair, 0) + 1
    assert len(seen) == 10
    # Each pair is in half of the draws: a standard deviation of sqrt(1000) / 2 = 16.
    assert all(abs(count - 500) < 5 * 16 for count in seen.values())


@pytest.mark.parametrize("members", [2, 3, 5])
def test_papa2_is_its_twin(members: int) -> None:
    rows = torch.randn(members, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = points(rows.tolist())
    Population(models, PAPA2(every=1), seed=4).step()
    assert torch.equal(values(models), naive.pairs(rows, streams.pairs(4, 1, members)))
    if members == 2:
        assert torch.equal(values(models), rows.mean(0).expand(2, -1))


def test_repair_of_one_channel() -> None:
    # Parents: mean 1 and 3, std 2 and 4; the child's outputs -6 and 9 have mean 1.5, here with std 1.2.
    layer = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.0)
    half = 1.2 / math.sqrt(2)
    goal = (torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64))
    model = nn.Sequential(layer, nn.Linear(1, 1, dtype=torch.float64))
    repair_(model, [torch.tensor([[1.5 - half], [1.5 + half]], dtype=torch.float64)], {"0": goal})
    # eps = 1e-5 stands beside a variance of 1.44, float32 sums beside float64 ones.
    assert float(layer(torch.tensor([[2.7]], dtype=torch.float64)).detach()) == pytest.approx(5.0, abs=2e-5)


def test_layers_of_wash() -> None:
    five = {f"{place}.weight": torch.zeros(2, 2) for place in range(5)}
    assert list(layers.chances(0.001, five).values()) == pytest.approx([0.001, 0.00075, 0.0005, 0.00025, 0])
    sizes = dict(zip(five, (10, 20, 30, 40, 50), strict=True))
    chances = layers.chances(0.1, five)
    assert list(chances.values()) == pytest.approx([0.1, 0.075, 0.05, 0.025, 0])
    entering = sum(chances[name] * sizes[name] for name in five)
    assert entering == pytest.approx(5) and entering * (1 - 1 / 3) == pytest.approx(10 / 3)
    assert layers.chances(0.3, {"one.weight": torch.zeros(2, 2), "one.bias": torch.zeros(2)}) == {
        "one.weight": 0.3,
        "one.bias": 0.3,
    }


def resnet18() -> dict[str, Tensor]:
    """The shapes of the ResNet-18 for CIFAR, modules in their order."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "bn1.weight": (64,), "bn1.bias": (64,)}
    before = 64
    for stage, now in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            at = f"layer{stage}.{block}"
            for conv, given in ((1, before), (2, now)):
                shapes[f"{at}.conv{conv}.weight"] = (now, given, 3, 3)
                shapes |= {f"{at}.bn{conv}.{kind}": (now,) for kind in ("weight", "bias")}
            if before != now:
                shapes[f"{at}.shortcut.0.weight"] = (now, before, 1, 1)
                shapes |= {f"{at}.shortcut.1.{kind}": (now,) for kind in ("weight", "bias")}
            before = now
    shapes |= {"linear.weight": (10, 512), "linear.bias": (10,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_what_wash_sends_of_a_resnet18() -> None:
    weights = resnet18()
    size = sum(t.numel() for t in weights.values())
    assert size == 11_173_962 and max(layers.layers(weights).values()) == 20

    def entering(depth: layers.Depth) -> float:
        chances = layers.chances(0.001, weights, depth)
        return sum(chances[name] * t.numel() for name, t in weights.items())

    assert entering("layer") == pytest.approx(2417.06, abs=0.005)
    assert entering("tensor") == pytest.approx(2560.4, abs=0.05)
    assert entering("layer") * (1 - 1 / 3) == pytest.approx(1611.4, abs=0.05)
    assert 4 * entering("layer") * (1 - 1 / 3) == pytest.approx(6446, abs=1)  # of 1611.4 values
    assert 4 * entering("layer") * (1 - 1 / 5) == pytest.approx(7735, abs=1)
    assert size / 10 / entering("layer") == pytest.approx(462, abs=0.5)
    # What 60 steps really choose, within four standard deviations.
    sizes = {name: t.numel() for name, t in weights.items()}
    drawn = [streams.shuffle(0, step, sizes, layers.chances(0.001, weights), 3).order for step in range(60)]
    moved = sum(int((order != torch.arange(3)[:, None]).sum()) for order in drawn) / 3
    assert abs(sum(order.shape[1] for order in drawn) / 60 - 2417.06) < 4 * math.sqrt(2417.06 / 60)
    assert abs(moved / 60 - 1611.4) < 4 * math.sqrt(1611.4 / 60)


def test_a_shuffle_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(1.0, 13, dtype=torch.float64).reshape(3, 4)
    expected = torch.tensor([(5, 2, 3, 12), (9, 6, 11, 8), (1, 10, 7, 4)], dtype=torch.float64)
    pi = [(1, 2, 0), None, (0, 2, 1), (2, 1, 0)]
    assert torch.equal(naive.wash(rows, [True, False, True, True], pi), expected)
    order = torch.tensor([(1, 2, 0), (0, 2, 1), (2, 1, 0)]).T
    plan = streams.Shuffle({"w": torch.tensor([0, 2, 3])}, order)
    monkeypatch.setattr("lowland.population.wash.shuffle", lambda *_: plan)
    models = points(rows.tolist())
    optimizers = sgd(models, momentum=0.9)
    for model, optimizer, row in zip(models, optimizers, rows, strict=True):
        optimizer.state[model.w]["momentum_buffer"] = 10 * row.clone()
    population = Population(models, WASH(p=1.0, optimizer_state=True), optimizers=optimizers)
    assert population.consensus() == 128
    traffic = population.step()
    population.settle()
    assert torch.equal(values(models), expected) and population.consensus() == 128
    assert torch.equal(values(models).mean(0), torch.tensor([5.0, 6, 7, 8], dtype=torch.float64))
    momenta = [o.state[m.w]["momentum_buffer"] for o, m in zip(optimizers, models, strict=True)]
    assert torch.equal(torch.stack(momenta), 10 * expected)
    # Three values and three momenta of eight bytes enter; seven of nine change their owner.
    assert traffic.payload == 6 * 8 and traffic.wire == pytest.approx(2 * 8 * 7 / 3)


@pytest.mark.parametrize(("p", "members", "size"), [(0.01, 3, 900), (1.0, 2, 30), (0.2, 7, 150), (0.0003, 2, 20000)])
def test_the_stream_is_its_twin(p: float, members: int, size: int) -> None:
    sizes, chances = {"a": size, "other": 0, "b": 17}, {"a": p, "other": p, "b": p / 2}
    plan = streams.shuffle(5, 9, sizes, chances, members)
    first = 0
    for name in sizes:
        expected = naive.shuffle(streams.key_of(5), 9, name, sizes[name], chances[name], members)
        got = plan.places[name]
        assert got.tolist() == [place for place, _ in expected]
        assert plan.order[:, first : first + len(got)].T.tolist() == [order for _, order in expected]
        first += len(got)
    assert first == plan.order.shape[1]


def test_the_stream_goes_on_where_too_few_events_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, chances = {"a": 4000}, {"a": 0.03}
    whole = streams.shuffle(1, 1, sizes, chances, 3)
    streams._walked.cache_clear()
    monkeypatch.setattr(streams, "_events", lambda size, chance: 7)
    short = streams.shuffle(1, 1, sizes, chances, 3)
    streams._walked.cache_clear()
    assert torch.equal(short.places["a"], whole.places["a"]) and torch.equal(short.order, whole.order)


def test_the_stream_chooses_as_often_as_it_says() -> None:
    counts = torch.zeros(40)
    orders = torch.zeros(6)
    for step in range(800):
        plan = streams.shuffle(0, step, {"w": 40}, {"w": 0.1}, 3)
        counts[plan.places["w"]] += 1
        for order in plan.order.T.tolist():
            orders[order[0] * 2 + (order[1] > order[2])] += 1
    # Binomial(800, 0.1): a standard deviation of 8.5; each of the six permutations a sixth of 3200.
    assert (counts - 80).abs().max() < 5 * 8.5
    assert (orders - counts.sum() / 6).abs().max() < 5 * math.sqrt(3200 / 6)


def two(rule: IMWA | DART, steps: int, momentum: float = 0.0, start: float = 0.0, trained_alone: bool = False) -> float:
    """f1 = (w - 1)^2 / 2, f2 = (w - 3)^2, one member each, rate 0.1."""
    models = [Point([start]), Point([start])]
    optimizers = sgd(models, momentum=momentum)
    population = Population(models, rule, optimizers=optimizers)
    losses = [lambda w: (w - 1).square() / 2, lambda w: (w - 3).square()]
    for _ in range(steps):
        for n, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            if not population.trains(n):
                continue
            optimizer.zero_grad()
            alone = trained_alone and not population.trains(1)
            loss = (losses[0](model.w) + losses[1](model.w)) / 2 if alone else losses[n](model.w)
            loss.sum().backward()
            optimizer.step()
        population.step()
    return float(population.average()["w"])


def test_imwa_of_one_two_four_and_eight_episodes() -> None:
    plain = [two(IMWA(every=8 // episodes), 8) for episodes in (1, 2, 4, 8)]
    assert plain == pytest.approx([1.533108155, 1.621065517, 1.671131484, 1.697522108], abs=1e-8)
    reset = [two(IMWA(every=8 // episodes), 8, momentum=0.9) for episodes in (1, 2, 4, 8)]
    assert reset == pytest.approx([3.060835250, 2.253405450, 2.036305050, 1.697522108], abs=1e-8)
    kept = two(IMWA(every=4, momentum="keep"), 8, momentum=0.9)
    averaged = two(IMWA(every=4, momentum="average"), 8, momentum=0.9)
    assert len({round(found, 6) for found in (reset[1], kept, averaged)}) == 3


def test_dart_from_one_model() -> None:
    ends = [two(DART(every=3, pretrain=2, rounds=2), steps, trained_alone=True) for steps in (2, 5, 8)]
    assert ends == pytest.approx([0.6475, 1.26927375, 1.655084361875], abs=1e-12)


def test_averaging_every_step_is_a_larger_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 8, 3, dtype=torch.float64, generator=generator)
    y = x.sum(-1, keepdim=True) + torch.randn(10, 8, 1, dtype=torch.float64, generator=generator)

    def steps(models: list[nn.Linear], parts: list[slice], population: Population | None) -> Tensor:
        optimizers = sgd(models, rate=0.05)
        for step in range(10):
            for model, optimizer, part in zip(models, optimizers, parts, strict=True):
                optimizer.zero_grad()
                (model(x[step, part]) - y[step, part]).square().mean().backward()
                optimizer.step()
            if population is not None:
                population.step()
        return models[0].weight.detach()

    models = [nn.Linear(3, 1, dtype=torch.float64) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    halves = [slice(0, 4), slice(4, 8)]
    both = steps(models[:2], halves, Population(models[:2], IMWA(every=1, momentum="keep")))
    assert float((both - steps(models[2:], [slice(None)], None)).abs().max()) < 1e-15


def test_diloco_is_its_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    models = points([(1.0, -2.0, 0.5)] * 3)
    population = Population(models, DiLoCo(every=2))
    theta, v = values(models)[0], torch.zeros(3, dtype=torch.float64)
    for step in range(1, 9):
        for model in models:
            model.w.data.add_(torch.randn(3, dtype=torch.float64, generator=generator))
        rows = values(models)
        population.step()
        if step % 2 == 0:
            theta, v = naive.diloco(theta, rows, v, 0.7, 0.9)
            assert torch.allclose(values(models), theta.expand(3, -1), atol=1e-14)
        else:
            assert torch.equal(values(models), rows)
    plain, averaged = points(ROWS[:1] * 3), points(ROWS[:1] * 3)
    for rule, models in ((DiLoCo(every=1, rate=1.0, momentum=0.0), plain), (LocalSGD(every=1), averaged)):
        population = Population(models, rule)
        for place, model in enumerate(models):
            model.w.data.add_(place)
        population.step()
    assert torch.allclose(values(plain), values(averaged), atol=1e-15)


def test_papa_all_takes_the_mean_and_stops() -> None:
    models = points(ROWS)
    population = Population(models, PAPAAll(every=2, until=4))
    for step in range(1, 6):
        population.step()
        same = bool((values(models) == values(models)[0]).all())
        assert same == (step in (2, 3))
        if step == 3:
            models[0].w.data.add_(1.0)


@pytest.mark.skipif(not kernels.available(), reason="numba is not installed")
@pytest.mark.parametrize("weight", [0.01, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("members", [2, 3, 5])
def test_the_compiled_pull_is_its_twin_in_torch(weight: float, members: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (200_003, 0, 1, 17, 1024)
    rows = [[torch.randn(size + 1, generator=generator)[1:] for size in sizes] for _ in range(members)]
    rows = [[*row, torch.randn(6, dtype=torch.float64, generator=generator)] for row in rows]  # left to torch
    twins = [[t.clone() for t in row] for row in rows]
    Alone(members).pull_(rows, weight)
    with kernels.disabled():
        Alone(members).pull_(twins, weight)
        assert not all_finite(twins)
    assert all(torch.equal(a, b) for row, twin in zip(rows, twins, strict=True) for a, b in zip(row, twin, strict=True))


@pytest.mark.skipif(not kernels.available(), reason="numba is not installed")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_compiled_check_sees_every_place(bad: float) -> None:
    rows = [[torch.zeros(5), torch.full((140_001,), 3e38)] for _ in range(2)]
    assert all_finite(rows)
    for tensor in (rows[0][0], rows[1][1]):
        for place in (0, len(tensor) - 1):
            old = tensor[place].item()
            tensor[place] = bad
            assert not all_finite(rows)
            tensor[place] = old
    assert all_finite(rows)
