"""The recipes run: under torchrun on two ranks, and where an engine calls a function."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def torchrun(script: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [*command, str(ROOT / "examples" / script), *arguments],
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
    assert process.returncode == 0, told[-3000:]
    return told


@pytest.mark.slow
def test_the_plain_loop() -> None:
    told = torchrun("population.py")
    found = re.search(r"average of 2: accuracy ([\d.]+), (\d+) bytes a step", told)
    assert found and float(found[1]) > 0.75 and 0 < int(found[2]) < 200, told


@pytest.mark.slow
def test_accelerate() -> None:
    pytest.importorskip("accelerate")
    found = re.search(
        r"Population of 2 .* squared distances ([\d.]+) -> ([\d.]+)", torchrun("population_accelerate.py")
    )
    assert found and float(found[2]) < float(found[1])


@pytest.mark.slow
def test_the_trainer_and_its_resume(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pattern = r"Population of 2 under LocalSGD\(every=4\) after 32 steps: squared distances 0.00e\+00, bias (\S+)"
    whole = re.search(pattern, torchrun("population_trainer.py", str(tmp_path)))
    for member in (0, 1):
        last = tmp_path / f"member-{member}" / "checkpoint-32"
        assert (last / "population.pt").exists()
        last.rename(tmp_path / f"kept-{member}")  # the next run goes on from step 24
    resumed = re.search(pattern, torchrun("population_trainer.py", str(tmp_path), "resume"))
    assert whole and resumed and whole[1] == resumed[1]
