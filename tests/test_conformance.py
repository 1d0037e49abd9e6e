"""Every law of the design, on every averager and every posterior of `conformance.py`."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import lowland
from lowland import applied, copy_to, weights_of
from lowland.averager import Averager, Finite, Posterior
from lowland.population import Population
from lowland.weights.named import trainable

from .conformance import AVERAGERS, MOVES_THE_MEAN, POPULATIONS, POSTERIORS, Method
from .population.models import Net
from .problems import Small, walk

averagers = pytest.mark.parametrize("method", AVERAGERS.values(), ids=AVERAGERS.keys())
posteriors = pytest.mark.parametrize("name", POSTERIORS.keys())


def flat_state(averager: Averager) -> dict[str, Tensor]:
    return {f"{slot}/{n}": t for slot, named in averager.state_dict()["slots"].items() for n, t in named.items()}


def assert_same_state(one: Averager, two: Averager) -> None:
    assert one.count == two.count
    assert one.state_dict()["scalars"] == two.state_dict()["scalars"]
    first, second = flat_state(one), flat_state(two)
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype
        assert torch.equal(first[key], second[key]), key


def run(averager: Averager, path: list[dict[str, Tensor]]) -> Averager:
    for weights in path:
        averager.update(weights)
    return averager


@averagers
def test_first_update_equals_the_weights(method: Method) -> None:
    model = Small()
    averager = method()
    averager.update(model)
    mean = averager.mean()
    assert mean.keys() == weights_of(model).keys()
    for name, weight in weights_of(model).items():
        assert torch.equal(mean[name], weight)


@averagers
def test_a_slot_called_mean_is_the_mean(method: Method) -> None:
    """A teacher runs with it, without a copy."""
    averager = run(method(), walk(5))
    held = averager.state_dict()["slots"].get("mean")
    if held is not None:
        assert all(torch.equal(tensor, averager.mean()[name]) for name, tensor in held.items())


@averagers
def test_the_model_is_left_untouched(method: Method) -> None:
    model = Small()
    before = copy.deepcopy(model.state_dict())
    averager = method()
    averager.update(model)
    averager.update(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training


@averagers
def test_the_state_owns_its_memory(method: Method) -> None:
    model = Small()
    averager = method()
    averager.update(model)
    taken, mean = averager.state_dict(), averager.mean()
    kept = copy.deepcopy(taken["slots"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for slot, named in averager.state_dict()["slots"].items():
        for key, tensor in named.items():
            assert torch.equal(tensor, kept[slot][key]), "the state follows the model"
    averager.update(model)
    for slot, named in taken["slots"].items():
        for key, tensor in named.items():
            assert torch.equal(tensor, kept[slot][key]), "a state taken earlier follows later updates"
    for tensor in mean.values():
        tensor.zero_()
    assert any(bool(t.any()) for t in averager.mean().values()), "the mean handed out is a view"


@averagers
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("way", ["torch.save", "dcp", "safetensors"])
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_resume_is_exact(method: Method, way: str, cut: int, tmp_path: Path) -> None:
    path = walk(8)
    whole = run(method(), path)
    half = run(method(), path[:cut])
    resumed = method()
    if way == "torch.save":
        torch.save(half.state_dict(), tmp_path / "state.pt")
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    elif way == "safetensors":
        lowland.save(half, tmp_path / "state.safetensors")
        resumed = lowland.load(tmp_path / "state.safetensors", **dict(method.given))
    else:
        if cut == 0:
            half.allocate(path[0])
        dcp.save({"average": half}, checkpoint_id=tmp_path / "dcp", no_dist=True)
        resumed.allocate(path[0])
        dcp.load({"average": resumed}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert resumed.count == half.count
    assert_same_state(run(resumed, path[cut:]), whole)


@averagers
def test_a_failed_update_changes_nothing(method: Method) -> None:
    path = walk(5)
    averager = run(method(), path[:3])
    reference = run(method(), path[:3])
    spoilt = dict(path[3])
    spoilt["first.bias"] = spoilt["first.bias"].clone().fill_(math.nan)
    with pytest.raises(ValueError, match=r"first\.bias holds a value that is not finite"):
        averager.update(spoilt)
    with pytest.raises(ValueError, match=r"missing \['scale'\], unexpected \['stranger'\]"):
        averager.update({**{k: v for k, v in path[3].items() if k != "scale"}, "stranger": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing \['scale'\]"):
        averager.update({k: v for k, v in path[3].items() if k != "scale"})
    with pytest.raises(ValueError, match=r"scale \(2,\) instead of \(\)"):
        averager.update({**path[3], "scale": torch.ones(2)})
    with pytest.raises(ValueError, match="empty mapping"):
        averager.update({})
    with pytest.raises(ValueError, match=r"\['scale'\] are complex"):
        averager.update({**path[3], "scale": torch.tensor(1j)})
    with pytest.raises(ValueError, match="wants a torch Module or a mapping"):
        averager.update([torch.ones(1)])  # type: ignore[arg-type]
    assert_same_state(averager, reference)


@averagers
def test_a_first_update_that_fails_leaves_it_new(method: Method) -> None:
    averager = method()
    with pytest.raises(ValueError, match="not finite"):
        averager.update({"w": torch.tensor([math.inf])})
    assert averager.count == 0
    averager.update({"other": torch.ones(1)})
    assert torch.equal(averager.mean()["other"], torch.ones(1))


@averagers
def test_the_finite_check_can_be_turned_off(method: Method) -> None:
    averager = method(check_finite=False)
    averager.update({"w": torch.tensor([math.inf])})
    assert averager.count == 1


@averagers
def test_mean_before_any_update_says_what_to_do(method: Method) -> None:
    with pytest.raises(RuntimeError, match=r"no weights yet: call update\(model\) first"):
        method().mean()


@averagers
def test_low_precision_models_are_averaged_in_float32(method: Method) -> None:
    averager = run(method(), walk(3, dtype=torch.bfloat16))
    assert all(tensor.dtype == torch.float32 for tensor in averager.mean().values())


@averagers
def test_double_precision_stays(method: Method) -> None:
    averager = run(method(), walk(3, dtype=torch.float64))
    assert all(tensor.dtype == torch.float64 for tensor in averager.mean().values())


@averagers
def test_tied_weights_stay_tied(method: Method) -> None:
    model = Small()
    averager = method()
    averager.update(model)
    assert "head.weight" not in averager.mean()
    fresh = Small(seed=1)
    copy_to(fresh, averager.mean())
    assert fresh.head.weight is fresh.embed.weight
    assert torch.equal(fresh.head.weight, model.embed.weight)


@averagers
def test_wrappers_do_not_change_the_names(method: Method) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = Small()
    averager = method()
    averager.update(Wrapper(model))
    averager.update(model)
    assert averager.count == 2
    averager.update(torch.compile(model, backend="eager"))
    assert averager.count == 3


@averagers
def test_the_state_can_live_on_another_device(method: Method) -> None:
    # The meta device stands in for a second one: shapes and places without values.
    averager = method(device="meta", check_finite=False)
    if averager.state_dict()["class"] == "ASWA":
        pytest.skip("ASWA compares scores, which need values")
    averager.update(walk(1)[0])
    assert all(tensor.device.type == "meta" for tensor in flat_state(averager).values())


@averagers
def test_applied_restores_also_on_exceptions(method: Method) -> None:
    model = Small()
    averager = method()
    averager.update(Small(seed=3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), applied(model, averager.mean()):
        assert torch.equal(model.embed.weight, averager.mean()["embed.weight"])
        model.norm.running_mean.add_(1.0)  # type: ignore[union-attr]
        raise KeyError
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@averagers
def test_repr_shows_the_hyper_parameters(method: Method) -> None:
    averager = method(select=trainable)
    assert "select=trainable" in repr(averager)
    for key in averager.settings:
        assert f"{key}=" in repr(averager)


@averagers
def test_loading_under_other_settings_names_them(method: Method) -> None:
    if method.other is None:
        pytest.skip("no hyper-parameter decides its numbers, or the entry has no second setting")
    state = run(method(), walk(3)).state_dict()
    other = method.other()
    with pytest.raises(ValueError, match=next(iter(other.settings))):
        other.load_state_dict(state)
    assert other.count == 0
    with pytest.raises(ValueError, match="no averager's state"):
        other.load_state_dict({})


@averagers
def test_loading_other_tensors_names_them(method: Method) -> None:
    averager = run(method(), walk(3))
    stranger = method()
    stranger.update({"w": torch.ones(1)})
    with pytest.raises(ValueError, match="unexpected"):
        averager.load_state_dict(stranger.state_dict())
    assert averager.count == 3


# Posteriors.


@posteriors
def test_posteriors_fit_the_protocol(name: str) -> None:
    assert isinstance(POSTERIORS[name].make(), Posterior)


@posteriors
def test_same_generator_same_sample(name: str) -> None:
    posterior = POSTERIORS[name].make()
    one = posterior.sample(3, generator=torch.Generator().manual_seed(5))
    two = posterior.sample(3, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(one[key], two[key]) for key in one)


@posteriors
def test_global_randomness_is_left_alone(name: str) -> None:
    posterior = POSTERIORS[name].make()
    before = torch.random.get_rng_state()
    posterior.sample(3, generator=torch.Generator().manual_seed(5))
    posterior.sample(generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.random.get_rng_state(), before)


@posteriors
def test_shapes_and_order_of_draws(name: str) -> None:
    posterior = POSTERIORS[name].make()
    like = walk(1)[0]
    one, many = posterior.sample(), posterior.sample(4)
    assert list(one) == list(many) == list(like)
    for key, tensor in like.items():
        assert one[key].shape == tensor.shape
        assert many[key].shape == (4, *tensor.shape)
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, got 0"):
        posterior.sample(0)


@posteriors
@pytest.mark.parametrize("at_once", [True, False], ids=["sample(n)", "n samples"])
def test_moments_match_the_closed_form(name: str, at_once: bool) -> None:
    known = POSTERIORS[name]
    posterior, (mean, covariance) = known.make(), known.moments()
    n = 20_000 if at_once else 4_000
    generator = torch.Generator().manual_seed(11)
    if at_once:
        draws = posterior.sample(n, generator=generator)
    else:
        single = [posterior.sample(generator=generator) for _ in range(n)]
        draws = {key: torch.stack([weights[key] for weights in single]) for key in single[0]}
    flat = torch.cat([draws[key].reshape(n, -1).double() for key in sorted(draws)], dim=1)  # (n, d)
    # Five standard errors: of a mean, sd / sqrt n; of a covariance, sqrt((s_ii s_jj + s_ij^2) / n) for Gaussians, which
    # bounds it for the mixtures here too (their kurtosis is below the Gaussian's or near it).
    sd = covariance.diagonal().sqrt()
    assert ((flat.mean(0) - mean).abs() <= 5 * sd / math.sqrt(n) + 1e-6).all()
    error = torch.sqrt((torch.outer(sd**2, sd**2) + covariance**2) / n)
    assert ((torch.cov(flat.T) - covariance).abs() <= 5 * error + 1e-6).all()


@posteriors
def test_members_of_finite_posteriors_are_their_points(name: str) -> None:
    known = POSTERIORS[name]
    posterior = known.make()
    points = posterior.members() if isinstance(posterior, Finite) else None
    if points is None:
        pytest.skip("infinitely many points")
    mean, _ = known.moments()
    flat = torch.stack([torch.cat([w[key].flatten().double() for key in sorted(w)]) for w in points])
    assert torch.allclose(flat.mean(0), mean, atol=1e-6)


# Populations.


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_mean_of_the_members_is_kept(name: str) -> None:
    models = [Net(seed).double() for seed in range(5)]  # of three, PAPA-2 takes all pairs
    if getattr(POPULATIONS[name], "one_start", False):
        models = [copy.deepcopy(models[0]) for _ in models]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    batches = [torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))]
    population = Population(models, POPULATIONS[name], optimizers=optimizers, batches=batches)

    def flat() -> Tensor:
        rows = [[p.detach().flatten() for p in weights_of(model).values()] for model in models]
        return torch.stack([torch.cat(row) for row in rows])

    generator = torch.Generator().manual_seed(0)
    moved, mixed = 0.0, False
    for _ in range(7):
        for model in models:  # what training would do, of different strength
            for p in weights_of(model).values():
                p.add_(torch.randn(p.shape, dtype=p.dtype, generator=generator), alpha=0.3)
        before = flat()
        population.step()
        mixed |= not torch.equal(before, flat())
        moved = max(moved, float((flat().mean(0) - before.mean(0)).abs().max()))
    assert mixed == (name != "Independent")
    # Sums of five numbers below 8 and their quotients, before and after: a dozen roundings of 2^-53 of 32.
    assert (moved > 1e-3) if name in MOVES_THE_MEAN else moved <= 12 * 32 * 2**-53, moved
