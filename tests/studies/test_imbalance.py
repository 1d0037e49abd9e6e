"""The study of imbalance: tails, equal cost, views, one cell, the grid and its command."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lowland.cli import app
from lowland.studies.grid import Cell, run_grid
from lowland.studies.imbalance import KIND, cells, from_mapping, read_config, run_cell
from lowland.studies.imbalance.cell import Judge
from lowland.studies.imbalance.config import source_of
from lowland.studies.imbalance.sets import load
from lowland.studies.imbalance.tails import counts, kept, thirds
from lowland.studies.imbalance.training import Trained, phases, train
from lowland.studies.imbalance.views import Batch, batches, loss_of, steps_of, strong


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Bright quarters of small images: which quarter is the class; 44 images of each."""
    random = np.random.default_rng(0)
    labels = np.arange(176) % 4
    images = random.integers(0, 80, (176, 6, 6), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * (label // 2) :][:3, 3 * (label % 2) :][:, :3] += 120
    np.savez(tmp_path / "quarters.npz", images=images, labels=labels)
    return {
        "data": {
            "images": ["quarters"],
            "ratios": [4],
            "counts": ["quarters=24/16/40"],
            "paths": [f"quarters={tmp_path / 'quarters.npz'}"],
        },
        "networks": {"images": ["cnn2x4"]},
        "training": {"seeds": [0], "epochs": 3, "batch_size": 8, "learning_rate": 0.1},
        "averaging": {"branches": 2, "episodes": 2, "decays": [0.5, 0.8], "decay": 0.5},
    }


def test_tails_are_those_of_the_sources() -> None:
    assert counts(400, 10, 10) == [400, 309, 239, 185, 143, 111, 86, 66, 51, 40]
    assert counts(400, 50, 10) == [400, 258, 167, 108, 70, 45, 29, 19, 12, 8]
    assert counts(400, 100, 10) == [400, 239, 143, 86, 51, 30, 18, 11, 6, 4]
    assert [sum(counts(400, ratio, 10)) for ratio in (10, 50, 100)] == [1630, 1116, 988]
    assert counts(20, 100, 10)[-1] == 1
    labels = torch.tensor([1, 0, 1, 1, 0])
    assert kept(labels, [1, 2]).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="class 0 has 2 training examples, its tail wants 3: lower data.counts"):
        kept(labels, [3, 1])
    groups = thirds([1] * 3 + [9] * 3 + [5] * 4)
    assert {name: found.tolist() for name, found in groups.items()} == {
        "many": [3, 4, 5],
        "medium": [6, 7, 8, 9],
        "few": [0, 1, 2],
    }


@pytest.mark.parametrize(("steps", "branches", "episodes"), [(10, 3, 5), (7, 2, 3), (5, 4, 9)])
def test_every_row_but_one_has_as_many_steps(steps: int, branches: int, episodes: int) -> None:
    rows = phases(steps, branches, episodes)
    made = {name: sum(phase.branches * phase.steps for phase in row) for name, row in rows.items()}
    assert made.pop("one branch") == steps and set(made.values()) == {steps * branches}
    assert -(-steps // rows["IMWA"][0].every) <= episodes, "no more episodes than asked for"


def test_a_cell_is_reproducible_and_complete(tiny: dict[str, Any]) -> None:
    study = from_mapping(tiny)
    (cell,) = cells(study)
    assert cell.name == "quarters.r4-cnn2x4-0"
    before = torch.random.get_rng_state()
    one, two = run_cell(study, cell), run_cell(study, cell)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one["methods"] == two["methods"] and set(one["methods"]) == set(KIND.methods)
    tests = {name: one["methods"][name]["test"] for name in KIND.methods}
    budget = 3 * 2 * sum(counts(24, 4, 4)) / 1e3
    # Equal steps; the batches of an epoch that ends early may hold an example more or less.
    assert all(own["passes"] == pytest.approx(budget, rel=0.02) for n, own in tests.items() if n != "one branch")
    assert tests["one branch"]["passes"] == tests["single"]["passes"] / 2 == budget / 2
    assert tests["single"]["balanced"] > 0.6, "four classes told apart"
    found = {decay["value"]: decay["validation"] for decay in one["sensitivity"]["decay"]}
    assert found[one["chosen"]["decay of the EMA"]] == max(found.values())
    assert one["chosen"]["training examples of the classes"] == [24, 15, 9, 6]


def test_branches_differ_in_the_order_of_their_batches_alone(tiny: dict[str, Any]) -> None:
    study = from_mapping({**tiny, "training": {**tiny["training"], "augmentation": "none"}})
    (cell,) = cells(study)
    examples = load(study, cell)
    count = steps_of(study, examples)
    epochs = [torch.cat([batch.x for batch in islice(batches(study, examples, seed), count)]) for seed in (0, 1)]
    assert not torch.equal(*epochs)
    rows = [sorted(map(tuple, epoch.flatten(1).tolist())) for epoch in epochs]
    assert rows[0] == rows[1], "an epoch is all images once"
    once, often = (train(study, cell, examples, phases(4, 2, 1)[name]) for name in ("MWA", "IMWA"))
    for a, b in zip(once.network.state_dict().values(), often.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), "IMWA of one episode is MWA"
    apart = train(study, cell, examples, phases(4, 2, 4)["IMWA"])
    pairs = zip(once.network.parameters(), apart.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs), "IMWA of four episodes is not"


def test_accuracies_are_counted_class_by_class(tiny: dict[str, Any]) -> None:
    study = from_mapping(tiny)
    (cell,) = cells(study)
    judge = Judge(study, cell, load(study, cell))

    class FirstClass(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(len(x), 4)

    found = judge.metrics(Trained(FirstClass()))["train"]
    assert found["balanced"] == 0.25 and found["accuracy"] == pytest.approx(24 / 54)
    assert (found["many"], found["medium"], found["few"]) == (1.0, 0.0, 0.0)


def test_guesses_count_where_they_are_sure(tiny: dict[str, Any]) -> None:
    y = torch.tensor([0])
    x = torch.zeros(5, 1)
    logits = torch.tensor([[2.0, 0.0], [9.0, 0.0], [0.0, 1.0], [0.0, 1.0], [5.0, 0.0]], requires_grad=True)
    loss = loss_of(logits, Batch(x, y), 0.95)
    cross = torch.nn.functional.cross_entropy
    # Of the two guesses the first is sure; the mean is over both.
    assert torch.allclose(loss, cross(logits[:1], y) + cross(logits[3:4], torch.tensor([0])) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1:3].abs().sum() == 0 and logits.grad[4].abs().sum() == 0 and logits.grad[3].abs().sum() > 0
    semi = from_mapping(
        {**tiny, "semi": {"images": ["quarters"], "ratios": [4], "share": 0.25, "batch_size": 4, "times": 2}}
    )
    cell = Cell("quarters.r4.semi", "cnn2x4", 0)
    assert cell in cells(semi) and source_of(cell).semi
    examples = load(semi, cell)
    assert torch.bincount(examples.train[1]).tolist() == [6, 4, 2, 2] and len(examples.unlabelled) == 54 - 14
    batch = next(batches(semi, examples, 0))
    assert len(batch.y) <= 4 and (len(batch.x) - len(batch.y)) % 2 == 0
    trained = train(semi, cell, examples, phases(3, 2, 2)["IMWA"])
    assert trained.passes > 3 * 2 * 10


def test_strong_views_change_the_image_and_keep_its_range() -> None:
    x = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    once, again = (strong(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(once, again) and once.shape == x.shape
    assert 0 <= float(once.min()) and float(once.max()) <= 1
    cut = (once == 0.5).all(1).flatten(1).sum(1)
    assert bool((cut >= 9).all()), "a square of half the side is cut out, a quarter of it in a corner"


def test_texts_keep_a_tenth_of_each_class_to_choose_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "orangecontrib" / "text" / "datasets"
    folder.mkdir(parents=True)
    for part, sizes in (("train", {"earn": 40, "trade": 6, "tea": 2}), ("test", {"earn": 6, "trade": 3, "tea": 1})):
        with (folder / f"reuters-r52-{part}.tab").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerows([["text", "class"], ["string", "discrete"], ["meta", "class"]])
            for name, size in sizes.items():
                writer.writerows([[f"news of {name} number {place} and more words", name] for place in range(size)])
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path))
    study = from_mapping(
        {
            "data": {"images": [], "texts": ["r52"], "bits": 6},
            "networks": {"texts": ["mlp4"]},
            "training": {"seeds": [0], "text_epochs": 2},
        }
    )
    (cell,) = cells(study)
    examples = load(study, cell)
    assert examples.sizes == [36, 2, 5] and torch.bincount(examples.validation[1]).tolist() == [4, 0, 1]
    assert examples.train[0].shape == (43, 64) and len(examples.test[1]) == 10
    with pytest.raises(ValueError, match="no validation example is of the classes few"):
        run_cell(study, cell)


def test_the_grid_and_its_command(tiny: dict[str, Any], tmp_path: Path) -> None:
    study = from_mapping({**tiny, "training": {**tiny["training"], "epochs": 2, "seeds": [0, 1]}})
    metrics = run_grid(study, KIND, cells(study), run_cell, tmp_path / "run", build=from_mapping)
    assert set(metrics["claims"]) == {f"{ours} - {theirs}" for ours, theirs in KIND.claims}
    config = tmp_path / "run" / "config.toml"
    assert read_config(config) == study
    done = CliRunner().invoke(
        app, ["study", "imbalance", "--config", str(config), "--out", str(tmp_path / "run"), "--resume", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["verdict"] == metrics["verdict"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "accuracy of the rare third" in page and "IMWA + EMA" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {"images": ["cifar10"]}}, "data.images has 'cifar10', which is no packaged set"),
        ({"data": {"images": ["mnist"], "counts": ["digits=1/2/3"]}}, "data.counts has no entry for 'mnist'"),
        ({"data": {"counts": ["digits=7"]}}, "data.counts must be like"),
        ({"data": {"texts": ["r8"]}}, "data.texts must be among r52, got 'r8'"),
        ({"data": {"images": []}}, "are all empty: name a set in one of them"),
        ({"data": {"ratios": [0]}}, "data.ratios must be numbers from 1 on"),
        ({"networks": {"images": ["mlp"]}}, "'mlp' is no network"),
        ({"networks": {"texts": ["cnn"]}}, "networks.texts must be like mlp64, got 'cnn'"),
        ({"averaging": {"branches": 1}}, "averaging.branches must be at least 2"),
        ({"averaging": {"decays": [1.5]}}, "averaging.decays must lie between 0 and 1"),
        ({"semi": {"share": 1.0}}, "semi.share must lie between 0 and 1"),
        ({"training": {"augmentation": "odd"}}, 'training.augmentation must be "usual" or "none"'),
    ],
)
def test_settings_out_of_range_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping(given)


def test_a_diverging_branch_is_named(tiny: dict[str, Any]) -> None:
    study = from_mapping({**tiny, "training": {**tiny["training"], "learning_rate": 1e9}})
    (cell,) = cells(study)
    with pytest.raises(RuntimeError, match=r"cell quarters\.r4-cnn2x4-0: .*(diverged|is not finite)"):
        train(study, cell, load(study, cell), phases(12, 2, 2)["MWA"])
