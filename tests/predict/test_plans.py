"""Plans of predict: each against the plain loop, each guard by a model that needs it, and the choice between them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.mixture import Mixture
from lowland.predict import one_by_one, predict, predict_regression
from lowland.predict.plans import choice, runner, stacked
from lowland.predict.plans import sums as sums_of_draws
from lowland.predict.plans.nested import Opaque, alike, mapped, tensors
from lowland.predict.plans.places import Held, Places
from lowland.predict.plans.prefix import Memo
from lowland.predict.plans.stacked import Stack, Unstackable
from lowland.predict.plans.sums import BLOCK, Classes
from lowland.predict.predict import Prediction
from lowland.weights import weights_of
from lowland.weights.named import Weights

from ..reference.predict import naive_probabilities, naive_uncertainty

FORCED = ("prefix", "stacked")


def run(model: nn.Module, posterior: Any, batches: Any, *, plan: str = "auto", **arguments: Any) -> Any:
    """`predict`, or `predict_regression`, by a plan that the rules might not choose."""
    call = arguments.pop("call", predict)
    with pytest.MonkeyPatch.context() as patch:
        if plan not in ("auto", "loop"):
            patch.setattr(runner, "FEW", 0)
            patch.setattr(runner, "shares_most", lambda places: True)
            patch.setattr(choice, "has_few_rows", lambda stack: plan == "stacked")
            patch.setattr(choice, "is_mostly_prefix", lambda memo: False)
            patch.setattr(choice, "has_prefix", lambda memo: plan == "prefix" or bool(memo.independent))
        if plan == "copy":
            patch.setattr(Places, "_obstacle", lambda self: "asked for")
        with one_by_one() if plan == "loop" else nullcontext():
            return call(model, posterior, batches, **arguments)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(model: nn.Module, count: int = 6, *, only: str = "", scale: float = 0.3) -> list[Weights]:
    g = generator(3)
    centre = {name: tensor.clone() for name, tensor in weights_of(model).items() if only in name}
    return [
        {n: t + scale * torch.randn(t.shape, generator=g).to(t.dtype) for n, t in centre.items()} for _ in range(count)
    ]


def rows(*sizes: int, width: int = 3) -> list[Tensor]:
    g = generator(5)
    return [torch.randn(n, width, generator=g) for n in sizes or (4, 4, 2)]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3)
    )


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *body, nn.Flatten(), nn.Linear(64, 3))


class Words(nn.Module):
    """Embedding, RMSNorm, attention by hand, dictionary in and out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.places = nn.Embedding(5, 8)
        self.norm = nn.RMSNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.register_buffer("numbers", torch.arange(5)[None])

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.table(ids) + self.places(self.numbers))
        x = functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), attn_mask=mask[:, None] > 0)
        return {"logits": self.head(x.mean(1)), "other": x}


def sentences(*sizes: int) -> list[dict[str, Tensor]]:
    g = generator(6)
    return [{"ids": torch.randint(11, (n, 5), generator=g), "mask": torch.ones(n, 5)} for n in sizes or (3, 3, 2)]


class Adapter(nn.Module):
    """A low-rank layer with the attributes of PEFT's."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.scaling = {"default": 2.0}
        self.active_adapters = ["default"]
        self.disable_adapters = self.merged = False
        self.lora_variant: dict[str, object] = {}

    def forward(self, x: Tensor) -> Tensor:
        low: Tensor = self.lora_B["default"](self.lora_A["default"](x))
        result: Tensor = self.base_layer(x) + low * self.scaling["default"]
        return result


def adapted() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), Adapter(nn.Linear(8, 8)), nn.Tanh(), Adapter(nn.Linear(8, 8)), nn.Linear(8, 3)
    )


def images() -> list[Tensor]:
    return rows(4, 4, 2, width=36)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]], str, tuple[str, ...]]] = {
    "mlp": (mlp, rows, "", ("prefix", "stacked")),
    "its top": (mlp, rows, "5.", ("prefix", "stacked")),
    "its norm": (mlp, rows, "1.weight", ("prefix",)),
    "a bias": (mlp, rows, "5.bias", ("prefix", "stacked")),
    "a weight": (mlp, rows, "0.weight", ("prefix", "stacked")),
    "cnn": (cnn, images, "", ("prefix", "stacked")),
    "its head": (cnn, images, "5.", ("prefix", "stacked")),
    "words": (Words, sentences, "", ("prefix", "stacked")),
    "a head on words": (Words, sentences, "head", ("prefix", "stacked")),
    "adapters": (adapted, rows, "lora", ("prefix", "stacked")),
    "adapters and base": (adapted, rows, "", ("prefix", "stacked")),
    "the upper adapter": (adapted, rows, "4.", ("prefix", "stacked")),
}


def state(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (tensor.data_ptr(), tensor.detach().clone()) for name, tensor in named.items()}


def assert_untouched(model: nn.Module, before: Mapping[str, tuple[int, Tensor]]) -> None:
    for name, (pointer, tensor) in state(model).items():
        assert pointer == before[name][0] and torch.equal(tensor, before[name][1]), name
    assert all("forward" not in module.__dict__ for module in model.modules())


def assert_same(got: Any, wanted: Any, *, exact: bool) -> None:
    for name in ("probs", "expected_entropy", "variance"):
        one, other = getattr(got, name), getattr(wanted, name)
        assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-5, atol=1e-6), name


# --- every plan gives the loop's answer ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the running statistics of the BatchNorm layer 2")
@pytest.mark.parametrize("case", CASES)
def test_plans_give_the_answer_of_the_loop(case: str) -> None:
    make, batches, only, plans = CASES[case]
    model = make().train()
    draws = Mixture(points(model, only=only))
    before = state(model)
    wanted = run(model, draws, batches(), plan="copy")
    assert wanted.plan == "copy"
    loop = run(model, draws, batches(), plan="loop")
    assert_same(loop, wanted, exact=True)
    for plan in plans:
        got = run(model, draws, batches(), plan=plan)
        assert got.plan == plan
        assert_same(got, wanted, exact=plan == "prefix")
        assert_untouched(model, before)


@pytest.mark.parametrize("plan", ["copy", "loop", "prefix", "stacked"])
def test_equal_to_the_naive_twin(plan: Any) -> None:
    model, draws = mlp(), points(mlp())
    got = run(model, Mixture(draws), rows(), plan=plan)
    wanted = naive_uncertainty(naive_probabilities(model, draws, rows()))
    for name, tensor in wanted.items():
        torch.testing.assert_close(getattr(got, name), tensor, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("plan", ["loop", "prefix", "stacked"])
def test_draws_in_several_chunks(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, draws = mlp(), Mixture(points(mlp(), 7))
    wanted = run(model, draws, rows(), plan="copy")
    monkeypatch.setattr(runner, "HELD", 3 * Places(model, weights_of(model)).bytes)
    assert_same(run(model, draws, rows(), plan=plan), wanted, exact=plan != "stacked")
    monkeypatch.setattr(stacked, "ROWS", 8)  # passes of two draws, and of one
    assert_same(run(model, draws, rows(), plan=plan), wanted, exact=plan != "stacked")


@pytest.mark.parametrize("plan", ["loop", "prefix", "stacked"])
def test_regression_with_a_predicted_variance(plan: Any) -> None:
    model = mlp()

    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m(x)
        return y[:, :1], y[:, 1:2].square()

    draws = Mixture(points(model))
    wanted = run(model, draws, rows(), call=predict_regression, forward=forward, plan="copy")
    got = run(model, draws, rows(), call=predict_regression, forward=forward, plan=plan)
    assert got.plan == plan
    for name in ("mean", "aleatoric_variance", "epistemic_variance"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("plan", ["loop", "prefix", "stacked"])
def test_batchnorm_statistics_belong_to_the_draw(plan: Any) -> None:
    model, draws = cnn(), Mixture(points(cnn()))
    before = state(model)
    wanted = run(model, draws, images(), bn_batches=images(), plan="copy")
    got = run(model, draws, images(), bn_batches=images(), plan=plan)
    assert_same(got, wanted, exact=plan != "stacked")
    assert_untouched(model, before)


def test_half_precision() -> None:
    model = mlp().bfloat16()
    draws = Mixture(points(model))
    batches = [batch.bfloat16() for batch in rows()]
    wanted = run(model, draws, batches, plan="copy")
    for plan in ("prefix", "stacked"):
        got = run(model, draws, batches, plan=plan)
        assert torch.allclose(got.probs, wanted.probs, atol=0.02)


def test_draws_of_another_dtype_are_cast() -> None:
    model = mlp()
    wide = [{name: tensor.double() for name, tensor in point.items()} for point in points(model)]
    wanted = run(model, Mixture(wide), rows(), plan="copy")
    for plan in ("loop", "prefix", "stacked"):
        assert_same(run(model, Mixture(wide), rows(), plan=plan), wanted, exact=plan != "stacked")


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(11, 4)
            self.out = nn.Linear(4, 11, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = self.out(self.table(ids).mean(1))
            return logits

    model = Tied()
    draws = Mixture(points(model))
    wanted = run(model, draws, sentences(), plan="copy")
    for plan in ("loop", "stacked"):
        assert_same(run(model, draws, sentences(), plan=plan), wanted, exact=plan == "loop")
    assert model.out.weight is model.table.weight


def test_autocast_sees_every_draw() -> None:
    # Autocast keeps casts of weights that take gradients; a stale one would give every draw the first one's answer.
    model, draws = mlp(), points(mlp(), 2, scale=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both = run(model, Mixture(draws), rows(), plan="loop").probs
        each = [predict(model, point, rows()).probs for point in draws]
    assert torch.allclose(both, torch.stack(each).mean(0), atol=1e-6)
    assert not torch.allclose(each[0], each[1], atol=1e-2)


# --- where weights cannot be pointed at ----------------------------------------------------------------------------


def test_views_of_sampled_tensors_are_seen() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(3, 3)
            self.turned = self.inner.weight.detach().T

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.turned

    model = Viewing()
    assert "view of a sampled one" in Places(model, weights_of(model)).obstacle
    draws = Mixture(points(model, 30))
    got = predict(model, draws, rows())
    assert got.plan == "copy"
    assert_same(got, run(model, draws, rows(), plan="copy"), exact=True)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_shared_memory_subclasses_and_scripts_are_copied_in() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    assert Places(model, weights_of(model)).obstacle == "its tensors share memory"

    class Odd(Tensor):
        pass

    odd = nn.Linear(2, 2)
    odd.weight = nn.Parameter(torch.zeros(2, 2).as_subclass(Odd))
    assert Places(odd, {"weight": torch.zeros(2, 2)}).obstacle != ""
    scripted = nn.Sequential(torch.jit.trace(nn.Linear(3, 3), torch.ones(1, 3)))
    assert "it holds a" in Places(scripted, weights_of(scripted)).obstacle


@pytest.mark.slow
def test_compiled_models_are_copied_in() -> None:
    inner = mlp()
    model = torch.compile(inner, backend="eager")
    got = run(model, Mixture(points(inner)), rows(), plan="loop")
    assert got.plan == "copy"
    assert_same(got, run(inner, Mixture(points(inner)), rows(), plan="copy"), exact=True)


def test_strides_of_the_model_are_kept() -> None:
    model = cnn().to(memory_format=torch.channels_last)
    places = Places(model, weights_of(model))
    held = Held(places, 2)
    for point in points(model, 2):
        held.add(point)
    for name, tensor in held.draw(1).items():
        assert tensor.stride() == places.tensors[name].stride()


@pytest.mark.parametrize("plan", ["loop", *FORCED])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_the_model_is_put_back_after_an_exception(plan: Any, after: int) -> None:
    model = adapted().train()
    before, calls = state(model), 0

    def forward(m: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        output: Tensor = m(batch)
        if calls > after:
            raise KeyboardInterrupt
        return output

    with pytest.raises(KeyboardInterrupt):
        run(model, Mixture(points(model, 12)), rows(), forward=forward, plan=plan)
    assert_untouched(model, before)
    assert all(module.training for module in model.modules())


# --- what may be given again ---------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A backbone that counts its calls, with a head; `body` does the work on (x, the counter)."""

    def __init__(self, body: Callable[[Counting, Tensor], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone(body)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x)
        value = found if isinstance(found, Tensor) else next(tensors(found))
        logits: Tensor = self.head(value)
        return logits


class Backbone(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any] | None) -> None:
        super().__init__()
        self.linear, self.body, self.calls = nn.Linear(3, 3), body, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        y = self.linear(x)
        return y if self.body is None else self.body(self, y)


@dataclass
class Answer:
    value: Tensor
    note: str


class Pair(NamedTuple):
    value: Tensor
    more: dict[str, list[Tensor | None]]


SHAPES: dict[str, Callable[[Any, Tensor], Any]] = {
    "tensor": lambda m, y: y.relu(),
    "tuple": lambda m, y: (y, None, 3),
    "named tuple": lambda m, y: Pair(y, {"hidden": [y.relu(), None]}),
    "dictionary": lambda m, y: {"y": y},
    "dataclass": lambda m, y: Answer(y, "note"),
}


def run_counted(model: Counting, plan: str = "prefix", count: int = 6) -> tuple[int, Any]:
    draws = Mixture(points(model, count, only="head"))
    wanted = run(model, draws, rows(), plan="copy")
    model.backbone.calls = 0
    got = run(model, draws, rows(), plan=plan)
    assert_same(got, wanted, exact=True)
    return model.backbone.calls, got


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prefix_runs_once_per_batch(shape: str) -> None:
    calls, _ = run_counted(Counting(SHAPES[shape]))
    # Two plain passes in the first batch, of which the first is recorded; one in each of the other two.
    assert calls == 2 + 2


def test_an_output_that_is_written_into_is_given_as_a_copy() -> None:
    class InPlace(Counting):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.backbone(x).relu_())
            return logits

    calls, _ = run_counted(InPlace())
    assert calls == 3 + 2  # the first record was spoilt


def test_an_input_that_is_written_into_later() -> None:
    class Later(Counting):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            y = self.backbone(x)
            x.zero_()
            logits: Tensor = self.head(y)
            return logits

    calls, _ = run_counted(Later())
    assert calls <= 5 + 2


def hooked(model: Counting) -> None:
    model.backbone.linear.register_forward_hook(lambda module, args, output: output * 2)


def own_forward(model: Counting) -> None:
    plain = model.backbone.linear.forward
    object.__setattr__(model.backbone.linear, "forward", lambda x: plain(x) * 2)


def _noise(m: Any, y: Tensor) -> Tensor:
    return y + torch.randn(y.shape, generator=generator(m.calls)) * 0  # equal, but drawn from a generator of its own


def _state(m: Any, y: Tensor) -> Tensor:
    m.seen.copy_(m.seen * 1)
    return y


class Stranger:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("body", "prepare"),
    [
        (None, hooked),
        (None, own_forward),
        (_noise, None),
        (_state, None),
        (lambda m, y: m.linear.weight.sum() * 0 + y.add_(1).view(y.shape), None),
    ],
    ids=["hooks", "own forward", "own generator", "writes a buffer", "plain"],
)
def test_what_is_more_than_a_function_of_its_inputs_runs_again(body: Any, prepare: Any) -> None:
    model = Counting(body)
    if prepare is not None:
        prepare(model)
    calls, _ = run_counted(model)
    passes = 6 * 3
    assert calls >= passes if prepare is not None or body in (_noise, _state) else calls < passes


def test_views_of_inputs_and_strange_outputs_run_again() -> None:
    class Passing(Counting):
        def forward(self, x: Tensor) -> Tensor:
            found = self.backbone(x)
            logits: Tensor = self.head(found.value if isinstance(found, Stranger) else found)
            return logits

    for body in (lambda m, y: Stranger(y), lambda m, y: m.seen.expand(len(y), 3)):
        calls, _ = run_counted(Passing(body))
        assert calls >= 6 * 3


def test_a_sampled_tensor_read_by_another_way_is_seen() -> None:
    model = Counting(lambda m, y: y * m.spy().sum())
    model.backbone.spy = lambda: model.head.weight  # not registered: the backbone looks free of sampled tensors
    calls, _ = run_counted(model)
    assert calls >= 6 * 3


def test_training_mode_and_gradients_run_again() -> None:
    def training(m: nn.Module, x: Tensor) -> Tensor:
        m.train()
        logits: Tensor = m(x)
        return logits

    def gradients(m: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            logits: Tensor = m(x)
        return logits

    for forward in (training, gradients):
        model = Counting()
        draws = Mixture(points(model, only="head"))
        run(model, draws, rows(), forward=forward, plan="prefix")
        assert model.backbone.calls >= 6 * 3


def test_a_changing_order_of_calls_changes_nothing() -> None:
    class Fickle(nn.Module):
        """Which of two free modules is called, and how often, depends on the sampled head."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.head.bias
            parts = (self.one, self.two, self.one) if float(bias[0]) > 0 else (self.two, self.one)
            for part in parts:
                x = part(x)
            logits: Tensor = self.head(x)
            return logits

    model = Fickle()
    draws = Mixture(points(model, 12, only="head", scale=1.0))
    wanted = run(model, draws, rows(), plan="copy")
    assert_same(run(model, draws, rows(), plan="prefix"), wanted, exact=True)


def test_the_budget_of_the_memo() -> None:
    model = Counting()
    places = Places(model, {"head.bias": torch.zeros(3)})
    memo = Memo(places, budget=10)
    with torch.no_grad(), memo.watching():
        model.eval()(rows()[0])
    memo.learn()
    assert memo.independent == set()


def test_nested_values() -> None:
    value = {"a": (torch.ones(1), None), "b": [torch.zeros(2), "text", 1.5], "c": torch.Size([1, 2])}
    twin = mapped(value, Tensor.clone)
    assert alike(value, twin, torch.equal) and twin["b"][0] is not value["b"][0]
    assert not alike(value, mapped(value, lambda t: t + 1), torch.equal)
    assert not alike([1], (1,), torch.equal) and not alike([1], [1, 2], torch.equal)
    with pytest.raises(Opaque, match="object"):
        list(tensors([object()]))


# --- several draws in one pass -------------------------------------------------------------------------------------


def not_stacked(model: nn.Module, batches: list[Any], *, only: str = "", **arguments: Any) -> None:
    before = state(model)
    draws = Mixture(points(model, 30, only=only))
    got = run(model, draws, batches, plan="stacked", **arguments)
    assert got.plan != "stacked"
    assert_same(got, run(model, draws, batches, plan="copy", **arguments), exact=True)
    assert_untouched(model, before)


def test_models_that_read_weights_themselves_are_found_out() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.one(x), self.two.weight)

    not_stacked(Reading(), rows())


def test_models_that_mix_rows_are_found_out() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            return y - y.mean(0)

    not_stacked(Mixing(), rows())


def test_what_cannot_be_stacked_says_why_and_is_not() -> None:
    hooks = mlp()
    hooks[0].register_forward_hook(lambda module, args, output: None)
    attention = nn.TransformerEncoderLayer(3, 1, 4, batch_first=True)
    convolution = nn.Sequential(nn.Conv1d(3, 3, 1))
    for model, batches, says in (
        (hooks, rows(), "a Linear has hooks, which would see several draws at once"),
        (attention, [x[:, None] for x in rows()], "a MultiheadAttention holds sampled tensors itself and in modules"),
        (convolution, [torch.randn(2, 3, 4)], "no sampled tensor belongs to a layer with a batched"),
    ):
        places = Places(model, weights_of(model))
        with pytest.raises(Unstackable, match=says):
            Stack(places, Memo(places))
        not_stacked(model, batches)

    class Batch:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    not_stacked(mlp(), [Batch(x) for x in rows()], forward=lambda m, batch: m(batch.x))


def test_a_batch_that_does_not_stack_goes_through_the_loop() -> None:
    model = mlp()

    def forward(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, scale = batch
        logits: Tensor = m(x * scale.mean())
        return logits

    batches = [(x, torch.ones(7)) for x in rows(4, 5)] + [(rows(3)[0], torch.ones(2), torch.ones(1))]
    forward_of_any = lambda m, batch: forward(m, batch[:2])  # noqa: E731
    draws = Mixture(points(model))
    wanted = run(model, draws, batches, forward=forward_of_any, plan="copy")
    got = run(model, draws, batches, forward=forward_of_any, plan="stacked")
    assert got.plan == "stacked"
    assert_same(got, wanted, exact=False)


def test_errors_of_outputs_are_those_of_the_loop() -> None:
    model, batches = mlp(), rows()
    batches[2][1, 0] = torch.nan
    # Every draw fails there; which one is told first depends on the clock, as slow runs are looked at early.
    with pytest.raises(ValueError, match=r"draw \d, batch 3: the output for example 2 of the batch is not finite"):
        run(model, Mixture(points(model)), batches, plan="stacked")


def test_rows_that_reach_the_layers_are_measured() -> None:
    model = Words()
    places = Places(model, weights_of(model))
    stack = Stack(places, Memo(places))
    with torch.no_grad(), stack.measuring():
        model(**sentences()[0])
    assert stack.leading == 15  # 3 sentences of 5 words
    with pytest.raises(Unstackable, match="rows of a batch were not found"):
        stack.rows({"ids": torch.ones(3)}, 4)


# --- the choice ----------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_run_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Backbone(None), nn.Conv1d(3, 3, 1), nn.Flatten())  # a convolution has no batched form

    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m[2](m[1](m[0](x)[..., None]))
        return logits

    draws = Mixture(points(model, 10, only="1."))
    wanted = run(model, draws, rows(), forward=forward, plan="copy")
    model[0].calls = 0
    got = predict(model, draws, rows(), forward=forward)
    assert got.plan == "prefix" and model[0].calls == 2 + 2
    assert_same(got, wanted, exact=True)


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(3, 3), nn.Tanh())))


@pytest.mark.parametrize(
    ("only", "sizes", "plan"),
    [
        ("14.", (1,) * 4, "prefix"),  # what runs once is most of the model
        ("4.", (1,) * 4, "stacked"),  # few rows, and most of what is shared runs for each draw
        ("4.", (256, 1, 1), "stacked"),  # twice 256 rows are still few
        ("4.", (257, 1, 1), "prefix"),
        ("0.", (1,) * 4, "stacked"),
        ("0.", (257, 1, 1), "loop"),  # nothing stands before the first layer
        ("", (1,) * 4, "loop"),  # nothing is shared
        ("14.", (1,), "loop"),  # ten passes in all
    ],
)
def test_the_plan_follows_from_structure_and_shapes(only: str, sizes: tuple[int, ...], plan: str) -> None:
    model = deep()
    draws, batches = Mixture(points(model, 10, only=only)), rows(*sizes)
    first, again = predict(model, draws, batches), predict(model, draws, batches)
    assert first.plan == again.plan == plan
    assert_same(again, first, exact=True)
    assert_same(first, run(model, draws, batches, plan="copy"), exact=plan != "stacked")


def test_draws_that_do_not_fit_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    draws = Mixture(points(model, 30, only="14."))
    monkeypatch.setattr(runner, "HELD", 60)
    assert predict(model, draws, rows(1, 1)).plan == "loop"


def test_few_passes_are_those_of_the_loop() -> None:
    model, calls = mlp(), 0

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        logits: Tensor = m(x)
        return logits

    assert predict(model, Mixture(points(model, 5)), rows(), forward=forward).plan == "loop"
    assert calls == 15


def test_random_models_run_in_the_plain_order() -> None:
    model = mlp()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = m(x) + torch.randn(3)
        return logits

    draws = Mixture(points(model, 10))
    torch.manual_seed(1)
    wanted = run(model, draws, rows(), forward=forward, plan="copy")
    torch.manual_seed(1)
    got = predict(model, draws, rows(), forward=forward)
    assert got.plan == "loop"
    assert_same(got, wanted, exact=True)


def test_models_that_change_themselves_run_in_the_plain_order() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(3, 3)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.mean(0)
            y: Tensor = self.linear(x + self.seen)
            return y

    renorm = nn.Sequential(nn.Embedding(11, 3, max_norm=0.5), nn.Flatten(), nn.Linear(15, 3))
    for model, batches, plan in ((Remembering(), rows(), "loop"), (renorm, [b["ids"] for b in sentences()], "copy")):
        members = points(model, 10)
        kept = copy.deepcopy(members)
        got = predict(model, Mixture(members), batches)
        assert got.plan == plan
        assert_same(got, run(model, Mixture(members), batches, plan="copy"), exact=True)
        for member, before in zip(members, kept, strict=True):
            assert all(torch.equal(member[name], before[name]) for name in before)


def test_measuring_leaves_the_generator_alone() -> None:
    model = mlp()

    class Gauss:
        def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> Weights:
            return {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in weights_of(model).items()}

    states = []
    for plan in ("copy", "loop", "prefix", "stacked", "auto"):
        g = generator(4)
        before = torch.get_rng_state()
        got = run(model, Gauss(), rows(), samples=10, plan=plan, generator=g)
        assert torch.equal(before, torch.get_rng_state())
        states.append((g.get_state(), got.probs))
    for state_after, probs in states:
        assert torch.equal(state_after, states[0][0])
        assert torch.allclose(probs, states[0][1], atol=1e-6)


def test_draws_that_name_other_tensors_stand_alone() -> None:
    model = mlp()
    members = [*points(model, 10), *points(model, 2, only="5.")]

    class Odd:
        def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> Weights:
            return members[0]

        def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[Weights]:
            yield from members[:samples]

    wanted = run(model, Odd(), rows(), samples=12, plan="copy")
    for plan in ("auto", "loop", "prefix"):
        got = run(model, Odd(), rows(), samples=12, plan=plan)
        torch.testing.assert_close(got.probs, wanted.probs, rtol=1e-5, atol=1e-7)


def test_the_plain_loop_is_of_its_block_and_its_thread_alone() -> None:
    model, draws = mlp(), Mixture(points(mlp(), 30, only="5."))
    others: list[str] = []

    def plan() -> str:
        return predict(model, draws, rows()).plan

    assert plan() != "loop"
    with pytest.raises(KeyError), one_by_one():
        with one_by_one():
            assert plan() == "loop"
        assert plan() == "loop"
        other = threading.Thread(target=lambda: others.append(plan()))
        other.start()
        other.join()
        raise KeyError
    assert plan() != "loop" and others != ["loop"]


def test_an_empty_loader() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="batches gave 0 batches in draw 1, wanted at least one"):
        run(model, Mixture(points(model)), [], plan="stacked")


def uncertain(logits: Tensor) -> dict[str, Tensor]:
    """What the sums must give for logits (S, N, C), in one piece."""
    return naive_uncertainty(torch.softmax(logits.double(), -1))


@pytest.mark.parametrize("sizes", [(2, 1), (1,) * 40, (1000, 3000), (5000, 7, 7), (4096,), (2, 4096, 1)])
@pytest.mark.parametrize("held", [1, 3, 7])
def test_sums_are_the_same_bits_in_whichever_order_passes_come(sizes: tuple[int, ...], held: int) -> None:
    draws, ends = 7, torch.tensor(sizes).cumsum(0).tolist()
    logits = 4 * torch.randn(draws, sum(sizes), 3, generator=generator())
    one, other = Classes(draws), Classes(draws)
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    for s in range(draws):
        for index, part in enumerate(parts):
            one.add(index, s + 1, (logits[s, part],))
        one.close()
    for start in range(0, draws, held):  # chunks of draws, batch by batch
        for index, part in enumerate(parts):
            for s in range(start, min(start + held, draws)):
                other.add(index, s + 1, (logits[s, part],))
        other.close()
    got, again = one.result("loop"), other.result("loop")
    assert isinstance(got, Prediction) and got.samples == draws
    assert_same(got, again, exact=True)
    for name, tensor in uncertain(logits).items():
        torch.testing.assert_close(getattr(got, name), tensor, rtol=1e-9, atol=1e-12, msg=name)


def test_what_waits_to_be_summed_stays_small() -> None:
    sums = Classes(1000)
    for number in range(1, 1001):
        for index in range(50):
            sums.add(index, number, (torch.zeros(9, 10),))
        sums.close()
        waiting = sum(part.numel() for g in sums._groups for w in g.waiting.values() for raw in w for part in raw)
        assert waiting <= 2 * BLOCK


def test_an_output_that_the_model_uses_again_is_copied() -> None:
    model, out = mlp(), torch.empty(4, 3)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.as_tensor(out.copy_(m(x)))

    draws, batches = Mixture(points(model)), rows(4, 4)
    wanted = run(model, draws, batches, plan="copy")
    for plan in ("copy", "loop", "prefix"):
        got = run(model, draws, batches, forward=forward, plan=plan)
        assert_same(got, wanted, exact=True)


def test_a_bad_output_names_its_draw_and_batch_also_when_found_late() -> None:
    sums = Classes(9)
    for number in range(1, 9):
        for index in range(5):
            value = torch.zeros(4, 3)
            value[2, 1] = torch.nan if (number, index) == (6, 3) else 0.0
            sums.add(index, number, (value,))
        sums.close()
    with pytest.raises(ValueError, match="draw 6, batch 4: the output for example 3 of the batch is not finite"):
        for index in range(5):
            sums.add(index, 9, (torch.zeros(4, 3),))
    with pytest.raises(ValueError, match="batches changed between draws"):
        sums.add(5, 9, (torch.zeros(4, 3),))


def test_slow_passes_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_of_draws, "PATIENCE", -1.0)
    with pytest.raises(ValueError, match="draw 1, batch 1: the output for example 1"):
        Classes(2).add(0, 1, (torch.full((1, 2), torch.inf),))
