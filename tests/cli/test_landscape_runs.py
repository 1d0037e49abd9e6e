"""`lowland landscape` on run folders of studies, on the subspace of SWAG, and along the Hessian's direction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib", reason="pictures need lowland[plot]")

from lowland import SWAG, load, save
from lowland.cli.run_folders import FromRun, solutions_in
from lowland.landscape import Grid, load_result
from lowland.studies.grid.cells import Cell
from lowland.studies.images import from_mapping as images_study
from lowland.studies.images.cell import images_of
from lowland.studies.images.methods import sgd_schedule
from lowland.studies.images.trajectory import Trajectory, seeded
from lowland.studies.population import from_mapping as population_study
from lowland.studies.runs.randomness import one_thread
from lowland.studies.runs.settings import to_toml
from tests.cli.test_landscape import Run, home, options, run, undrawn

__all__ = ["home", "run", "undrawn"]  # fixtures

SETS = {
    "data": {"sets": ["quarters"], "counts": ["quarters=48/16/32"]},
    "training": {"seeds": [0], "epochs": 4, "batch_size": 16, "learning_rate": 0.05},
}


@pytest.fixture
def quarters(tmp_path: Path) -> dict[str, Any]:
    """Bright quarters of small images: which quarter is the class."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % 4
    images = random.integers(0, 80, (120, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * (label // 2) :][:4, 4 * (label % 2) :][:, :4] += 120
    np.savez(tmp_path / "quarters.npz", images=images, labels=labels)
    data = {**SETS["data"], "paths": [f"quarters={tmp_path / 'quarters.npz'}"]}
    return {**SETS, "data": data}


def folder_of(home: Path, study: Any, kind: str, cell: str) -> Path:
    """A finished study as a landscape reads it: its configuration, what kind it is, and the names of its cells."""
    folder = home / kind
    (folder / "cells").mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(study))
    (folder / "metrics.json").write_text(json.dumps({"study": kind}))
    (folder / "cells" / f"{cell}.json").write_text("{}")
    return folder


def images_folder(home: Path, quarters: dict[str, Any], network: str) -> tuple[Any, Path]:
    more = {"networks": {"names": [network]}, "ensembles": {"snapshots": 2}, "evaluation": {"corruptions": []}}
    study = images_study(quarters | more | {"averages": {"learning_rate": 0.02}})
    return study, folder_of(home, study, "images", f"quarters-{network}-0")


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_images_is_trained_again_as_its_cell_was(run: Run, tmp_path: Path, quarters: dict[str, Any]) -> None:
    study, folder = images_folder(tmp_path, quarters, "cnn2x4")
    done = run(folder, "--kind", "line", "--points", 3, "--margin", 0, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert set(json.loads(done.out)["values"]) == {"train loss", "train error", "test loss", "test error"}
    walk, about = load_result(tmp_path / "out" / "line.safetensors")
    assert about["from"] == "SWA 1.5" and "48 train, 32 test" in about["data"] and "refreshed" in about["refresh"]
    kept = folder / "landscape" / "quarters-cnn2x4-0"
    cell = Cell("quarters", "cnn2x4", 0)
    with one_thread(), seeded(0):
        member = Trajectory(study, cell, images_of(study, cell), 0)
        member.walk(4, sgd_schedule(study, member.steps_per_epoch))
    own, found = dict(member.model.named_parameters()), load(kept / "SGD.safetensors")
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)
    before = (kept / "SWA 1.5.safetensors").stat().st_mtime_ns
    again = run(folder, "--kind", "line", "--points", 3, "--margin", 0, "--out", tmp_path / "again", "--json")
    assert json.loads(again.out)["values"] == json.loads(done.out)["values"]
    assert (kept / "SWA 1.5.safetensors").stat().st_mtime_ns == before  # not trained again


@pytest.mark.slow
def test_what_is_trained_again_answers_as_the_cell_did(tmp_path: Path, quarters: dict[str, Any]) -> None:
    from lowland.studies.images import run_cell

    study, folder = images_folder(tmp_path, quarters, "vgg7x4")  # no BatchNorm: statistics play no part
    result = run_cell(study, Cell("quarters", "vgg7x4", 0))
    measure = FromRun(str(folder), "", "", "frozen")
    for name in ("SGD", "SGD 1.5", "SWA 1.5"):
        values = measure(measure.solutions.weights[name])
        assert values["test loss"] == pytest.approx(result["methods"][name]["test"]["nll"], rel=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_populations_shows_members_and_average(run: Run, tmp_path: Path, quarters: dict[str, Any]) -> None:
    networks = {"names": ["cnn2x4"], "members": [3], "starts": ["one"], "pools": ["alike"]}
    study = population_study(quarters | {"networks": networks})
    name = "quarters-cnn2x4.n3.one-0"
    folder = folder_of(tmp_path, study, "population", name)
    done = run(folder, "--rule", "local SGD", "--points", 3, "--out", tmp_path / "out", "--json", "--bn", "fast")
    assert done.code == 0, done.err
    grid, about = load_result(tmp_path / "out" / "plane.safetensors")
    assert isinstance(grid, Grid) and list(grid.points) == ["member 1", "member 2", "member 3"]
    assert "local SGD" in about["model"]
    found = solutions_in(folder, name, "local SGD").weights
    for key, mean in found["average"].items():
        members = torch.stack([found[f"member {k}"][key] for k in (1, 2, 3)])
        assert torch.allclose(mean, members.mean(0), atol=1e-6)
    done = run(folder, "--rule", "nothing")
    assert done.code == 2 and "has no rule 'nothing'" in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_run_of_texts_shows_its_members_and_the_subspace_of_swag(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from lowland.studies.text import read_config, run_text_study
    from tests.studies.tiny_study import prepare

    study = read_config(prepare(tmp_path) / "study.toml")
    run_text_study(study, tmp_path / "run")
    out = tmp_path / "out"
    done = run(tmp_path / "run", "--kind", "rays", "--points", 3, "--directions", 2, "--out", out, "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["values"]) == ["base", "SWA", "start"]
    done = run(tmp_path / "run", "--cell", 1, "--names", "SWAG", "--points", 3, "--out", out, "--json")
    assert done.code == 0, done.err
    grid, about = load_result(out / "plane.safetensors")
    assert len(grid.draws) == 50 and list(grid.points) == ["SWAG"] and about["n"] == "member 1"
    done = run(tmp_path / "run", "--cell", 7)
    assert done.code == 2 and "has no member 7: it has 2" in done.err


@pytest.mark.usefixtures("undrawn")
def test_one_state_of_swag_has_a_plane_with_draws_and_their_ellipse(run: Run, home: Path) -> None:
    swag = SWAG(rank=4)
    for name in ("w0", "w3", "w2", "w0", "w3"):
        found = load(home / f"{name}.safetensors")
        weights: dict[str, Tensor] = found if isinstance(found, dict) else dict(found.mean())
        swag.update({n: t for n, t in weights.items() if t.is_floating_point() and "running" not in n})
    save(swag, home / "swag.safetensors")
    done = run(home / "swag.safetensors", *options(home, "--points", 5, "--json"))
    assert done.code == 0, done.err
    grid, about = load_result(home / "out" / "plane.safetensors")
    assert "draws" in about["plane"] and "%" in about["explained"]
    centre, axes = grid.ellipse()
    drawn = torch.tensor(grid.draws, dtype=torch.float64)
    inside = ((drawn - centre) @ axes.T / axes.square().sum(1)).square().sum(1) <= 1
    assert 0.85 <= inside.double().mean() <= 1.0  # what a 95 % ellipse holds of 50 draws
    assert grid.x[0] < drawn[:, 0].min() and drawn[:, 1].max() < grid.y[-1]


@pytest.mark.usefixtures("undrawn")
def test_a_plane_along_the_hessians_direction_bends_as_its_eigenvalue_says(run: Run, home: Path) -> None:
    inputs = [home / "w0.safetensors", home / "w3.safetensors"]
    done = run(*inputs, *options(home, "--points", 3, "--across", "hessian", "--bn", "frozen", "--json"))
    assert done.code == 0, done.err
    grid, about = load_result(home / "out" / "plane.safetensors")
    assert "top direction of the Hessian at w0" in about["across"]
    # The direction is turned to a right angle with the line, so it bends by the eigenvalue at most.
    assert len(grid.points) == 2 and float(about["across"].split("eigenvalue ")[1].split(" ")[0]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "my.py:build"], "are those of the study in a run folder"),
        (["--names", "SWA,none"], "--names picks from"),
        (["--cell", "digits-cnn-9"], "has no cell 'digits-cnn-9'"),
        (["--rule", "PAPA"], "--rule is of studies of populations"),
        (["--across", "up"], "--across must be"),
    ],
)
def test_mistakes_on_run_folders_are_one_line(
    run: Run, tmp_path: Path, quarters: dict[str, Any], arguments: list[str], message: str
) -> None:
    _, folder = images_folder(tmp_path, quarters, "cnn2x4")
    kept = folder / "landscape" / "quarters-cnn2x4-0"
    kept.mkdir(parents=True)
    (kept / "solutions.json").write_text("[]")  # nothing is trained for a mistake
    done = run(folder, *arguments)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_a_run_without_networks_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "linear"
    folder.mkdir()
    (folder / "config.toml").write_text("")
    assert "no finished study" in run(folder).err
    (folder / "metrics.json").write_text(json.dumps({"study": "linear"}))
    done = run(folder)
    assert done.code == 2 and "of the study 'linear'" in done.err
