"""The answers that the peers are judged by, checked on their own."""

import numpy as np
import pytest
from known import DRAWS, TOLERANCE, judge, paper, standard_errors, two_weights

FOUR = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 5.0], [6.0, 0.0]])


def test_paper_equals_the_worked_example():
    # Reference check 9: v = (3.5, 3.5), deviations (1, -1/2), (0, 7/3), (3, -2).
    mean, covariance = paper(FOUR, rank=3)
    np.testing.assert_allclose(mean, [3.0, 2.0])
    np.testing.assert_allclose(covariance, [[4.25, -1.625], [-1.625, 4.173611]], atol=1e-6)


def test_the_first_deviation_is_zero_but_counts():
    # Four rows held, one of them zero: D D^T / 3 instead of / 2.
    mean, covariance = paper(FOUR, rank=4)
    np.testing.assert_allclose(covariance[0, 1], 0.5 * (-6.5) / 3)


def test_the_two_weights_move_together():
    mean, covariance = two_weights()
    np.testing.assert_allclose(mean, [2.72729, 2.72729], atol=1e-5)
    np.testing.assert_allclose(covariance, [[1.025, 0.452], [0.452, 1.025]], atol=5e-4)
    assert two_weights(block=True)[1][0, 1] == 0


def test_standard_errors_are_the_spread_of_repeated_experiments():
    mean, covariance = two_weights()
    n, repeats = 200, 2_000
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, size=(repeats, n))
    centred = draws - draws.mean(1, keepdims=True)
    found = np.einsum("rni,rnj->rij", centred, centred) / (n - 1)
    mean_error, error = standard_errors(covariance, n)
    # The standard deviation of 2000 values is known to 1/sqrt(4000) = 1.6 %; four of those.
    np.testing.assert_allclose(draws.mean(1).std(0), mean_error, rtol=0.065)
    np.testing.assert_allclose(found.std(0), error, rtol=0.065)


def test_draws_from_the_answer_are_judged_right():
    mean, covariance = two_weights()
    draws = np.random.default_rng(1).multivariate_normal(mean, covariance, size=DRAWS)
    verdict = judge(draws.mean(0), np.cov(draws.T), DRAWS)
    assert verdict.right and 0 < verdict.worst < TOLERANCE


@pytest.mark.parametrize(
    ("mean", "covariance", "fault"),
    [
        ((3.23, 3.23), ((1.025, 0.452), (0.452, 1.025)), "mean off by +0.503"),
        ((2.727, 2.727), ((0.781, 0.452), (0.452, 1.025)), "variance 0.76 times"),
        ((2.727, 2.727), ((1.025, 0.911), (0.911, 1.025)), "covariance 2.02 times"),
        ((2.727, 2.727), ((1.025, -0.004), (-0.004, 1.025)), "no covariance between tensors"),
    ],
)
def test_each_fault_is_named_alone(mean, covariance, fault):
    verdict = judge(np.array(mean), np.array(covariance), DRAWS)
    assert not verdict.right and len(verdict.faults) == 1 and fault in verdict.faults[0]


def test_block_sampling_is_not_blamed_for_what_it_leaves_out():
    assert judge(np.array([2.727, 2.727]), np.diag([1.025, 1.025]), DRAWS, block=True).right
