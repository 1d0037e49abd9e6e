"""How places are measured: the model unchanged, several places in a pass, processes, journals, ranks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import applied, refresh_bn
from lowland.landscape import (
    Grid,
    Plane,
    Rays,
    Spectrum,
    Walk,
    Work,
    classification,
    exact,
    fast,
    frozen,
    line,
    load_result,
    measured,
    plane,
    rays,
    save_result,
    spectrum,
)
from lowland.landscape.working import Journal

from ..problems import Small
from . import many

ROOT = Path(__file__).resolve().parents[2]


def snapshot(model: nn.Module) -> list[tuple[int, int, Tensor]]:
    """Addresses and values of everything, also of what is not in the state dict."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(id(t), t.data_ptr(), t.detach().clone()) for t in tensors]


def unchanged(model: nn.Module, before: list[tuple[int, int, Tensor]], training: bool = True) -> bool:
    now = snapshot(model)
    same = all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(before, now, strict=True))
    plain = all("forward" not in module.__dict__ for module in model.modules())
    return same and plain and all(module.training == training for module in model.modules())


def images(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 4, generator=g), torch.randint(4, (8,), generator=g)) for _ in range(count)]


def failing(at: int, kind: type[BaseException]) -> Callable[..., Any]:
    calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        nonlocal calls
        found = classification(model, batch)
        calls += 1
        if calls == at:
            raise kind("stopped")
        return found

    return loss


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 5, 17, 40])
@pytest.mark.parametrize("make", [many.network, lambda: Small(seed=1)])
def test_the_model_is_unchanged_after_an_exception(
    make: Callable[[], nn.Module], at: int, kind: type[BaseException]
) -> None:
    model = make().train()
    w = many.three(model)
    data = images()
    # A function of one's own keeps passes for several places away, whose errors the loop decides upon.
    refresh = None if kind is KeyboardInterrupt and not isinstance(model, Small) else lambda m: refresh_bn(m, data)
    before = snapshot(model)
    with pytest.raises(kind):
        plane(Plane.through(*w), measured(model, data, failing(at, kind), refresh=refresh), points=5)
    assert unchanged(model, before)


@pytest.mark.parametrize("at", range(1, 12))
def test_ctrl_c_while_the_model_is_put_back(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowland.predict.plans import places

    calls = 0
    back = places.Places.back

    def interrupted(self: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt  # before any tensor has been put back
        back(self)

    monkeypatch.setattr(places.Places, "back", interrupted)
    model = many.network().train()
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        plane(Plane.through(*many.three(model)), measured(model, many.batches(), classification), points=21)
    assert unchanged(model, before)


def test_a_model_that_cannot_be_pointed_is_copied_into_and_put_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).train()
    whole = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    model[0].weight = nn.Parameter(whole[0])  # type: ignore[assignment]
    model[1].weight = nn.Parameter(whole[1])  # type: ignore[assignment]
    before = snapshot(model)
    w = many.three(model)
    measure = measured(model, images(), classification)
    found = plane(Plane.through(*w), measure, points=3)
    assert measure.plan == "copied" and unchanged(model, before)
    with applied(model, Plane.through(*w).at(found.x[0], found.y[0])), torch.no_grad():
        value = sum(classification(model.eval(), batch)["loss"].item() for batch in images()) / 3
    model.train()
    assert float(found.values["loss"][0, 0]) == pytest.approx(value, rel=1e-6)
    with pytest.raises(KeyboardInterrupt):
        plane(Plane.through(*w), measured(model, images(), failing(4, KeyboardInterrupt)), points=3)
    assert unchanged(model, before)


def test_several_places_in_one_pass_give_the_loops_values() -> None:
    model = many.network()
    p = Plane.through(*many.three(model))
    together, alone = measured(model, many.batches(), classification), measured(model, many.batches(), classification)
    before = snapshot(model)
    got = plane(p, together, points=9).values
    wanted = plane(p, lambda w: alone(w), points=9).values
    assert (together.plan, alone.plan) == ("together", "pointed") and unchanged(model, before)
    assert torch.allclose(got["loss"], wanted["loss"], atol=1e-5) and torch.equal(got["error"], wanted["error"])
    ends = many.three(model)[:2]
    walked, wanted_on_it = line(*ends, together, points=9), line(*ends, lambda w: alone(w), points=9)
    assert walked.values["loss"] == pytest.approx(wanted_on_it.values["loss"], abs=1e-5)


def test_a_loss_that_reads_weights_itself_is_not_given_another_places() -> None:
    def decayed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return classification(model, batch)["loss"] + sum(p.square().sum() for p in model.parameters())

    model = many.network()
    p = Plane.through(*many.three(model))
    together, alone = measured(model, many.batches(), decayed), measured(model, many.batches(), decayed)
    got, wanted = plane(p, together, points=5), plane(p, lambda w: alone(w), points=5)
    assert together.plan == "pointed" and torch.equal(got.values["loss"], wanted.values["loss"])


def test_places_without_a_finite_value_are_the_loops() -> None:
    def steep(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = model(batch[0])
        return (out * 1e38).square().mean() if float(out.mean()) > 0 else out.mean()

    model = many.network()
    p = Plane.through(*many.three(model))
    got = plane(p, measured(model, many.batches(), steep), points=9)
    alone = measured(model, many.batches(), steep)
    wanted = plane(p, lambda w: alone(w), points=9)
    assert bool(torch.isinf(wanted.values["loss"]).any()) and bool(torch.isfinite(wanted.values["loss"]).any())
    assert torch.allclose(got.values["loss"], wanted.values["loss"], atol=1e-5)


def test_large_batches_are_run_one_place_after_the_other() -> None:
    model = many.network()
    measure = measured(model, many.batches(rows=600, count=1), classification)
    plane(Plane.through(*many.three(model)), measure, points=3)
    assert measure.plan == "pointed"


def test_batchnorm_is_refreshed_frozen_or_estimated() -> None:
    model = Small(seed=2)
    refresh_bn(model, [x for x, _ in images()])
    p = Plane.through(*many.three(model))
    data, batches = images(4), [x for x, _ in images(4)]
    before = snapshot(model)

    def found(refresh: Any) -> Tensor:
        return plane(p, measured(model, data, classification, refresh=refresh), points=5).values["loss"]

    whole, few, same = found(exact(batches)), found(fast(model, p.at(0.0, 0.0), batches, few=4)), found(frozen())
    assert unchanged(model, before)
    assert torch.allclose(whole, few, atol=1e-5)  # all four batches: the estimate is exact
    assert not torch.allclose(whole, same, atol=1e-2)
    two = found(fast(model, p.at(0.0, 0.0), batches, few=2))
    assert float((two - whole).abs().mean()) < float((same - whole).abs().mean())
    with pytest.raises(ValueError, match="belong to other weights"):
        found(None)
    assert "control variate" in str(fast(model, p.at(0.0, 0.0), batches)) and "frozen" in str(frozen())


def test_several_sets_share_one_refresh() -> None:
    model, refreshed = Small(seed=2), []
    data = {"train": images(2), "test": images(4)[2:]}

    def refresh(model: nn.Module) -> None:
        refreshed.append(1)
        refresh_bn(model, [x for x, _ in data["train"]])

    found = plane(Plane.through(*many.three(model)), measured(model, data, classification, refresh=refresh), points=3)
    assert list(found.values) == ["train loss", "train error", "test loss", "test error"] and len(refreshed) == 9
    alone = measured(model, data["test"], classification, refresh=refresh)
    assert (
        alone(Plane.through(*many.three(model)).at(found.x[0], found.y[0]))["loss"] == found.values["test loss"][0, 0]
    )
    with pytest.raises(ValueError, match="'test' is empty"):
        measured(many.network(), {"train": images(), "test": []}, classification)(many.three(many.network())[0])


@pytest.mark.slow
def test_several_processes_give_the_same_values() -> None:
    p = Plane.through(*many.three(many.network()))
    done: list[tuple[int, int]] = []
    got = plane(p, many.measure(), points=5, work=Work(jobs=2, progress=lambda *d: done.append(d)))
    wanted = plane(p, many.measure(), points=5)
    assert all(torch.allclose(got.values[name], wanted.values[name], atol=1e-6) for name in wanted.values)
    assert done[-1] == (25, 25)


def test_what_cannot_be_sent_to_other_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be pickled"):
        plane(Plane.through(*many.three(many.network())), lambda w: 0.0, points=3, work=Work(jobs=2))


def test_a_killed_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = tmp_path / "grid.jsonl"
    killed = subprocess.run(
        [sys.executable, "-m", "tests.landscape.many", str(journal), "12"], cwd=ROOT, env=os.environ, timeout=120
    )
    assert killed.returncode == -9
    kept = journal.read_bytes()
    assert kept.count(b"\n") == 1 + 12
    journal.write_bytes(kept[:-5])  # and the last line was cut off
    asked: list[int] = []

    def counted(weights: dict[str, Tensor]) -> float:
        asked.append(0)
        return float(weights["0.weight"].sum())

    p = Plane.through(*many.three(many.network()))
    found = plane(p, counted, points=5, work=Work(keep=journal))
    assert len(asked) == 25 - 11
    assert torch.equal(found.values["loss"], plane(p, counted, points=5).values["loss"])
    plane(p, counted, points=5, work=Work(keep=journal))
    assert len(asked) == 14 + 25
    other = Plane.through(*reversed(many.three(many.network())))
    with pytest.raises(ValueError, match="another plane, data or model"):
        plane(other, counted, points=5, work=Work(keep=journal))


def test_rays_have_a_journal_too(tmp_path: Path) -> None:
    w = {"w": torch.ones(3)}
    asked: list[int] = []

    def counted(weights: dict[str, Tensor]) -> float:
        asked.append(0)
        return float("nan") if len(asked) == 2 else float(weights["w"].square().sum())

    def run() -> Rays:
        work = Work(keep=tmp_path / "rays.jsonl")
        return rays(w, counted, directions=3, places=[1.0, 2.0], generator=torch.Generator().manual_seed(0), work=work)

    one, two = run(), run()
    assert len(asked) == 9 and torch.equal(one.values["loss"].nan_to_num(), two.values["loss"].nan_to_num())
    assert bool(two.values["loss"].isnan().any())
    first = json.loads((tmp_path / "rays.jsonl").read_text().splitlines()[1])
    assert first["at"] == [0.0, 0.0]


def test_a_journal_is_closed_after_an_error(tmp_path: Path) -> None:
    def broken(weights: dict[str, Tensor]) -> float:
        raise RuntimeError("no")

    p = Plane.through(*many.three(many.network()))
    with pytest.raises(RuntimeError, match="no"):
        plane(p, broken, points=3, work=Work(keep=tmp_path / "j"))
    journal = Journal(tmp_path / "j", {"ground": p.frame.digest()})
    journal.close()
    assert journal.known == {}


def test_work_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        Work(ranks=True)
    p = Plane.through(*many.three(many.network()))
    values = iter([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ValueError, match="before that"):
        plane(p, lambda w: next(values), points=(2, 2))
    with pytest.raises(ValueError, match="no numbers"):
        plane(p, lambda w: {}, points=2)


@pytest.mark.slow
def test_ranks_share_the_places(tmp_path: Path) -> None:
    script = f"""
import sys, torch, torch.distributed as dist
from tests.landscape import many
from lowland.landscape import Plane, Work, plane
dist.init_process_group("gloo", init_method="file://{tmp_path}/meeting", rank=int(sys.argv[1]), world_size=2)
p, measure, asked = Plane.through(*many.three(many.network())), many.measure(), []
def counted(w):
    asked.append(0)
    return measure(w)
found = plane(p, counted, points=3, work=Work(ranks=True))
torch.save(found.values, "{tmp_path}/" + sys.argv[1] + ".pt")
assert len(asked) in (4, 5), asked
dist.destroy_process_group()
"""
    ranks = [subprocess.Popen([sys.executable, "-c", script, str(r)], cwd=ROOT) for r in (0, 1)]
    try:
        assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    one, other = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    wanted = plane(Plane.through(*many.three(many.network())), many.measure(), points=3).values
    for name, values in wanted.items():
        assert torch.equal(one[name], other[name]) and torch.allclose(one[name], values, atol=1e-6)


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    model = many.network()
    w = many.three(model)
    grid = plane(Plane.through(*w), many.measure(), points=5, work=Work(about={"model": "mlp"}))
    grid = dataclasses.replace(grid, draws=((0.5, 0.25), (1.0, 2.0)))
    walk = line(*w[:2], many.measure(), points=3)
    found = rays(w[0], many.measure(), directions=2, places=[1.0])
    bent = spectrum(model, w[0], many.batches(), classification, steps=3, probes=2)
    for result in (grid, walk, found, bent):
        save_result(result, tmp_path / "r.safetensors", {"data": "random"})
        again, about = load_result(tmp_path / "r.safetensors")
        assert type(again) is type(result) and about["data"] == "random"
        for name, value in vars(result).items():
            other = getattr(again, name)
            if isinstance(value, Tensor):
                assert torch.equal(value.double(), other.double())
            elif isinstance(value, dict) and value and isinstance(next(iter(value.values())), Tensor):
                assert all(torch.equal(tensor, other[key]) for key, tensor in value.items())
            elif name not in ("about", "vectors"):
                assert value == other, name
    assert isinstance(grid, Grid) and isinstance(walk, Walk) and isinstance(bent, Spectrum)
    (tmp_path / "r.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="no whole safetensors"):
        load_result(tmp_path / "r.safetensors")
    from lowland import save

    save({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="holds no result"):
        load_result(tmp_path / "w.safetensors")
