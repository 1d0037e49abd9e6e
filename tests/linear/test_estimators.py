"""The estimators as scikit-learn's: its own checks, its tools, and what goes wrong."""

import numpy as np
import pytest
import sklearn
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowland.linear import (
    ACOWALogisticRegression,
    CSLLogisticRegression,
    NaiveAverageLogisticRegression,
    OWALogisticRegression,
    ProxCSLLogisticRegression,
)
from lowland.linear.local import solve
from lowland.linear.objective import Problem
from lowland.linear.rows import row_keys, sample, split
from tests.linear.toy import ALL, TOY, drawn, parts_of


# Rows of these checks make tilted problems without a minimum, which is said: see test_csl_says_what_has_no_minimum.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([cls() for cls in ALL])
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("cls", ALL)
def test_one_machine_without_a_merge_is_scikit_learns_solution(cls):
    X, y = drawn()
    reference = LogisticRegression(
        l1_ratio=1, solver="saga", C=1 / (400 * 0.01), tol=1e-10, max_iter=20000, random_state=0
    ).fit(X, y)
    found = cls(0.01, n_partitions=1, random_state=0, **({"fraction": 1.0} if cls is ALL[1] else {})).fit(X, y)
    if cls is ProxCSLLogisticRegression:
        # A step is held to where it begins; one that is not is the solution, for one machine.
        settings = {"n_partitions": 1, "random_state": 0, "updates": 1}
        free, held = (cls(0.01, alpha=alpha, **settings).fit(X, y) for alpha in (0.0, 1e6))
        np.testing.assert_allclose(free.coef_, reference.coef_, atol=2e-4)
        np.testing.assert_allclose(held.coef_, found_by(OWALogisticRegression, X, y).coef_, atol=2e-4)
    elif cls in (OWALogisticRegression, ACOWALogisticRegression):
        # The merge scales the one model there is.
        assert set(found.support_) <= set(np.flatnonzero(reference.coef_)) or cls is ACOWALogisticRegression
        assert found.score(X, y) > reference.score(X, y) - 0.03
    else:
        np.testing.assert_allclose(found.coef_, reference.coef_, atol=2e-4)
        np.testing.assert_allclose(found.intercept_, reference.intercept_, atol=2e-4)


def found_by(cls, X, y):
    return cls(0.01, n_partitions=1, random_state=0).fit(X, y)


@pytest.mark.parametrize("cls", ALL)
def test_what_a_fit_says_of_itself(cls):
    X, y = drawn(classes=3)
    model = cls(0.02, n_partitions=3, random_state=0).fit(X, y)
    assert model.coef_.shape == (3, 60) and model.intercept_.shape == (3,)
    np.testing.assert_array_equal(model.support_, np.flatnonzero((model.coef_ != 0).any(axis=0)))
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    tilted = cls in (CSLLogisticRegression, ProxCSLLogisticRegression)
    assert model.duality_gap_ <= 1e-8 * np.log(2) * 2 or tilted
    assert model.n_rounds_ == {ACOWALogisticRegression: 2, CSLLogisticRegression: 2, ProxCSLLogisticRegression: 3}.get(
        cls, 1
    )
    assert model.score(X, y) > 0.6
    for way in ("up", "down"):
        assert model.bytes_wire_[way] >= model.bytes_sent_[way] >= 0


@pytest.mark.parametrize("cls", ALL)
def test_a_path_gives_what_single_fits_give(cls):
    X, y = drawn(rows=1200)
    lambdas = [0.05, 0.002, 0.01]
    path = cls(lambdas, n_partitions=3, random_state=0, tol=1e-10).fit(X, y)
    for lambda_ in lambdas:
        alone = cls(lambda_, n_partitions=3, random_state=0, tol=1e-10).fit(X, y)
        np.testing.assert_allclose(path.at(lambda_).coef_, alone.coef_, atol=1e-6)
        np.testing.assert_allclose(path.at(lambda_).predict_proba(X), alone.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(path.coef_, path.at(0.01).coef_)
    with pytest.raises(ValueError, match="lambda_ must be one of the path"):
        path.at(0.03)


def test_pipelines_searches_clones_and_routing():
    X, y = drawn()
    pipeline = make_pipeline(MaxAbsScaler(), ACOWALogisticRegression(n_partitions=2, random_state=0))
    search = GridSearchCV(pipeline, {"acowalogisticregression__lambda_": [0.3, 0.01]}, cv=2).fit(X, y)
    assert search.best_params_ == {"acowalogisticregression__lambda_": 0.01}
    assert clone(search.best_estimator_).get_params()["acowalogisticregression__n_partitions"] == 2
    weights = np.linspace(0.1, 2, len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        model = OWALogisticRegression(0.01, n_partitions=2, random_state=0).set_fit_request(sample_weight=True)
        routed = make_pipeline(MaxAbsScaler(), model).fit(X, y, sample_weight=weights)[-1]
    direct = OWALogisticRegression(0.01, n_partitions=2, random_state=0)
    direct.fit(MaxAbsScaler().fit_transform(X), y, sample_weight=weights)
    np.testing.assert_array_equal(routed.coef_, direct.coef_)


def test_balanced_classes_weigh_the_rare_one_more():
    X, y = drawn(rows=600)
    rare = np.flatnonzero(y == 1)[30:]
    X, y = csr_matrix(np.delete(X.toarray(), rare, axis=0)), np.delete(y, rare)
    found = [
        (
            OWALogisticRegression(0.02, n_partitions=2, merge_rows=1.0, class_weight=w, random_state=0)
            .fit(X, y)
            .predict(X)
            == 1
        ).mean()
        for w in (None, "balanced", {0: 1.0, 1: 50.0})
    ]
    assert found[0] < found[1] < found[2]


def test_intercepts_are_not_penalised():
    # Two constant columns would share what an intercept takes for nothing.
    X = csr_matrix(np.ones((10, 1)))
    y = np.array([1] * 8 + [0] * 2)
    model = NaiveAverageLogisticRegression(0.1, n_partitions=1).fit(X, y)
    assert model.coef_[0, 0] == 0
    assert model.intercept_[0] == pytest.approx(np.log(4), abs=1e-12)


def test_machines_without_a_class():
    X, y = drawn(classes=3)
    order = np.argsort(y, kind="stable")  # machines hold one class or two
    parts = [(X[rows], y[rows]) for rows in np.array_split(order, 4)]
    for cls in ALL:
        with pytest.warns(ConvergenceWarning) if cls is CSLLogisticRegression else _nothing():
            model = cls(0.02, random_state=0).fit_partitions(parts)
        assert np.isfinite(model.coef_).all() and np.isfinite(model.intercept_).all()
        np.testing.assert_array_equal(model.classes_, [0, 1, 2])
    # Only what machines tell each other knows the classes that are elsewhere.
    scores = {cls: cls(0.02, random_state=0).fit_partitions(parts).score(X, y) for cls in (ALL[2], ALL[3])}
    assert scores[ACOWALogisticRegression] > scores[OWALogisticRegression]


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_csl_says_what_has_no_minimum():
    first = csr_matrix([[1.0], [1.0]]), np.array([0, 1])
    second = csr_matrix([[100.0], [-100.0]]), np.array([1, 0])
    parts = [(csr_matrix(np.zeros((2, 1))), np.array([0, 1])), second]
    with pytest.warns(ConvergenceWarning, match="did not reach a duality gap"):
        CSLLogisticRegression(1e-3, fit_intercept=False).fit_partitions(parts)
    CSLLogisticRegression(1e-3, fit_intercept=False).fit_partitions([first, first])


def test_a_fit_that_does_not_converge_says_so():
    X, y = drawn()
    with pytest.warns(ConvergenceWarning, match=r"\d of 2 local fits did not reach a duality gap of 1e-15"):
        NaiveAverageLogisticRegression(1e-4, n_partitions=2, tol=1e-15, max_iter=1, random_state=0).fit(X, y)


@pytest.mark.parametrize("with_intercept", [False, True])
def test_the_gap_is_a_bound(with_intercept):
    X, y = drawn(rows=80)
    problem = Problem(X, np.where(y == 1, 1.0, -1.0), np.linspace(0.5, 2, 80))
    penalties = np.linspace(0.01, 0.05, 60)
    best = solve(problem, penalties, fit_intercept=with_intercept, tol=1e-12)
    floor = problem.loss(best.coef, best.intercept) + penalties @ np.abs(best.coef)
    assert 0 <= best.gap < 1e-11
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1, 1.0):
        coef, intercept = best.coef + size * rng.standard_normal(60), best.intercept + size * with_intercept
        above = problem.loss(coef, intercept) + penalties @ np.abs(coef) - floor
        assert above <= problem.gap(coef, intercept, penalties, with_intercept) + 1e-12


def test_rows_go_by_what_they_hold():
    X, y = drawn(rows=300)
    weights = np.random.default_rng(0).integers(1, 4, 300).astype(float)
    order = np.random.default_rng(1).permutation(300)
    parts, again = split(X, y, weights, 4, 7), split(X[order], y[order], weights[order], 4, 7)
    sums = [part.weights.sum() for part in parts]
    assert max(sums) - min(sums) <= 6
    for one, other in zip(parts, again, strict=True):
        assert sorted(row_keys(one.X, 0)) == sorted(row_keys(other.X, 0))
    assert sum(sums) == weights.sum()
    # Half of all rows are one row: each machine and each sample gets its share of it.
    X = csr_matrix(np.vstack([np.ones((300, 60)), X.toarray()]))
    many = split(X, np.concatenate([y, y]), np.ones(600), 4, 7)
    shares = [part.weights[np.asarray(part.X.sum(axis=1)).ravel() == 60].sum() for part in many]
    np.testing.assert_allclose(shares, 75)
    places, kept = sample(row_keys(X, 0), np.ones(600), 0.2)
    assert kept[places < 300].sum() == pytest.approx(60)
    assert 40 < kept[places >= 300].sum() < 80


BAD = [
    ([], "0 partition"),
    ([(np.zeros((0, 2)), [])], r"partition 0: Found array with 0 sample\(s\)"),
    ([TOY[0], (np.array([[1.0, np.nan]]), [1])], "partition 1: Input X contains NaN"),
    ([TOY[0], (np.eye(2), [1.0, np.nan])], "partition 1: Input y contains NaN"),
    ([TOY[0], (np.eye(3), [1, 1, 1])], "partition 1: X has 3 features, but partition 0 has 2"),
    ([(X, np.ones(4)) for X, _ in TOY], "at least 2 classes in the data, but the data contains only one"),
    ([TOY[0], (*TOY[1], [1, 1, -1, 1])], "partition 1: Negative values in data passed to `sample_weight`"),
    ([TOY[0], (*TOY[1], np.zeros(4))], "partition 1: .*(all|non-zero|zero)"),
    ([TOY[0], (TOY[1][0], [1, -1])], "partition 1: Found input variables with inconsistent numbers of samples"),
    ([TOY[0], 3], r"partition 1: rows must come as \(X, y\)"),
]


@pytest.mark.parametrize(("parts", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_bad_partitions(parts, says):
    model = OWALogisticRegression(random_state=0)
    with pytest.raises(ValueError, match=says):
        model.fit_partitions(parts)
    with pytest.raises(NotFittedError):
        model.predict(np.eye(2))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lambda_": 0.0}, "lambda_ must be positive"),
        ({"lambda_": []}, "lambda_ must be positive"),
        ({"n_partitions": 0}, "n_partitions must be a whole number, 1 or more"),
        ({"folds": 1}, "folds must be a whole number, 2 or more"),
        ({"merge_rows": 0.0}, "merge_rows must lie above 0 and at most at 1"),
        ({"merge_on": "leaf"}, "merge_on must be 'sample' or 'root'"),
        ({"tol": -1.0}, "tol must lie above 0"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        OWALogisticRegression(**settings).fit(*TOY[0])


def test_weights():
    X, y = TOY[0]
    with pytest.raises(ValueError, match="Negative values"):
        OWALogisticRegression().fit(X, y, sample_weight=[1, 1, 1, -1])
    with pytest.raises(ValueError, match="at least one non-zero number|zero"):
        OWALogisticRegression().fit(X, y, sample_weight=np.zeros(4))


def test_arguments_stay_as_they_are():
    X, y = drawn(rows=60)
    X.data[0] = 0.0  # stored, not canonical in every sense
    before = X.copy()
    parts = parts_of(X, y, 2)
    copies = [part.copy() for part, _ in parts]
    ACOWALogisticRegression(0.05, n_partitions=2, random_state=0).fit(X, y)
    ACOWALogisticRegression(0.05, random_state=0).fit_partitions(parts)
    np.testing.assert_array_equal(X.data, before.data)
    for (part, _), copy in zip(parts, copies, strict=True):
        np.testing.assert_array_equal(part.data, copy.data)
