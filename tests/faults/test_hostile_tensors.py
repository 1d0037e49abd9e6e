"""Tensors that nobody should average, and tensors that look harmless: each is refused by name, or taken exactly."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland import EMA, SWA, SWAG, Snapshots
from lowland.arithmetic import kernels
from lowland.averager import Averager
from lowland.weights.named import floating

from ..conformance import AVERAGERS
from ..test_conformance import flat_state

NAME = "layer.w"
GOOD = torch.linspace(-1, 1, 12).view(3, 4)


def quantised() -> Tensor:
    return torch.quantize_per_tensor(GOOD, 0.1, 0, torch.qint8)


def strided(kind: str) -> Tensor:
    if kind == "expanded":
        return torch.linspace(-1, 1, 4).expand(3, 4)
    if kind == "overlapping":
        return torch.linspace(-1, 1, 6).as_strided((3, 4), (1, 1))
    if kind == "a slice":
        return torch.linspace(-1, 1, 48).view(6, 8)[::2, ::2]
    if kind == "transposed":
        return GOOD.T.contiguous().T
    return {"empty": torch.zeros(0, 4), "of no axis": torch.tensor(0.5), "denormal": GOOD * 1e-42}[kind]


REFUSED: dict[str, Callable[[], Tensor]] = {
    "a NaN": lambda: GOOD.clone().index_put_((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan)),
    "an infinity": lambda: GOOD.clone().index_put_((torch.tensor(2), torch.tensor(3)), torch.tensor(-torch.inf)),
    "an infinity in float64": lambda: GOOD.double() / 0,
    "a NaN in float16": lambda: GOOD.half() * torch.nan,
    "complex": lambda: GOOD.to(torch.complex64),
    "float8": lambda: GOOD.to(torch.float8_e4m3fn),
    "the other float8": lambda: GOOD.to(torch.float8_e5m2),
    "quantised": quantised,
    "meta": lambda: GOOD.to("meta"),
    "sparse": GOOD.to_sparse,
    "compressed rows": lambda: GOOD.to_sparse_csr(),
    "codes": lambda: nn.Parameter(torch.zeros(64, dtype=torch.uint8), requires_grad=False),
}
TAKEN = ("expanded", "overlapping", "a slice", "transposed", "empty", "of no axis", "denormal")


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest) -> object:
    if request.param == "compiled" and not kernels.available():
        pytest.skip("numba is not installed")
    with kernels.disabled() if request.param == "plain" else nullcontext():
        yield


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:.*quantized tensor creation")
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("name", AVERAGERS)
def test_refused_by_name_first_and_later(name: str, what: str, path: object) -> None:
    fresh, running = AVERAGERS[name](), AVERAGERS[name]()
    with pytest.raises(ValueError, match=NAME):
        fresh.update({"ok": torch.ones(2), NAME: REFUSED[what]()})
    assert fresh.count == 0 and not fresh.state_dict()["slots"]
    fresh.update({"ok": torch.ones(2), NAME: GOOD})
    for _ in range(4):
        running.update({"ok": torch.ones(2), NAME: GOOD})
    before = flat_state(running)
    with pytest.raises(ValueError, match=NAME):
        running.update({"ok": torch.ones(2), NAME: REFUSED[what]()})
    assert running.count == 4
    assert all(torch.equal(tensor, before[key]) for key, tensor in flat_state(running).items())
    running.update({"ok": torch.ones(2), NAME: GOOD})
    assert torch.allclose(running.mean()[NAME], GOOD, atol=1e-6)


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("name", AVERAGERS)
def test_taken_as_the_numbers_say(name: str, kind: str, path: object, tmp_path: Path) -> None:
    strange, plain = AVERAGERS[name](), AVERAGERS[name]()
    for turn in range(6):
        weights = strided(kind) * 1
        weights = strided(kind) if turn % 2 else weights  # fresh memory and other strides in turns
        strange.update({NAME: weights, "ok": torch.ones(2)})
        plain.update({NAME: weights.contiguous().clone(), "ok": torch.ones(2)})
    for verb in (lambda a: a.mean(), flat_state):
        ours, theirs = verb(strange), verb(plain)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    lowland.save(strange, tmp_path / "state.safetensors")
    given = dict(AVERAGERS[name].given)
    for twin in (
        copy.deepcopy(strange),
        pickle.loads(pickle.dumps(strange)),
        lowland.load(tmp_path / "state.safetensors", **given),
    ):
        twin.update({NAME: strided(kind), "ok": torch.ones(2)})
        assert twin.count == 7
    if isinstance(strange, SWAG):
        generator = torch.Generator()
        one, two = (a.sample(3, generator=generator.manual_seed(0)) for a in (strange, plain))
        assert all(torch.equal(one[key], two[key]) and one[key].isfinite().all() for key in two)
        assert all(v.isfinite().all() for v in strange.variance().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["SWAG", "SWAG-diagonal", "SWAG-bfloat16"])
def test_a_finite_step_whose_square_overflows_is_refused(name: str, dtype: torch.dtype, path: object) -> None:
    swag, huge = AVERAGERS[name](), 1e20 if dtype != torch.float64 else 1e160
    for turn in range(12):
        value = huge if turn in (3, 8) else 1 + 0.1 * turn
        weights = {NAME: torch.full((5,), value, dtype=dtype)}
        if value == huge:
            with pytest.raises(ValueError, match=f"{NAME} holds a value of size .*, beyond"):
                swag.update(weights)
        else:
            swag.update(weights)
    assert swag.count == 10
    assert all(tensor.isfinite().all() for tensor in flat_state(swag).values())
    assert swag.sample(4, generator=torch.Generator().manual_seed(0))[NAME].isfinite().all()
    # The largest numbers that are taken give finite sums, too.
    edge = 2.0**49 if dtype != torch.float64 else 2.0**99
    wide = AVERAGERS[name]()
    for turn in range(9):
        wide.update({NAME: torch.full((5,), edge if turn % 2 else -edge, dtype=dtype)})
    assert wide.variance()[NAME].isfinite().all() and wide.sample()[NAME].isfinite().all()


@pytest.mark.parametrize("make", [SWA, lambda: EMA(0.5), lambda: Snapshots(3)], ids=["SWA", "EMA", "Snapshots"])
def test_a_mean_whose_differences_overflow_is_refused(make: Callable[[], Averager], path: object) -> None:
    most = torch.finfo(torch.float32).max
    average = make()
    average.update({NAME: torch.tensor([1.0, most])})  # one iterate alone is exact
    with pytest.raises(ValueError, match=rf"{NAME} holds a value of size 3.4e\+38"):
        average.update({NAME: torch.tensor([1.0, -most])})
    with pytest.raises(ValueError, match=rf"{NAME} holds a value of size 3.4e\+38.*the average itself"):
        average.update({NAME: torch.tensor([1.0, 2.0])})
    average = make()
    for value in (2.0**125, -(2.0**125), 1.0):
        average.update({NAME: torch.tensor([value])})
    assert average.mean()[NAME].isfinite().all()
    unchecked = SWA(check_finite=False)
    unchecked.update({NAME: torch.tensor([torch.inf])})
    assert not unchecked.mean()[NAME].isfinite()


def test_tied_tensors_come_back_under_every_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(3, 4), nn.Linear(4, 3, bias=False)
            self.head.weight = self.embed.weight

    model, average = Tied(), SWA()
    for _ in range(3):
        average.update(model)
        with torch.no_grad():
            model.head.weight.add_(1)
    assert list(average.mean()) == ["embed.weight"]
    lowland.copy_to(model, average.mean())
    assert model.head.weight is model.embed.weight
    lowland.copy_to(model, {"head.weight": torch.zeros(3, 4)})
    assert not model.embed.weight.any()


def test_integers_beside_floats_are_copied_while_they_stay() -> None:
    table, codes = torch.arange(64, dtype=torch.int32), torch.arange(64).to(torch.int8)
    average = SWA()
    for turn in range(3):
        average.update(
            {"w": torch.full((2,), float(turn)), "table": table, "codes": codes, "steps": torch.tensor(turn)}
        )
    mean = average.mean()
    assert torch.equal(mean["table"], table) and mean["steps"].item() == 2 and mean["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"\['codes'\] hold integers that changed.*dequantised"):
        average.update({"w": torch.zeros(2), "table": table, "codes": codes + 1, "steps": torch.tensor(3)})
    codes += 1  # in place, so that nothing but the numbers differs
    with pytest.raises(ValueError, match="hold integers that changed"):
        average.update({"w": torch.zeros(2), "table": table, "codes": codes, "steps": torch.tensor(3)})
    assert average.count == 3


@pytest.mark.parametrize("new", [True, False], ids=["parametrised", "by a hook"])
def test_the_unit_vectors_of_spectral_norm_are_not_averaged(new: bool) -> None:
    norm = nn.utils.parametrizations.spectral_norm if new else nn.utils.spectral_norm
    model, average = nn.Sequential(norm(nn.Linear(6, 5)), nn.BatchNorm1d(5)), SWA(select=floating)
    for _ in range(4):
        model(torch.randn(8, 6))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model)
    mean = average.mean()
    assert {name for name in mean if name.endswith(("_u", "_v"))} == set()
    assert "1.running_mean" in mean
    lowland.copy_to(model, mean)
    vectors = [buffer for name, buffer in model.named_buffers() if name.endswith(("_u", "_v"))]
    assert len(vectors) == 2 and all(abs(float(v.norm()) - 1) < 1e-5 for v in vectors)
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    with pytest.raises(ValueError, match=r"unit vectors that spectral norm keeps"):
        SWA().update(state)


def test_a_default_device_is_no_device_of_ours(tmp_path: Path) -> None:
    swag, weights = SWAG(rank=2), {"w": torch.randn(70)}
    plain = SWAG(rank=2)
    for _ in range(4):
        plain.update(weights)
    generator = torch.Generator().manual_seed(0)
    expected = plain.sample(2, generator=generator)
    with torch.device("meta"):
        for _ in range(4):
            swag.update(weights)
        drawn = swag.sample(2, generator=generator.manual_seed(0))
        lowland.save(swag, tmp_path / "swag.safetensors")
        back = lowland.load(tmp_path / "swag.safetensors")
        assert back.variance()["w"].device.type == "cpu" and back.mean()["w"].device.type == "cpu"
        assert back.tempered(0.5).sample(generator=generator)["w"].isfinite().all()
    assert torch.equal(drawn["w"], expected["w"])
