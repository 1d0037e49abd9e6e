"""Known answers by hand, equality with scikit-learn, bad input: calibration.py, selective.py, probabilities.py."""

import math
import sys

import numpy as np
import pytest
import torch

from lowland import calibration as c


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(n: int = 400, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(seed)
    probs = torch.softmax(1.5 * torch.randn(n, classes, generator=g, dtype=torch.float64), 1)
    return probs, torch.multinomial(probs, 1, generator=g)[:, 0]


def binary(confidences: list[float], correct: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([1 - p, p], 1), torch.tensor(correct)


# --- expected calibration error ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bins", "wanted"), [(10, 0.37), (20, 0.37), (1, 0.15)])
def test_ece_of_five_cases(bins: int, wanted: float) -> None:  # METHODS 17.12
    probs, labels = binary([0.95, 0.85, 0.75, 0.65, 0.55], [1, 1, 0, 1, 0])
    assert c.ece(probs, labels, bins=bins) == pytest.approx(wanted, abs=1e-12)


def test_confidence_one_lands_in_the_last_bin() -> None:
    """Lightning-AI/torchmetrics#3510: version 1.9.0 gives 0.525, because 1.0 falls into a bin of its own."""
    probs, labels = binary([0.95, 1.0], [1, 0])
    assert c.ece(probs, labels, bins=10) == pytest.approx(0.475, abs=1e-12)
    assert c.reliability(probs, labels, bins=10).count.tolist() == [0] * 9 + [2]


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("bins", [1, 2, 7, 15, 1000])
def test_every_example_is_in_one_bin(binning: str, bins: int) -> None:
    probs, labels = problem()
    r = c.reliability(probs, labels, bins=bins, binning=binning)  # type: ignore[arg-type]
    assert r.edges.shape == (bins + 1,) and r.count.shape == (bins,)
    assert int(r.count.sum()) == len(labels)
    weighted = torch.nan_to_num(r.accuracy) * r.count
    assert float(weighted.sum() / len(labels)) == pytest.approx(c.accuracy(probs, labels), abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    for bins in (3, 7, 10, 15, 20, 49):
        for k in range(bins // 2 + 1, bins + 1):
            probs, labels = binary([k / bins], [1])
            assert int(c.reliability(probs, labels, bins=bins).count.argmax()) == k - 1, (k, bins)


def test_rounding_above_one_stays_in_the_last_bin() -> None:
    assert c.reliability([[0.0, 1.0 + 1e-7]], [1], bins=10).count.tolist() == [0] * 9 + [1]


def test_equal_mass_by_hand_with_and_without_ties() -> None:
    # Sorted confidences .6 .7 .8 .9: halves {.6, .7} (mean .65, accuracy 1/2) and {.8, .9} (mean .85, accuracy 1).
    probs, labels = binary([0.6, 0.7, 0.8, 0.9], [0, 1, 1, 1])
    assert c.ece(probs, labels, bins=2, binning="mass") == pytest.approx((0.15 + 0.15) / 2, abs=1e-12)
    # Ties are never torn apart, and the order of the examples does not matter.
    probs, labels = binary([0.6, 0.8, 0.8, 0.8], [0, 1, 0, 1])
    r = c.reliability(probs, labels, bins=4, binning="mass")
    assert r.count.tolist() == [1, 3, 0, 0]
    turned = c.ece(probs.flip(0), labels.flip(0), bins=4, binning="mass")
    assert turned == pytest.approx(c.ece(probs, labels, bins=4, binning="mass"), abs=1e-12)


def test_equal_mass_bins_are_equal_when_there_are_no_ties() -> None:
    probs, labels = problem(403)
    count = c.reliability(probs, labels, bins=20, binning="mass").count
    assert int(count.max() - count.min()) <= 1


# --- the other scalars ---------------------------------------------------------------------------------------------


def test_brier_nll_accuracy_by_hand() -> None:
    probs, labels = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], [0, 1]
    assert c.accuracy(probs, labels) == 0.5
    # (.3² + .2² + .1²) and (.1² + .7² + .6²)
    assert c.brier(probs, labels) == pytest.approx((0.14 + 0.86) / 2, abs=1e-12)
    assert c.nll(probs, labels) == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, abs=1e-12)


def test_brier_of_a_certain_error_is_two_and_its_nll_is_the_floor() -> None:
    assert c.brier([[0.0, 1.0]], [0]) == 2.0
    assert c.nll([[0.0, 1.0]], [0]) == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_equal_to_sklearn(classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probs, labels = problem(200, classes, seed=classes)
    labels[labels == 1] = 0  # a class that is predicted but never occurs
    y, predicted = labels.numpy(), probs.argmax(1).numpy()
    p, r, f, _ = metrics.precision_recall_fscore_support(y, predicted, average="macro", zero_division=0)
    assert c.macro_precision_recall_f1(probs, labels) == pytest.approx((p, r, f), abs=1e-12)
    assert c.mcc(probs, labels) == pytest.approx(metrics.matthews_corrcoef(y, predicted), abs=1e-12)
    assert c.accuracy(probs, labels) == pytest.approx(metrics.accuracy_score(y, predicted))
    assert c.nll(probs, labels) == pytest.approx(metrics.log_loss(y, probs.numpy(), labels=range(classes)), abs=1e-9)


def test_a_class_that_neither_occurs_nor_is_predicted_is_left_out_of_macro_averages() -> None:
    two = c.macro_precision_recall_f1([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1])
    three = c.macro_precision_recall_f1([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.4, 0.6, 0.0]], [0, 1, 1])
    assert two == three == pytest.approx((0.75, 0.75, 2 / 3))


def test_mcc_is_zero_where_it_is_undefined() -> None:
    assert c.mcc([[0.9, 0.1], [0.8, 0.2]], [0, 1]) == 0.0  # one class predicted
    assert c.mcc([[0.9, 0.1], [0.2, 0.8]], [0, 0]) == 0.0  # one class labelled


def test_summary_is_the_single_functions() -> None:
    probs, labels = problem()
    s = c.summary(probs, labels, bins=20)
    p, r, f = c.macro_precision_recall_f1(probs, labels)
    wanted = {"accuracy": c.accuracy(probs, labels), "precision": p, "recall": r, "f1": f, "nll": c.nll(probs, labels)}
    wanted |= {"ece": c.ece(probs, labels, bins=20), "brier": c.brier(probs, labels), "mcc": c.mcc(probs, labels)}
    assert s == pytest.approx(wanted, abs=1e-12) and list(s) == list(wanted)


def test_arrays_lists_and_tensors_of_any_precision_agree() -> None:
    probs, labels = problem(50)
    wanted = c.summary(probs, labels)
    assert c.summary(probs.numpy()[::-1], labels.numpy()[::-1]) == pytest.approx(wanted)
    assert c.summary(probs.tolist(), labels.tolist()) == pytest.approx(wanted)
    assert c.summary(probs.float().requires_grad_(), labels.int()) == pytest.approx(wanted, abs=1e-5)
    assert c.summary(probs.bfloat16(), labels)["brier"] == pytest.approx(wanted["brier"], abs=1e-2)


def test_many_classes_need_no_square_of_them() -> None:
    probs = torch.full((4, 50_000), 1 / 50_000)
    assert c.summary(probs, [0, 1, 2, 3])["accuracy"] == 0.25


# --- bootstrap -----------------------------------------------------------------------------------------------------


def test_intervals_equal_bootstrap_of_each_metric() -> None:
    probs, labels = problem(60)
    all_at_once = c.intervals(probs, labels, bins=10, resamples=50, generator=generator(3))
    singles = {
        "accuracy": c.accuracy,
        "f1": lambda p, y: c.macro_precision_recall_f1(p, y).f1,
        "nll": c.nll,
        "ece": lambda p, y: c.ece(p, y, bins=10),
        "brier": c.brier,
        "mcc": c.mcc,
    }
    for name, metric in singles.items():
        one = c.bootstrap(metric, probs, labels, resamples=50, generator=generator(3))
        if name == "ece":  # moved down by the bias that the resamples show, and never below zero
            assert all_at_once[name].value == pytest.approx(one.value) and all_at_once[name].low >= 0
            assert all_at_once[name].high < one.high
            continue
        assert all_at_once[name] == pytest.approx(one, abs=1e-12), name


def test_the_interval_of_ece_holds_its_truth() -> None:
    # Calibrated by construction: what ece there is, is noise, and plain percentiles lie far above the value found.
    g = torch.Generator().manual_seed(5)
    confidence = 0.5 + 0.5 * torch.rand(400, generator=g, dtype=torch.float64)
    labels = (torch.rand(400, generator=g, dtype=torch.float64) > confidence).long()
    probs = torch.stack([confidence, 1 - confidence], 1)
    plain = c.bootstrap(lambda p, y: c.ece(p, y, bins=20), probs, labels, resamples=200, generator=generator(1))
    moved = c.intervals(probs, labels, resamples=200, generator=generator(1))["ece"]
    assert plain.high - plain.value > 3 * (plain.value - plain.low)  # the fault of plain percentiles
    assert moved.low < moved.value < moved.high
    assert (moved.low + moved.high) / 2 == pytest.approx(moved.value, rel=0.25)


def test_several_models_are_judged_by_the_mean_of_their_metrics() -> None:
    probs, labels = problem(60)
    both = torch.stack([probs, probs.flip(0)])
    found = c.intervals(both, labels, resamples=30, generator=generator(2))
    each = [c.intervals(p, labels, resamples=30, generator=generator(2)) for p in both]
    for name in found:
        assert found[name].value == pytest.approx(np.mean([one[name].value for one in each]), abs=1e-12)
    gaps = c.differences(both, both, labels, resamples=30, generator=generator(2))
    assert all(interval == (0.0, 0.0, 0.0) for interval in gaps.values())
    # Chunks of resamples change nothing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["lowland.calibration.bootstrap"], "_AT_ONCE", 7 * 60)
        assert c.intervals(both, labels, resamples=30, generator=generator(2)) == found
    with pytest.raises(ValueError, match="probs hold no model"):
        c.intervals(torch.zeros(0, 60, 3), labels)


def test_differences_are_paired() -> None:
    probs, labels = problem(80)
    others = c.temper(probs, 1.7)
    got = c.differences(probs, others, labels, resamples=40, generator=generator(4))
    stacked = torch.cat([probs, others], 1) / 2  # both in one array, so that one resample takes both
    for name, metric in {"nll": c.nll, "ece": lambda p, y: c.ece(p, y, bins=20), "brier": c.brier}.items():
        wanted = c.bootstrap(
            lambda p, y, metric=metric: metric(2 * p[:, :3], y) - metric(2 * p[:, 3:], y),
            stacked,
            labels,
            resamples=40,
            generator=generator(4),
        )
        if name == "ece":
            assert got[name].value == pytest.approx(wanted.value, abs=1e-12)
            assert got[name].high - got[name].low == pytest.approx(wanted.high - wanted.low, abs=1e-12)
            continue
        assert got[name] == pytest.approx(wanted, abs=1e-12), name
    assert got["accuracy"] == (0.0, 0.0, 0.0)  # a temperature changes no decision
    with pytest.raises(ValueError, match="same classes, got 3 and 2"):
        c.differences(probs, [[0.5, 0.5]] * 80, labels.clamp_max(1))


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    # 200 test sets of 100 with true accuracy .7: coverage of the 90 % interval is binomial, sd .021; percentile
    # intervals are slightly narrow at this n, hence four sd below and three above.
    probs = torch.tensor([[0.8, 0.2]], dtype=torch.float64).expand(100, 2)
    g, inside = generator(1), 0
    for _ in range(200):
        labels = (torch.rand(100, generator=g) > 0.7).long()
        _, low, high = c.intervals(probs, labels, resamples=40, level=0.9, generator=g)["accuracy"]
        inside += low <= 0.7 <= high
    assert 0.9 - 4 * 0.021 < inside / 200 < 0.9 + 3 * 0.021


def test_bootstrap_draws_from_its_generator_only() -> None:
    probs, labels = problem(50)
    before = torch.get_rng_state()
    first = c.bootstrap(c.brier, probs, labels, resamples=20, generator=generator(7))
    assert first == c.bootstrap(c.brier, probs, labels, resamples=20, generator=generator(7))
    assert first != c.bootstrap(c.brier, probs, labels, resamples=20, generator=generator(8))
    assert torch.equal(before, torch.get_rng_state())


def test_bootstrap_of_the_study_is_fast_enough() -> None:
    import time

    probs, labels = problem(2647, 2)
    start = time.perf_counter()
    c.intervals(probs, labels, resamples=1000, generator=generator())
    assert time.perf_counter() - start < 3  # 0.2 s on an idle core


# --- temperature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_temperature_recovers_a_known_one(true: float) -> None:
    # Labels weighted by their own probability: each example is repeated once per class in proportion to the true
    # probabilities (multiples of 1/10), so the minimum is at the true temperature exactly, with no sampling error.
    q = torch.tensor([[0.1, 0.9], [0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    rows = [(q[i], k) for i in range(3) for k in range(2) for _ in range(round(10 * float(q[i, k])))]
    labels = torch.tensor([k for _, k in rows])
    said = torch.softmax(torch.stack([r for r, _ in rows]).log() * true, 1)  # over- or underconfident by `true`
    assert c.fit_temperature(said, labels) == pytest.approx(true, rel=1e-12)


def test_temperature_agrees_with_lbfgs_and_with_a_grid() -> None:
    probs, labels = problem(300, 4, seed=2)
    probs = c.temper(probs, 0.4)
    fitted = c.fit_temperature(probs, labels)

    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [log_t], max_iter=100, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    z = probs.log()

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(z / log_t.exp(), labels)
        value.backward()
        return value

    optimiser.step(loss)
    assert fitted == pytest.approx(float(log_t.detach().exp()), rel=1e-6)
    best = c.nll(c.temper(probs, fitted), labels)
    for t in np.linspace(0.8, 1.25, 40) * fitted:
        assert best <= c.nll(c.temper(probs, float(t)), labels) + 1e-15


def test_temperature_keeps_its_bounds_and_zeros() -> None:
    assert c.fit_temperature([[0.9, 0.1], [0.2, 0.8]], [0, 1]) == 0.01  # all right: the sharper the better
    assert c.fit_temperature([[0.9, 0.1], [0.2, 0.8]], [1, 0]) == 100.0  # all wrong
    third = torch.full((4, 3), 1 / 3)
    for uniform in ([[0.5, 0.5], [0.5, 0.5]], third, third.double(), torch.softmax(torch.full((4, 5), 7.0), 1)):
        assert c.fit_temperature(uniform, [0] * len(uniform)) == 1.0  # nothing to scale
    assert c.fit_temperature([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], [1, 0, 0, 1]) == pytest.approx(3.169925)
    t = c.fit_temperature([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [0, 0, 1])  # log 1e12 / log 2
    assert t == pytest.approx(math.log(1e12) / math.log(2), rel=1e-9)


def test_temper_keeps_order_and_sums() -> None:
    probs, _ = problem(20)
    assert torch.allclose(c.temper(probs, 1.0), probs, atol=1e-12)
    for t in (0.1, 3.0):
        tempered = c.temper(probs, t)
        assert torch.equal(tempered.argsort(1), probs.argsort(1))
        assert torch.allclose(tempered.sum(1), torch.ones(20, dtype=torch.float64))


# --- selective risk ------------------------------------------------------------------------------------------------


def test_selective_risk_groups_ties_and_ends_at_the_error_rate() -> None:
    probs, labels = binary([0.9, 0.9, 0.6, 0.8], [1, 0, 0, 1])
    coverage, risk = c.selective_risk(probs, labels)
    assert coverage.tolist() == [0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0.5, 1 / 3, 0.5])
    assert float(risk[-1]) == pytest.approx(1 - c.accuracy(probs, labels))
    by_score = c.selective_risk(probs, labels, score=[0.0, -1.0, -2.0, 1.0])
    assert by_score.risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert by_score.area == pytest.approx((0 + 0 + 1 / 3 + 0.5) / 4)


@pytest.mark.parametrize("risk", [0.0, 0.05, 0.2, 0.4])
@pytest.mark.parametrize("level", [None, 0.9])
def test_risk_threshold_keeps_the_risk(risk: float, level: float | None) -> None:
    probs, labels = problem(500)
    threshold = c.risk_threshold(probs, labels, risk, level=level)
    chosen = probs.amax(1) >= threshold
    if threshold < math.inf:
        assert float((probs.argmax(1) != labels)[chosen].double().mean()) <= risk
    if level is None:  # no threshold answers more within the risk
        for other in probs.amax(1)[~chosen]:
            more = probs.amax(1) >= other
            assert float((probs.argmax(1) != labels)[more].double().mean()) > risk


def test_risk_threshold_with_a_level_holds_on_new_cases() -> None:
    # The true risk at a threshold is the mean of 1 - confidence above it, as the labels are drawn from the probs.
    reference = problem(20_000, seed=99)[0].amax(1)
    broken = 0
    for seed in range(60):
        threshold = c.risk_threshold(*problem(300, seed=seed), 0.25, level=0.9)
        answered = reference[reference >= threshold]
        broken += len(answered) > 0 and float((1 - answered).mean()) > 0.25
    assert broken <= 6 + 3 * math.sqrt(60 * 0.1 * 0.9)


@pytest.mark.parametrize(("wrong", "cases", "enough"), [(0, 21, False), (0, 22, True), (1, 37, False), (1, 38, True)])
def test_risk_threshold_counts_as_clopper_and_pearson(wrong: int, cases: int, enough: bool) -> None:
    # One score for all, so one test: P(X <= wrong) for X ~ Binomial(cases, .1) must be at most .1.
    # wrong = 0: .9^21 = .109, .9^22 = .098; wrong = 1: .9^n + n .1 .9^(n - 1) = .1036 at 37, .0953 at 38.
    probs, labels = binary([0.75] * cases, [0] * wrong + [1] * (cases - wrong))
    assert c.risk_threshold(probs, labels, 0.1, level=0.9) == (0.75 if enough else math.inf)


# --- out of distribution -------------------------------------------------------------------------------------------


def test_ood_scores_by_hand() -> None:  # METHODS 17.11
    members = torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.5, 0.5], [0.2, 0.8]]], dtype=torch.float64)
    scores = c.ood_scores(members.mean(0), members)
    assert scores["entropy"][0].item() == pytest.approx(0.610864, abs=1e-6)
    assert scores["mutual_information"][0].item() == pytest.approx(0.101749, abs=1e-6)
    assert scores["max_probability"].tolist() == pytest.approx([0.3, 0.45])
    assert scores["disagreement"].tolist() == [0.0, 0.5]


def test_auroc_and_aupr_equal_sklearn_with_ties() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    g = generator()
    for levels in (2, 5, 1000):
        scores = torch.randint(levels, (200,), generator=g).double()
        positive = torch.rand(200, generator=g) < 0.3
        assert c.auroc(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
        assert c.aupr(scores, positive) == pytest.approx(metrics.average_precision_score(positive, scores), abs=1e-12)


def test_auroc_of_nothing_but_ties_is_one_half() -> None:
    assert c.auroc([1.0, 1.0, 1.0], [True, False, False]) == 0.5
    assert c.aupr([1.0, 1.0, 1.0], [True, False, False]) == pytest.approx(1 / 3)
    assert c.auroc([math.inf, 0.0], [1, 0]) == 1.0


# --- bad input -----------------------------------------------------------------------------------------------------

GOOD = [[0.3, 0.7], [0.6, 0.4]]


@pytest.mark.parametrize(
    ("probs", "labels", "says"),
    [
        ([[0.3, 0.3], [0.5, 0.5]], [0, 1], r"sum to 1 over classes, got 0.6 in row 0: apply softmax"),
        ([[1.2, -0.2], [0.5, 0.5]], [0, 1], r"not be negative, got -0.2 in row 0"),
        ([[0.5, 0.5], [math.nan, 0.5]], [0, 1], r"must be finite, got \[nan, 0.5\] in row 1"),
        ([[1, 0], [0, 1]], [0, 1], r"must be floating point probabilities, got dtype torch.int64"),
        ([0.3, 0.7], [0, 1], r"shape \(N, C\) with C >= 2, got \(2,\); for a binary"),
        ([[1.0], [1.0]], [0, 0], r"with C >= 2, got \(2, 1\)"),
        (np.zeros((0, 2)), np.zeros(0, int), r"probs are empty, got shape \(0, 2\)"),
        ("abc", [0, 1], r"probs must be .* of numbers"),
        ([[0.5, 0.5], [1.0]], [0, 1], r"probs must be a tensor or an array of numbers, got list"),
        (GOOD, [0, 2], r"labels must lie in 0\.\.1 \(probs have 2 classes\), got 2"),
        (GOOD, [0, -1], r"labels must lie in 0\.\.1 .* got -1"),
        (GOOD, [0.0, 1.0], r"labels must be whole numbers .* got dtype torch.float64"),
        (GOOD, [0], r"labels must have shape \(2,\).*got \(1,\)"),
        (GOOD, [[0, 1], [1, 0]], r"got \(2, 2\): give class indices, not one-hot rows"),
    ],
)
def test_bad_probs_and_labels_give_one_clear_line(probs: object, labels: object, says: str) -> None:
    functions = (c.accuracy, c.macro_precision_recall_f1, c.nll, c.brier, c.mcc, c.ece, c.summary, c.reliability)
    for function in (*functions, c.fit_temperature, c.selective_risk, c.intervals):
        with pytest.raises(ValueError, match=says) as error:
            function(probs, labels)  # type: ignore[operator]
        assert "\n" not in str(error.value)


def test_bad_settings_give_one_clear_line() -> None:
    y = [0, 1]
    with pytest.raises(ValueError, match="bins must be a whole number of at least 1, got 0"):
        c.ece(GOOD, y, bins=0)
    with pytest.raises(ValueError, match='binning must be "width" or "mass", got \'size\''):
        c.ece(GOOD, y, binning="size")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        c.bootstrap(c.nll, GOOD, y, resamples=0)
    for function in (lambda **k: c.bootstrap(c.nll, GOOD, y, **k), lambda **k: c.risk_threshold(GOOD, y, 0.1, **k)):
        with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, got 95"):
            function(level=95)
    with pytest.raises(ValueError, match=r"risk must lie in \[0, 1\), got 1.5"):
        c.risk_threshold(GOOD, y, 1.5)
    for t in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be positive and finite, got"):
            c.temper(GOOD, t)
    with pytest.raises(ValueError, match=r"scores must be real numbers of shape \(2,\), got .* \(1,\)"):
        c.selective_risk(GOOD, y, score=[0.1])
    with pytest.raises(ValueError, match="scores must not be NaN"):
        c.auroc([0.1, math.nan], y)
    with pytest.raises(ValueError, match="both kinds must be present, got 2 positive of 2"):
        c.auroc([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="booleans or 0 and 1"):
        c.aupr([0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match=r"members must have shape \(M, 2, 2\) to fit probs, got \(1, 1, 2\)"):
        c.ood_scores(GOOD, [[[0.5, 0.5]]])
