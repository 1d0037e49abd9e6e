"""The GPU pack at toy size on a CPU: slices end where the whole run ends, and every piece leaves its files."""

import dataclasses
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmarks import harness


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts as they import one another, taken away again afterwards."""
    names = ("gpu_training", "gpu_merge", "updates", "draws", "gpu_speeds", "gpu")
    monkeypatch.setitem(sys.modules, "harness", harness)
    monkeypatch.syspath_prepend(str(Path(harness.__file__).parent))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: importlib.import_module(name) for name in names}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(harness._STATE, "device", "cpu")
    monkeypatch.setitem(harness._STATE, "out", None)
    monkeypatch.setitem(harness._STATE, "quick", False)
    return found


def test_training_in_slices_is_the_training_of_one_go(
    pack: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = pack["gpu_training"]
    monkeypatch.setattr(training, "DRAWS", 3)
    recipe = dataclasses.replace(training.TOYS["preresnet110"], budget=2, start=2)
    jobs = [training.Job("toy", recipe, 1, training.toy("cpu"), tmp_path / part, False) for part in ("one", "many")]
    with torch.random.fork_rng():
        assert jobs[0].advance(time.monotonic() + 600)
        # A clock by which every epoch and draw takes ten seconds: each call gets about two of them done.
        hand = iter(range(0, 1_000_000, 10))
        monkeypatch.setattr(training.time, "monotonic", lambda: float(next(hand)))
        calls = 0
        while not jobs[1].advance(next(hand) + 45):
            calls += 1
            assert calls < 40, "no call gets further"
    assert calls > 5
    files = [sorted(path.name for path in job.folder.iterdir()) for job in jobs]
    assert files[0] == files[1] == ["sgd-long.npz", "sgd.npz", "swa-1.25.npz", "swa-1.5.npz", "swa-1.npz", "swag.npz"]
    for name in files[0]:
        with np.load(jobs[0].folder / name) as whole, np.load(jobs[1].folder / name) as sliced:
            assert np.array_equal(whole["probs"], sliced["probs"]), name
            assert whole["probs"].shape == (32, 4) and np.allclose(whole["probs"].sum(1), 1, atol=1e-5)


def test_ensembles_are_of_the_seeds_that_are_there(pack: dict[str, ModuleType], tmp_path: Path) -> None:
    labels = np.array([0, 1])
    for seed, sure in ((1, 0.8), (2, 0.6)):
        folder = tmp_path / f"vgg16-{seed}"
        folder.mkdir()
        probs = np.array([[sure, 1 - sure], [1 - sure, sure]], dtype=np.float32)
        np.savez(folder / "sgd.npz", probs=probs, labels=labels, train_accuracy=1.0, seconds=3.0)
    rows = pack["gpu_merge"].rows_of(sorted(tmp_path.iterdir()))
    assert [row["method"] for row in rows] == ["SGD", "deep ensemble of 2"]
    wanted = (-np.log(0.8) - np.log(0.6)) / 2
    assert rows[0]["seeds"] == 2 and float(str(rows[0]["NLL"]).split()[0]) == pytest.approx(wanted, abs=1e-4)
    assert rows[1]["NLL"] == f"{-np.log(0.7):.4g}" and rows[1]["budgets"] == "2 x 1"


@pytest.mark.slow
def test_a_dry_run_measures_merges_and_is_not_repeated(
    pack: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(pack["gpu_speeds"], "ROUNDS", 2)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # put back what the script sets
    wanted = ["updates", "draws", "batchnorm", "prediction", "vgg16-1"]
    line = ["gpu.py", "--dry-run", "--eager", "--state", str(tmp_path), "--only", *wanted]
    monkeypatch.setattr(sys, "argv", line)
    with torch.random.fork_rng():
        assert pack["gpu"].main() == 0
    assert capsys.readouterr().out.endswith("all done\n")
    written = {path.name for path in (tmp_path / "results").glob("*.md")}
    assert written == {f"{name}.md" for name in [*wanted[:4], "gpu_training"]}
    monkeypatch.setattr(pack["gpu"], "one", lambda *_: pytest.fail("a finished piece was repeated"))
    assert pack["gpu"].main() == 0
    monkeypatch.setattr(sys, "argv", [*line, "nothing"])
    with pytest.raises(SystemExit, match="no piece 'nothing': choose from tests, updates"):
        pack["gpu"].main()
