"""What a study ships: the best on validation examples, the cheapest of those tied with it, or the base model."""

import numpy as np
import pytest
import torch

from lowland.studies.adapters.settling import optimism
from lowland.studies.adapters.shipping import Row, Shipped, passes_of, sentence, ship

METHODS = (
    "base",
    "temperature-scaled base",
    "early-stopped base",
    "SWA",
    "SWAG",
    "deep ensemble",
    "MultiSWA",
    "MultiSWAG",
)
COMBINED = ("deep ensemble", "MultiSWA", "MultiSWAG")
PASSES = passes_of(2, 4)


def answers(labels: torch.Tensor, right: float, spread: float, seed: int) -> torch.Tensor:
    """Probabilities (N, 3) of a model that is right in a share `right`, and about as sure: no temperature helps it."""
    n = len(labels)
    luck = torch.randperm(n, generator=torch.Generator().manual_seed(0)) / n  # the same examples are hard for all
    guessed = torch.where(luck < right, labels, (labels + 1) % 3)
    noise = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    own = (right + spread * (noise - 0.5)).clamp(0.02, 0.98)
    probs = ((1 - own) / 2)[:, None].repeat(1, 3)
    probs[torch.arange(n), guessed] = own
    return probs


def study(
    better: dict[str, float], n: int = 200, usual: float = 0.6
) -> tuple[dict[str, list[torch.Tensor]], list[int]]:
    """Validation probabilities of every method for two members; `better` says which are how good."""
    labels = torch.arange(n) % 3
    found = {}
    for place, method in enumerate(METHODS):
        if method == "temperature-scaled base":
            continue
        count = 1 if method in COMBINED else 2
        right = better.get(method, usual)
        found[method] = [answers(labels, right, 0.1, 10 * place + one) for one in range(count)]
    found["temperature-scaled base"] = found["base"]
    return found, labels.tolist()


@pytest.mark.parametrize("winner", [m for m in METHODS if m != "temperature-scaled base"])
def test_whichever_method_is_best_is_shipped(winner: str) -> None:
    validation, labels = study({winner: 0.8})
    found = ship(validation, labels, PASSES)
    assert found.method == winner and found.passes == PASSES[winner]
    assert sentence(found).startswith(f"Ship {winner}: ")
    assert found.win == 0 if winner == "base" else found.certain and found.win > 0.1
    own = next(row for row in found.rows if row.method == winner)
    assert found.expected == pytest.approx(own.nll, abs=0.02)


def test_a_temperature_wins_where_the_base_is_too_sure() -> None:
    labels = torch.arange(300) % 3
    guessed = labels.clone()
    guessed[::4] = (labels[::4] + 1) % 3  # a quarter is wrong, and as sure as the rest
    sure = answers(guessed, 0.97, 0.02, 1)
    validation = {method: [sure] if method in COMBINED else [sure, sure] for method in METHODS}
    found = ship(validation, labels.tolist(), PASSES)
    assert found.method == "temperature-scaled base" and found.certain


def test_multiswag_is_not_shipped_where_validation_knows_better() -> None:
    """Base .29, deep ensemble .28, MultiSWAG .33: the averages have not learned the task."""
    validation, labels = study({"base": 0.748, "deep ensemble": 0.757, "SWA": 0.71, "SWAG": 0.71, "MultiSWA": 0.718,
                                "MultiSWAG": 0.718, "early-stopped base": 0.74}, n=300)  # fmt: skip
    found = ship(validation, labels, PASSES)
    assert found.method not in ("SWA", "SWAG", "MultiSWA", "MultiSWAG")


def behind(probs: torch.Tensor, gap: float, noise: float) -> torch.Tensor:
    """Probabilities whose NLL is higher by `gap` on average, by another amount for each example."""
    scatter = torch.randn(len(probs), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scatter = (scatter - scatter.mean()) * noise
    return probs * torch.exp(-(gap + scatter))[:, None]


def test_a_tie_goes_to_the_one_with_fewer_passes() -> None:
    validation, labels = study({"MultiSWAG": 0.8})
    (best,) = validation["MultiSWAG"]
    validation["SWA"] = [behind(best, 0.003, 0.05)] * 2
    found = ship(validation, labels, PASSES)
    assert found.method == "SWA" and found.passes == 1
    assert next(row for row in found.rows if row.method == "SWA").tied
    assert "MultiSWAG is tied (0.003 better) and takes 8 passes a text, not 1" in sentence(found)
    # No tie: behind by more than anyone should give away, however noisy; or by little, but in every text.
    for gap, noise in ((0.006, 0.5), (0.003, 0.001)):
        validation["SWA"] = [behind(best, gap, noise)] * 2
        assert ship(validation, labels, PASSES).method == "MultiSWAG"


def test_few_texts_say_that_the_choice_is_uncertain() -> None:
    validation, labels = study({"MultiSWAG": 0.62}, n=12)
    found = ship(validation, labels, PASSES)
    assert not found.certain
    assert "12 validation texts leave that uncertain" in sentence(found)
    validation, labels = study({"MultiSWAG": 0.8}, n=30)  # plain, but of few texts
    assert not ship(validation, labels, PASSES).certain
    one, label = study({"SWA": 0.8}, n=1)
    assert not ship(one, label, PASSES).certain


def test_nothing_is_won_by_the_best_of_many_equals() -> None:
    """Eight methods that are all noise: the best of them must not be believed."""
    labels = torch.arange(60) % 3
    wins = []
    for seed in range(20):
        validation = {m: [answers(labels, 0.5, 0.9, 1000 * seed + i)] * 2 for i, m in enumerate(METHODS)}
        found = ship(validation, labels.tolist(), PASSES, seed=seed)
        best = min(row.nll for row in found.rows)
        assert found.expected >= best - 1e-12
        wins.append(found.win)
        if found.win == 0:
            assert found.method == "base"
    assert np.mean([win > 0 for win in wins]) < 0.7


def test_a_search_is_charged_to_the_averages_only() -> None:
    validation, labels = study({"MultiSWA": 0.62})
    assert ship(validation, labels, PASSES).method == "MultiSWA"
    charged = ship(validation, labels, PASSES, optimism=0.2)
    assert charged.method not in ("SWA", "SWAG", "MultiSWA", "MultiSWAG")
    generator = np.random.default_rng(0)
    assert optimism([generator.normal(size=50) for _ in range(8)], 0) > 0
    assert optimism([generator.normal(size=50)], 0) == 0


def test_the_member_with_the_lowest_nll_is_the_one_to_ship() -> None:
    validation, labels = study({})
    truth = torch.tensor(labels)
    validation["SWA"] = [answers(truth, 0.7, 0.1, 1), answers(truth, 0.9, 0.1, 2)]
    assert ship(validation, labels, PASSES).members["SWA"] == 1


def test_the_sentence_names_questions() -> None:
    rows = (Row("base", 1, 0.9, 0.1, 0.02, False), Row("MC dropout", 4, 0.8, 0.0, 0.0, True))
    told = sentence(Shipped("MC dropout", 4, 160, 0.82, 0.08, 0.05, False, rows, {}), "questions")
    assert told.startswith("Ship MC dropout: on validation questions") and "160 validation questions leave" in told
