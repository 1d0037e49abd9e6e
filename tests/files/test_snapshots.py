"""SnapshotFiles: the window by number, one member in memory, own BatchNorm statistics, resumed runs and errors."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from lowland import Mixture, Snapshots, applied
from lowland.averager import Finite, Posterior, Streamed, draws, members_of
from lowland.files import SnapshotFiles
from lowland.files import snapshots as snapshot_files
from lowland.predict import predict
from lowland.weights.named import floating


def filled(folder: Path, values: list[float], k: int | None = None) -> SnapshotFiles:
    ensemble = SnapshotFiles(folder, k)
    for value in values:
        ensemble.update({"w": torch.tensor([value])})
    return ensemble


def values(ensemble: SnapshotFiles) -> list[float]:
    return [member["w"].item() for member in ensemble.members()]


@pytest.mark.parametrize("k", [1, 3, 7, None])
def test_it_is_snapshots_in_files(k: int | None, tmp_path: Path) -> None:
    path = [float(step * step) for step in range(6)]
    ensemble, ring = filled(tmp_path / "run", path, k), Snapshots(k or 6)
    for value in path:
        ring.update({"w": torch.tensor([value])})
    assert values(ensemble) == [member["w"].item() for member in ring.members()] == path[-(k or 6) :]
    assert torch.equal(ensemble.mean()["w"], ring.mean()["w"])
    for n in (None, 1, 4, 9):
        drawn = [one.sample(n, generator=torch.Generator().manual_seed(0))["w"] for one in (ensemble, ring)]
        assert torch.equal(*drawn)
    assert ensemble.count == len(list((tmp_path / "run").iterdir())) == min(6, k or 6)
    assert isinstance(ensemble, Posterior) and isinstance(ensemble, Finite) and isinstance(ensemble, Streamed)
    assert len(list(draws(ensemble, None))) == ensemble.count


def test_one_member_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = filled(tmp_path, [1.0, 2.0, 3.0, 4.0])
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def reading(path: Path) -> dict[str, torch.Tensor]:
        nonlocal most
        weights = load(path)
        alive.append(weakref.ref(weights["w"]))
        most = max(most, sum(ref() is not None for ref in alive))
        return weights

    load = snapshot_files.load
    monkeypatch.setattr(snapshot_files, "load", reading)
    members = ensemble.members()
    assert len(members) == 4 and not alive
    assert members[-1]["w"].item() == 4.0 and len(alive) == 1
    for call in (ensemble.mean, lambda: [None for _ in ensemble.draws(4)], lambda: sum(1 for _ in ensemble.members())):
        alive.clear()
        call()
        # The one that is read, while the one before it is still named by the loop.
        assert len(alive) == 4 and most <= 2
    assert [w["w"].item() for w in members[1:3]] == [2.0, 3.0]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_members_predict_with_their_own_batchnorm_statistics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model, ensemble = network(), SnapshotFiles(tmp_path)
    x = torch.randn(10, 3, generator=generator)
    expected = torch.zeros(10, 2, dtype=torch.float64)
    for step in range(3):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand(tensor.shape, generator=generator))
        ensemble.update(model, step)
        with torch.no_grad():
            expected += model.eval()(x).double().softmax(-1) / 3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ensemble.select is floating and "1.running_var" in ensemble.members()[0]
    found = predict(model, ensemble, [x[:6], x[6:]])
    assert found.samples == 3 and torch.allclose(found.probs, expected, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # Parameters alone would all be used with the statistics of the last.
    ring = Snapshots(3)
    for member in ensemble.members():
        with applied(model, member):
            ring.update(model)
    with pytest.warns(UserWarning, match="the BatchNorm layer 1 belong to other weights"):
        parameters = predict(model, ring, [x])
    assert not torch.allclose(parameters.probs, expected, atol=1e-3)


def test_the_folder_is_the_state(tmp_path: Path) -> None:
    first = SnapshotFiles(tmp_path, k=3)
    for step in (10, 20, 30):
        first.update({"w": torch.tensor([float(step)])}, step)
    again = SnapshotFiles(tmp_path, k=3)
    # Resumed from before step 30: it is written anew and not twice.
    again.update({"w": torch.tensor([31.0])}, 30)
    again.update({"w": torch.tensor([40.0])}, 40)
    (tmp_path / "notes.txt").write_text("mine")
    assert again.steps == first.steps == [20, 30, 40] and values(again) == [20.0, 31.0, 40.0]
    again.update({"w": torch.tensor([50.0])})
    assert again.steps[-1] == 41 and (tmp_path / "notes.txt").exists()
    assert repr(again) == f"SnapshotFiles({str(tmp_path)!r}, k=3) of 3 members"


def test_members_left_by_a_stop_before_removal_are_not_used(tmp_path: Path) -> None:
    filled(tmp_path, [1.0, 2.0, 3.0])
    short = SnapshotFiles(tmp_path, k=2)
    assert short.steps == [1, 2] and values(short) == [2.0, 3.0]
    short.update({"w": torch.tensor([4.0])})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"member-00000000{step}.safetensors" for step in (2, 3)]


def test_a_mixture_takes_it(tmp_path: Path) -> None:
    mixture = Mixture([filled(tmp_path / "a", [1.0, 2.0]), filled(tmp_path / "b", [5.0, 6.0])])
    points = members_of(mixture)
    assert points is not None and [w["w"].item() for w in points] == [1.0, 2.0, 5.0, 6.0]


def test_what_is_refused_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    ensemble = SnapshotFiles(tmp_path / "run", k=2)
    for call in (ensemble.members, ensemble.mean, ensemble.sample, lambda: ensemble.draws(2)):
        with pytest.raises(RuntimeError, match="run has no members yet: call update"):
            call()
    assert not (tmp_path / "run").exists() and ensemble.steps == []
    for step in (5, 6):
        ensemble.update({"w": torch.zeros(2)}, step)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for weights, step, said in (
        ({"w": torch.tensor([1.0, float("nan")])}, 7, "step 7 is refused.*w holds a NaN"),
        ({"v": torch.zeros(2)}, 7, "name different tensors|missing"),
        ({"w": torch.zeros(3)}, 7, "shape"),
        ({"w": torch.zeros(2)}, 4, r"step 4 is before the latest 2 members \[5, 6\]"),
        ({"w": torch.zeros(2)}, -1, "step must be a whole number of at least 0, got -1"),
        ({}, 7, "update got no tensors"),
    ):
        with pytest.raises(ValueError, match=said):
            ensemble.update(weights, step)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got 0"):
        ensemble.draws(0)
    for k in (0, True, 2.0):
        with pytest.raises(ValueError, match="k must be None to keep all, or a whole number of at least 1"):
            SnapshotFiles(tmp_path, k)  # type: ignore[arg-type]


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    ensemble = filled(tmp_path, [1.0, 2.0])
    (tmp_path / "member-000000001.safetensors").write_bytes(b"no tensors")
    assert ensemble.members()[0]["w"].item() == 1.0
    with pytest.raises(ValueError, match="member-000000001.safetensors"):
        ensemble.mean()
