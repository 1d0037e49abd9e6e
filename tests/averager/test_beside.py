"""Updates that run beside the training step: the same numbers, and no call that sees half of one."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import lowland
from lowland import EMA, SWA
from lowland.averager import Averager
from lowland.averager import averager as averager_module
from lowland.averager.beside import Background

from ..conformance import AVERAGERS
from ..problems import Small, walk
from ..test_conformance import assert_same_state, run


class Gate:
    """A decay that waits, so that a test can look while an update is under way."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, count: int) -> float:
        self.entered.set()
        assert self.open.wait(10)
        return 0.5

    def __deepcopy__(self, memo: object) -> Gate:
        return self


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an update run beside the step wherever a device is named."""
    monkeypatch.setattr(averager_module, "pays", lambda device, weights: device is not None)


def beside(averager: Averager) -> Averager:
    averager.device = torch.device("cpu")
    return averager


def gated(gate: Gate) -> Averager:
    """An average after one update whose second is under way."""
    average = beside(EMA(gate))
    average.update({"w": torch.tensor([2.0])})
    weights = torch.tensor([4.0])
    average.update({"w": weights})
    weights.fill_(100.0)  # the next training step
    assert gate.entered.wait(10)
    return average


@pytest.mark.parametrize("name", [name for name in AVERAGERS if name != "ASWA"])
def test_the_numbers_are_the_same(name: str) -> None:
    path, model = walk(9), Small()
    assert_same_state(run(beside(AVERAGERS[name]()), path), run(AVERAGERS[name](), path))
    average = beside(AVERAGERS[name]())
    for _ in range(3):
        average.update(model)
    assert average.count == 3


def test_aswa_stays_in_the_loop_as_its_score_may_use_the_model() -> None:
    threads: list[int] = []

    def score(weights: lowland.weights.Weights) -> float:
        threads.append(threading.get_ident())
        return 0.0

    run(beside(lowland.ASWA(score)), walk(3))
    assert set(threads) == {threading.get_ident()}


READS: dict[str, Callable[[Averager], object]] = {
    "mean": lambda average: average.mean()["w"].item() == 3.0,
    "count": lambda average: average.count == 2,
    "state_dict": lambda average: average.state_dict()["slots"]["mean"]["w"].item() == 3.0,
    "repr": lambda average: repr(average).endswith("after 2 updates"),
    "update": lambda average: average.update({"w": torch.tensor([7.0])}) or average.mean()["w"].item() == 5.0,
    "load_state_dict": lambda average: average.load_state_dict(average.state_dict()) or average.count == 2,
    "deepcopy": lambda average: copy.deepcopy(average).mean()["w"].item() == 3.0,
}


@pytest.mark.parametrize("read", READS)
def test_update_returns_at_once_and_every_read_waits(read: str, gate: Gate) -> None:
    average = gated(gate)
    answer: list[object] = []
    reader = threading.Thread(target=lambda: answer.append(READS[read](average)))
    reader.start()
    reader.join(0.05)
    assert reader.is_alive() and not answer, "a read did not wait for the update under way"
    gate.open.set()
    reader.join(10)
    assert answer == [True]


def test_a_state_taken_is_not_changed_by_the_update_that_follows(gate: Gate, tmp_path: Path) -> None:
    average = gated(gate)
    gate.open.set()
    lowland.save(average, tmp_path / "average.safetensors")
    state = average.state_dict()
    average.update({"w": torch.tensor([7.0])})
    assert average.count == 3
    assert state["slots"]["mean"]["w"].item() == 3.0 and state["count"] == 2
    assert lowland.load(tmp_path / "average.safetensors", decay=gate).mean()["w"].item() == 3.0


def test_pickles_and_copies_hold_the_update_under_way() -> None:
    path = walk(4)
    average = run(beside(SWA()), path)
    for twin in (pickle.loads(pickle.dumps(average)), copy.deepcopy(average)):
        assert_same_state(twin, run(SWA(), path))
        twin.update(path[0])
        assert twin.count == 5 and average.count == 4


@pytest.mark.parametrize("read", ["mean", "count", "state_dict", "update", "pickle"])
def test_a_refused_iterate_is_reported_at_the_next_call(read: str) -> None:
    path = walk(3)
    average = run(beside(SWA()), path)
    average.update({name: torch.full_like(tensor, torch.nan) for name, tensor in path[0].items()})
    assert repr(average).endswith("after 3 updates")
    calls: dict[str, Callable[[], object]] = {
        "mean": average.mean,
        "count": lambda: average.count,
        "state_dict": average.state_dict,
        "update": lambda: average.update(path[0]),
        "pickle": lambda: pickle.dumps(average),
    }
    with pytest.raises(ValueError, match="holds a value that is not finite: this iterate is refused"):
        calls[read]()
    # Once: the average is what it was, and goes on.
    assert_same_state(average, run(SWA(), path))
    average.update(path[0])
    assert average.count == 4


def test_names_and_shapes_are_refused_at_once() -> None:
    average = run(beside(SWA()), walk(2))
    with pytest.raises(ValueError, match=r"unexpected \['stranger'\]"):
        average.update({**walk(1)[0], "stranger": torch.ones(1)})
    assert average.count == 2


def test_an_update_that_fails_in_the_worker_is_not_counted() -> None:
    decay: list[float] = [0.5, 2.0]
    average = beside(EMA(lambda count: decay[count - 1]))
    for value in (0.0, 4.0, 8.0):
        average.update({"w": torch.tensor([value])})
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 2.0"):
        average.mean()
    assert average.count == 2 and average.mean()["w"].item() == 2.0


def test_the_worker_ends_with_its_averager() -> None:
    def workers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("lowland")}

    # By identity, not by number: those of earlier tests, and the pool of the compiled loops, come and go.
    before = workers()
    average = run(beside(SWA()), walk(3))
    average.mean()
    own = workers() - before
    assert own
    del average
    deadline = time.monotonic() + 10
    while any(thread.is_alive() for thread in own) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.005)
    assert not any(thread.is_alive() for thread in own)


def test_jobs_come_one_after_another_and_raise_once() -> None:
    background, order = Background(), []

    def slow() -> None:
        time.sleep(0.02)
        order.append("slow")

    def fails() -> None:
        background.join()  # in the worker: waits for nothing
        raise KeyError("job")

    background.submit(slow)
    background.submit(lambda: order.append("fast"))
    background.submit(fails)
    assert order == ["slow", "fast"]
    background.wait()
    with pytest.raises(KeyError, match="job"):
        background.submit(slow)
    background.join()
    assert order == ["slow", "fast"]


@pytest.mark.slow
def test_forks_and_the_end_of_the_interpreter() -> None:
    script = textwrap.dedent(
        """
        import os, signal, time, torch
        from lowland import SWA
        from lowland.averager import averager as seam
        signal.alarm(50)
        seam.pays = lambda device, weights: True
        average = SWA()
        absorb = average._absorb
        def slow(weights):
            time.sleep(0.2)
            absorb(weights)
        average._absorb = slow
        for value in (0.0, 2.0):
            average.update({"w": torch.tensor([value])})
        child = os.fork()  # with an update under way
        if not child:
            assert average.count == 2 and average.mean()["w"].item() == 1.0
            average.update({"w": torch.tensor([4.0])})
            assert average.count == 3 and average.mean()["w"].item() == 2.0
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        average.update({"w": torch.tensor([7.0])})
        assert average.mean()["w"].item() == 3.0
        average.update({"w": torch.tensor([1.0])})
        print("the end, with an update under way")
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "the end" in done.stdout
