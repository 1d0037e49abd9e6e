"""Grid studies: running, resuming, failing, and the numbers over seeds and pairs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("scipy", reason="the statistics of a study need scipy")

from scipy import stats

from lowland.studies.grid import Cell, run_grid
from lowland.studies.grid.cells import check_result
from lowland.studies.grid.gathering import gather
from lowland.studies.grid.statistics import gap, holm, signed_rank, spread

from . import toy_grid
from .toy_grid import KIND, Toy, ToyStudy, build, cells, run_cell


def run(folder: Path, study: ToyStudy = ToyStudy(), **options: Any) -> dict[str, Any]:  # noqa: B008 (frozen)
    return run_grid(study, KIND, cells(), run_cell, folder, build=build, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid") / "run"
    run(folder)
    return folder


def contents(folder: Path) -> dict[str, Any]:
    found = {path.name: json.loads(path.read_text()) for path in (folder / "cells").iterdir()}
    return {name: {key: value for key, value in one.items() if key != "wall_seconds"} for name, one in found.items()}


def test_two_processes_write_what_one_writes(finished: Path, tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", jobs=2)
    assert contents(tmp_path / "run") == contents(finished)
    assert metrics == json.loads((finished / "metrics.json").read_text())


def test_finished_cells_are_not_repeated(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(study: ToyStudy, cell: Cell) -> dict[str, Any]:
        asked.append(cell.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return run_cell(study, cell)

    def again() -> dict[str, Any]:
        return run_grid(ToyStudy(), KIND, cells(), counted, tmp_path, build=build, resume=True)

    with pytest.raises(KeyboardInterrupt):
        again()
    assert len(list((tmp_path / "cells").iterdir())) == 3
    metrics = again()
    assert len(asked) == len(cells()) + 1 and asked.count(asked[0]) == 1
    assert metrics == json.loads((finished / "metrics.json").read_text())
    again()
    assert len(asked) == len(cells()) + 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_study_that_is_killed_outright_leaves_no_process_and_goes_on(finished: Path, tmp_path: Path) -> None:
    pids, out = tmp_path / "pids", tmp_path / "run"
    pids.mkdir()
    command = [sys.executable, "-m", "tests.studies.toy_grid", str(out)]
    with subprocess.Popen(command, env={**os.environ, toy_grid.PIDS: str(pids)}, start_new_session=True) as study:
        try:
            wait_for(lambda: out.joinpath("cells").is_dir() and len(list((out / "cells").iterdir())) >= 3)
        finally:
            study.kill()
    workers = [int(path.name) for path in pids.iterdir()]
    assert workers and study.pid not in workers
    wait_for(lambda: not any(alive(pid) for pid in workers))
    kept = len(list((out / "cells").glob("*.json")))
    assert 3 <= kept < len(cells())
    metrics = run(out, resume=True)
    assert metrics == json.loads((finished / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a group of processes is a thing of POSIX")
def test_ctrl_c_ends_the_workers_without_a_word_of_theirs(tmp_path: Path) -> None:
    pids, out = tmp_path / "pids", tmp_path / "run"
    pids.mkdir()
    command = [sys.executable, "-m", "tests.studies.toy_grid", str(out)]
    environment = {**os.environ, toy_grid.PIDS: str(pids)}
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True) as study:
        try:
            wait_for(lambda: out.joinpath("cells").is_dir() and len(list((out / "cells").iterdir())) >= 2)
            os.killpg(study.pid, signal.SIGINT)  # as a terminal sends it: to the study and to its workers
            _, said = study.communicate(timeout=60)
        finally:
            study.kill()
    # This script has no command line's sentence: one trace of its own, and none of a worker.
    assert said.count("Traceback") == 1 and "Process Spawn" not in said, said
    wait_for(lambda: not any(alive(int(path.name)) for path in pids.iterdir()))
    kept = len(list((out / "cells").glob("*.json")))
    assert 2 <= kept < len(cells())


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # one that ended, but that nobody waited for, is not alive
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_fails_is_named_and_the_others_stay(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(RuntimeError, match=r"cell hard-small-1 failed with RuntimeError: the loss is nan.*--resume"):
        run(tmp_path, ToyStudy(Toy(fails="hard-small-1")), jobs=jobs)
    assert len(list((tmp_path / "cells").iterdir())) >= 6
    assert not (tmp_path / "metrics.json").exists()


def test_another_study_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"toy\.fails"):
        run(finished, ToyStudy(Toy(fails="nothing")), resume=True)


def test_threads_and_random_state_are_put_back(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tmp_path)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("trace"), "has no 'trace'"),
        (lambda r: r["methods"].pop("ASWA"), "has no method 'ASWA'"),
        (lambda r: r["methods"]["SWA"].pop("validation"), "SWA has no part 'validation'"),
        (lambda r: r["methods"]["SWA"]["noise-3"].update(nll=math.nan), "nll of SWA on noise-3 is nan"),
        (lambda r: r["curves"]["SWA"]["test"].pop(), "the curve 'SWA' has columns of lengths"),
    ],
)
def test_a_broken_result_is_refused(change: Any, message: str) -> None:
    cell = cells()[0]
    result = run_cell(ToyStudy(), cell)
    change(result)
    with pytest.raises(ValueError, match=message):
        check_result(result, KIND, cell)


def test_tables_hold_the_seeds_of_each_pair(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    cell = metrics["table"]["hard"]["large"]["SWA"]["test"]["nll"]
    own = [run_cell(ToyStudy(), Cell("hard", "large", s))["methods"]["SWA"]["test"]["nll"] for s in toy_grid.SEEDS]
    assert cell["values"] == own and cell["n"] == 3
    expected = torch.tensor(own, dtype=torch.float64)
    assert (cell["mean"], cell["sd"]) == pytest.approx((expected.mean().item(), expected.std().item()))


def test_claims_are_told_in_the_direction_of_the_metric(finished: Path) -> None:
    claims = json.loads((finished / "metrics.json").read_text())["claims"]["SWA - SGD"]
    assert claims["accuracy"]["better"] == 6 and claims["nll"]["better"] == 0 and claims["nll"]["worse"] == 6
    means = [pair["mean"] for pair in claims["nll"]["pairs"]]
    assert claims["nll"]["p"] == pytest.approx(float(stats.wilcoxon(means).pvalue))
    assert claims["nll"]["p"] == pytest.approx(2 / 2**6)  # six differences of one sign, both tails


def test_the_gap_is_training_less_test(finished: Path) -> None:
    gaps = json.loads((finished / "metrics.json").read_text())["generalisation"]["plain"]["small"]["SGD"]["values"]
    own = [run_cell(ToyStudy(), Cell("plain", "small", s))["methods"]["SGD"] for s in toy_grid.SEEDS]
    assert gaps == pytest.approx([one["train"]["accuracy"] - one["test"]["accuracy"] for one in own])


def test_pairs_with_other_seeds_are_refused() -> None:
    results = {cell: run_cell(ToyStudy(), cell) for cell in cells() if cell.name != "hard-huge-2"}
    with pytest.raises(ValueError, match="the same seeds"):
        gather(KIND, results)


def test_an_interval_is_students() -> None:
    ours, theirs = [0.3, 0.5, 0.4, 0.7], [0.2, 0.1, 0.5, 0.3]
    found = gap(ours, theirs)
    test = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((test.low, test.high))
    assert gap([1.0], [0.0])["low"] is None and spread([1.0])["sd"] == 0.0


def test_one_large_difference_does_not_turn_a_verdict() -> None:
    found = signed_rank([1.2, *(-0.01 * step for step in range(1, 15))])
    assert found["mean"] > 0 and found["side"] == -1 and found["p"] < 0.05


def test_differences_of_zero_do_not_count() -> None:
    found = signed_rank([0.0, 0.0, 0.1, -0.2, 0.3])
    assert (found["above"], found["below"], found["equal"], found["n"]) == (2, 1, 2, 5)
    assert signed_rank([0.0, 0.0])["p"] == 1.0


def test_holms_correction_never_falls_and_stops_at_one() -> None:
    found = holm({"a": 0.5, "b": 0.02, "c": 0.6, "d": 0.01})
    assert found == pytest.approx({"d": 0.04, "b": 0.06, "a": 1.0, "c": 1.0})


@pytest.mark.parametrize("name", ["umls-complex", "umls-complex-x", "a-b-c-1", "UMLS-complex-0", "-complex-0"])
def test_names_that_are_no_cell(name: str) -> None:
    with pytest.raises(ValueError, match="cell"):
        Cell.named(name)
