"""A merge that is killed at any moment, time and again, ends with the bytes of one that was not; the long form is
benchmarks/merge_killed.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lowland.checkpoints import average
from lowland.soup import uniform

from .killed import FORMS, chain

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are of forked children"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_merge_ends_with_the_same_bytes(form: str, tmp_path: Path) -> None:
    found = chain(form, tmp_path, 3, megabytes=12)
    assert found.faults == [] and found.kills >= 3 and found.merges


def test_so_does_one_of_two_processes(tmp_path: Path) -> None:
    found = chain("dcp", tmp_path, 1, megabytes=2, ranks=2)
    assert found.faults == [] and found.kills


def test_what_a_kill_at_the_very_end_leaves_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is in its place, and the folder that it was made in is not yet gone."""
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"{step}.safetensors")
    inputs, out = [tmp_path / f"{step}.safetensors" for step in (1, 2)], tmp_path / "mean.safetensors"
    monkeypatch.setattr("lowland.checkpoints.output.shutil.rmtree", lambda *_, **__: None)
    average(inputs, out, uniform)
    monkeypatch.undo()
    assert (tmp_path / ".mean.safetensors.part").is_dir() and out.is_file()
    with pytest.raises(OSError, match="is there already"):
        average(inputs, out, uniform)
    assert not list(tmp_path.glob(".*")) and out.is_file()
    # A run that is not finished beside an older file of that name is left alone.
    (tmp_path / ".mean.safetensors.part").mkdir()
    (tmp_path / ".mean.safetensors.part" / out.name).touch()
    with pytest.raises(OSError, match="is there already"):
        average(inputs, out, uniform)
    assert list(tmp_path.glob(".*"))
