"""The study of populations: equal cost, recipes, one cell, the grid and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lowland.cli import app
from lowland.population import Population
from lowland.studies.grid import Cell, run_grid
from lowland.studies.population import KIND, PopulationStudy, cells, from_mapping, read_config, run_cell
from lowland.studies.population.cell import images_of
from lowland.studies.population.recipes import POOL, Recipe, drawn, prepared
from lowland.studies.population.training import recipes_of, rules_of, train


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Bright quarters of small images: which quarter is the class."""
    random = np.random.default_rng(0)
    labels = np.arange(160) % 4
    images = random.integers(0, 80, (160, 6, 6), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * (label // 2) :][:3, 3 * (label % 2) :][:, :3] += 120
    np.savez(tmp_path / "quarters.npz", images=images, labels=labels)
    return {
        "data": {
            "sets": ["quarters"],
            "counts": ["quarters=64/32/40"],
            "paths": [f"quarters={tmp_path / 'quarters.npz'}"],
        },
        "networks": {"names": ["cnn2x4"], "members": [3], "starts": ["one"], "pools": ["alike"]},
        "training": {"seeds": [0], "epochs": 3, "batch_size": 16, "learning_rate": 0.1},
        "rules": {"local_every": 2, "papa_every": 2},
        "evaluation": {"statistics_batches": 2, "barrier_images": 20},
    }


@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("epochs", [2, 7, 20])
def test_every_rule_has_as_many_forward_passes(members: int, epochs: int) -> None:
    study = from_mapping({"training": {"epochs": epochs}})
    for name, (rule, steps) in rules_of(study, 28, members).items():
        population = Population([nn.Linear(1, 1) for _ in range(members)], rule, optimizers=[
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(members)])  # fmt: skip
        passes = 0
        for step in range(steps):
            population._members.step = step
            passes += sum(population.trains(place) for place in range(members))
        assert passes == members * epochs * 28, name


def test_a_cell_is_reproducible_and_complete(tiny: dict[str, Any]) -> None:
    study = from_mapping(tiny)
    (cell,) = cells(study)
    assert cell.name == "quarters-cnn2x4.n3.one-0"
    before = torch.random.get_rng_state()
    one, two = run_cell(study, cell), run_cell(study, cell)
    assert torch.equal(before, torch.random.get_rng_state())
    clocks = ("seconds",)
    for name in KIND.methods:
        for part, metrics in one["methods"][name].items():
            for key, value in metrics.items():
                assert key in clocks or value == two["methods"][name][part][key], (name, part, key)
        found = one["methods"][name]["test"]
        assert 0 <= found["worst"] <= found["member"] <= 1 and found["consensus"] >= 0
    tests = {name: one["methods"][name]["test"] for name in KIND.methods}
    assert tests["local SGD"]["average"] > 0.5, "four classes told apart"
    assert tests["independent"]["payload"] == 0 and tests["independent"]["consensus"] > tests["IMWA"]["consensus"]
    assert tests["WASH+Opt"]["payload"] > tests["WASH"]["payload"] > tests["WASH"]["wire"] > 0
    assert tests["DART"]["consensus"] == 0 == tests["DART"]["barrier"]


def test_members_start_and_are_fed_as_the_cell_says(tiny: dict[str, Any]) -> None:
    study = from_mapping(tiny)
    one, own = Cell("quarters", "cnn2x4.n3.one", 0), Cell("quarters", "cnn2x4.n3.mixed", 0)
    rule, _ = rules_of(study, 4, 3)["independent"]
    starts = [train(study, cell, images_of(study, cell), rule, 0).models for cell in (one, own)]
    for models, alike in zip(starts, (True, False), strict=True):
        weights = [next(iter(model.parameters())) for model in models]
        assert torch.equal(weights[0], weights[1]) == alike
    assert len(set(recipes_of(one))) == 1 and recipes_of(own) == recipes_of(own)
    diverging = from_mapping({**tiny, "training": {**tiny["training"], "learning_rate": 1e6}})
    with pytest.raises(RuntimeError, match=r"cell quarters-cnn2x4\.n3\.one-0: member \d under Independent.* diverged"):
        train(diverging, one, images_of(diverging, one), rule, 16)


def test_recipes_mix_images_and_targets_alike() -> None:
    x = torch.arange(8.0)[:, None, None, None].expand(8, 1, 10, 10)
    y = torch.arange(8)
    for recipe in (Recipe(mixup=1.0), Recipe(cutmix=1.0), Recipe(mixup=0.5, cutmix=0.5)):
        for seed in range(6):
            images, targets = prepared(x, y, 8, recipe, np.random.default_rng(seed))
            assert torch.allclose(targets.sum(1), torch.ones(8))
            # The mean of an image's pixels is the mean of its classes.
            assert torch.allclose(images.mean((1, 2, 3)), targets @ torch.arange(8.0), atol=1e-5)
    plain, targets = prepared(x, y, 8, Recipe(smoothing=0.1), np.random.default_rng(0))
    assert torch.equal(plain, x) and torch.allclose(targets.diagonal(), torch.tensor(0.9 + 0.1 / 8))
    ones = torch.ones(4000, 1, 12, 12)
    erased, _ = prepared(ones, torch.zeros(4000).long(), 1, Recipe(erasing=0.35), np.random.default_rng(0))
    touched = (erased == 0).flatten(1).any(1).double().mean()
    share = (erased == 0).double().mean() / touched
    # Binomial(4000, 0.35); areas are uniform from 0.02 to 1/3, rounded and cut to the image.
    assert abs(float(touched) - 0.35) < 4 * (0.35 * 0.65 / 4000) ** 0.5 and 0.14 < float(share) < 0.2
    random = np.random.default_rng(1)
    seen = [drawn(random) for _ in range(300)]
    assert all({getattr(one, name) for one in seen} == set(values) for name, values in POOL.items())


def test_the_grid_and_its_command(tiny: dict[str, Any], tmp_path: Path) -> None:
    study = from_mapping({**tiny, "training": {**tiny["training"], "epochs": 2, "seeds": [0, 1]}})
    metrics = run_grid(study, KIND, cells(study), run_cell, tmp_path / "run", build=from_mapping)
    table = metrics["table"]["quarters"]["cnn2x4.n3.one"]
    assert list(table) == list(KIND.methods) and table["PAPA"]["test"]["average"]["n"] == 2
    assert set(metrics["claims"]) == {f"{ours} - {theirs}" for ours, theirs in KIND.claims}
    config = tmp_path / "run" / "config.toml"
    assert read_config(config) == study
    # The finished run is found again by the command, which writes the page.
    done = CliRunner().invoke(
        app, ["study", "population", "--config", str(config), "--out", str(tmp_path / "run"), "--resume", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["verdict"] == metrics["verdict"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "accuracy of the greedy soup" in page and "WASH+Opt" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"networks": {"members": [1, 3]}}, "networks.members must be at least 2, got 1"),
        ({"networks": {"pools": ["odd"]}}, 'networks.pools must be "alike" or "mixed", got \'odd\''),
        ({"networks": {"starts": ["odd"]}}, 'networks.starts must be "own" or "one", got \'odd\''),
        ({"networks": {"names": ["resnet"]}}, "'resnet' is no network"),
        ({"rules": {"wash_p": 1.5}}, "rules.wash_p must lie between 0 and 1"),
        ({"rules": {"episodes": 0}}, "rules.episodes must be at least 1"),
        ({"data": {"sets": ["cifar10"]}}, "data.sets has 'cifar10', which is no packaged set"),
        ({"data": {"counts": ["digits=7"]}}, "data.counts must be like"),
        ({"training": {"start": "one"}}, "training.start is no setting"),
    ],
)
def test_settings_out_of_range_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping(given)


def test_the_default_study_has_what_its_page_promises() -> None:
    every = cells(PopulationStudy())
    assert len(every) == 40 and {cell.model for cell in every} >= {"cnn.n3", "cnn.n5.one.mixed"}
