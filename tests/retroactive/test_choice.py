"""Choosing the average of a run: against every candidate, on runs whose best average is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lowland.retroactive import BLENDS, SHAPES, Candidate, choose, made


class Walk:
    """A run of SGD on a quadratic: it drifts to the minimum and rattles around it. Scores are minus the loss."""

    def __init__(self, seed: int, count: int = 40, examples: int = 0) -> None:
        r = np.random.default_rng(seed)
        drift = np.exp(-np.arange(count) / r.uniform(2, 15))[:, None] * r.normal(size=24) * r.uniform(1, 6)
        steps = [r.normal(size=24)]
        for _ in range(count - 1):  # iterates that remember each other, as those of SGD do
            steps.append(0.6 * steps[-1] + 0.8 * r.normal(size=24))
        self.iterates = drift + np.array(steps)
        self.targets = r.normal(size=(examples, 24)) * 2 if examples else np.zeros((1, 24))
        self.steps = list(range(10, 10 * count + 1, 10))
        self.asked: list[Candidate] = []

    def mean(self, candidate: Candidate) -> Any:
        return np.array(candidate.coefficients(self.steps)) @ self.iterates

    def score(self, candidate: Candidate) -> Any:
        self.asked.append(candidate)
        values = -((self.mean(candidate) - self.targets) ** 2).sum(axis=1)
        return values if len(values) > 1 else float(values[0])


def test_coefficients_of_candidates() -> None:
    steps = [10, 20, 30, 40]
    for shape in SHAPES:
        for window in range(1, 5):
            for blend in BLENDS:
                found = Candidate(shape, window, blend).coefficients(steps)
                assert len(found) == 4 and sum(found) == pytest.approx(1) and not any(found[: 4 - window])
    assert Candidate("linear", 4, 0.5).coefficients(steps) == pytest.approx([0.125, 0.125, 0.125, 0.625])
    assert Candidate("linear", 4, 1.2).coefficients(steps)[-1] == pytest.approx(0.1)  # 0.3 - 0.2
    with pytest.raises(ValueError, match="a window must hold 1 to 4 checkpoints, got 5"):
        Candidate("linear", 5).coefficients(steps)


def test_few_scores_find_nearly_what_all_of_them_would() -> None:
    regrets, asked = [], []
    for seed in range(20):
        walk, full = Walk(seed), Walk(seed)
        quick = choose(walk.steps, walk.score).winner.score
        every = choose(full.steps, full.score, exhaustive=True).winner.score
        last = float(walk.score(Candidate("checkpoint", 1)))
        regrets.append((every - quick) / (every - last))
        asked.append(len(walk.asked))
        assert len(full.asked) > 600
    assert max(asked) < 60
    # Of what the best of all candidates gains on the last checkpoint.
    assert np.mean(regrets) < 0.03 and max(regrets) < 0.15


def test_no_average_is_scored_twice() -> None:
    walk = Walk(3, count=12)
    choose(walk.steps, walk.score)
    vectors = {tuple(np.round(c.coefficients(walk.steps), 9)) for c in walk.asked}
    assert len(vectors) == len(walk.asked)


def test_with_examples_ties_are_told_and_the_expected_score_is_below_the_best() -> None:
    gaps = []
    for seed in range(10):
        walk = Walk(seed, count=16, examples=10)
        found = choose(walk.steps, walk.score)
        assert found.expected is not None and found.tried[found.best].tied
        assert found.winner.behind == 0 and all(tried.behind >= 0 for tried in found.tried)
        gaps.append(found.winner.score - found.expected)
    assert np.mean(gaps) > 0 and min(gaps) > -1e-9


def test_the_last_and_the_best_single_checkpoint_are_among_what_was_tried() -> None:
    walk = Walk(1, count=9)
    found = choose(walk.steps, walk.score, exhaustive=True)
    single = found.single()
    best = max(-(row**2).sum() for row in walk.iterates)
    assert single is not None and single.score == pytest.approx(best)


def test_a_run_that_stands_still_ships_its_last_checkpoint() -> None:
    found = choose([1, 2, 3, 4, 5], lambda c: float(c.coefficients([1, 2, 3, 4, 5])[-1]), blends=(0.5, 1.0))
    assert str(found.winner.candidate) == "the last checkpoint"
    one = choose([7], lambda c: 1.0)
    assert str(one.winner.candidate) == "the last checkpoint" and len(one.tried) == 1


def test_groups_get_blends_of_their_own_where_the_other_half_wants_them() -> None:
    r = np.random.default_rng(0)
    iterates = {"embed": np.cumsum(r.normal(size=(12, 8)), 0), "head": 5 + r.normal(size=(12, 8))}
    steps = list(range(1, 13))

    def score(candidate: Candidate) -> Any:
        # Of the embedding the last checkpoint is right, of the head the mean; 40 examples with noise of their own.
        total = np.zeros(40)
        for name, rows in iterates.items():
            at = np.array(candidate.coefficients(steps, name)) @ rows
            wanted = rows[-1] if name == "embed" else 5.0
            total -= ((at - wanted) ** 2).sum()
        return total + 0.01 * np.random.default_rng(1).normal(size=40)

    blends = (0.0, 0.5, 1.0)
    plain = choose(steps, score, windows=[12], blends=blends).winner
    grouped = choose(steps, score, windows=[12], blends=blends, groups=["emb*", "head"]).winner
    assert dict(grouped.candidate.groups) == {"emb*": 0.0, "head": 1.0} and grouped.score > plain.score + 1

    def noise(candidate: Candidate) -> Any:
        own = np.random.default_rng(abs(hash(candidate.groups)) % 1000).normal(size=40)
        return -float(candidate.window != 12) * 9 + 0.5 * own * bool(candidate.groups)

    # Where a group's gain is noise, half of the examples do not confirm what the other half found.
    assert choose(steps, noise, windows=[12], groups=["a*"]).winner.score < 0.5
    with pytest.raises(ValueError, match="overfit a"):
        choose(steps, lambda c: float(c.window), groups=["a*"])


def test_the_average_that_a_candidate_makes() -> None:
    g = torch.Generator().manual_seed(0)
    rows = [{"a.w": torch.randn(3, generator=g).bfloat16(), "n": torch.tensor([step])} for step in range(5)]
    steps = [10.0, 20.0, 30.0, 40.0, 50.0]
    candidate = Candidate("cosine", 4, 0.7, (("a.*", 0.3),))
    got = made(rows, candidate, steps)
    shares = candidate.coefficients(steps, "a.w")
    wanted = sum(share * row["a.w"].double() for share, row in zip(shares, rows, strict=True))
    assert got["a.w"].dtype == torch.float32 and torch.allclose(got["a.w"].double(), torch.as_tensor(wanted), atol=1e-6)
    assert got["n"].item() == 4
    with pytest.raises(ValueError, match="5 steps and 4 checkpoints"):
        made(rows[:4], candidate, steps)
    with pytest.raises(ValueError, match="5 steps and more checkpoints"):
        made([*rows, rows[0]], candidate, steps)


def test_bad_questions_are_refused() -> None:
    def sizes() -> Any:
        counts = iter([3, 4])
        return lambda candidate: [1.0] * next(counts)

    cases: list[tuple[Sequence[float], Any, dict[str, Any], str]] = [
        ([], lambda c: 1.0, {}, "there is no checkpoint"),
        ([1, 2], lambda c: float("nan"), {}, "is NaN"),
        ([1, 2, 3], lambda c: 1.0, {"windows": [4]}, r"windows must hold 1 to 3 checkpoints, got \[4\]"),
        ([1, 2, 3], lambda c: 1.0, {"shapes": ["steep"]}, "a decay is one of linear"),
        ([1, 2, 3], sizes(), {}, "has 4 examples, the first had 3"),
    ]
    for steps, score, more, message in cases:
        with pytest.raises(ValueError, match=message):
            choose(steps, score, **more)
