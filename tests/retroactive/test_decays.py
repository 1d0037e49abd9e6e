"""Decays of the rate as averages: numbers by hand, other tools' rules, and the runs that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lowland import EMA, soup
from lowland.retroactive import Decay, PowerLaw, Window, blended, decayed, fit, of_rates, rates_from


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("linear", [0.25, 0.25, 0.25, 0.25]),
        ("minus-sqrt", [0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.75) - math.sqrt(0.5), 1 - math.sqrt(0.75)]),
        ("cosine", [(1 - math.sqrt(0.5)) / 2, math.sqrt(0.5) / 2, math.sqrt(0.5) / 2, (1 - math.sqrt(0.5)) / 2]),
        ("(1-x)^2", [7 / 16, 5 / 16, 3 / 16, 1 / 16]),
        ("(1-x)^0.5", [1 - math.sqrt(0.75), math.sqrt(0.75) - math.sqrt(0.5), math.sqrt(0.5) - 0.5, 0.5]),
    ],
)
def test_four_checkpoints_by_hand(shape: str, wanted: list[float]) -> None:
    assert decayed(shape, [10, 20, 30, 40]) == pytest.approx(wanted, abs=1e-12)
    profile = Decay(shape, start=100, end=500)
    shares = np.diff(profile.share(np.array([100.0, 200, 300, 400, 500])))
    assert shares.tolist() == pytest.approx(wanted, abs=1e-12)
    middle = profile.share(np.array([500 - profile.half_life])).item()
    assert middle == pytest.approx(0.5, abs=1e-12)


def by_index(rate: Callable[[float], float], n: int) -> list[float]:
    """Megatron's rule: the rate at 0, 1/n, ... (n-1)/n; differences, the last its own, the first what is left."""
    rates = [rate(place / n) for place in range(n)]
    inner = [rates[place] - rates[place + 1] for place in range(1, n - 1)]
    return [1 - math.fsum([*inner, rates[-1]]), *inner, rates[-1]]


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_styles_of_megatron_are_reproduced(n: int) -> None:
    steps = [1000 + 250 * place for place in range(n)]
    assert decayed("linear", steps) == pytest.approx(by_index(lambda x: 1 - x, n), abs=1e-12)
    assert decayed("minus-sqrt", steps) == pytest.approx(by_index(lambda x: 1 - math.sqrt(x), n), abs=1e-12)
    assert decayed("minus-sqrt", [5]) == [1.0]


def test_an_average_is_the_decayed_run_where_gradients_are_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    steps = torch.randn(12, 5, generator=g, dtype=torch.float64)
    start = torch.randn(5, generator=g, dtype=torch.float64)
    iterates = [start + steps[: n + 1].sum(0) for n in range(12)]
    for shape in ("linear", "minus-sqrt", "cosine", "(1-x)^3"):
        rates = [Decay(shape, end=12).share(np.array([float(n)])).item() for n in range(12)]
        run = start + sum((1 - rate) * step for rate, step in zip(rates, steps, strict=True))
        mean = soup.weighted([{"w": w} for w in iterates], decayed(shape, list(range(1, 13))))["w"]
        torch.testing.assert_close(mean, run, rtol=1e-12, atol=1e-12)


def test_expected_error_on_a_noisy_quadratic() -> None:
    """At a constant rate an iterate is an autoregressive walk; an average of some has a variance in closed form."""
    keep, n, chains = 0.9, 40, 20_000
    rng = np.random.default_rng(0)
    walk = np.zeros((chains, n))
    state = rng.standard_normal(chains) / math.sqrt(1 - keep**2)
    for step in range(n):
        state = keep * state + rng.standard_normal(chains)
        walk[:, step] = state
    distance = np.abs(np.arange(n)[:, None] - np.arange(n)[None, :])
    covariance = keep**distance / (1 - keep**2)
    variances = {}
    for shape in ("linear", "minus-sqrt", "cosine"):
        c = np.array(decayed(shape, list(range(1, n + 1))))
        variances[shape] = c @ covariance @ c
        assert (walk @ c).var() == pytest.approx(variances[shape], rel=0.05)
    assert variances["linear"] < variances["cosine"] < 0.5 * covariance[0, 0]


@pytest.mark.parametrize("shape", ["linear", "minus-sqrt", "cosine", "(1-x)^2"])
def test_online_it_is_an_ema_with_that_decay(shape: str) -> None:
    g = torch.Generator().manual_seed(1)
    iterates = [{"w": torch.randn(3, generator=g)} for _ in range(9)]
    average = EMA(Decay(shape, end=9))
    for weights in iterates:
        average.update(weights)
    wanted = soup.weighted(iterates, decayed(shape, list(range(1, 10))))
    torch.testing.assert_close(average.mean()["w"], wanted["w"], rtol=1e-5, atol=1e-6)


def test_two_power_averages_do_not_express_minus_sqrt() -> None:
    basis = [PowerLaw.of_width(width, end=t) for t in range(100, 1001, 100) for width in (0.05, 0.1)]
    linear, bent = (fit(basis, Decay(shape, start=600, end=1000)).residual for shape in ("linear", "minus-sqrt"))
    assert bent > 0.5 > 0.2 > linear
    assert fit([Window(a, a + 100) for a in range(600, 1000, 100)], Decay("linear", start=600, end=1000)).residual == 0


def test_rates_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("# step, rate\n0, 4\n100,4\n\n200, 2\n300, 1\n")
    assert rates_from(tmp_path / "pairs.csv", [100, 150, 200, 300]) == [4.0, 3.0, 2.0, 1.0]
    assert of_rates([4.0, 3.0, 2.0, 1.0]) == [0.25, 0.25, 0.25, 0.25]
    (tmp_path / "one").write_text("1\n0.5\n0.75\n")
    assert of_rates(rates_from(tmp_path / "one", [1, 2, 3])) == [0.5, -0.25, 0.75]
    for text, message in (
        ("1\n2\n", "holds 2 rates for 3 checkpoints"),
        ("1 2 3\n", "one number a line, or a step and a rate"),
        ("1\nx\n", "line 2 of .* is no number"),
        ("2 1\n3 1\n", "rates from step 2 to 3, the checkpoints are from 1 to 3"),
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match=message):
            rates_from(tmp_path / "bad", [1, 2, 3])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="a decay is one of linear, minus-sqrt, cosine"):
        decayed("sqrt", [1, 2])
    with pytest.raises(ValueError, match="rising steps"):
        decayed("linear", [2, 1])
    with pytest.raises(ValueError, match="exponent"):
        Decay("(1-x)^0", end=3)
    with pytest.raises(ValueError, match="the first positive"):
        of_rates([0.0, 1.0])
    with pytest.raises(ValueError, match="needs steps"):
        Decay("linear", end=0)
    assert blended([0.5, 0.5], 1.5) == [0.75, 0.25]
    with pytest.raises(ValueError, match="finite"):
        blended([1.0], math.inf)
