"""A training that is killed and started again ends with the averages of one that was not, bit for bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.integrations.interrupted import WAYS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_ends_as_one_that_was_not(way: str, tmp_path: Path) -> None:
    if way in ("accelerate", "lightning"):
        pytest.importorskip(way)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integrations.interrupted", way, str(broken)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        timeout=900,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    assert not (broken / "never.safetensors").exists()
    expected, got = WAYS[way](whole, killed=False), WAYS[way](broken, killed=False)
    for name, tensor in _tensors(expected).items():
        assert torch.equal(tensor, _tensors(got)[name]), name


def _tensors(result: object) -> Mapping[str, Tensor]:
    if isinstance(result, Mapping):
        return result
    state = result.state_dict()
    assert state["count"] == 11  # after steps 4, 6, ... 24
    return {f"{slot}/{name}": t for slot, tensors in state["slots"].items() for name, t in tensors.items()}
