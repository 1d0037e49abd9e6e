"""A merge made again from its record: equal bit for bit, or told what differs."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from lowland import EMA, SWA, Snapshots, cli, soup
from lowland.checkpoints import Merge, average, open_checkpoint, plan_average, through, verify

from .layouts import LAYOUTS, Layout, dcp, full, safe

SOUPS = (soup.uniform, soup.weighted, soup.combined)
MADE = [layout for layout in LAYOUTS if not layout.refused and layout.name != "a second file"]


@pytest.mark.parametrize("layout", MADE, ids=lambda layout: layout.name)
def test_every_layout_is_made_again(layout: Layout, tmp_path: Path) -> None:
    inputs = []
    for step in (0, 1):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        layout.write(folder, step)
        inputs.append(open_checkpoint(folder / layout.path, **dict(layout.options)))
    out = tmp_path / (f"out{Path(layout.path).suffix}".replace(".tar", ".pth.tar") if layout.path else "out")
    average(inputs, out, through(SWA))
    found = verify(out)
    assert found.right and found.tensors == len(inputs[0].tensors), found.differ
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "merge",
    [
        *(soup.uniform, through(partial(EMA, decay=0.3)), through(partial(Snapshots, k=2))),
        partial(soup.weighted, coefficients=[1.0, 2.0], normalise=True),
        partial(soup.combined, coefficients=[-0.5, 1.25]),
    ],
    ids=["uniform", "ema", "snapshots", "weighted", "combined"],
)
@pytest.mark.parametrize("more", [{}, {"dtype": torch.bfloat16}, {"form": "dcp"}], ids=["plain", "dtype", "dcp"])
def test_every_method_is_made_again(merge: Merge, more: dict[str, Any], tmp_path: Path) -> None:
    for step in (0, 1):
        dcp(tmp_path / str(step), {"model": {"w": full(step) + 0.3, "n": torch.tensor([step])}, "epoch": 3})
    plan_average([tmp_path / "0", tmp_path / "1"], tmp_path / "out", merge, with_card=True, **more).run()
    assert verify(tmp_path / "out", SOUPS).right
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| `__0_0.distcp`" in text.replace(f"`{tmp_path / '0'}`: ", "") and "2 checkpoints" in text
    digest = hashlib.sha256((tmp_path / "0" / "__0_0.distcp").read_bytes()).hexdigest()
    assert digest in text


def test_what_was_changed_is_told(tmp_path: Path) -> None:
    for step in (0, 1):
        safe(tmp_path / str(step) / "model.safetensors", {"w": full(step), "v": full(step)})
    inputs = [tmp_path / "0", tmp_path / "1"]
    plan_average(inputs, tmp_path / "out", soup.uniform, with_card=True).run()
    made = load_file(tmp_path / "out" / "model.safetensors")
    made["w"][0, 0] += 1e-7
    save_file({**made, "more": torch.ones(1)}, tmp_path / "out" / "model.safetensors")
    assert verify(tmp_path / "out", SOUPS).differ == ("more is not of this merge", "w has other values")
    safe(tmp_path / "1" / "model.safetensors", {"w": full(3), "v": full(1)})
    assert f"the ingredient {tmp_path / '1'}/model.safetensors has changed" in verify(tmp_path / "out", SOUPS).differ


def moved(home: Path, name: str) -> tuple[list[Path], Path]:
    """Two checkpoints of a run and their average with a card."""
    run = home / name
    for step in (1, 2):
        safe(run / f"checkpoint-{step}" / "model.safetensors", {"w": full(step)})
    inputs = [run / "checkpoint-1", run / "checkpoint-2"]
    return inputs, plan_average(inputs, home / "out", soup.uniform, with_card=True).run()


def test_a_run_that_was_moved_or_renamed_is_found_by_its_hashes(tmp_path: Path) -> None:
    inputs, out = moved(tmp_path, "run")
    away = tmp_path / "archive" / "2026"
    away.parent.mkdir()
    inputs[0].parent.rename(away)
    (away / "checkpoint-1").rename(away / "first")
    (away / "checkpoint-2").rename(away / "checkpoint-1")  # the name of another ingredient
    with_decoy = away / "decoy"
    safe(with_decoy / "model.safetensors", {"w": full(7)})
    assert verify(out, SOUPS, runs=[away]).right
    assert verify(out, SOUPS).right  # beside the output, two folders down
    far = tmp_path / "a" / "b" / "c" / "d" / "run"
    far.parent.mkdir(parents=True)
    away.rename(far)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-1 \(SHA-256 .* is gone: .* with --run"):
        verify(out, SOUPS)
    assert verify(out, SOUPS, runs=[far.parent]).right
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        verify(out, SOUPS, runs=[tmp_path / "none"])
    safe(far / "first" / "model.safetensors", {"w": full(1) + 1e-6})
    differ = verify(out, SOUPS, runs=[far]).differ
    assert f"the ingredient {inputs[0]}/model.safetensors has changed" in differ and "w has other values" in differ


def test_single_files_are_found_under_other_names(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    for step in (1, 2):
        save_file({"w": full(step)}, home / f"{step}.safetensors")
    inputs = [home / "1.safetensors", home / "2.safetensors"]
    out = plan_average(inputs, tmp_path / "out", soup.uniform, with_card=True).run()
    inputs[0].rename(away / "b.safetensors")
    inputs[1].rename(away / "a.safetensors")
    assert verify(out, SOUPS, runs=[away]).right


def test_ingredients_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        safe(tmp_path / name / "checkpoint-1" / "model.safetensors", {"w": full(value)})
    inputs = [tmp_path / name / "checkpoint-1" for name in "ab"]
    out = plan_average(inputs, tmp_path / "out", soup.uniform, with_card=True).run()
    assert verify(out, SOUPS).right
    safe(inputs[1] / "model.safetensors", {"w": full(5)})
    differ = verify(out, SOUPS).differ
    assert f"the ingredient {inputs[1]}/model.safetensors has changed" in differ and "w has other values" in differ


def test_without_hashes_a_moved_run_is_taken_by_its_names(tmp_path: Path) -> None:
    for step in (1, 2):
        safe(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors", {"w": full(step)})
    out = average([tmp_path / "run" / f"checkpoint-{step}" for step in (1, 2)], tmp_path / "out", soup.uniform)
    (tmp_path / "run").rename(tmp_path / "renamed")
    assert verify(out, SOUPS, runs=[tmp_path / "renamed"]).right
    safe(tmp_path / "renamed" / "checkpoint-2" / "model.safetensors", {"w": full(4)})
    assert verify(out, SOUPS, runs=[tmp_path / "renamed"]).differ == ("w has other values",)


def test_a_tensor_that_is_cut_across_is_hashed_too(tmp_path: Path) -> None:
    """Such a tensor lies in no stretch of a file; its file belongs to the ingredient all the same."""
    dcp(tmp_path / "0", {"model": {"w": full(1)}})
    opened = open_checkpoint(tmp_path / "0")
    cut = {name: replace(stored, runs=(), whole=lambda: full(1)) for name, stored in opened.tensors.items()}
    assert {file.name for file in replace(opened, tensors=cut).files} == {".metadata", "__0_0.distcp"}


def test_records_that_cannot_be_followed(tmp_path: Path) -> None:
    for step in (0, 1):
        save_file({"w": full(step)}, tmp_path / f"{step}.safetensors")
    inputs = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]

    def own(ingredients: Any) -> Any:
        return soup.uniform(ingredients)

    with pytest.raises(ValueError, match="the record names .*own, which is no averager"):
        verify(average(inputs, tmp_path / "own.safetensors", own))
    with pytest.raises(FileNotFoundError, match="there is no record"):
        verify(inputs[0])
    with pytest.raises(ValueError, match="a card lies in a folder"):
        plan_average(inputs, tmp_path / "out.pt", soup.uniform, with_card=True)
    out = average(inputs, tmp_path / "mean.safetensors", soup.uniform)
    inputs[0].unlink()
    with pytest.raises(FileNotFoundError, match="the ingredient .*0.safetensors is gone"):
        verify(out, SOUPS)
    (tmp_path / "mean.safetensors.merge.json").write_text("[]")
    with pytest.raises(ValueError, match="no record of a merge"):
        verify(out, SOUPS)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lowland", *map(str, arguments)])
        monkeypatch.setattr(cli.screen, "out", Console(width=200))
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), capsys.readouterr().out

    for step in (1, 2, 3):
        safe(tmp_path / f"checkpoint-{step}" / "model.safetensors", {"w": full(step)})
    code, _ = run("average", tmp_path, "--decay", "minus-sqrt", "--blend", 0.7, "--card", "--out", tmp_path / "out")
    assert code == 0 and "| coefficient |" in (tmp_path / "out" / "README.md").read_text()
    code, told = run("verify", tmp_path / "out")
    assert code == 0 and "1 tensors, made again in" in told and "equal bit for bit" in told
    safe(tmp_path / "out" / "model.safetensors", {"w": full(9)})
    code, told = run("verify", tmp_path / "out", "--json")
    assert code == 3 and json.loads(told)["differ"] == ["w has other values"]
