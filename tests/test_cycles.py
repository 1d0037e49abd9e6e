"""Schedules: the values of METHODS 17.3 to 17.6, the released loops, torch's own class, and when to collect."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import SWALR

from lowland import cycles
from lowland.cycles import Schedule, anneal, constant_after, cosine_restarts, sawtooth, swa_linear, triangle

from .reference import cycles as released


def optimiser(rate: float) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(schedule: Schedule, base: float, steps: int) -> list[float]:
    """The rate at each step, as an optimiser under LambdaLR has it."""
    sgd = optimiser(base)
    scheduler = LambdaLR(sgd, schedule)
    seen = []
    for _ in range(steps):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return seen


def collected(schedule: Schedule, steps: int) -> list[int]:
    """Steps done at each collection."""
    return [step + 1 for step in range(steps) if schedule.collect_at(step)]


# The six schedules by number.


def test_swa_linear_17_3() -> None:
    first = rates(swa_linear(126, 0.5), 0.1, 200)
    for epoch, rate in {63: 0.1, 64: 0.099008, 100: 0.063294, 113: 0.050397, 114: 0.05, 199: 0.05}.items():
        assert first[epoch] == pytest.approx(rate, abs=5e-7)
    second = rates(swa_linear(161, 0.2), 0.05, 300)
    for epoch, rate in {81: 0.049689, 120: 0.025466, 145: 0.01}.items():
        assert second[epoch] == pytest.approx(rate, abs=5e-7)


def test_triangle_17_4() -> None:
    seen = rates(triangle(8, 0.01), 0.05, 6)  # two steps an epoch, cycles of four epochs
    assert seen == pytest.approx([0.05, 0.037625, 0.02525, 0.012875, 0.0005, 0.012875], abs=1e-12)


def test_cosine_restarts_17_5() -> None:
    seen = rates(cosine_restarts(20_000, 5, steps_per_epoch=100), 0.2, 4001)
    values = {1: 0.2, 11: 0.170655, 21: 0.099921, 31: 0.029234, 40: 0.000302, 41: 0.2}
    for epoch, rate in values.items():
        assert seen[100 * (epoch - 1)] == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "values"),
    [("linear", [0.1, 0.0875, 0.075, 0.0625, 0.05, 0.05]), ("cos", [0.1, 0.092678, 0.075, 0.057322, 0.05, 0.05])],
)
def test_anneal_17_6(shape: str, values: list[float]) -> None:
    assert rates(anneal(4, 0.5, shape=shape), 0.1, 6) == pytest.approx(values, abs=5e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["linear", "cos"])
@pytest.mark.parametrize("steps", [0, 1, 4, 10])
def test_anneal_equals_swalr(shape: str, steps: int) -> None:
    sgd = optimiser(0.1)
    torch_schedule = SWALR(sgd, swa_lr=0.03, anneal_epochs=steps, anneal_strategy=shape)  # type: ignore[arg-type]
    expected = []
    for _ in range(15):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        torch_schedule.step()
    ours = rates(anneal(steps, 0.3, shape=shape), 0.1, 15)  # type: ignore[arg-type]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_constant_after_17_2() -> None:
    # torchcontrib's automatic mode (10, 5, 0.05): SGD on (p - 1)^2 from 0, averages at steps 15, 20, ..., 100.
    schedule = constant_after(10, 0.5, every=5)
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    sgd = SGD([p], lr=0.1)
    scheduler = LambdaLR(sgd, schedule)
    positions, taken, first = {}, [], None
    for step in range(100):
        if first is None and sgd.param_groups[0]["lr"] == pytest.approx(0.05):
            first = step + 1
        sgd.zero_grad()
        (p - 1).square().sum().backward()
        sgd.step()
        scheduler.step()
        positions[step + 1] = p.item()
        if schedule.collect_at(step):
            taken.append(p.item())
    assert first == 11
    assert positions[5] == pytest.approx(0.67232, abs=1e-10)
    assert positions[10] == pytest.approx(0.8926258176, abs=1e-10)
    assert positions[11] == pytest.approx(0.90336323584, abs=1e-10)
    assert len(taken) == 18
    assert sum(taken) / 18 == pytest.approx(0.991399131338, abs=1e-12)


def test_sawtooth_paper_form() -> None:
    seen = rates(sawtooth(4, 0.2), 0.05, 8)
    assert seen == pytest.approx([0.04, 0.03, 0.02, 0.01] * 2, abs=1e-15)
    assert seen == pytest.approx([released.swa_cyclic_paper(i, 4, 0.05, 0.01) for i in range(1, 9)], abs=1e-15)


# Against the released loops.


def test_swa_linear_is_constant_within_an_epoch() -> None:
    seen = rates(swa_linear(126 * 3, 0.1, steps_per_epoch=3), 0.1, 150 * 3)
    expected = [released.swa_script(step // 3, 126, 0.01, 0.1) for step in range(150 * 3)]
    assert seen == pytest.approx(expected, rel=1e-12)


def test_triangle_follows_the_released_script() -> None:
    seen = rates(triangle(4 * 6, 0.02), 0.05, 60)
    expected = [released.fge_script(step // 6, step % 6, 6, 4, 0.05, 0.001) for step in range(60)]
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cos"])
def test_sawtooth_code_form(shape: str) -> None:
    seen = rates(sawtooth(6, 0.1, form="code", shape=shape), 0.2, 18)  # type: ignore[arg-type]
    assert seen == pytest.approx(released.tiled(6, 3, 0.2, 0.02, shape == "cos"), rel=1e-12)


def test_cosine_restarts_both_forms() -> None:
    code = rates(cosine_restarts(60, 3, steps_per_epoch=5), 0.2, 60)
    assert code == pytest.approx(
        [released.snapshot_script(step // 5 + 1, step % 5 + 1, 5, 12, 3, 0.2) for step in range(60)], abs=1e-15
    )
    paper = rates(cosine_restarts(50, 4, form="paper"), 0.2, 50)  # cycles of 13, 13, 13 and 11
    assert paper == pytest.approx([released.snapshot_paper(t, 50, 4, 0.2) for t in range(1, 51)], abs=1e-15)
    assert code[19] == pytest.approx(0, abs=1e-15) and code[0] < 0.2
    assert paper[0] == 0.2 and paper[12] > 0


def test_the_last_snapshot_cycle_restarts() -> None:
    # gaohuang/SnapshotEnsemble takes the phase of a longer last cycle from the first epoch of the run. With 10 epochs
    # in 4 cycles that cycle has epochs 7 to 10, and (7 - 1) mod 4 = 2: it starts half-way down, without a restart.
    assert released.snapshot_script(7, 1, 100, 10, 4, 0.2) == pytest.approx(0.1, abs=1e-3)
    schedule = cosine_restarts(1000, 4, steps_per_epoch=100)
    assert 0.2 * schedule(600) == pytest.approx(0.2, abs=1e-5)
    assert schedule(999) == pytest.approx(0, abs=1e-15)
    assert collected(schedule, 1000) == [200, 400, 600, 1000]


def test_snapshot_cycles_are_whole_epochs_in_the_codes_form() -> None:
    assert collected(cosine_restarts(20_000, 3, steps_per_epoch=100), 20_000) == [6600, 13200, 20000]
    assert collected(cosine_restarts(20_000, 3), 20_000) == [6666, 13332, 20000]
    assert collected(cosine_restarts(20_000, 3, form="paper"), 20_000) == [6667, 13334, 20000]


def test_after_the_last_step_snapshots_hold_the_rate_and_collect_nothing() -> None:
    for form in ("code", "paper"):
        schedule = cosine_restarts(10, 2, form=form)  # type: ignore[arg-type]
        assert schedule(10) == schedule(9) == schedule(1000)
        assert not schedule.collect_at(10)


# When to collect.


def test_swa_collects_140_models_of_300_epochs() -> None:
    # METHODS 3.1: epochs 161 to 300, counted from 1.
    assert collected(swa_linear(161, 0.2), 300) == list(range(161, 301))
    assert collected(swa_linear(161 * 3, 0.2, steps_per_epoch=3), 900) == list(range(483, 901, 3))
    assert collected(swa_linear(10, 0.2, every=4), 20) == [10, 14, 18]


@pytest.mark.parametrize(
    "schedule",
    [sawtooth(6, 0.1), sawtooth(6, 0.1, form="code"), sawtooth(6, 0.1, shape="cos"), cosine_restarts(24, 4)],
)
def test_cyclic_schedules_collect_at_their_minimum(schedule: Schedule) -> None:
    lowest = min(schedule(step) for step in range(24))
    at_minimum = [step for step in range(24) if schedule(step) == pytest.approx(lowest, abs=1e-12)]
    assert [step for step in range(24) if schedule.collect_at(step)] == at_minimum == [5, 11, 17, 23]


def test_triangle_collects_in_the_valley_only() -> None:
    # METHODS 5.2: the epoch whose end is the middle of the cycle. The peaks' checkpoints are no members.
    schedule = triangle(4 * 6, 0.02)
    assert collected(schedule, 72) == [12, 36, 60]
    assert all(schedule(done) == 0.02 for done in collected(schedule, 72))


def test_anneal_collects_once_the_rate_is_constant() -> None:
    schedule = anneal(4, 0.5, start=3)
    assert [schedule(step) for step in range(4)] == [1.0] * 4
    assert collected(schedule, 10) == [8, 9, 10]
    assert all(schedule(done - 1) == 0.5 for done in collected(schedule, 10))


# Life in a scheduler.

EVERY = [
    swa_linear(8, 0.5),
    triangle(4, 0.1),
    sawtooth(5, 0.1),
    cosine_restarts(12, 3),
    constant_after(4, 0.5),
    anneal(5, 0.5),
]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_a_scheduler_resumes_from_its_plain_state(schedule: Schedule, tmp_path: object) -> None:
    path = f"{tmp_path}/scheduler.pt"
    sgd = optimiser(0.1)
    scheduler = LambdaLR(sgd, schedule)
    for _ in range(5):
        sgd.step()
        scheduler.step()
    torch.save({"scheduler": scheduler.state_dict(), "optimiser": sgd.state_dict()}, path)
    state = torch.load(path, weights_only=True)
    sgd = optimiser(0.1)
    again = LambdaLR(sgd, schedule)
    sgd.load_state_dict(state["optimiser"])
    again.load_state_dict(state["scheduler"])
    seen = []
    for _ in range(7):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        again.step()
    assert seen == rates(schedule, 0.1, 12)[5:]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_a_schedule_prints_as_it_is_built(schedule: Schedule) -> None:
    assert eval(repr(schedule), vars(cycles).copy()) == schedule


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: swa_linear(0, 0.5), "start must be a whole number of at least 1, got 0"),
        (lambda: swa_linear(10, 0.0), "rate must be positive: it is a share of the base learning rate, got 0.0"),
        (lambda: swa_linear(10, float("nan")), "rate must be positive"),
        (lambda: swa_linear(10, 0.5, steps_per_epoch=0), "steps_per_epoch must be a whole number"),
        (lambda: swa_linear(10, 0.5, every=0), "every must be a whole number of at least 1, got 0"),
        (lambda: triangle(5, 0.1), "cycle must be even to have a middle, got 5: use 6"),
        (lambda: triangle(0, 0.1), "cycle must be a whole number of at least 2, got 0"),
        (lambda: triangle(4, 1.5), r"low must lie in \[0, 1\].*got 1.5"),
        (lambda: sawtooth(1, 0.1, form="code"), "cycle must be a whole number of at least 2, got 1"),
        (lambda: sawtooth(2.5, 0.1), "cycle must be a whole number of at least 1, got 2.5"),  # type: ignore[arg-type]
        (lambda: sawtooth(4, 0.1, form="lua"), "form must be one of 'paper', 'code', got 'lua'"),  # type: ignore[arg-type]
        (lambda: sawtooth(4, 0.1, shape="sin"), "shape must be one of 'linear', 'cos', got 'sin'"),  # type: ignore[arg-type]
        (lambda: cosine_restarts(100, 11, steps_per_epoch=10), "cycles must be at most 10, .* got 11"),
        (lambda: cosine_restarts(100, 0), "cycles must be a whole number of at least 1, got 0"),
        (lambda: constant_after(-1, 0.5), "start must be a whole number of at least 0, got -1"),
        (lambda: anneal(-1, 0.5), "steps must be a whole number of at least 0, got -1"),
        (lambda: anneal(4, 0.5, shape="cosine"), "shape must be one of 'cos', 'linear', got 'cosine'"),  # type: ignore[arg-type]
    ],
)
def test_errors(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
