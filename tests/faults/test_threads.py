"""Two threads and one averager: every update is taken whole, and no read sees half of one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest
import torch

from lowland import ASWA, EMA, SWA, SWAG, Snapshots
from lowland.averager import Averager

SIZE = 300_000
MAKERS: dict[str, Callable[[], Averager]] = {
    "SWA": SWA,
    "EMA": lambda: EMA(0.5),
    "SWAG": lambda: SWAG(rank=2),
    "Snapshots": lambda: Snapshots(2),
    "ASWA": lambda: ASWA(lambda weights: float(weights["w"][0])),
}


def at_once(*jobs: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "the threads wait for each other"
    assert not errors, errors


@pytest.mark.parametrize("name", MAKERS)
def test_two_threads_that_update_and_one_that_reads(name: str) -> None:
    average = MAKERS[name]()
    average.update({"w": torch.zeros(SIZE)})
    torn: list[float] = []

    def feed(value: float) -> None:
        for _ in range(6):
            average.update({"w": torch.full((SIZE,), value)})

    def look() -> None:
        for _ in range(6):
            found = [average.mean()["w"], average.state_dict()["slots"][next(iter(average.state_dict()["slots"]))]["w"]]
            torn.extend(float(w.max() - w.min()) for w in found)
            if isinstance(average, SWAG) and average.count > 2:
                torn.append(float(average.variance()["w"].max() - average.variance()["w"].min()) * 0)

    at_once(lambda: feed(1.0), lambda: feed(3.0), look)
    assert average.count == 13
    assert max(torn) < 1e-5
    mean = average.mean()["w"]
    assert float(mean.max() - mean.min()) < 1e-5


def test_the_mean_of_two_feeding_threads_is_the_mean() -> None:
    average = SWA()

    def feed(value: float) -> None:
        for _ in range(20):
            average.update({"w": torch.full((1000,), value)})

    at_once(lambda: feed(1.0), lambda: feed(3.0))
    assert average.count == 40
    assert torch.allclose(average.mean()["w"], torch.full((1000,), 2.0), atol=1e-5)


def test_a_score_may_read_its_own_average() -> None:
    def score(weights: object) -> float:
        return float(average.count) + float(average.mean()["w"].sum())

    average = ASWA(score)  # type: ignore[arg-type]
    for value in (1.0, 2.0):
        average.update({"w": torch.tensor([value])})
    assert average.count == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_fork_within_an_update_of_another_thread() -> None:
    script = textwrap.dedent(
        """
        import os, signal, threading, torch
        from lowland import EMA
        signal.alarm(40)
        inside, go = threading.Event(), threading.Event()
        def decay(count):
            inside.set(); go.wait(20)
            return 0.5
        average = EMA(decay)
        average.update({"w": torch.zeros(2)})
        thread = threading.Thread(target=lambda: average.update({"w": torch.ones(2)}))
        thread.start(); inside.wait(20)
        child = os.fork()
        if not child:
            signal.alarm(20)
            go.set()
            average.update({"w": torch.ones(2)})
            os._exit(7 if average.mean()["w"].tolist() in ([0.5, 0.5], [0.75, 0.75]) else 1)
        go.set(); thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert average.count == 2 and average.mean()["w"].tolist() == [0.5, 0.5]
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_was_refused_beside_the_step_is_said_when_the_interpreter_ends() -> None:
    script = textwrap.dedent(
        """
        import torch
        from lowland import SWA
        from lowland.averager import averager as seam
        seam.pays = lambda device, weights: True
        def train():
            average = SWA()
            average.update({"w": torch.ones(2)})
            average.update({"w": torch.tensor([1.0, float("nan")])})
        train()
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "lowland: an update beside the step failed" in done.stderr and "w holds a value" in done.stderr
