"""Reading weights from models and writing them back, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lowland import applied, copy_to, weights_of
from lowland.averager.reader import Reader
from lowland.weights import check_same, clone_of, selected
from lowland.weights.named import bare_name, floating, matching, parameters, select_from, select_name, trainable

from ..problems import Small


def test_selections() -> None:
    model = Small()
    assert list(weights_of(model)) == ["token", "embed.weight", "norm.weight", "norm.bias"]
    assert set(weights_of(model, floating)) == {*weights_of(model), "norm.running_mean", "norm.running_var"}
    model.embed.weight.requires_grad_(False)
    assert set(weights_of(model, trainable)) == {"token", "norm.weight", "norm.bias"}
    assert list(weights_of(model, matching(r"^norm\.w"))) == ["norm.weight"]
    with pytest.raises(ValueError, match=r"matching\('nothing'\) selects no tensor of Small: choose another"):
        weights_of(model, matching("nothing"))
    with pytest.raises(ValueError, match="matching wants a regular expression, got '\\('"):
        matching("(")


def test_selections_by_name() -> None:
    for select in (parameters, trainable, floating, matching(r"a'b\.\"c")):
        assert select_from(select_name(select), {}) == select
    listed = select_from("<lambda>", {"w": torch.ones(1)})
    assert listed("w", torch.ones(1)) and listed("module.w", torch.ones(1)) and not listed("v", torch.ones(1))


def test_weights_are_detached_views() -> None:
    model = Small()
    weights = weights_of(model)
    with torch.no_grad():
        model.token.fill_(7.0)
    assert weights["token"].tolist() == [7.0] * 4
    assert not any(tensor.requires_grad for tensor in weights.values())
    assert clone_of(weights)["token"].data_ptr() != model.token.data_ptr()


def test_a_parameter_beside_a_child_is_paired_by_name() -> None:
    # swa_gaussian enumerates modules child first and zips with parameters() (swag/posteriors/swag.py:149): a token of a
    # child's shape received the child's values there.
    class Sibling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2, bias=False)
            self.token = nn.Parameter(torch.full((2, 2), 5.0))

    model, other = Sibling(), Sibling()
    with torch.no_grad():
        model.fc.weight.fill_(1.0)
    copy_to(other, weights_of(model))
    assert other.token.unique().tolist() == [5.0]
    assert other.fc.weight.unique().tolist() == [1.0]


def test_non_persistent_buffers_and_lazy_parameters() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("cache", torch.ones(1), persistent=False)
    assert "cache" not in weights_of(model, floating)
    with pytest.raises(ValueError, match="lazy parameter without a shape: run one forward pass first"):
        weights_of(nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module.a", "a"),
        ("_orig_mod.module.a", "a"),
        ("a._orig_mod.b", "a.b"),
        ("a.module.b", "a.module.b"),
        ("module", "module"),
    ],
)
def test_bare_names(name: str, bare: str) -> None:
    assert bare_name(name) == bare


def test_copy_to_tells_model_and_weights_apart() -> None:
    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    weights = {"weight": torch.tensor([[3.0]])}
    copy_to(one, weights)
    copy_to(weights, two)  # type: ignore[arg-type]
    assert one.weight.item() == two.weight.item() == 3.0


def test_copy_to_writes_all_or_nothing() -> None:
    model = Small()
    before = clone_of(model.state_dict())
    bad = {"token": torch.zeros(4), "stranger": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"Small has no tensor named \['stranger'\].*pass weights of this"):
        copy_to(model, bad)
    with pytest.raises(ValueError, match=r"other shapes: \['token \(3,\) instead of \(4,\)'\]"):
        copy_to(model, {"embed.weight": torch.zeros(4, 4), "token": torch.zeros(3)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    pointer = model.token.data_ptr()
    copy_to(model, {"token": torch.ones(4, dtype=torch.float64)})
    assert model.token.dtype == torch.float32 and model.token.data_ptr() == pointer
    # Both names of a tied tensor may be given, as a state dict holds them.
    copy_to(model, {"embed.weight": torch.ones(4, 4), "head.weight": torch.ones(4, 4)})
    assert model.head.weight is model.embed.weight


def test_applied_restores_buffers_and_nests() -> None:
    model = Small()
    before = clone_of(model.state_dict())
    with applied(model, {"token": torch.zeros(4)}), applied(model, {"token": torch.ones(4)}) as inner:
        inner(torch.randn(3, 4))  # moves BatchNorm's statistics
        assert inner.token.tolist() == [1.0] * 4
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no tensor named"), applied(model, {"stranger": torch.ones(1)}):
        pass


def test_applied_reaches_a_compiled_model() -> None:
    # A compiled forward that keeps its own weights would not see the swap.
    model = nn.Linear(1, 1, bias=False)
    compiled = torch.compile(model, backend="eager")
    x = torch.ones(1, 1)
    compiled(x)
    with applied(compiled, {"weight": torch.tensor([[3.0]])}):
        assert compiled(x).item() == 3.0


def test_check_same_shortens_long_lists() -> None:
    many = {f"w{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(ValueError, match=r"missing .*'w4', '\.\.\. and 4 more'\], unexpected \[\]"):
        check_same(many, {})


def test_a_reader_follows_every_change_of_a_model() -> None:
    # What changes between two calls is found without a hook: the answer is always that of a fresh look.
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3, bias=False)))
    model.append(nn.Linear(3, 2))
    reader = Reader()

    def same() -> None:
        for select in (parameters, trainable, floating):
            for _ in range(2):
                got, wanted = reader.selected(model, select), selected(model, select)
                assert list(got) == list(wanted)
                assert all(got[name] is wanted[name] for name in wanted)

    same()
    model[2][0] = nn.Linear(3, 3)
    same()
    model[0].weight.requires_grad_(False)
    same()
    model[0].weight = nn.Parameter(torch.zeros(3, 2))
    same()
    model[3].bias = None
    same()
    model.insert(1, nn.Linear(3, 3))
    same()
    del model[0]
    same()
    model[0].weight = model[2][0].weight  # tied
    same()
    model.append(model[0])  # a module met twice
    same()
    model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    same()
    model[0].add_module("child", nn.Linear(1, 1))
    same()
    wrapped = nn.ModuleDict({"module": nn.Linear(1, 1)})
    assert list(reader.selected(wrapped)) == list(selected(wrapped))
    model.double()
    same()


def test_a_reader_sees_each_way_of_changing_a_model() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))
    model[1].register_module("nothing", None)
    reader = Reader()

    def replace(module: nn.Module, key: str) -> None:
        module._parameters[key] = nn.Parameter(torch.zeros(2, 2))

    def rename(module: nn.Module, old: str, new: str) -> None:
        module._modules[new] = module._modules.pop(old)

    def own_dictionary(module: nn.Module) -> None:
        module._modules = dict(reversed(module._modules.items()))

    def swap(module: nn.Module) -> None:
        module[0], module[1] = module[1], module[0]

    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: replace(model[0], "weight"),
        lambda: model[1].add_module("nothing", nn.Linear(2, 2)),
        lambda: model[1].register_module("nothing", None),
        lambda: model[0].register_parameter("bias", nn.Parameter(torch.zeros(2))),
        lambda: setattr(model[0], "bias", None),
        lambda: rename(model[1], "1", "one"),
        lambda: setattr(model[2], "__class__", Other),
        lambda: own_dictionary(model[1]),
        lambda: swap(model),
        lambda: model.insert(1, nn.ReLU()),
        lambda: setattr(model[0], "tied", model[1]),
        lambda: delattr(model[0], "tied"),
        lambda: setattr(model[3], "weight", model[2].weight),
        lambda: model.pop(3),
    ]
    for number, change in enumerate(changes):
        change()
        for select in (parameters, trainable):
            for _ in range(2):
                got, wanted = reader.selected(model, select), selected(model, select)
                assert list(got) == list(wanted), number
                assert all(got[name] is wanted[name] for name in wanted), number


def test_a_reader_looks_behind_parameters_that_are_gathered_for_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    # As under `fully_shard`: the class changes, and after a forward the module holds other parameters until `reshard`.
    class Shards(nn.Linear):
        def reshard(self) -> None:
            self.weight = self.own

    package = SimpleNamespace(FSDPModule=Shards, FullyShardedDataParallel=())
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", package)
    model, reader = nn.Sequential(nn.Linear(1, 1, bias=False)), Reader()
    own = model[0].weight
    for _ in range(2):
        assert reader.selected(model)["0.weight"] is own
    model[0].__class__ = Shards
    object.__setattr__(model[0], "own", own)
    for _ in range(3):
        model[0].weight = nn.Parameter(torch.ones(1, 1))
        assert reader.selected(model)["0.weight"] is own


def test_what_is_written_inside_autocast_is_what_computes() -> None:
    """Autocast keeps cast copies of parameters, by their identity, until its outermost block ends."""
    model, x = nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    nn.init.zeros_(model.weight)
    ones = {"weight": torch.ones(4, 4)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not model(x).any()
        with applied(model, ones):
            assert model(x).eq(4).all()
        assert not model(x).any()
        copy_to(model, ones)
        assert model(x).eq(4).all()
