"""Profiles are the averagers' own weights, and fits are the least-squares solution."""

import numpy as np
import pytest
import torch

from lowland import EMA, SWA, Snapshots
from lowland.ema import Power, Warmup, half_life
from lowland.retroactive import Exponential, PowerLaw, Window, fit, fits, profile_of
from tests.reference import retroactive as naive

STEPS = 40


def shares_of(profile, steps=STEPS):
    return np.diff(profile.share(np.arange(steps + 1.0)))


@pytest.mark.parametrize(
    ("averager", "profile"),
    [
        (SWA(), Window(0, STEPS)),
        (Snapshots(7), Window.last(7, STEPS)),
        (EMA(half_life(6.0)), Exponential(6.0, STEPS)),
        (EMA(Power(2.5)), PowerLaw(2.5, STEPS)),
        (EMA(Power(0.0)), Window(0, STEPS)),
        (EMA(Power.of_width(0.13)), PowerLaw.of_width(0.13, STEPS)),
    ],
    ids=str,
)
def test_a_profile_is_what_the_averager_weighs_each_step_with(averager, profile):
    # Step i is the i-th unit vector, so the mean is the list of the steps' shares.
    for row in torch.eye(STEPS, dtype=torch.float64):
        averager.update({"w": row})
    np.testing.assert_allclose(shares_of(profile), averager.mean()["w"].numpy(), atol=1e-14)
    same = profile_of(type(averager).__name__, averager.settings, averager.count)
    np.testing.assert_allclose(shares_of(same), shares_of(profile), atol=1e-12)


def test_a_corrected_average_keeps_its_shape_to_the_first_step():
    shares = shares_of(Exponential(20.0, STEPS, corrected=True))
    decays = half_life(20.0) ** np.arange(STEPS - 1, -1, -1)
    np.testing.assert_allclose(shares, decays / decays.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    "profile",
    [Window(3, 35), Exponential(4.0, 36, start=5), Exponential(9.0, 36, 5, True), PowerLaw(3.0, 36, start=5)],
    ids=str,
)
def test_shares_sum_to_one_inside_the_span(profile):
    shares = shares_of(profile)
    assert shares.sum() == pytest.approx(1.0)
    assert (
        not shares[: profile.start].any() and not shares[profile.end :].any() and (shares[profile.start :] >= 0).all()
    )


@pytest.mark.parametrize(
    "profile", [Window(100, 900), Exponential(90.0, 1000), PowerLaw(4.0, 1000), PowerLaw(4.0, 1000, start=200)], ids=str
)
def test_half_of_the_weight_is_younger_than_the_half_life(profile):
    assert profile.share(np.array([profile.end - profile.half_life]))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 12**-0.5])
def test_the_width_of_a_power_profile_is_its_standard_deviation(width):
    profile, steps = PowerLaw.of_width(width, end=20_000), np.arange(1, 20_001)
    shares = np.diff(profile.share(np.arange(20_001.0)))
    mean = (shares * steps).sum()
    assert ((shares * (steps - mean) ** 2).sum()) ** 0.5 / 20_000 == pytest.approx(width, rel=1e-4)
    assert profile.width == pytest.approx(width) and profile.gamma == pytest.approx(
        Power.of_width(width).gamma, abs=1e-6
    )


@pytest.mark.parametrize("pair", [(6.94, 800.0, 16.97, 1000.0), (16.97, 1000.0, 6.94, 800.0), (3.0, 500.0, 3.0, 500.0)])
def test_the_closed_product_of_power_profiles_is_the_integral(pair):
    assert naive.power_product(*pair) == pytest.approx(naive.power_product_by_integration(*pair), rel=1e-6)


def test_the_fit_is_the_least_squares_solution_under_the_constraint():
    generator = np.random.default_rng(0)
    basis = [PowerLaw(g, t) for g in (5.0, 12.0) for t in (20, 30, 40)] + [Window(10, 25)]
    for target in (PowerLaw(8.0, 38), Window.last(9, 40), Exponential(5.0, 40)):
        rows, wanted = np.stack([shares_of(p) for p in basis]), shares_of(target)
        found = fit(basis, target)
        # The condition of the normal equations is the square of ours.
        np.testing.assert_allclose(found.coefficients, naive.constrained_coefficients(rows, wanted), rtol=1e-5)
        assert sum(found.coefficients) == pytest.approx(1.0, abs=1e-12)
        left = np.linalg.norm(wanted - rows.T @ found.coefficients)
        assert found.residual == pytest.approx(left / np.linalg.norm(wanted))
        assert found.amplification == pytest.approx(np.abs(found.coefficients).sum())
        for _ in range(20):
            step = generator.normal(size=len(basis))
            other = found.coefficients + 1e-3 * (step - step.mean())
            assert np.linalg.norm(wanted - rows.T @ other) > left


def test_the_fit_of_a_power_profile_is_that_of_the_paper_where_the_constraint_hardly_binds():
    ends = range(1250, 10_001, 1250)
    basis = [(g, float(t)) for t in ends for g in (PowerLaw.of_width(0.05, 1).gamma, PowerLaw.of_width(0.1, 1).gamma)]
    target = (PowerLaw.of_width(0.07, 1).gamma, 10_000.0)
    theirs = naive.karras_coefficients(basis, target)
    ours = fit([PowerLaw(g, int(t)) for g, t in basis], PowerLaw(target[0], 10_000))
    assert theirs.sum() == pytest.approx(1.0, abs=2e-3)
    np.testing.assert_allclose(ours.coefficients, theirs, atol=0.02)
    assert ours.residual < 0.03


def test_a_member_of_the_basis_is_found_again():
    basis = [PowerLaw(5.0, 20), PowerLaw(5.0, 40), Exponential(3.0, 40), Window(8, 16)]
    for place, profile in enumerate(basis):
        found = fit(basis, profile)
        np.testing.assert_allclose(found.coefficients, np.eye(len(basis))[place], atol=1e-9)
        assert found.residual < 1e-9


def test_means_up_to_two_steps_give_the_mean_between_them():
    found = fit([Window(0, 30), Window(0, 40)], Window(30, 40))
    np.testing.assert_allclose(found.coefficients, [-3, 4])
    assert found.residual == 0 and found.amplification == pytest.approx(7)


def test_what_the_basis_cannot_express_is_told():
    # Two halves against one quarter: the second half is the nearest, and half of the square is missing.
    found = fit([Window(0, 20), Window(20, 40)], Window(30, 40))
    np.testing.assert_allclose(found.coefficients, [0, 1], atol=1e-12)
    assert found.residual == pytest.approx(0.5**0.5)


def test_one_profile_and_two_equal_ones_have_a_fit():
    assert fit([Window(0, 40)], Window(20, 40)).coefficients == (1.0,)
    twice = fit([Window(0, 40), Window(0, 40)], Window(20, 40))
    assert sum(twice.coefficients) == 1.0 and twice.residual == pytest.approx(0.5**0.5)


def test_cells_of_a_long_run_change_the_fit_by_little(monkeypatch):
    widths = (0.05, 0.1)
    basis = [PowerLaw.of_width(w, end=t) for t in range(3000, 30_001, 3000) for w in widths]
    targets = [PowerLaw.of_width(0.07, 30_000), Exponential(300.0, 30_000), Window.last(6000, 30_000)]
    coarse = fits(basis, targets)
    monkeypatch.setattr("lowland.retroactive.profiles.MOST_CELLS", 40_000)
    exact = fits(basis, targets)
    for one, other in zip(coarse, exact, strict=True):
        assert one.residual == pytest.approx(other.residual, abs=2e-3)
        np.testing.assert_allclose(one.coefficients, other.coefficients, atol=2e-2)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="at least one recorded profile"):
        fit([], Window(0, 1))
    with pytest.raises(ValueError, match="window of 50 ends at step 50, the record at step 40"):
        fit([Window(0, 40)], Window(0, 50))
    with pytest.raises(ValueError, match="start 5, end 5"):
        Window(5, 5)
    with pytest.raises(ValueError, match="half_life must be a positive"):
        Exponential(0.0, 5)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        PowerLaw(-1.0, 5)
    with pytest.raises(ValueError, match="width must lie in"):
        PowerLaw.of_width(0.3, 5)
    with pytest.raises(ValueError, match=r"decay must lie inside \(0, 1\), got 1.0"):
        Exponential.of_decay(1.0, 5)
    warm = EMA(Warmup())
    with pytest.raises(ValueError, match="EMA with .* has no profile known here"):
        profile_of("EMA", warm.settings, 5)
