"""predict against averages by hand and a naive twin; what is kept in memory; restoration; bad input."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowland.batchnorm import refresh_bn
from lowland.mixture import Mixture
from lowland.predict import predict, predict_regression
from lowland.predict.predict import Prediction, Regression
from lowland.snapshots import Snapshots
from lowland.swa import SWA
from lowland.swag import SWAG
from lowland.weights import applied, floating, weights_of
from lowland.weights.named import Weights

from ..reference.predict import naive_probabilities, naive_uncertainty


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3))


def inputs(sizes: tuple[int, ...] = (4, 4, 2)) -> list[Tensor]:
    g = generator(5)
    return [torch.randn(n, 3, generator=g) for n in sizes]


class Gauss:
    """A posterior around a model's weights that remembers how many of its draws are alive when it makes the next."""

    def __init__(self, model: nn.Module, scale: float = 0.3) -> None:
        self.centre = {name: tensor.clone() for name, tensor in weights_of(model).items()}
        self.scale = scale
        self.refs: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> Weights:
        self.alive.append(sum(ref() is not None for ref in self.refs))
        draw = {
            name: tensor + self.scale * torch.randn(tensor.shape, generator=generator)
            for name, tensor in self.centre.items()
        }
        self.refs += [weakref.ref(tensor) for tensor in draw.values()]
        return draw


def linear(weight: list[list[float]]) -> dict[str, Tensor]:
    return {"weight": torch.tensor(weight)}


def two_classes(p: float) -> dict[str, Tensor]:
    """Weights of `Linear(1, 2)` that give (p, 1 - p) at x = 1."""
    return linear([[math.log(p)], [math.log(1 - p)]])


# --- numbers -------------------------------------------------------------------------------------------------------


def test_two_members_by_hand() -> None:  # METHODS 17.11
    model = nn.Linear(1, 2, bias=False)
    p = predict(model, Mixture([two_classes(0.9), two_classes(0.5)]), [torch.ones(1, 1)])
    assert isinstance(p, Prediction) and p.samples == 2
    assert p.probs[0].tolist() == pytest.approx([0.7, 0.3])  # averaged logits would give (.75, .25)
    assert p.entropy.item() == pytest.approx(0.610864, abs=1e-6)
    assert p.expected_entropy.item() == pytest.approx(0.509115, abs=1e-6)
    assert p.mutual_information.item() == pytest.approx(0.101749, abs=1e-6)
    assert p.variance[0].tolist() == pytest.approx([0.04, 0.04])
    assert p.label.tolist() == [0] and p.confidence.item() == pytest.approx(0.7)


def test_equal_to_the_naive_twin() -> None:
    model = net()
    points = [Gauss(model).sample(generator=generator(k)) for k in range(5)]
    got = predict(model, Mixture(points), inputs())
    wanted = naive_uncertainty(naive_probabilities(model, points, inputs()))
    for name, tensor in wanted.items():
        torch.testing.assert_close(getattr(got, name), tensor, rtol=1e-6, atol=1e-9, msg=name)
    assert got.probs.shape == got.variance.shape == (10, 3) and got.entropy.shape == (10,)


def test_same_generator_same_prediction_and_the_global_state_is_untouched() -> None:
    model = net()
    before = torch.get_rng_state()
    one = predict(model, Gauss(model), inputs(), samples=3, generator=generator(1))
    two = predict(model, Gauss(model), inputs(), samples=3, generator=generator(1))
    other = predict(model, Gauss(model), inputs(), samples=3, generator=generator(2))
    assert torch.equal(one.probs, two.probs) and not torch.equal(one.probs, other.probs)
    assert torch.equal(before, torch.get_rng_state())


def test_batch_sizes_do_not_matter() -> None:
    model = net()
    whole = predict(model, Gauss(model), [torch.cat(inputs())], samples=4, generator=generator())
    parts = predict(model, Gauss(model), inputs(), samples=4, generator=generator())
    torch.testing.assert_close(whole.probs, parts.probs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(whole.variance, parts.variance, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 50.0])
def test_information_and_variance_are_never_negative(scale: float) -> None:
    model = net()
    p = predict(model, Gauss(model, scale), inputs(), samples=7, generator=generator())
    assert bool((p.mutual_information >= 0).all() and (p.variance >= 0).all() and (p.expected_entropy >= 0).all())
    assert bool((p.entropy >= p.expected_entropy - 1e-12).all())
    assert torch.allclose(p.probs.sum(1), torch.ones(10, dtype=torch.float64))


def test_regression_variances_add_up() -> None:
    model = nn.Linear(1, 1, bias=False)
    members = Mixture([linear([[1.0]]), linear([[3.0]])])

    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = m(x)
        return mean, mean.square()  # each member's own variance: 1 and 9 at x = 1

    p = predict_regression(model, members, [torch.ones(2, 1)], forward=forward)
    assert isinstance(p, Regression)
    assert p.mean.tolist() == [[2.0], [2.0]]
    assert p.aleatoric_variance[0].item() == 5.0 and p.epistemic_variance[0].item() == 1.0
    assert p.variance[0].item() == 6.0 and p.samples == 2
    plain = predict_regression(model, members, [torch.ones(2, 1)])
    assert plain.aleatoric_variance.abs().sum() == 0 and plain.variance[0].item() == 1.0


def test_tokens_keep_their_axis() -> None:
    model = net()
    p = predict(model, Gauss(model), [torch.randn(2, 5, 3, generator=generator())] * 2, samples=2)
    assert p.probs.shape == (4, 5, 3) and p.entropy.shape == p.label.shape == (4, 5)


def test_half_precision_logits_are_averaged_in_float64() -> None:
    model = net().bfloat16()
    batches = [batch.bfloat16() for batch in inputs()]
    p = predict(model, weights_of(model), batches)
    assert p.probs.dtype == torch.float64
    assert torch.allclose(p.probs.sum(1), torch.ones(10, dtype=torch.float64), atol=1e-12)


# --- which draws ---------------------------------------------------------------------------------------------------


def test_every_member_of_a_finite_posterior_counts_once() -> None:
    model = nn.Linear(1, 2, bias=False)
    members = Mixture([two_classes(p) for p in (0.9, 0.8, 0.1)])
    p = predict(model, members, [torch.ones(1, 1)])
    assert p.samples == 3 and p.probs[0, 0].item() == pytest.approx(0.6)
    assert predict(model, members, [torch.ones(1, 1)], samples=7, generator=generator()).samples == 7


def test_averages_and_bare_weights_are_one_point() -> None:
    model, average = net(), SWA()
    for seed in (1, 2):
        average.update(net(seed))
    wanted = naive_probabilities(model, [average.mean()], inputs())[0]
    for posterior in (average, average.mean()):
        for samples in (None, 5):
            p = predict(model, posterior, inputs(), samples=samples)
            torch.testing.assert_close(p.probs, wanted)
            assert p.samples == 1 and float(p.mutual_information.max()) == 0.0


def test_thirty_draws_unless_told_otherwise() -> None:
    model, posterior = net(), SWAG(rank=2)
    for seed in range(4):
        posterior.update(net(seed))
    assert predict(model, posterior, inputs((1,))).samples == 30
    assert predict(model, Mixture([posterior, posterior]), inputs((1,)), samples=4).samples == 4


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    model = net()
    posterior = Gauss(model)
    predict(model, posterior, inputs(), samples=12, generator=generator())
    assert posterior.alive == [0] * 12  # no earlier draw is alive when the next is made

    def tensors(samples: int) -> int:
        """Tensors alive after the last draw, while the sums are still held."""
        counts = []

        def forward(m: nn.Module, x: Tensor) -> Tensor:
            output: Tensor = m(x)
            gc.collect()
            counts.append(sum(1 for thing in gc.get_objects() if issubclass(type(thing), Tensor)))
            return output

        posterior.refs.clear()
        predict(model, posterior, inputs((1400, 1400)), samples=samples, forward=forward)
        return counts[-1]

    assert tensors(2) == tensors(10)


def test_points_that_weigh_more_run_once_and_count_as_often() -> None:
    model, calls = nn.Linear(1, 2, bias=False), 0

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        logits: Tensor = m(x)
        return logits

    ring = Snapshots(3)
    for p in (0.9, 0.8, 0.1):
        ring.update(two_classes(p))
    mixture = Mixture([ring, two_classes(0.5)])
    p = predict(model, mixture, [torch.ones(1, 1)], forward=forward)
    assert calls == p.samples == 4
    weights, values = [1 / 6, 1 / 6, 1 / 6, 1 / 2], [0.9, 0.8, 0.1, 0.5]
    mean = sum(w * v for w, v in zip(weights, values, strict=True))
    assert p.probs[0].tolist() == pytest.approx([mean, 1 - mean])
    spread = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    assert p.variance[0].tolist() == pytest.approx([spread, spread])
    repeated = [point for point in mixture.members() or []]
    wanted = naive_uncertainty(naive_probabilities(model, repeated, [torch.ones(1, 1)]))
    for name, tensor in wanted.items():
        torch.testing.assert_close(getattr(p, name), tensor, rtol=1e-6, atol=1e-7, msg=name)
    large = predict(model, mixture, [torch.ones(5000, 1), torch.ones(7, 1)])  # blocks of one draw
    torch.testing.assert_close(large.variance, p.variance.expand(5007, 2))


def test_what_is_shown_is_short() -> None:
    model = net()
    p = predict(model, Gauss(model), [torch.randn(900, 3, generator=generator())], samples=2)
    assert len(repr(p)) < 200 and "examples 900" in repr(p) and "\n" not in repr(p)
    assert "<td>900</td>" in p._repr_html_() and "tensor" not in p._repr_html_()
    r = predict_regression(model, Gauss(model), inputs(), samples=2)
    assert "examples 10 x 3" in repr(r) and "<caption>Regression</caption>" in r._repr_html_()


# --- the model afterwards ------------------------------------------------------------------------------------------


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))


def state(model: nn.Module) -> tuple[dict[str, Tensor], list[bool]]:
    return copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]


def assert_untouched(model: nn.Module, before: tuple[dict[str, Tensor], list[bool]]) -> None:
    tensors, modes = state(model)
    assert modes == before[1]
    for name, tensor in before[0].items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_put_back(training: bool) -> None:
    model = normalised().train(training)
    model[2].training = not training
    before = state(model)
    predict(model, Gauss(model), inputs(), samples=3, bn_batches=inputs(), generator=generator())
    assert_untouched(model, before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("after", [0, 1, 4])
def test_the_model_is_put_back_after_an_exception(after: int) -> None:
    model = normalised().train()
    before, calls = state(model), 0

    def forward(m: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        output: Tensor = m(batch)
        return output

    with pytest.raises(KeyboardInterrupt):
        predict(model, Gauss(model), inputs(), samples=3, bn_batches=inputs(), forward=forward)
    assert_untouched(model, before)


def test_batchnorm_is_refreshed_for_every_draw() -> None:
    model = normalised()
    points = [Gauss(model).sample(generator=generator(k)) for k in range(2)]
    wanted = []
    for point in points:
        with applied(model, point), torch.no_grad():
            refresh_bn(model, inputs())
            wanted.append(torch.softmax(model.eval()(torch.cat(inputs())).double(), 1))
    got = predict(model, Mixture(points), inputs(), bn_batches=inputs())
    torch.testing.assert_close(got.probs, torch.stack(wanted).mean(0), rtol=1e-5, atol=1e-7)
    with pytest.warns(UserWarning, match="statistics of the BatchNorm layer 1 .* pass bn_batches="):
        without = predict(model, Mixture(points), inputs())
    assert not torch.allclose(got.probs, without.probs, atol=1e-3)


class Moving(nn.Module):
    """Assigns its buffers anew, writes into one, fills one that was empty, and keeps a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("cache", None)
        self.own = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
        self.written += x.mean(0)
        self.cache = x
        self.own = self.own + x.mean(0)
        logits: Tensor = self.linear(x - self.centre + self.written + self.own)
        return logits


@pytest.mark.parametrize("samples", [1, 3, 30])
def test_buffers_that_a_forward_assigns_anew_are_put_back(samples: int) -> None:
    model = Moving()
    held = {name: (id(t), None if t is None else t.clone()) for name, t in model._buffers.items()}
    own = model.own
    points = Mixture([Gauss(model).sample(generator=generator(k)) for k in range(samples)])
    got = predict(model, points, inputs())
    with applied(model, weights_of(model)):
        model(inputs()[0])
    for name, (number, value) in held.items():
        now = model._buffers[name]
        assert id(now) == number and (now is None or torch.equal(now, value)), name
    assert model.own is own
    # Each draw starts from the same buffers.
    each = [predict(copy.deepcopy(model), point, inputs()).probs for point in points.members() or []]
    torch.testing.assert_close(got.probs, torch.stack(each).mean(0), rtol=1e-6, atol=1e-7)


def test_weights_that_a_forward_writes_into_are_the_posteriors_no_more() -> None:
    renorm = nn.Sequential(nn.Embedding(11, 3, max_norm=0.5), nn.Flatten(), nn.Linear(15, 3))
    ids = [torch.randint(11, (4, 5), generator=generator())]
    for count in (1, 4):
        members = [Gauss(renorm, 1.0).sample(generator=generator(k)) for k in range(count)]
        kept = copy.deepcopy(members)
        assert predict(renorm, Mixture(members), ids).plan == "copy"
        for member, before in zip(members, kept, strict=True):
            assert all(torch.equal(member[name], before[name]) for name in before)


def test_statistics_of_other_weights_are_told_once_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Tanh()), nn.Linear(4, 3))
    average, both = SWA(), SWA(select=floating)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for tensor in model.state_dict().values():
            tensor.copy_(tensor + torch.rand(tensor.shape)) if tensor.is_floating_point() else None
        average.update(model)
        both.update(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict(model, Mixture([average.mean()] * 2 + [weights_of(model)]), inputs())
    assert len(caught) == 1 and "the BatchNorm layer 1.0 belong to other weights" in str(caught[0].message)
    # No word where statistics belong: refreshed, brought along, those of the weights in the model, or frozen.
    predict(model, average, inputs(), bn_batches=inputs())
    predict(model, both, inputs())
    predict(model, weights_of(model), inputs())
    with applied(model, average.mean()):
        refresh_bn(model, inputs())
        predict(model, average, inputs())
    model.train()[1].eval()
    predict(model, average, inputs())


# --- batches of any structure --------------------------------------------------------------------------------------


class Output(dict[str, Tensor]):
    @property
    def logits(self) -> Tensor:
        return self["logits"]


def test_batches_and_outputs_of_any_structure() -> None:
    class Keyword(nn.Module):
        def __init__(self, wrap: Any) -> None:
            super().__init__()
            self.inner, self.wrap = net(), wrap

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            return self.wrap(self.inner(x))

    wanted = predict(net(), weights_of(net()), inputs()).probs
    x = inputs()
    for wrap in (lambda z: z, lambda z: Output(logits=z), lambda z: {"logits": z}, lambda z: (z, "hidden")):
        model = Keyword(wrap)
        ways: list[tuple[Any, Any]] = [
            ([(b, torch.zeros(len(b))) for b in x], None),
            ([{"x": b, "labels": torch.zeros(len(b))} for b in x], None),
            ([{"deep": [b]} for b in x], lambda m, batch: m(batch["deep"][0])),
            (DataLoader(TensorDataset(torch.cat(x), torch.zeros(10)), batch_size=3), None),
        ]
        for batches, forward in ways:
            got = predict(model, weights_of(model), batches, forward=forward)
            torch.testing.assert_close(got.probs, wanted, rtol=1e-6, atol=1e-7)


# --- bad input -----------------------------------------------------------------------------------------------------


def stream() -> Iterator[Tensor]:
    yield from inputs()


@pytest.mark.parametrize(
    ("batches", "arguments", "says"),
    [
        (stream(), {}, "batches can be read only once, got a generator, and each of 3 draws reads them: pass a list"),
        (inputs(), {"bn_batches": stream()}, "bn_batches can be read only once"),
        ([], {}, "batches gave 0 batches in draw 1, wanted at least one"),
        (inputs(), {"samples": 0}, "samples must be a whole number of at least 1, got 0"),
        (inputs(), {"samples": 2.5}, "samples must be a whole number of at least 1, got 2.5"),
        (torch.cat(inputs()), {}, r"batches must be several batches, got one Tensor: pass \[batch\]"),
        ({"x": inputs()[0]}, {}, r"batches must be several batches, got one dict: pass \[batch\]"),
        (None, {}, "batches must be several batches, got NoneType: pass a list of batches or a loader"),
        (3, {}, "batches must be several batches, got int"),
        ("text", {}, "batches must be several batches, got str"),
        (inputs(), {"bn_batches": inputs()[0]}, "bn_batches must be several batches, got one Tensor"),
        (inputs(), {"generator": 5}, "generator must be a torch.Generator, got int"),
        (
            inputs(),
            {"forward": lambda m, b: m(b)[:, :1]},
            r"logits \(B, C\) with C >= 2, got \(4, 1\) in draw 1, batch 1",
        ),
        (inputs(), {"forward": lambda m, b: m(b).sum()}, "one row per example, got a single number in draw 1"),
        (inputs(), {"forward": lambda m, b: "text"}, "must return a tensor, got str in draw 1, batch 1: pass forward="),
        (inputs(), {"forward": lambda m, b: m(b) / 0}, "draw 1, batch 1: the output for example 1 of the batch is not"),
        (["text"], {}, "a batch must be a tensor, .*, got str: pass forward="),
        ([torch.randn(2, 5, 3), torch.randn(2, 6, 3)], {}, r"must agree beyond the first axis, got \(2, 6, 3\)"),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(batches: Any, arguments: Any, says: str) -> None:
    model = net().train()
    before = state(model)
    with pytest.raises(ValueError, match=says) as error:
        predict(model, Gauss(model), batches, **{"samples": 3, **arguments})
    assert "\n" not in str(error.value)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda m, b: (m(b), -(m(b) ** 2)), "variance must .* not be negative"),
        (lambda m, b: (m(b), b, b), r"\(mean, variance\), got 3 values"),
        (lambda m, b: (m(b), m(b)[:1]), "variance must have the shape of the mean"),
    ],
)
def test_bad_outputs_of_a_regression(forward: Any, says: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=says):
        predict_regression(model, Gauss(model), inputs(), samples=3, forward=forward)


def test_a_generator_serves_a_single_draw() -> None:
    model = net()
    assert predict(model, weights_of(model), stream()).probs.shape == (10, 3)


def test_shuffled_loaders_are_refused() -> None:
    model = net()
    loader = DataLoader(TensorDataset(torch.cat(inputs())), batch_size=2, shuffle=True)
    with pytest.raises(ValueError, match="batches are shuffled, .* pass shuffle=False"):
        predict(model, Gauss(model), loader, samples=2)
    predict(normalised(), weights_of(normalised()), inputs(), bn_batches=loader)  # for statistics any order will do


def test_batches_that_change_between_draws_are_refused() -> None:
    class Shrinking:
        def __init__(self, *passes: list[Tensor]) -> None:
            self.passes = iter(passes)

        def __iter__(self) -> Iterator[Tensor]:
            return iter(next(self.passes))

    model, x = net(), inputs()
    for first, second, says in (
        (x, x[:2], "batches gave 2 batches in draw 2, wanted 3 as in the first draw"),
        (x[:2], x, r"draw 2 gives \(2, 3\) for batch 3, the first gave only 2 batches"),
        (x, x[::-1], r"draw 2 gives \(2, 3\) for batch 1, the first gave \(4, 3\)"),
    ):
        with pytest.raises(ValueError, match=says):
            predict(model, Gauss(model), Shrinking(first, second), samples=2)


def test_a_draw_that_is_not_finite_is_named() -> None:
    model = nn.Linear(1, 2, bias=False)
    members = Snapshots(2, check_finite=False)
    for weights in (two_classes(0.5), linear([[math.nan], [0.0]])):
        members.update(weights)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="draw 2 has a value in weight that is not finite"):
        predict(model, members, [torch.ones(1, 1)])
    assert torch.equal(model.weight, before)


def test_a_posterior_without_updates_and_foreign_weights() -> None:
    for empty in (SWA(), SWAG()):
        with pytest.raises(RuntimeError, match="has no weights yet: call update"):
            predict(net(), empty, inputs())
    with pytest.raises(ValueError, match=r"Sequential has no tensor named \['nowhere'\]"):
        predict(net(), {"nowhere": torch.zeros(1)}, inputs())
    with pytest.raises(ValueError, match="drawn from a posterior, an averager or a mapping"):
        predict(net(), 3.0, inputs())  # type: ignore[call-overload]
