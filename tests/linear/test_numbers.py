"""Solutions that are known to many digits."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from lowland.linear import (
    ACOWALogisticRegression,
    CSLLogisticRegression,
    NaiveAverageLogisticRegression,
    OWALogisticRegression,
)
from lowland.linear.acowa import shares_of, together
from lowland.linear.local import solve
from lowland.linear.messages import Models
from lowland.linear.objective import Problem
from lowland.linear.rows import Part
from lowland.linear.steps import Common, FitJob, GradientJob, centroids, fit, gradient, penalties_of
from tests.linear.toy import TOY, parts_of
from tests.reference import linear as twin

SETTINGS = {"fit_intercept": False, "random_state": 0}
PARTS = [Part(X, y, np.ones(len(y))) for X, y in TOY]
COMMON = Common(np.array([-1, 1]), np.ones(2), fit_intercept=False, tol=1e-10, max_iter=100, seed=0)


def close(found, wanted, digits=6):
    np.testing.assert_allclose(np.ravel(found), np.ravel(wanted), rtol=0, atol=0.6 * 10.0**-digits)


@pytest.mark.parametrize(
    ("lambda_", "first", "second"),
    [
        (0.05, (2.640371, 0.726115), (2.382861, 0.744782)),
        (0.3, (0.575962164, 0), (0.575962164, 0)),
        (0.4, (0.271540638, 0), (0.271540638, 0)),
        (0.5, (0, 0), (0, 0)),
    ],
)
def test_local_solutions(lambda_, first, second):
    for (X, y), wanted in zip(TOY, (first, second), strict=True):
        found = solve(Problem(X, y.astype(float)), np.full(2, lambda_), fit_intercept=False)
        close(found.coef, wanted, 9 if lambda_ != 0.05 else 6)
        assert found.converged


def test_lambda_max():
    for (X, y), wanted in zip(TOY, [(0.5, 0.125), (0.5, 0.25)], strict=True):
        problem = Problem(X, y.astype(float))
        close(np.abs(problem.gradient(np.zeros(2))[0]), wanted, 12)
        assert problem.lambda_max(fit_intercept=False) == 0.5


def test_naive_average_and_the_solution_of_all_rows():
    close(NaiveAverageLogisticRegression(0.05, **SETTINGS).fit_partitions(TOY).coef_, (2.511616, 0.735449))
    whole = NaiveAverageLogisticRegression(0.05, n_partitions=1, **SETTINGS)
    X, y = np.vstack([X.toarray() for X, _ in TOY]), np.concatenate([y for _, y in TOY])
    close(whole.fit(X, y).coef_, (2.517231, 0.734578))


def test_owa():
    model = OWALogisticRegression(0.05, merge_lambda=1.0, **SETTINGS).fit_partitions(TOY)
    close(model.coef_, (1.584761, 0.462783))
    assert model.n_rounds_ == 1
    np.testing.assert_array_equal(model.support_, [0, 1])


def test_owa_where_few_models_are_left_and_where_none_is():
    path = OWALogisticRegression([0.4, 0.5], merge_lambda=1.0, **SETTINGS).fit_partitions(TOY)
    close(path.at(0.4).coef_, (0.069874893, 0), 9)
    nothing = path.at(0.5)
    np.testing.assert_array_equal(nothing.coef_, [[0.0, 0.0]])
    # A score of zero is the first class: scikit-learn's rule.
    assert set(nothing.predict(TOY[0][0])) == {-1}


def test_penalties_of_the_second_round():
    for shares, factor, wanted in [
        ((0, 0.5, 1, 1), 2.966292, (2.966292, 0.494382, 0.269663, 0.269663)),
        ((0, 1 / 3, 2 / 3, 1), 2.7546063652, (2.7546063652, 0.6356783920, 0.3592964824, 0.2504187605)),
    ]:
        job = FitJob(COMMON, np.array([1.0]), shares=[csr_matrix([shares])])
        found = penalties_of(job, 0, 0, 4)
        close(found, wanted, 6 if factor == 2.966292 else 10)
        assert found.mean() == pytest.approx(1.0, abs=1e-15)


def test_centroids():
    found = together([centroids(part, COMMON) for part in PARTS])
    order = np.lexsort((found.codes, found.counts))
    close(found.means.toarray()[order], [(-1, 1), (1, -1), (-1, -1), (1, 2 / 3)])
    np.testing.assert_array_equal(found.counts[order], [1, 1, 3, 3])


@pytest.mark.parametrize(
    ("times", "first", "second"),
    [
        ((1.0, 1.0), (3.155123, 0.343113), (3.10182, 0.410765)),
        ((0.1, 0.1), (1.927952643, 0.070272318), (1.857033669, 0.338196092)),
        ((0.1, 1.0), (2.706168807, 0.312747598), (2.628290188, 0.413066122)),
    ],
)
def test_round_one(times, first, second):
    means = together([centroids(part, COMMON) for part in PARTS])
    counts = means.counts * np.repeat(times, 2)
    job = FitJob(COMMON, np.array([0.05]), centroids=type(means)(means.means, means.codes, counts))
    for part, wanted in zip(PARTS, (first, second), strict=True):
        close(fit(part, job).coefs[0].toarray(), wanted, 9 if times[0] == 0.1 else 6)


def test_round_two_is_penalties_not_scaling():
    means = together([centroids(part, COMMON) for part in PARTS])
    models: list[Models] = [fit(part, FitJob(COMMON, np.array([0.05]), centroids=means)) for part in PARTS]
    shares = shares_of(models)
    np.testing.assert_array_equal(shares[0].toarray(), [[1, 1]])
    job = FitJob(COMMON, np.array([0.05]), centroids=means, unit=True, shares=shares)
    for part, wanted in zip(PARTS, [(2.672139, 0.035374), (2.665973, 0.195067)], strict=True):
        close(fit(part, job).coefs[0].toarray(), wanted)
    merged = ACOWALogisticRegression(0.05, merge_lambda=1.0, **SETTINGS).fit_partitions(TOY)
    close(merged.coef_, (1.576995, 0.069535))
    assert merged.n_rounds_ == 2
    # Features multiplied by W and never divided again, as the released code has it, would be far away.
    assert np.abs(merged.coef_ - (0.057261, 0.002489)).max() > 1


def test_csl():
    mean = csr_matrix(NaiveAverageLogisticRegression(0.05, **SETTINGS).fit_partitions(TOY).coef_)
    job = GradientJob(COMMON, [mean], np.zeros((1, 1)))
    slopes = [gradient(part, job).coefs[0].toarray().ravel() for part in PARTS]
    close(slopes[0], (-0.056528901, -0.045592109), 8)
    close(np.mean(slopes, axis=0), (-0.050283833, -0.049773361), 8)
    found = CSLLogisticRegression(0.05, **SETTINGS).fit_partitions(TOY)
    close(found.coef_, (2.516617280, 0.734523779), 7)
    assert found.duality_gap_ < 1e-8


@pytest.mark.parametrize("seed", [0, 1])
def test_twins(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((90, 7)) * (rng.random((90, 7)) < 0.6)
    y = np.where(X[:, 0] - X[:, 1] + 0.3 * rng.standard_normal(90) > 0, 1, -1)
    parts = parts_of(X, y, 3)
    for cls, slow in [(OWALogisticRegression, twin.owa), (ACOWALogisticRegression, twin.acowa)]:
        model = cls(0.02, merge_lambda=0.1, merge_rows=1.0, **SETTINGS).fit_partitions(parts)
        close(model.coef_, slow(parts, 0.02, 0.1), 6)


def test_rows_whose_places_are_in_no_order_stay_as_they_are():
    X = csr_matrix((np.array([1.0, 2.0, 3.0, -1.0, 0.5]), np.array([2, 0, 1, 2, 0]), np.array([0, 2, 4, 5])), (3, 3))
    assert not X.has_sorted_indices
    y, before = np.array([1.0, -1.0, 1.0]), X.toarray()
    penalties = np.array([0.01, 0.02, 0.03])
    found = solve(Problem(X, y), penalties, fit_intercept=False)
    np.testing.assert_array_equal(X.toarray(), before)
    np.testing.assert_allclose(found.coef, twin.local(before, y, penalties, np.ones(3), 3), atol=1e-5)
