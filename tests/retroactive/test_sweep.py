"""Averages made after training against the same averages made during it."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lowland
from lowland import EMA, SWA, Snapshots
from lowland.ema import Power, half_life
from lowland.retroactive import Exponential, PowerLaw, Recorder, Window, coefficients, recorded, sweep, synthesise
from lowland.retroactive.sweep import Recorded, intervals

STEPS = 200


@pytest.fixture(scope="module")
def path():
    """The weights after each step of a run: a drift that levels off, and noise."""
    torch.manual_seed(0)
    steps = torch.arange(1, STEPS + 1, dtype=torch.float64)[:, None]
    drift = torch.exp(-steps / 60) * torch.randn(1, 30, dtype=torch.float64)
    return drift + 0.02 * torch.randn(STEPS, 30, dtype=torch.float64)  # (steps, numel)


def fed(averager, path, upto=STEPS):
    for row in path[:upto]:
        averager.update({"w": row[:20].view(4, 5), "b": row[20:]})
    return averager.mean()


def named(row):
    return {"w": row[:20].view(4, 5), "b": row[20:]}


def distance(ours, theirs):
    return math.sqrt(sum(float(((ours[name] - theirs[name]) ** 2).sum()) for name in theirs))


@pytest.fixture(scope="module")
def two_emas(path):
    """Two power EMAs, read every 25 steps."""
    basis = []
    for width in (0.05, 0.1):
        averager = EMA(Power.of_width(width))
        for step, row in enumerate(path, start=1):
            averager.update(named(row))
            if step % 25 == 0:
                basis.append(Recorded(PowerLaw.of_width(width, end=step), averager.mean()))
    return basis


def test_every_single_step_recorded_gives_any_average_exactly(path):
    basis = intervals([(step, named(row)) for step, row in enumerate(path, start=1)], start=0)
    for target, averager in (
        (Exponential(12.0, STEPS), EMA(half_life(12.0))),
        (PowerLaw.of_width(0.08, STEPS), EMA(Power.of_width(0.08))),
        (Window(0, STEPS), SWA()),
        (Window.last(19, STEPS), Snapshots(19)),
    ):
        assert distance(synthesise(basis, target), fed(averager, path)) < 1e-9, target
        assert coefficients(basis, target).residual < 1e-9


def test_an_earlier_end_is_the_average_of_then(path):
    basis = intervals([(step, named(row)) for step, row in enumerate(path, start=1)], start=0)
    assert distance(synthesise(basis, Exponential(12.0, 100)), fed(EMA(half_life(12.0)), path, 100)) < 1e-9


def test_the_coefficients_are_those_of_a_weighted_soup(path):
    # What streams files too large for memory: lowland.checkpoints.average with this soup.
    kept = [(step, named(path[step - 1])) for step in range(25, STEPS + 1, 25)]
    shares = coefficients(intervals(kept), Exponential(40.0, STEPS)).coefficients
    soup = lowland.soup.weighted((weights for _, weights in kept), shares)
    assert distance(soup, synthesise(intervals(kept), Exponential(40.0, STEPS))) < 1e-12


def test_the_last_k_snapshots_are_averaged_equally(path):
    kept = [(step, named(path[step - 1])) for step in range(25, STEPS + 1, 25)]
    found = synthesise(intervals(kept), Window.last(75, STEPS))
    expected = torch.stack([path[step - 1] for step in (150, 175, 200)]).mean(0)
    assert distance(found, named(expected)) < 1e-12


def test_sparse_snapshots_come_near_and_nearer_around_their_step(path):
    drift = path.clone()
    drift -= drift - torch.cumsum(torch.full_like(path, 0.01), 0)  # no noise: only the drift tells the two apart
    kept = [(step, named(drift[step - 1])) for step in range(10, STEPS + 1, 10)]
    wanted, target = fed(EMA(half_life(30.0)), drift), Exponential(30.0, STEPS)
    before = distance(synthesise(intervals(kept), target), wanted)
    around = distance(synthesise(intervals(kept, around=True), target), wanted)
    assert around < 0.2 * before < 0.2 * distance(named(drift[-1]), wanted)


@pytest.mark.parametrize("width", [0.06, 0.075, 0.09, 0.12])
def test_two_power_emas_give_the_widths_between_them(path, two_emas, width):
    wanted = fed(EMA(Power.of_width(width)), path)
    target = PowerLaw.of_width(width, end=STEPS)
    others = [distance(one.weights, wanted) for one in two_emas if one.profile.end == STEPS]
    assert distance(synthesise(two_emas, target), wanted) < 0.1 * min(others)
    assert coefficients(two_emas, target).residual < 0.06


def test_a_small_residual_is_a_small_error(path, two_emas):
    # The error is what the missing part of the profile makes of the path: at most their product.
    spread = float((path - path.mean(0)).norm())
    for target, averager in (
        (Exponential(15.0, STEPS), EMA(half_life(15.0))),
        (Window.last(50, STEPS), Snapshots(50)),
        (PowerLaw.of_width(0.07, STEPS), EMA(Power.of_width(0.07))),
    ):
        found = coefficients(two_emas, target)
        size = float(np.linalg.norm(np.diff(target.share(np.arange(STEPS + 1.0)))))
        assert distance(synthesise(two_emas, target), fed(averager, path)) <= found.residual * size * spread * (
            1 + 1e-9
        )


def test_a_residual_above_the_bound_is_refused(two_emas):
    target = Exponential(1.0, STEPS)
    residual = coefficients(two_emas, target).residual
    assert residual > 0.5
    with pytest.raises(ValueError, match=f"only up to a residual of {residual:.3f}, wanted at most 0.1: record more"):
        synthesise(two_emas, target, most_residual=0.1)


def test_other_than_floats_are_the_latest_and_half_precision_is_widened():
    kept = [(step, {"w": torch.full((2,), float(step)).bfloat16(), "n": torch.tensor(step)}) for step in (1, 2)]
    found = synthesise(intervals(kept, start=0), Window(0, 2))
    assert found["n"] == 2 and found["w"].dtype == torch.float32 and found["w"].tolist() == [1.5, 1.5]


def test_files_are_read_as_they_were_written(tmp_path):
    swa = SWA()
    swa.update({"w": torch.tensor([1.0])})
    lowland.save(swa, tmp_path / "a.safetensors")
    lowland.save({"w": torch.tensor([3.0])}, tmp_path / "b.safetensors")
    kept = [(10, tmp_path / "a.safetensors"), (20, str(tmp_path / "b.safetensors"))]
    assert synthesise(intervals(kept), Window(0, 20))["w"].tolist() == [2.0]
    (tmp_path / "c.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        synthesise(intervals([(10, tmp_path / "c.safetensors")]), Window(9, 10))
    for name in ("d", "d.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no"):
            synthesise(intervals([(10, tmp_path / name)]), Window(9, 10))


def test_checkpoints_in_other_layouts_are_read(tmp_path):
    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)}, folder / "model.safetensors")
        torch.save({"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)}, tmp_path / f"{step}.pt")
    for kept in (["checkpoint-10", "20.pt"], ["10.pt", "checkpoint-20"]):
        basis = intervals([(step, tmp_path / name) for step, name in zip((10, 20), kept, strict=True)])
        found = synthesise(basis, Window(0, 20))
        assert found["w"].tolist() == [[15.0] * 3] * 2 and found["n"] == 20


def test_records_that_do_not_fit_are_named():
    one = {"w": torch.zeros(2), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"record 0 and record 1 do not both have \['b'\]"):
        synthesise(intervals([(1, {"w": torch.zeros(2)}), (2, one)]), Window(0, 2))
    with pytest.raises(ValueError, match=r"w is \(3,\) in record 0 and \(2,\) in record 1"):
        synthesise(intervals([(1, {**one, "w": torch.zeros(3)}), (2, one)]), Window(0, 2))
    bad = intervals([(10, {"w": torch.tensor([math.nan])}), (20, {"w": torch.ones(1)})])
    with pytest.raises(ValueError, match="w of the average is not finite"):
        synthesise(bad, Window(0, 20))
    assert torch.equal(synthesise([bad[1]], Window(10, 20))["w"], torch.ones(1))
    with pytest.raises(ValueError, match=r"rising steps, one or more, got \[2, 2\]"):
        intervals([(2, one), (2, one)])
    with pytest.raises(ValueError, match="start must lie from 0"):
        intervals([(2, one)], start=2)


def points(values):
    return intervals([(step, {"w": torch.tensor([value])}) for step, value in enumerate(values, start=1)], start=0)


def test_a_sweep_of_bare_scores_knows_no_noise():
    found = sweep(points([0.0, 1.0, 2.0]), [Window(0, 3), Window(1, 3), Window(2, 3)], lambda w: w["w"].item())
    assert [trial.score for trial in found.trials] == pytest.approx([1.0, 1.5, 2.0])
    assert (found.best, found.tied, found.expected) == (2, [2], None)
    assert found.trials[0].error is None and found.trials[0].behind == pytest.approx(1.0)


def test_equal_scores_go_to_the_average_that_the_record_expresses_best():
    basis = points([0.0, 1.0])
    found = sweep([Recorded(Window(0, 2), basis[0].weights)], [Window(1, 2), Window(0, 2)], lambda w: 1.0)
    assert (found.best, found.tied) == (1, [0, 1])


def test_differences_within_their_noise_are_ties():
    torch.manual_seed(1)
    noise = torch.randn(500, dtype=torch.float64)
    wobble = torch.randn(500, dtype=torch.float64)

    def score(weights):
        value = weights["w"].double()
        # The noise of the examples is common and cancels; that of the difference grows with the distance from 3.
        return 5 * noise - (value - 3).abs() * (0.2 + wobble * (0.1 if value > 2.5 else 2.0))

    found = sweep(points([1.0, 2.0, 2.9, 3.0]), [Window(k, k + 1) for k in range(4)], score)
    best = found.trials[3]
    assert found.best == 3 and best.behind == 0 and best.behind_error == 0 and best.tied
    assert not found.trials[2].tied and found.trials[2].behind == pytest.approx(0.02, abs=0.002)
    assert found.trials[2].error == pytest.approx(best.error, rel=0.01) and best.error > 0.2
    assert found.trials[1].behind < 2 * found.trials[1].behind_error and found.trials[1].tied
    table = str(found)
    assert table.count("\n") == 5 and "| best |" in table and "| tied |" in table


def test_the_expected_score_of_a_choice_among_equals_is_not_the_best_score():
    # Ten averages that are all worth 0: the highest of ten noisy means is above 0, what is chosen by it is not.
    torch.manual_seed(2)
    basis, targets = points([float(k) for k in range(10)]), [Window(k, k + 1) for k in range(10)]
    highest, expected = [], []
    for _ in range(60):
        table = torch.randn(10, 100, dtype=torch.float64)
        found = sweep(basis, targets, lambda weights, table=table: table[round(weights["w"].item())])
        highest.append(found.trials[found.best].score)
        expected.append(found.expected)
    # One cross-fitted score has a standard deviation of 0.14, the mean of 60 of them 0.018.
    assert np.mean(highest) > 0.12
    assert abs(np.mean(expected)) < 0.06
    one = sweep(points([0.0]), [Window(0, 1)], lambda weights: table[0])
    assert one.expected == pytest.approx(float(table[0].mean()))


def test_a_score_that_is_none_is_refused():
    basis, target = points([0.0, 1.0]), [Window(0, 2), Window(1, 2)]
    with pytest.raises(ValueError, match="the score of window of 2 is NaN"):
        sweep(basis, target, lambda weights: math.nan)
    with pytest.raises(ValueError, match="has 2 examples, the first has 3"):
        sweep(basis, target, lambda weights: [0.0] * (3 if weights["w"] < 0.9 else 2))
    with pytest.raises(ValueError, match="at least one target"):
        sweep(basis, [], lambda weights: 0.0)


def test_the_recorder_thins_evenly_and_keeps_the_end(tmp_path):
    record = Recorder(tmp_path, [SWA()], every=1, most=3)
    for step in range(1, 12):
        record.update({"w": torch.tensor([float(step)])})
    record.write()
    ends = [one.profile.end for one in recorded(tmp_path)]
    assert ends == [4, 8, 11] and record.every == 4
    # Means up to 4, 8 and 11 give that of 5 to 8 and of 9 to 11.
    assert synthesise(recorded(tmp_path), Window(4, 8))["w"].item() == pytest.approx(6.5)
    assert synthesise(recorded(tmp_path), Window(8, 11))["w"].item() == pytest.approx(10.0, abs=1e-5)


def test_a_record_that_was_broken_off_goes_on_as_if_it_had_not(tmp_path, path):
    def made(folder):
        return Recorder(folder, [EMA(Power.of_width(0.1)), EMA(Power.of_width(0.2))], every=4, most=4)

    whole = made(tmp_path / "whole")
    for row in path[:24]:
        whole.update(named(row))
    first = made(tmp_path / "broken")
    for row in path[:18]:
        first.update(named(row))
    (tmp_path / "broken" / "000000016-1.safetensors").unlink()  # broken off between two files
    again = made(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"holds a record already: call resume\(\) first"):
        again.update(named(path[0]))
    assert again.resume() == 12
    for row in path[12:24]:
        again.update(named(row))
    files = [sorted(file.name for file in (tmp_path / which).iterdir()) for which in ("whole", "broken")]
    assert files[0] == files[1] and len(files[0]) == 6 and whole.every == again.every == 8
    for one, other in zip(recorded(tmp_path / "whole"), recorded(tmp_path / "broken"), strict=True):
        assert one.profile == other.profile
        assert distance(synthesise([one], one.profile), synthesise([other], other.profile)) == 0
    with pytest.raises(ValueError, match=r"step 13 is not recorded; recorded are \[8, 16, 24\]"):
        made(tmp_path / "broken").resume(13)
    back = made(tmp_path / "broken")
    assert back.resume(16) == 16 and [one.profile.end for one in recorded(tmp_path / "broken")][-1] == 16
    assert back.averagers[0].count == 16


def test_what_a_recorder_refuses(tmp_path):
    with pytest.raises(ValueError, match="at least one averager"):
        Recorder(tmp_path, [], every=1)
    with pytest.raises(ValueError, match="got 0 and 64"):
        Recorder(tmp_path, [SWA()], every=0)
    used = SWA()
    used.update({"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="takes fresh averagers"):
        Recorder(tmp_path, [used], every=1)
    with pytest.raises(ValueError, match="no profile known here"):
        Recorder(tmp_path, [EMA(lambda n: 0.5)], every=1)
    with pytest.raises(FileNotFoundError, match="holds no record"):
        recorded(tmp_path)
    (tmp_path / "000000001-0.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        recorded(tmp_path)
