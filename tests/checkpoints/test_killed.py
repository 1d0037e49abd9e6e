"""A merge that is killed at any moment, time and again, ends with the bytes of one that was not; the long form is
benchmarks/merge_killed.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
