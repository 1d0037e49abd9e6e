"""A rank is killed under torchrun: one clear error, and the restarted job ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowland.population import Population

from .killed_run import RULE
from .models import Net, train

ROOT = Path(__file__).resolve().parents[2]


def torchrun(folder: Path, ranks: int, steps: int, victim: int, at: int) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--max-restarts", "1", "-m", "tests.population.killed_run"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    # Else the second attempt finds the addresses of the first in torchrun's store: pytorch/pytorch#135712.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with subprocess.Popen(
        [*command, str(folder), str(steps), str(victim), str(at)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, _ = process.communicate(timeout=270)
        except BaseException:
            os.killpg(process.pid, 9)  # torchrun and its ranks: a session of their own
            raise
    assert process.returncode == 0, told[-4000:]
    return told


@pytest.mark.slow
def test_a_lost_rank_ends_the_attempt_and_the_next_goes_on_exactly(tmp_path: Path) -> None:
    ranks, steps = 2, 14
    told = torchrun(tmp_path, ranks, steps, victim=1, at=9)
    lost = json.loads((tmp_path / "lost-0").read_text())
    assert lost["time"] - float((tmp_path / "killed").read_text()) < 60
    assert "a rank was lost or did not come in time" in lost["says"] and "\n" not in lost["says"]
    assert lost["says"] in told
    models = [Net(place) for place in range(ranks)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    train(models, optimizers, Population(models, RULE, optimizers=optimizers), range(1, steps + 1))
    for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        end = torch.load(tmp_path / f"end-{rank}", weights_only=True)
        assert all(torch.equal(end["model"][name], tensor) for name, tensor in model.state_dict().items())
        for key, state in optimizer.state_dict()["state"].items():
            assert torch.equal(end["optimizer"]["state"][key]["momentum_buffer"], state["momentum_buffer"])
