"""refresh_bn against hand-made numbers, the papers' procedure and torch's update_bn; restoration; bad input."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import SWAG, applied, predict
from lowland.batchnorm import FastRefresh, bn_reference, refresh_bn

from ..reference.batchnorm import naive_refresh

TOY = [torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[10.0], [14.0]])]


def convolutional(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.BatchNorm1d(5, momentum=0.3),
    )
    with torch.no_grad():  # statistics that a wrong restoration would show
        for buffer in model.buffers():
            buffer.add_(5)
    return model


def images(sizes: tuple[int, ...] = (8, 8, 3)) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 6, 6, generator=g) + i for i, n in enumerate(sizes)]


def state(model: nn.Module) -> dict[str, Any]:
    layers = {name: m for name, m in model.named_modules()}
    return {
        "tensors": copy.deepcopy(model.state_dict()),
        "modes": {name: m.training for name, m in layers.items()},
        "momenta": {name: m.momentum for name, m in layers.items() if hasattr(m, "momentum")},
        "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in layers.items()},
    }


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("modes", "momenta", "hooks"):
        assert got[key] == wanted[key]
    for name, tensor in wanted["tensors"].items():
        assert torch.equal(got["tensors"][name], tensor), name


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weighting", "mean", "var"), [("samples", 5.0, 3.777778), ("batches", 6.75, 4.833333)])
def test_toy(weighting: Any, mean: float, var: float) -> None:  # METHODS 17.8
    model = nn.BatchNorm1d(1)
    refresh_bn(model, TOY, weighting=weighting)
    assert model.running_mean.item() == pytest.approx(mean, abs=1e-6)
    assert model.running_var.item() == pytest.approx(var, abs=1e-6)
    assert model.num_batches_tracked.item() == 2


def test_samples_equal_the_papers_procedure() -> None:
    model = convolutional()
    twin = copy.deepcopy(model)
    refresh_bn(model, images())
    naive_refresh(twin, images())
    for (name, got), wanted in zip(model.named_buffers(), twin.buffers(), strict=True):
        if got.is_floating_point():
            torch.testing.assert_close(got, wanted, msg=name)


def test_batches_equal_update_bn() -> None:
    model = convolutional()
    twin = copy.deepcopy(model)
    refresh_bn(model, images(), weighting="batches")
    torch.optim.swa_utils.update_bn(images(), twin)
    for (name, got), wanted in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, wanted, msg=name)


def test_equal_batches_make_the_weightings_equal_and_order_does_not_matter() -> None:
    one, two, three = convolutional(), convolutional(), convolutional()
    refresh_bn(one, images((4, 4, 4)))
    refresh_bn(two, images((4, 4, 4)), weighting="batches")
    refresh_bn(three, images((4, 4, 4))[::-1])
    for a, b, c in zip(one.buffers(), two.buffers(), three.buffers(), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_half_precision_statistics_do_not_stall() -> None:
    """A running average in bfloat16 stops moving once 1/n of the step rounds away; sums in float64 do not."""
    model = nn.BatchNorm1d(1).bfloat16()
    refresh_bn(model, [torch.tensor([[k - 1.0], [k + 1.0]]).bfloat16() for k in range(512) if k < 256])
    assert model.running_mean.item() == pytest.approx(127.5, rel=2**-8)


def test_stale_statistics_that_are_not_finite_are_replaced() -> None:
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(torch.nan)
    model.running_var.fill_(torch.inf)
    refresh_bn(model, TOY)
    assert model.running_mean.item() == pytest.approx(5.0)


def test_max_batches_reads_no_further() -> None:
    model, read = nn.BatchNorm1d(1), []

    def stream() -> Iterator[Tensor]:
        for batch in TOY:
            read.append(batch)
            yield batch

    refresh_bn(model, stream(), max_batches=1)
    assert len(read) == 1 and model.running_mean.item() == pytest.approx(1.5)


# --- what is touched and what is not -------------------------------------------------------------------------------


def test_only_running_statistics_change() -> None:
    model = convolutional().train()
    model[2].eval()  # a mode of its own comes back too
    before = state(model)
    refresh_bn(model, images())
    after = state(model)
    changed = {name for name, t in before["tensors"].items() if not torch.equal(t, after["tensors"][name])}
    wanted = {"running_mean", "running_var", "num_batches_tracked"}
    assert {name.split(".")[1] for name in changed} == wanted and len(changed) == 6
    for key in ("modes", "momenta", "hooks"):
        assert after[key] == before[key]
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off() -> None:
    """torch's update_bn leaves it on: a constant input then gets a variance of about one."""
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1)).train()
    refresh_bn(model, [torch.ones(8, 1), torch.ones(8, 1)])
    assert model[1].running_var.item() == 0.0 and model[1].running_mean.item() == 1.0


def test_no_graph_is_built() -> None:
    model = convolutional()
    seen = []
    refresh_bn(model, images(), forward=lambda m, batch: seen.append(m(batch).requires_grad))
    assert seen == [False] * 3


def test_without_batchnorm_nothing_is_read() -> None:
    def stream() -> Iterator[Tensor]:
        raise AssertionError("read")
        yield

    refresh_bn(nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1)), stream())
    refresh_bn(nn.BatchNorm1d(1, track_running_stats=False), stream())


@pytest.mark.parametrize("training", [True, False])
def test_an_exception_leaves_everything_as_it_was(training: bool) -> None:
    model = convolutional().train(training)
    before = state(model)

    def stream() -> Iterator[Tensor]:
        yield images()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh_bn(model, stream())
    assert_same(state(model), before)


def test_a_layer_that_is_not_reached_keeps_its_statistics() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
            self.idle.running_mean.fill_(7.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Branches()
    refresh_bn(model, TOY)
    assert model.used.running_mean.item() == pytest.approx(5.0)
    assert model.idle.running_mean.item() == 7.0 and model.idle.running_var.item() == 1.0


def test_a_layer_used_twice_averages_over_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(x + 2)

    model = Twice()
    refresh_bn(model, TOY)
    assert model.bn.running_mean.item() == pytest.approx(6.0)


def test_momentum_none_and_sync_batchnorm() -> None:
    for layer in (nn.BatchNorm1d(1, momentum=None), nn.SyncBatchNorm(1)):
        momentum = layer.momentum
        refresh_bn(layer, TOY)
        assert layer.running_mean.item() == pytest.approx(5.0) and layer.momentum == momentum


# --- batches of any structure --------------------------------------------------------------------------------------


def test_tuples_mappings_and_forward() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(1)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.bn(x)

    ways: list[tuple[list[Any], Any]] = [
        ([(b, torch.zeros(len(b))) for b in TOY], None),
        ([[b, "anything"] for b in TOY], None),
        ([{"x": b, "labels": torch.zeros(len(b))} for b in TOY], None),
        ([{"deep": {"x": b}} for b in TOY], lambda model, batch: model(batch["deep"]["x"])),
    ]
    for batches, forward in ways:
        model = Keyword()
        refresh_bn(model, batches, forward=forward)
        assert model.bn.running_mean.item() == pytest.approx(5.0)


@pytest.mark.slow
def test_a_compiled_or_wrapped_model_is_unwrapped() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    refresh_bn(torch.compile(model, backend="eager"), TOY)  # type: ignore[arg-type]
    assert model[0].running_mean.item() == pytest.approx(5.0)


# --- ranks ---------------------------------------------------------------------------------------------------------

RANK = """
import sys
import torch, torch.distributed as dist
from torch import nn
from lowland.batchnorm import refresh_bn
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
shards = [[torch.tensor([[0.0], [1.0], [2.0], [3.0]])], [torch.tensor([[10.0], [14.0]])]]
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.w = nn.BatchNorm1d(1), nn.BatchNorm1d(1), nn.Parameter(torch.zeros(1))
    def forward(self, x):
        return self.b(x + 1) + self.a(x) + self.w
model = nn.parallel.DistributedDataParallel(Two())
for weighting, mean, var in (("samples", 5.0, 3.777778), ("batches", 6.75, 4.833333)):
    refresh_bn(model, shards[rank], weighting=weighting)
    for bn, shift in ((model.module.a, 0), (model.module.b, 1)):
        assert abs(bn.running_mean.item() - mean - shift) < 1e-5, bn.running_mean
        assert abs(bn.running_var.item() - var) < 1e-5, bn.running_var
        assert bn.num_batches_tracked.item() == 2
refresh_bn(model, shards[0] if rank == 0 else [])          # a rank without batches is no error
assert abs(model.module.a.running_mean.item() - 1.5) < 1e-6
try:
    refresh_bn(model, [])
except ValueError as error:
    assert "no batches" in str(error)
else:
    raise SystemExit("no rank had a batch, and nobody said so")
assert abs(model.module.a.running_mean.item() - 1.5) < 1e-6
refresh_bn(model, shards[rank], synchronise=False)
assert abs(model.module.a.running_mean.item() - (1.5, 12.0)[rank]) < 1e-6
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_see_the_batches_of_both(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for run in runs:
        _, stderr = run.communicate(timeout=900)
        assert run.returncode == 0, stderr


def test_sums_of_ranks_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that plays two: a second rank that saw the same sums doubles them and changes no average."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    model = nn.BatchNorm1d(1)
    refresh_bn(model, TOY)
    assert model.running_mean.item() == pytest.approx(5.0) and model.num_batches_tracked.item() == 4


# --- bad input -----------------------------------------------------------------------------------------------------


def empty_stream() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("batches", "arguments", "says"),
    [
        ([], {}, "got no batches: pass a loader that is neither empty nor used up"),
        (empty_stream(), {}, "got no batches"),
        ([TOY[0], torch.ones(1, 1)], {}, r"got one value per channel, shape \(1, 1\).*drop_last=True"),
        ([TOY[0], torch.full((2, 1), torch.nan)], {}, "statistics of BatchNorm1d are not finite: look for NaN"),
        (TOY, {"weighting": "sample"}, 'weighting must be "samples" or "batches", got \'sample\''),
        (TOY, {"max_batches": 0}, "max_batches must be at least 1 or None, got 0"),
        (TOY, {"forward": lambda model, batch: None}, r"no batch reached a BatchNorm layer of BatchNorm1d: forward="),
        ([3.0], {}, "a batch must be a tensor, .* got float: pass forward="),
    ],
)
def test_bad_input_changes_nothing(batches: Any, arguments: Any, says: str) -> None:
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(3.0)
    before = state(model)
    with pytest.raises(ValueError, match=says) as error:
        refresh_bn(model, batches, **arguments)
    assert "\n" not in str(error.value)
    assert_same(state(model), before)


def test_a_lazy_layer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="1 is lazy and has no shape yet: run one forward pass first"):
        refresh_bn(nn.Sequential(nn.Identity(), nn.LazyBatchNorm1d()), TOY)


# --- frozen layers and short types ---------------------------------------------------------------------------------


def eval_in_training(model: nn.Sequential) -> None:
    model.train()[1].eval()


def no_momentum(model: nn.Sequential) -> None:
    model.train()[1].momentum = 0.0


def no_gradients(model: nn.Sequential) -> None:
    model.eval()[1].requires_grad_(False)


def whole_eval(model: nn.Sequential) -> None:
    model.eval()


def training_without_gradients(model: nn.Sequential) -> None:
    model.train()[1].requires_grad_(False)


def dropout_alone(model: nn.Sequential) -> None:
    model.eval()[4].train()


@pytest.mark.parametrize(
    ("prepare", "frozen"),
    [
        (eval_in_training, True),
        (no_momentum, True),
        (no_gradients, True),
        (whole_eval, False),
        (training_without_gradients, False),
        (dropout_alone, False),
    ],
)
def test_frozen_layers_keep_their_statistics(prepare: Callable[[nn.Sequential], None], frozen: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model, batches = nn.Sequential(*layers), [torch.randn(8, 3) for _ in range(3)]
    prepare(model)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    refresh_bn(model, batches)
    after = model.state_dict()
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(before[f"1.{key}"], after[f"1.{key}"]) == frozen
        assert not torch.equal(before[f"3.{key}"], after[f"3.{key}"])
    assert [module.training for module in model.modules()] == modes
    # The same in predict, which runs in eval mode throughout, and for a reference's few batches.
    posterior = SWAG(rank=2)
    for _ in range(3):
        posterior.update({"0.weight": torch.randn(4, 3)})
    twin = copy.deepcopy(model)
    for bn_batches in (batches, FastRefresh(batches, tolerance=0.0)):
        got = predict(model, posterior, batches, samples=2, bn_batches=bn_batches, generator=torch.Generator())
        wanted = []
        for weights in posterior.draws(2, generator=torch.Generator()):
            with applied(twin, weights), torch.no_grad():
                refresh_bn(twin, batches)
                logits = copy.deepcopy(twin).eval()(torch.cat(batches))
                wanted.append(torch.softmax(logits.double(), 1))
        assert torch.allclose(got.probs, torch.stack(wanted).mean(0), atol=1e-6)


def test_a_model_whose_layers_are_all_frozen_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    for refresh in (refresh_bn, bn_reference):
        with pytest.warns(UserWarning, match=r"all BatchNorm layers are frozen and keep their statistics \(1\)"):
            refresh(model, [torch.randn(8, 3)])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighting", ["samples", "batches"])
def test_statistics_of_short_types_are_measured_in_float32(dtype: torch.dtype, weighting: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [(3 + 0.5 * torch.randn(8, 4, 5, 5, generator=generator)).to(dtype) for _ in range(100)]
    model, wide = nn.Sequential(nn.BatchNorm2d(4)).to(dtype), nn.Sequential(nn.BatchNorm2d(4))
    refresh_bn(model, batches, weighting=weighting)
    refresh_bn(wide, [batch.float() for batch in batches], weighting=weighting)
    for got, exact in zip(model.buffers(), wide.buffers(), strict=True):
        assert torch.equal(got, exact.to(got.dtype))  # rounded once
