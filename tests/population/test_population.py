"""What every population keeps: exact resumption, refusals before anything is mixed, counts, what is measured."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland.landscape import classification, line, measured
from lowland.population import DART, IMWA, PAPA, PAPA2, WASH, DiLoCo, Independent, LocalSGD, PAPAAll, Population, Rule
from lowland.soup import greedy
from lowland.weights import floating, weights_of

from ..conformance import POPULATIONS
from .models import Net, Point, batch, points, sgd, train, values

rules = pytest.mark.parametrize("rule", POPULATIONS.values(), ids=POPULATIONS.keys())


def made(rule: Rule, members: int = 3, seed: int = 0, start: int = 0, **given: Any) -> Any:
    models = [Net(0 if getattr(rule, "one_start", False) else start + place) for place in range(members)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    given = {"batches": [batch(0, 9)[0]], **given}
    return models, optimizers, Population(models, rule, optimizers=optimizers, seed=seed, **given)


def everything(models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    found = [tensor.clone() for model in models for tensor in model.state_dict().values()]
    for optimizer in optimizers:
        found += [t.clone() for s in optimizer.state_dict()["state"].values() for t in s.values() if t is not None]
    return found


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@rules
def test_resumption_is_exact(rule: Rule) -> None:
    whole = made(rule)
    train(*whole, range(1, 15))
    for cut in (0, 5, 8):
        half = made(rule)
        train(*half, range(1, cut + 1))
        file = io.BytesIO()
        torch.save(half[2].state_dict(), file)
        file.seek(0)
        resumed = made(rule, start=0 if getattr(rule, "one_start", False) else 50)
        resumed[2].load_state_dict(torch.load(file, weights_only=True))
        train(*resumed, range(cut + 1, 15))
        assert same(everything(*resumed[:2]), everything(*whole[:2]))
        assert resumed[2].meter.total.payload == whole[2].meter.total.payload
        for name, rows in whole[2].state_dict()["members"]["1"]["slots"].items():
            got = resumed[2].state_dict()["members"]["1"]["slots"][name]
            assert all(torch.equal(got[key], tensor) for key, tensor in rows.items())


@rules
def test_the_seed_decides_and_the_global_stream_does_not(rule: Rule) -> None:
    before = torch.random.get_rng_state()
    one, two = made(rule), made(rule)
    train(*one, range(1, 9))
    torch.rand(3)
    train(*two, range(1, 9))
    assert same(everything(*one[:2]), everything(*two[:2]))
    torch.random.set_rng_state(before)


@rules
def test_a_diverged_member_is_named_and_nothing_is_mixed(rule: Rule) -> None:
    models, optimizers, population = made(rule)
    train(models, optimizers, population, range(1, 2))
    for _ in range(12):  # until the rule is due
        with torch.no_grad():
            models[1].first.weight.fill_(math.nan)
        before, slots = everything(models, optimizers), copy.deepcopy(population._members.slots)
        try:
            population.step()
        except ValueError as error:
            assert "first.weight of member 1 holds a value that is not finite" in str(error)
            break
    else:
        assert isinstance(rule, Independent)
        return
    steps = population.steps
    after = everything(models, optimizers)
    assert len(before) == len(after)
    assert all(torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9)) for a, b in zip(before, after, strict=True))
    for name, rows in population._members.slots.items():
        for own, old in zip(rows, slots[name], strict=True):
            assert all(torch.equal(own[key], old[key]) for key in own)
    with pytest.raises(ValueError, match=rf"in step {steps + 1}: nothing was mixed"):
        population.step()
    with torch.no_grad():
        models[1].load_state_dict(models[0].state_dict())
    population.step()
    assert population.steps == steps + 1


def test_the_check_can_be_left_out() -> None:
    models = points([(1.0,), (math.nan,)])
    Population(models, LocalSGD(every=1), check_finite=False).step()
    assert values(models).isnan().all()


@rules
def test_tied_weights_are_mixed_once_and_counters_stay(rule: Rule) -> None:
    models, optimizers, population = made(rule)
    train(models, optimizers, population, range(1, 13))
    for model in models:
        assert model.tied.weight is model.second.weight
        assert model.norm.num_batches_tracked.dtype == torch.int64
    assert sum("tied.weight" in name for name in population.average()) == 0


@rules
def test_what_is_said_of_buffers_and_optimisers(rule: Rule) -> None:
    models, optimizers, population = made(rule)

    def momenta() -> list[Tensor | None]:
        found = [o.state[m.last.bias].get("momentum_buffer") for o, m in zip(optimizers, models, strict=True)
                 if m.last.bias in o.state]  # fmt: skip
        return [None if t is None else t.clone() for t in found]

    statistics, kept = [], []
    step, mix = population.step, population.step

    def watched() -> object:
        statistics[:] = [model.norm.running_mean.clone() for model in models]
        kept[:] = momenta()
        return mix()

    population.step = watched
    for number in range(1, 20):
        train(models, optimizers, population, range(number, number + 1))
        if population.meter.latest.payload:
            break
    population.step = step
    population.settle()
    changed = any(not torch.equal(old, m.norm.running_mean) for old, m in zip(statistics, models, strict=True))
    assert changed == (rule.on_buffers != "kept"), rule.on_buffers
    if "anew" in rule.on_optimizer:
        assert not momenta()
    elif rule.on_optimizer == "kept":
        assert all(torch.equal(old, new) for old, new in zip(kept, momenta(), strict=True))
    elif rule.on_optimizer == "averaged":
        assert torch.allclose(momenta()[1], torch.stack(kept).mean(0))
    else:
        assert rule.on_optimizer == "shuffled with the weights"


def test_members_average_soup_ensemble_and_barrier() -> None:
    models, optimizers, population = made(LocalSGD(every=4))
    train(models, optimizers, population, range(1, 7))
    members = population.members()
    for model, own in zip(models, members, strict=True):
        assert all(torch.equal(own[name], tensor) for name, tensor in weights_of(model, floating).items())
        assert own["first.weight"].data_ptr() != model.first.weight.data_ptr()
    mean = population.average()
    assert torch.allclose(mean["norm.running_mean"], torch.stack([m["norm.running_mean"] for m in members]).mean(0))
    before = everything(models, optimizers)
    loader = [batch(step, 0)[0] for step in range(3)]
    fresh = population.average(refresh=lambda model: lowland.refresh_bn(model, loader))
    assert same(before, everything(models, optimizers))
    assert torch.equal(fresh["first.weight"], mean["first.weight"])
    model = copy.deepcopy(models[0])
    lowland.copy_to(model, mean)
    lowland.refresh_bn(model, loader)
    assert torch.equal(fresh["norm.running_var"], model.norm.running_var)
    held_out = [batch(99, 0, 40)]
    measure = measured(model, held_out, classification, refresh=lambda model: lowland.refresh_bn(model, loader))
    soup = greedy(members, lambda weights: -measure(weights)["error"])
    assert soup.score >= max(soup.scores)
    mixture = lowland.Mixture(members)
    probs = lowland.predict(model, mixture, [held_out[0][0]]).probs
    assert len(mixture.members() or ()) == 3 and probs.shape == (40, 3)
    assert line(members[0], members[1], measure, points=5).barrier("loss") >= 0


def test_probes_are_logged() -> None:
    models, optimizers, population = made(PAPA(every=2))
    x = batch(50, 0, 64)[0]
    found = population.probe(x)
    models[1].eval()
    train(models, optimizers, population, range(1, 4))
    population.probe(x, forward=lambda model, x: model(x))
    assert [probe.step for probe in population.log] == [0, 3] and population.log[0] == found
    assert models[0].training
    with torch.no_grad():
        answers = [copy.deepcopy(model).eval()(x).argmax(-1) for model in models]
    apart = [(answers[i] != answers[j]).double().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert population.log[1].disagreement == pytest.approx(float(sum(apart) / 3))
    flat = torch.stack([torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]).double()
    assert population.consensus() == pytest.approx(float((flat - flat.mean(0)).square().sum()), rel=1e-6)


def test_a_shuffle_keeps_mean_and_consensus_to_the_last_digit() -> None:
    rows = torch.randn(5, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = points(rows.tolist())
    population = Population(models, WASH(p=0.1, depth="flat"))
    before = population.consensus()
    traffic = population.step()
    assert (values(models).mean(0) - rows.mean(0)).abs().max() < 1e-15
    assert population.consensus() == pytest.approx(before, rel=1e-15)
    share = float((values(models) != rows).double().mean())
    # 20000 values of which 8 % change: four standard deviations.
    assert share == pytest.approx(0.08, abs=4 * math.sqrt(0.08 * 0.92 / 4000))
    assert traffic.wire / traffic.payload == pytest.approx(0.8, abs=0.05)
    assert share == pytest.approx(traffic.wire / 8 / 4000)


def test_momenta_go_with_their_weights() -> None:
    models = [Net(place) for place in range(3)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in models]
    population = Population(models, WASH(p=0.5, optimizer_state=True), optimizers=optimizers)
    assert population.step().payload  # no state yet: weights alone
    assert all(not optimizer.state for optimizer in optimizers)
    train(models, optimizers, population, range(1, 2))
    population.settle()
    # Mark each weight's moments by the weight itself, shuffle, and look whether they still stand beside it.
    for model, optimizer in zip(models, optimizers, strict=True):
        for p in model.parameters():
            optimizer.state[p]["exp_avg"].copy_(p.detach())
            optimizer.state[p]["exp_avg_sq"].copy_(2 * p.detach())
    population.step()
    moved = [p.detach().clone() for p in models[0].parameters()]
    population.settle()
    for model, optimizer in zip(models, optimizers, strict=True):
        for p in model.parameters():
            assert torch.equal(optimizer.state[p]["exp_avg"], p.detach())
            assert torch.equal(optimizer.state[p]["exp_avg_sq"], 2 * p.detach())
            assert optimizer.state[p]["step"].item() == 1
    assert all(torch.equal(a, b.detach()) for a, b in zip(moved, models[0].parameters(), strict=True))


def test_norms_and_the_last_layer_can_stay() -> None:
    models = [Net(place) for place in range(2)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    Population(models, WASH(p=1.0, norms=False)).step()
    changed = {name for name, tensor in models[0].state_dict().items() if not torch.equal(tensor, before[0][name])}
    assert "first.weight" in changed and not {name for name in changed if name.startswith(("norm", "scale", "last"))}


def test_low_precision_means_are_taken_in_float32() -> None:
    models = [Point(row).bfloat16() for row in ([256.0], [1.0], [1.0])]
    Population(models, LocalSGD(every=1)).step()
    assert models[0].w.item() == torch.tensor(258 / 3).bfloat16().item()  # 256 + 1 is 256 in bfloat16
    average = Population(models, Independent()).average()
    assert average["w"].dtype == torch.float32


def test_channels_last_and_large_tensors() -> None:
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(400, 400)) for _ in range(3)]
    for model in models:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    twins = [[p.detach().clone() for p in model.parameters()] for model in models]
    mean = [torch.stack(own).mean(0) for own in zip(*twins, strict=True)]
    Population(models, PAPA(every=1, alpha=0.5, follow="nothing")).step()
    for model, twin in zip(models, twins, strict=True):
        for p, old, middle in zip(model.parameters(), twin, mean, strict=True):
            assert torch.allclose(p.detach(), 0.5 * old + 0.5 * middle, atol=1e-6)
    kept = torch.stack([model[0].weight.detach() for model in models]).sort(0).values
    Population(models, WASH(p=1.0)).step()
    assert torch.equal(torch.stack([model[0].weight.detach() for model in models]).sort(0).values, kept)


def test_teachers_of_imwa() -> None:
    for reading, every in (("branches", 2), ("averages", 2)):
        models = points([(0.0,), (4.0,)])
        population = Population(models, IMWA(every=every, momentum="keep", ema=0.5, ema_of=reading))  # type: ignore[arg-type]
        seen = []
        for _ in range(4):
            with torch.no_grad():
                models[0].w += 1
                models[1].w += 3
            population.step()
            seen.append([float(own["w"]) for own in population.teacher()])
        if reading == "branches":
            # (0, 4) -> (.5, 5.5) -> (1.25, 7.75) averaged 4.5; weights 6 -> (7, 9) -> (5.75, 6.75) -> (8, 12) -> ...
            assert seen == [[0.5, 5.5], [4.5, 4.5], [5.75, 6.75], [8.125, 8.125]]
        else:
            # theta = 6, then 10, from the start of each.
            assert seen == [[0.0, 4.0], [3.0, 5.0], [3.0, 5.0], [6.5, 7.5]]
    with pytest.raises(ValueError, match="keeps no teacher"):
        Population(points([(0.0,), (1.0,)]), Independent()).teacher()


def test_repair_of_members_with_and_without() -> None:
    def networks() -> list[nn.Module]:
        torch.manual_seed(0)
        return [
            nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in "abc"
        ]

    def spread(model: nn.Module, x: Tensor) -> Tensor:
        return model[:3](x).std(0)  # type: ignore[index]

    with torch.random.fork_rng():
        x = batch(0, 0, 512)[0]
        parents = networks()
        goal = torch.stack([spread(model, x) for model in parents]).mean(0)
        plain, repaired = networks(), networks()
        Population(plain, PAPAAll(every=1)).step()
        Population(repaired, PAPAAll(every=1, repair=2), batches=[x, x]).step()
    assert (spread(plain[0], x) / goal).mean() < 0.8, "variance is lost"
    assert torch.allclose(spread(repaired[0], x), goal, rtol=2e-3)
    with pytest.raises(ValueError, match="0 has no bias for the shift of a repair"):
        Population([nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)) for _ in "ab"],
                   PAPAAll(every=1, repair=1), batches=[x]).step()  # fmt: skip
    with pytest.raises(ValueError, match="wants a batch of each member"):
        Population(networks(), PAPAAll(every=1, repair=1), batches=[]).step()


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "one member": (lambda: Population([Net()], LocalSGD(every=1)), "at least two members, got 1"),
    "no member": (lambda: Population([], LocalSGD(every=1)), "at least two members, got 0"),
    "other architecture": (
        lambda: Population([nn.Linear(2, 1), nn.Linear(3, 1)], LocalSGD(every=1)),
        r"member 1 beside member 0: tensors have other shapes: \['weight \(1, 3\) instead of \(1, 2\)'\]",
    ),
    "other names": (
        lambda: Population([nn.Linear(2, 1), nn.Linear(2, 1, bias=False)], LocalSGD(every=1)),
        r"member 1 beside member 0: tensors are named differently: missing \['bias'\]",
    ),
    "other dtype": (
        lambda: Population([nn.Linear(2, 1), nn.Linear(2, 1).double()], LocalSGD(every=1)),
        "weight of member 1 is torch.float64, of member 0 torch.float32",
    ),
    "one model twice": (
        lambda: Population([nn.Linear(2, 1)] * 2, LocalSGD(every=1)),
        "member 1 shares weight with another: give each member its own model",
    ),
    "other optimisers": (
        lambda: Population(
            (own := [nn.Linear(2, 1), nn.Linear(2, 1)]),
            LocalSGD(every=1),
            optimizers=[torch.optim.SGD(own[0].parameters(), lr=1.0), torch.optim.Adam(own[1].parameters())],
        ),
        r"optimisers are of different kinds, \['Adam', 'SGD'\]",
    ),
    "too few optimisers": (
        lambda: Population((own := points([(0.0,), (1.0,)])), PAPA(), optimizers=sgd(own[:1])),
        "2 models and 1 optimisers",
    ),
    "p": (lambda: WASH(p=1.5), r"p must lie in \[0, 1\], got 1.5"),
    "p that is no number": (lambda: WASH(p=math.nan), r"p must lie in \[0, 1\], got nan"),
    "depth": (lambda: WASH(p=0.1, depth="deep"), 'depth must be "layer", "tensor" or "flat"'),  # type: ignore[arg-type]
    "every": (lambda: LocalSGD(every=0), "every must be a whole number of at least 1, got 0"),
    "every of DART": (lambda: DART(every=True), "every must be a whole number"),
    "alpha": (lambda: PAPA(alpha=2.0), r"alpha must lie in \[0, 1\]"),
    "outer rate": (lambda: DiLoCo(every=1, rate=0.0), "rate must be above 0"),
    "momentum": (lambda: IMWA(every=1, momentum="lose"), 'momentum must be "reset", "keep" or "average"'),  # type: ignore[arg-type]
    "no rate": (
        lambda: Population(points([(0.0,), (1.0,)]), PAPA()),
        r"PAPA\(every=10.*follows the optimisers: pass optimizers=",
    ),
    "no momenta": (
        lambda: Population(points([(0.0,), (1.0,)]), WASH(p=0.1, optimizer_state=True)),
        "follows the optimisers: pass optimizers=",
    ),
    "no batches": (
        lambda: Population(points([(0.0,), (1.0,)]), PAPAAll(every=1, repair=2)),
        "measures activations: pass batches=",
    ),
    "no rule": (lambda: Population(points([(0.0,), (1.0,)]), "WASH"), "rule must be one such as"),  # type: ignore[arg-type]
    "no group": (lambda: Population(Net(), WASH(p=0.1)), "a single model is one rank's: pass group="),
    "list and group": (lambda: Population([Net(), Net(1)], WASH(p=0.1), group=object()), "pass that one, not a list"),
    "two starts": (lambda: Population([Net(), Net(1)], DiLoCo(every=1)), "DiLoCo wants members of one start"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_rates_that_differ_are_refused() -> None:
    models = points([(0.0,), (1.0,)])
    optimizers = sgd(models)
    population = Population(models, PAPA(every=1), optimizers=optimizers)
    optimizers[1].param_groups[0]["lr"] = 0.01
    with pytest.raises(ValueError, match=r"the learning rates stand at \[0.*, 1.0\] of their first values"):
        population.step()
    assert population.steps == 0 and torch.equal(values(models), torch.tensor([[0.0], [1.0]], dtype=torch.float64))


def test_states_that_do_not_fit_are_refused() -> None:
    state = made(PAPA(every=2))[2].state_dict()
    for other, message in (
        (made(PAPA(every=3)), "rule's settings="),
        (made(LocalSGD(every=2)), "rule='PAPA', this population has 'LocalSGD'"),
        (made(PAPA(every=2), seed=1), "seed=0, this population has 1"),
        (made(PAPA(every=2), members=4), "size=3, this population has 4"),
    ):
        before = everything(*other[:2])
        with pytest.raises(ValueError, match=message):
            other[2].load_state_dict(state)
        assert same(before, everything(*other[:2]))
    with pytest.raises(ValueError, match="no population's state"):
        made(PAPA2(every=2))[2].load_state_dict({})
    with pytest.raises(ValueError, match=r"lacks members \['2'\]"):
        state["members"].pop("2")
        made(PAPA(every=2))[2].load_state_dict(state)


def test_optimisers_that_keep_different_things_are_refused() -> None:
    models, optimizers, population = made(WASH(p=0.5, optimizer_state=True))
    train(models, optimizers, population, range(1, 3))
    optimizers[2].state.clear()
    before = everything(models, optimizers)
    with pytest.raises(ValueError, match="the optimiser of member 2 beside that of member 0: tensors are named diff"):
        population.step()
    assert same(before, everything(models, optimizers))


def test_dart_trains_the_first_member_alone() -> None:
    models, optimizers, population = made(DART(every=3, pretrain=4, rounds=2))
    waiting = copy.deepcopy(models[1].state_dict())
    train(models, optimizers, population, range(1, 4))
    assert not population.trains(1) and all(torch.equal(t, waiting[n]) for n, t in models[1].state_dict().items())
    train(models, optimizers, population, range(4, 5))
    assert population.trains(1) and torch.equal(models[1].first.weight, models[0].first.weight)
    train(models, optimizers, population, range(5, 11))
    assert torch.equal(models[1].first.weight, models[0].first.weight)
    payload = population.meter.total.payload
    train(models, optimizers, population, range(11, 14))
    assert population.meter.total.payload == payload and not torch.equal(models[1].last.bias, models[0].last.bias)
    with pytest.raises(ValueError, match="has no end"):
        DART(every=3).cost(2)
