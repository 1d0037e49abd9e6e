"""Every public verb that takes weights, on tensors that nobody should average and on tensors that only look so.

Each is taken for exactly the numbers that it holds, or refused in one line with its name, and nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland import BEMA, EMA, SWA, SWAG, Mixture, Snapshots, landscape, retroactive, soup
from lowland.calibration import entropy, fit_temperature, nll, selective_risk, summary
from lowland.doctor import diagnose
from lowland.files import SnapshotFiles
from lowland.population import IMWA, PAPA, WASH, LocalSGD, PAPAAll, Population
from lowland.predict import predict_regression
from lowland.retroactive import Candidate, Recorded, Window
from lowland.teacher import Teacher

from .test_hostile_tensors import GOOD, NAME, strided

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
X = [torch.linspace(-1, 1, 15).view(5, 3)]
FOREIGN = re.compile(r"aten|not implemented|NotImplemented|Internal error|storage|Could not run|copy_|\n")


def inference() -> Tensor:
    with torch.inference_mode():
        return GOOD.clone()


HARMLESS: dict[str, Callable[[], Tensor]] = {
    **{kind: lambda kind=kind: strided(kind) for kind in ("expanded", "overlapping", "a slice", "transposed")},
    **{kind: lambda kind=kind: strided(kind) for kind in ("empty", "of no axis", "denormal")},
    "float16": GOOD.half,
    "bfloat16": GOOD.bfloat16,
    "float64": GOOD.double,
    "made in inference mode": inference,
    "with a graph": lambda: GOOD.clone().requires_grad_() * 2,
    "negated lazily": lambda: torch.complex(GOOD, GOOD).conj().imag,
}
NOT_FINITE: dict[str, Callable[[], Any]] = {
    "NaN": lambda: GOOD.clone().index_put_((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan)),
    "infinite": lambda: GOOD.clone().index_put_((torch.tensor(2), torch.tensor(3)), torch.tensor(-torch.inf)),
}
STRANGE: dict[str, Callable[[], Any]] = {
    "quantised": lambda: torch.quantize_per_tensor(GOOD, 0.1, 0, torch.qint8),
    "meta": lambda: GOOD.to("meta"),
    "sparse": GOOD.to_sparse,
    "compressed rows": GOOD.to_sparse_csr,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "a list": lambda: [1.0, 2.0],
    "an array": lambda: GOOD.numpy(),
    "nothing": lambda: None,
}
SCALED: dict[str, Callable[[], Any]] = {
    "float8": lambda: GOOD.to(torch.float8_e4m3fn),
    "codes": lambda: torch.arange(64, dtype=torch.int8).view(8, 8),
}
COMPLEX: dict[str, Callable[[], Any]] = {"complex": lambda: GOOD.to(torch.complex64) * 1j}


def named(tensor: Any, shift: float = 0.0) -> dict[str, Any]:
    return {"out": torch.linspace(-1, 1, 6).view(3, 2) * (1 + shift), NAME: tensor}


def like(tensor: Any) -> Tensor:
    """Good weights of the same shape."""
    shape = (3, 4) if not isinstance(tensor, Tensor) or tensor.is_nested else tuple(tensor.shape)
    dtype = tensor.dtype if isinstance(tensor, Tensor) and tensor.dtype in (torch.float64,) else torch.float32
    return torch.linspace(0, 1, torch.Size(shape).numel(), dtype=dtype).view(shape)


class Net(nn.Module):
    """Whose tensor of interest has the shape and values given, and a say in its output."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.w = nn.Parameter(tensor.clone())
        self.out = nn.Parameter(torch.linspace(-1, 1, 6).view(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.out + self.layer.w.float().sum() * torch.tensor([1.0, -1.0])


def raw(tensor: Any) -> nn.Module:
    """A model that holds the very tensor."""
    model = Net(like(tensor))
    takes = isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())
    takes = takes and not tensor.is_quantized and tensor.dtype != torch.float8_e4m3fn and not tensor.is_inference()
    model.layer.w = nn.Parameter(tensor.detach(), requires_grad=takes)
    return model


@contextmanager
def unchanged(model: nn.Module) -> Any:
    """A model that is as it was when the block raises."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield model
    except ValueError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        raise


def copied(tensor: Any, tmp: Path) -> object:
    with unchanged(Net(like(tensor))) as model:
        lowland.copy_to(model, named(tensor))
        return dict(model.state_dict())


def put_in(tensor: Any, tmp: Path) -> object:
    with unchanged(Net(like(tensor))) as model, lowland.applied(model, named(tensor)):
        return {name: held.clone() for name, held in model.state_dict().items()}


def saved(tensor: Any, tmp: Path) -> object:
    lowland.save(named(tensor), tmp / "w.safetensors")
    return lowland.load(tmp / "w.safetensors")


def fed(make: Callable[[], Any]) -> Callable[[Any, Path], object]:
    def verb(tensor: Any, tmp: Path) -> object:
        averager = make()
        averager.update(named(like(tensor)))
        averager.update(named(tensor))
        return averager.mean()

    return verb


def mixed(rule: Any) -> Callable[[Callable[[], Any]], dict[str, Tensor]]:
    def verb(make: Callable[[], Any]) -> dict[str, Tensor]:
        models = [raw(make()), raw(make())]
        population = Population(models, rule, optimizers=[torch.optim.SGD(m.parameters(), 0.1) for m in models])
        population.step()
        return population.average()

    return verb


def filed(tensor: Any, tmp: Path) -> object:
    files = SnapshotFiles(tmp / str(len(list(tmp.iterdir()))))
    files.update(named(tensor), 1)
    return files.mean()


def followed(tensor: Any, tmp: Path) -> object:
    teacher = Teacher(EMA(0.5), Net(like(tensor)))
    teacher.averager.update(named(tensor))
    return teacher.averager.mean()


def measure(weights: Mapping[str, Tensor]) -> float:
    return float(sum(tensor.detach().double().square().sum() for tensor in weights.values()))


def gradient(weights: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    return measure(weights), {name: 2 * tensor for name, tensor in weights.items()}


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


Verb = Callable[[Any, Path], Any]
EXACT: dict[str, Verb] = {"save": saved}
WRITES: dict[str, Verb] = {"copy_to": copied, "applied": put_in}
AVERAGES: dict[str, Verb] = {
    **{make.__name__: fed(make) for make in (SWA, EMA, BEMA)},
    "SWAG": fed(lambda: SWAG(rank=2)),
    "Snapshots": fed(lambda: Snapshots(2)),
    "Teacher": followed,
    "soup.uniform": lambda t, _: soup.uniform([named(like(t)), named(t)]),
    "soup.uniform, first": lambda t, _: soup.uniform([named(t), named(like(t))]),
    "soup.weighted": lambda t, _: soup.weighted([named(like(t)), named(t)], [0.5, 0.5]),
    "soup.combined": lambda t, _: soup.combined([named(like(t)), named(t)], [1.5, -0.5]),
    "soup.greedy": lambda t, _: soup.greedy([named(like(t)), named(t)], lambda weights: 0.0).weights,
    "synthesise": lambda t, _: retroactive.synthesise(
        [Recorded(Window(0, 2), named(like(t))), Recorded(Window(0, 4), named(t))], Window(0, 3)
    ),
    "made": lambda t, _: retroactive.made([named(like(t)), named(t)], Candidate("linear", 2), [1, 2]),
    "predict": lambda t, _: lowland.predict(Net(like(t)), named(t), X).probs,
    "predict_regression": lambda t, _: predict_regression(Net(like(t)), named(t), X, forward=lambda m, x: m(x)).mean,
}
MOVES: dict[str, Verb] = {
    "line": lambda t, _: landscape.line(named(like(t)), named(t), measure, points=3).values["loss"],
    "along bezier": lambda t, _: landscape.along(landscape.bezier(named(like(t)), named(t)), measure, points=3).values[
        "loss"
    ],
    "plane": lambda t, _: landscape.plane(
        landscape.Plane.through(named(like(t)), named(like(t), 1.0), named(t, 3.0)), measure, points=3
    ).values["loss"],
    "rays": lambda t, _: landscape.rays(named(t), measure, directions=2, places=[1.0], generator=generator()).values[
        "loss"
    ],
    "perturbed": lambda t, _: (
        landscape.perturbed(named(t), measure, std=0.1, draws=2, generator=generator())["loss"].mean
    ),
    "worst": lambda t, _: landscape.worst(named(t), gradient, radius=0.1, steps=3).value,
    "critical_sharpness": lambda t, _: landscape.critical_sharpness(named(like(t), 1.0), measure, named(t)).value,
    "spectrum": lambda t, _: (
        landscape.spectrum(Net(like(t)), named(t), X, loss, steps=2, probes=1, generator=generator()).eigenvalues
    ),
    "random_direction": lambda t, _: landscape.random_direction(named(t), 1, 0),
    "filter_normalised": lambda t, _: landscape.filter_normalised(named(t), named(t)),
}
HOLDS: dict[str, Verb] = {
    "Mixture": lambda t, _: Mixture([named(t), named(like(t))]).sample(2, generator=generator()),
    "SnapshotFiles": filed,
}
RULES = {"PAPA": PAPA(1), "PAPAAll": PAPAAll(1), "WASH": WASH(0.5), "IMWA": IMWA(1), "LocalSGD": LocalSGD(1)}
# Of these the interface asks for two alike, or the numbers lie in one place.
OUT_OF_PLACE = {
    *(("along bezier", kind) for kind in ("float16", "bfloat16")),
    *(("plane", kind) for kind in ("empty", "denormal")),
    *(("critical_sharpness", kind) for kind in ("empty",)),
}
TAKEN = {**EXACT, **WRITES, **AVERAGES, **MOVES, **HOLDS}


def flat(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found.detach()]
    if isinstance(found, Mapping):
        return [tensor for key in sorted(found) for tensor in flat(found[key])]
    if isinstance(found, list | tuple):
        return [tensor for one in found for tensor in flat(one)]
    return [torch.as_tensor(found)]


@pytest.mark.parametrize("name", TAKEN)
def test_taken_for_the_numbers_that_they_hold(name: str, tmp_path: Path) -> None:
    for kind, make in HARMLESS.items():
        if (name, kind) in OUT_OF_PLACE:
            continue
        plain = make().detach().clone(memory_format=torch.contiguous_format)
        got, wanted = flat(TAKEN[name](make(), tmp_path)), flat(TAKEN[name](plain, tmp_path))
        assert len(got) == len(wanted), kind
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), kind
        assert all(one.isfinite().all() for one in got if one.is_floating_point()), kind


REFUSED = [
    *((name, {**STRANGE}) for name in EXACT),
    *((name, {**STRANGE, **SCALED, **COMPLEX}) for name in WRITES),
    *((name, {**STRANGE, **SCALED, **COMPLEX, **NOT_FINITE}) for name in AVERAGES if not name.startswith("predict")),
    *((name, {**STRANGE, **SCALED, **COMPLEX}) for name in AVERAGES if name.startswith("predict")),
    *((name, {**STRANGE, "float8": SCALED["float8"], **NOT_FINITE}) for name in (*MOVES, *HOLDS)),
]


@pytest.mark.parametrize(("name", "kinds"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refused_in_one_line_with_the_name(name: str, kinds: dict[str, Callable[[], Any]], tmp_path: Path) -> None:
    for kind, make in kinds.items():
        with pytest.raises(ValueError) as caught:
            TAKEN[name](make(), tmp_path)
        told = str(caught.value)
        assert NAME in told, f"{kind}: {told}"
        assert not FOREIGN.search(told), f"{kind}: {told}"


@pytest.mark.parametrize("name", ["plane", "rays", "perturbed", "worst", "spectrum", "random_direction"])
def test_complex_numbers_are_no_coordinates(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{NAME}.*complex"):
        MOVES[name](COMPLEX["complex"](), tmp_path)


@pytest.mark.parametrize("name", RULES)
def test_members_of_a_population(name: str) -> None:
    verb = mixed(RULES[name])
    for kind in ("meta", "sparse", "nested"):
        with pytest.raises(ValueError, match=NAME):
            verb(STRANGE[kind])
    for make in (*NOT_FINITE.values(), *COMPLEX.values()):
        with pytest.raises(ValueError, match=NAME):
            verb(make)
    for kind in ("expanded", "overlapping"):
        with pytest.raises(ValueError, match=f"{NAME} is expanded"):
            verb(HARMLESS[kind])
    for kind in ("empty", "of no axis", "bfloat16", "transposed"):
        assert torch.equal(verb(HARMLESS[kind])[NAME], HARMLESS[kind]().float()), kind


def test_the_doctor_says_so() -> None:
    for kind, make in {**STRANGE, **COMPLEX, "float8": SCALED["float8"], **NOT_FINITE}.items():
        found = diagnose({"a": named(like(make())), "b": named(make()), "c": named(like(make()), 1.0)})
        errors = [finding.says for finding in found.findings if finding.level == "error"]
        assert errors and any(NAME in told and "b" in told for told in errors), kind
        assert ("a", "c") in found.groups, kind


def test_tensors_that_cannot_be_written_into() -> None:
    for kind in ("expanded", "overlapping"):
        with unchanged(raw(HARMLESS[kind]())) as model, pytest.raises(ValueError, match=f"{NAME} is expanded"):
            lowland.copy_to(model, named(GOOD))
    for make in (*STRANGE.values(), SCALED["float8"]):
        if isinstance(make(), Tensor):
            with pytest.raises(ValueError, match=NAME), lowland.applied(raw(make()), named(like(make()))):
                pass
    with pytest.raises(ValueError, match=f"{NAME} was made in inference mode"):
        lowland.copy_to(raw(inference()), named(GOOD))
    with torch.inference_mode():
        lowland.copy_to(raw(inference()), named(GOOD))


@pytest.mark.parametrize(
    ("wide", "narrow", "most"), [(torch.float32, torch.float16, 65504.0), (torch.float64, torch.float32, 3.4e38)]
)
def test_a_cast_that_would_make_numbers_infinite_is_refused(wide: Any, narrow: Any, most: float) -> None:
    with unchanged(Net(GOOD).to(narrow)) as model:
        with pytest.raises(ValueError, match=f"{NAME} holds numbers beyond the range of {narrow}"):
            lowland.copy_to(model, {NAME: GOOD.to(wide) * most * 1.01})
    lowland.copy_to(model, {NAME: GOOD.to(wide) * most})
    assert model.layer.w.isfinite().all()
    lowland.copy_to(model, {NAME: GOOD.to(wide) / 0})  # what is infinite is copied as it is
    assert model.layer.w.isinf().all()


def test_whole_numbers_where_fractions_were_and_codes_that_differ() -> None:
    with pytest.raises(ValueError, match=f"{NAME} is of torch.float32, the model's of torch.int64"):
        net = nn.Module()
        net.layer = nn.Module()
        net.layer.register_buffer("w", torch.arange(12).view(3, 4))
        lowland.copy_to(net, {NAME: GOOD})
    codes = SCALED["codes"]()
    for verb in (soup.uniform, lambda both: soup.greedy(both, lambda weights: float(weights[NAME][0, 0]))):
        assert torch.equal(flat(verb([named(codes), named(codes.clone())]))[0], flat(codes)[0])
        with pytest.raises(ValueError, match=f"{NAME}.*hold other integers"):
            verb([named(codes), named(codes + 1)])
    with pytest.raises(ValueError, match=f"{NAME}.*hold other integers"):
        landscape.line(named(codes), named(codes + 1), measure)


def test_sums_beyond_the_range_are_told() -> None:
    with pytest.raises(ValueError, match=f"the sum of {NAME} is beyond the range"):
        soup.combined([named(GOOD * 3e38), named(GOOD * -3e38)], [1.0, -1.0])
    assert landscape.filter_normalised(named(GOOD * 1e30), named(GOOD))[NAME].isfinite().all()


PROBS = torch.tensor([[0.25, 0.75], [0.5, 0.5]])


@pytest.mark.parametrize(
    "metric",
    [lambda p: nll(p, [1, 0]), lambda p: summary(p, [1, 0]), lambda p: fit_temperature(p, [1, 0]), entropy],
    ids=["nll", "summary", "fit_temperature", "entropy"],
)
def test_probabilities(metric: Callable[[Any], Any]) -> None:
    kinds = [PROBS.to("meta"), PROBS.to_sparse(), PROBS.to_sparse_csr(), PROBS.to(torch.float8_e4m3fn), PROBS / 0]
    kinds += [torch.quantize_per_tensor(PROBS, 0.1, 0, torch.quint8), STRANGE["nested"](), PROBS.to(torch.complex64)]
    for probs in (*kinds, PROBS * torch.nan, -PROBS, PROBS * 9, PROBS > 0.3, "ab", None):
        with pytest.raises(ValueError, match="probs") as caught:
            metric(probs)
        assert not FOREIGN.search(str(caught.value))
    for probs in (PROBS.half(), PROBS.numpy(), PROBS.double().tolist(), PROBS.T.contiguous().T):
        assert str(metric(probs)) == str(
            metric(PROBS.to(torch.float64 if isinstance(probs, list) else torch.as_tensor(probs).dtype))
        )
    with pytest.raises(ValueError, match="scores"):
        selective_risk(PROBS, [1, 0], PROBS[:, 0].to("meta"))
