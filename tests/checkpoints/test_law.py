"""The law of averages: every tensor of every input is averaged, carried along or named as left out, or all refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowland import SWA, SWAG, checkpoints, doctor, soup
from lowland.checkpoints import average, open_checkpoint, plan_average, plan_posterior, through
from lowland.checkpoints.output import record_of

from .layouts import LAYOUTS, Layout, adapter, full, safe

SPECIAL = ("tied in one", "weight norm", "spectral norm")


def opened(layout: Layout, home: Path) -> list[checkpoints.Checkpoint]:
    folders = [home / f"checkpoint-{step}" for step in (0, 1)]
    for step, folder in enumerate(folders):
        folder.mkdir()
        layout.write(folder, step)
    return [open_checkpoint(folder / layout.path, **dict(layout.options)) for folder in folders]


def tensors_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all tensors at any depth."""
    if isinstance(value, Tensor):
        yield ".".join(path)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors_in(part, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from tensors_in(part, (*path, str(place)))


def everything(path: Path) -> Iterator[str]:
    """The names of all tensors below a path, as other libraries read them."""
    if path.is_dir() and (path / ".metadata").exists():
        from torch.distributed.checkpoint import FileSystemReader

        held = FileSystemReader(path).read_metadata().state_dict_metadata
        yield from (name for name, entry in held.items() if hasattr(entry, "chunks"))
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        home = "/".join(file.relative_to(path).parts[:-1])
        own = f"{home}/" * bool(home) + (f"{file.stem}/" if file.stem == "model_1" else "")
        if file.suffix == ".safetensors":
            yield from (own + name for name in load_file(file))
        elif file.suffix in (".pt", ".pth", ".bin", ".ckpt", ".tar"):
            yield from (own + name for name in tensors_in(torch.load(file, weights_only=False)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_tensor_is_averaged_carried_left_or_refused(layout: Layout, tmp_path: Path) -> None:
    if layout.refused:
        with pytest.raises(ValueError, match=layout.refused):
            average(opened(layout, tmp_path), tmp_path / "out", through(SWA))
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
        return
    inputs = opened(layout, tmp_path)
    out = tmp_path / (f"out{Path(layout.path).suffix}".replace(".tar", ".pth.tar") if layout.path else "out")
    plan = plan_average(inputs, out, through(SWA))
    account = plan.account.as_dict()
    plan.run()
    assert json.loads(record_of(out).read_text())["account"] == account
    assert set(account["averaged"]) == set(layout.averaged)
    left = [entry["name"] for entry in account["left"]]
    for wanted, got in ((layout.carried, account["carried"]), (layout.left, left)):
        assert all(any(name.startswith(start) or name.endswith(start) for name in got) for start in wanted), got
    told = " ".join(plan.account.lines(2))
    assert all(any(name in told for name in left if name.startswith(start)) for start in layout.left), told

    # The law itself, by what other libraries find in the files.
    nests = ("model.", "state_dict.", "state_dict_ema.", "app.model.", "two.model.", "discriminator.", "params.net.")
    for step in (0, 1):
        for name in everything(tmp_path / f"checkpoint-{step}" / layout.path):
            bare = next((name.removeprefix(nest) for nest in nests if name.startswith(nest)), name)
            bare = bare.replace("module._orig_mod.", "")
            named = bare in account["averaged"] or bare in account["carried"]
            roots = [r.removesuffix(".pt").removesuffix(".pth").removesuffix(".bin") for r in (*left, "state", "cpu")]
            other = layout.name in ("a second file", "trainer", "two models", "state of lowland")
            assert named or other or any(name.startswith(r) for r in roots), (name, account)

    made = open_checkpoint(out)
    with checkpoints.streaming.Reader() as reader:
        for name in layout.averaged if layout.name not in SPECIAL else ():
            values = torch.empty(made.tensors[name].numel, dtype=made.tensors[name].dtype)
            reader.read(made.tensors[name], 0, len(values), values)
            wanted = 10.5 if dict(layout.options).get("key") == "state_dict_ema" else 0.5
            assert values.tolist() == [wanted] * len(values), name


def test_there_are_layouts_of_every_fate() -> None:
    assert len(LAYOUTS) >= 40 and sum(bool(one.refused) for one in LAYOUTS) >= 12
    assert sum(bool(one.left) for one in LAYOUTS) >= 12 and sum(bool(one.carried) for one in LAYOUTS) >= 6


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.refused], ids=lambda layout: layout.name)
def test_a_posterior_and_the_doctor_refuse_them_too(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=layout.refused):
        plan_posterior(opened(layout, tmp_path), tmp_path / "p.safetensors", lambda: SWAG(rank=2))
    if layout.name == "float8":
        return
    found = doctor.diagnose({str(n): tmp_path / f"checkpoint-{n}" / layout.path for n in (0, 1)})
    assert found.verdict == "not averageable", found


def network(step: int, norm: Any) -> nn.Module:
    torch.manual_seed(step)
    return nn.Sequential(norm(nn.Linear(6, 5)), norm(nn.Conv2d(2, 3, 2)))


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["parametrised", "of old"]
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_weight_norm_is_averaged_as_the_weights_that_it_makes(norm: Any, tmp_path: Path) -> None:
    models = [network(step, norm) for step in range(3)]
    for step, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{step}.pt")
    average([tmp_path / f"{step}.pt" for step in range(3)], tmp_path / "out.pt", through(SWA))
    made = network(9, norm)
    made.load_state_dict(torch.load(tmp_path / "out.pt"))
    for place in (0, 1):
        for model in (*models, made):  # of old, weights are made anew by a forward
            model[0](torch.ones(1, 6)), model[1](torch.ones(1, 2, 4, 4))
        wanted = torch.stack([model[place].weight.detach().double() for model in models]).mean(0)
        torch.testing.assert_close(made[place].weight.detach().double(), wanted, rtol=2e-6, atol=2e-7)
    with pytest.raises(ValueError, match="a function of others"):
        plan_posterior([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "p.safetensors", SWAG)


def test_spectral_norm_keeps_its_promise(tmp_path: Path) -> None:
    models = [network(step, nn.utils.parametrizations.spectral_norm) for step in range(3)]
    for step, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{step}.pt")
    average([tmp_path / f"{step}.pt" for step in range(3)], tmp_path / "out.pt", through(SWA))
    made = network(9, nn.utils.parametrizations.spectral_norm)
    made.load_state_dict(torch.load(tmp_path / "out.pt"))
    made.eval()
    for layer in made:
        top = torch.linalg.svdvals(layer.weight.detach().double().flatten(1))[0]
        assert abs(float(top) - 1) < 1e-5


def test_final_models_beside_checkpoints_are_named_and_not_taken(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        safe(run / f"checkpoint-{step}" / "model.safetensors", {"w": full(step)})
    safe(run / "model.safetensors", {"w": full(9)})
    (run / "training_args.bin").write_bytes(b"not read")
    assert [path.name for path in checkpoints.expand([run])] == ["checkpoint-1", "checkpoint-2"]
    (left,) = checkpoints.final_models([run])
    assert left.name == str(run) and "name it too" in left.why
    plan = plan_average([run], tmp_path / "out", through(SWA))
    assert "one input: its weights are copied, not averaged" in plan.account.said


@pytest.mark.parametrize("names", [("step-2", "step-10"), ("iter_0000002", "iter_0000010"), ("epoch_2", "epoch_10")])
def test_runs_of_other_trainers(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        safe(tmp_path / "run" / name / "model.safetensors", {"w": full(1)})
        safe(tmp_path / "files" / f"{name}.safetensors", {"w": full(1)})
    assert [path.name for path in checkpoints.expand([tmp_path / "run"])] == list(names)
    assert [path.stem for path in checkpoints.expand([tmp_path / "files"])] == list(names)


def test_what_is_typed_first_is_first_unless_numbers_tell(tmp_path: Path) -> None:
    for name in ("b", "a", "c-10", "c-9"):
        safe(tmp_path / f"{name}.safetensors", {"w": full(1)})
    given = [tmp_path / f"{name}.safetensors" for name in ("b", "c-10", "a", "c-9")]
    assert [path.stem for path in checkpoints.expand(given)] == ["b", "c-9", "c-10", "a"]


def test_codes_in_memory_are_refused() -> None:
    weights = {"fc.weight": torch.ones(4, 8, dtype=torch.int8), "fc.scale": torch.ones(4)}
    with pytest.raises(ValueError, match="quantised weights, \\['fc.weight'\\]"):
        soup.uniform([weights, weights])
    found = doctor.diagnose({"a": weights, "b": weights})
    assert found.verdict == "not averageable" and found.findings[0].check == "quantised"


def test_a_configuration_says_the_type_that_is_written(tmp_path: Path) -> None:
    for step in (0, 1):
        safe(tmp_path / str(step) / "model.safetensors", {"w": full(step).bfloat16()})
        content = {"dtype": "bfloat16", "text_config": {"torch_dtype": "torch.bfloat16"}, "hidden": 3}
        (tmp_path / str(step) / "config.json").write_text(json.dumps(content))
    inputs = [tmp_path / "0", tmp_path / "1"]
    average(inputs, tmp_path / "out", through(SWA), dtype=torch.float32)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"dtype": "float32", "text_config": {"torch_dtype": "torch.float32"}, "hidden": 3}
    average(inputs, tmp_path / "same", through(SWA))
    assert (tmp_path / "same" / "config.json").read_bytes() == (tmp_path / "0" / "config.json").read_bytes()


def test_other_ranks_are_told_by_rank(tmp_path: Path) -> None:
    adapter(tmp_path / "two", 0)
    adapter(tmp_path / "four", 0, {"r": 4})
    with pytest.raises(ValueError, match="r 4 instead of 2"):
        plan_average([tmp_path / "two", tmp_path / "four"], tmp_path / "out", through(SWA))


def test_one_file_cannot_hold_two_models(tmp_path: Path) -> None:
    for step in (0, 1):
        safe(tmp_path / str(step) / "model.safetensors", {"w": full(step)})
        save_file({"v": full(step)}, tmp_path / str(step) / "model_1.safetensors")
    with pytest.raises(ValueError, match="holds several models, \\['model_1'\\] among them"):
        plan_average([tmp_path / "0", tmp_path / "1"], tmp_path / "out.safetensors", through(SWA))
