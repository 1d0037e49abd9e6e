"""Populations over gloo: `ranks_run.py` on two, three and four ranks, each equal to one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowland.population import Population, load_members, save_members

from ..conformance import POPULATIONS
from .models import Net, train

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def run(ranks: int, folder: Path, *checks: str) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.population.ranks_run", str(ranks), str(folder), *checks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{check} on {ranks}" in done.stdout for check in checks)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    run(
        ranks,
        tmp_path,
        "members_are_those_of_one_process",
        "means_differ_by_the_rounding_of_a_sum",
        "what_is_asked_is_that_of_one_process",
        "momenta_travel_beside_the_next_forward",
        "checkpoints_go_on_exactly",
    )
    # What ranks have written goes on in one process.
    rule = POPULATIONS["WASH+Opt"]
    models = [Net(place) for place in range(ranks)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    whole = Population(models, rule, optimizers=optimizers)
    train(models, optimizers, whole, range(1, 10))
    others = [Net(place + 9) for place in range(ranks)]
    steppers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in others]
    resumed = Population(others, rule, optimizers=steppers)
    load_members(resumed, tmp_path / f"WASH+Opt-{ranks}")
    train(others, steppers, resumed, range(6, 10))
    for model, other in zip(models, others, strict=True):
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.slow
def test_all_ranks_refuse_alike(tmp_path: Path) -> None:
    run(2, tmp_path, "all_ranks_refuse_alike")


@pytest.mark.slow
def test_members_sharded_over_ranks_of_their_own(tmp_path: Path) -> None:
    run(4, tmp_path, "sharded_members")


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def made(members: int) -> Population:
        return Population([Net(place) for place in range(members)], POPULATIONS["WASH"])

    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_members(made(2), tmp_path / "none")
    save_members(made(2), tmp_path / "two")
    with pytest.raises(ValueError, match=r"lacks \['member 2'\]: it is no population's checkpoint, or one of fewer"):
        load_members(made(3), tmp_path / "two")
