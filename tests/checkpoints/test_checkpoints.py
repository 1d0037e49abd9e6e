"""Averages of checkpoint folders: the numbers of averages in memory, for every kind of file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lowland
from lowland import EMA, SWA, Snapshots, checkpoints, soup
from lowland.checkpoints import average, describe, expand, open_checkpoint, plan_average, through
from lowland.checkpoints.streaming import cut

from .checkpoint_kinds import CONFIG, KINDS, nested, sharded, sharded_bin, single, weights_at

STEPS = range(5)
Writer = Callable[[Path, dict[str, Tensor]], Path]


def written(folder: Path, kind: Writer, steps: range = STEPS) -> list[Path]:
    return [kind(folder / f"checkpoint-{step}", weights_at(step)) for step in steps]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a written checkpoint, by the libraries that users have."""
    if path.is_dir():
        files = [f for f in sorted(path.iterdir()) if f.suffix in (".safetensors", ".bin")]
        return {name: tensor for file in files for name, tensor in read(file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    return content["model"]["state_dict"] if "model" in content else content


def in_memory(averager: lowland.averager.Averager, steps: range = STEPS) -> dict[str, Tensor]:
    """The same average without files: floats by the averager, rounded to the input's types; others from the last."""
    for step in steps:
        averager.update({name: t for name, t in weights_at(step).items() if t.is_floating_point()})
    last = weights_at(steps[-1])
    mean = averager.mean()
    return {name: mean[name].to(t.dtype) if name in mean else t for name, t in last.items()}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_average_of_every_kind_is_that_in_memory(kind: Writer, tmp_path: Path) -> None:
    inputs = written(tmp_path, kind)
    for path in inputs:
        opened = open_checkpoint(path)
        assert {name: (t.dtype, tuple(t.shape)) for name, t in weights_at(0).items()} == {
            name: (t.dtype, t.shape) for name, t in opened.tensors.items()
        }
    out = tmp_path / ("average" if inputs[0].is_dir() else f"average{inputs[0].suffix}")
    assert average(inputs, out, through(SWA)) == out
    assert_same(read(out), in_memory(SWA()))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("merge", "averager"),
    [
        (through(partial(EMA, decay=0.7)), EMA(0.7)),
        (through(partial(Snapshots, k=2)), Snapshots(2)),
        (soup.uniform, SWA()),
        (partial(soup.weighted, coefficients=[1.0] * 5, normalise=True), None),
    ],
    ids=["ema", "snapshots", "uniform", "weighted"],
)
def test_every_method_is_that_in_memory(
    merge: checkpoints.Merge, averager: lowland.averager.Averager | None, tmp_path: Path
) -> None:
    average(written(tmp_path, single), tmp_path / "out", merge)
    if averager is not None:
        wanted = in_memory(averager)
    else:
        floats = [{n: t for n, t in weights_at(s).items() if t.is_floating_point()} for s in STEPS]
        mixed = soup.weighted(floats, [1.0] * 5, normalise=True)
        wanted = {n: mixed[n].to(t.dtype) if n in mixed else t for n, t in weights_at(4).items()}
    if averager is None or isinstance(averager, Snapshots):
        # Rounded differently at most in the last digit: Snapshots keeps what it is shown, here in float32.
        got = read(tmp_path / "out")
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name])
    else:
        assert_same(read(tmp_path / "out"), wanted)


@pytest.mark.parametrize("longest", [64, 1000])
def test_the_length_of_a_stretch_changes_nothing(longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = written(tmp_path, sharded)
    average(inputs, tmp_path / "one", through(SWA))
    monkeypatch.setattr("lowland.checkpoints.streaming._LONGEST", longest)
    monkeypatch.setattr("lowland.checkpoints.streaming._SHORTEST", 16)
    assert len(cut([open_checkpoint(p) for p in inputs], ["embed.weight"], 24)) > 2
    average(inputs, tmp_path / "two", through(SWA))
    # The record of the merge names the length.
    one, two = (
        {f.name: f.read_bytes() for f in (tmp_path / name).iterdir() if f.name != "lowland_merge.json"}
        for name in ("one", "two")
    )
    assert one == two and len(one) > 3


def test_layout_index_configuration_and_record_are_kept(tmp_path: Path) -> None:
    inputs = written(tmp_path, sharded)
    average(inputs, tmp_path / "out", through(SWA))
    held = {f.name for f in (tmp_path / "out").iterdir()}
    assert held == {
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        *("config.json", "tokenizer.json", "lowland_merge.json"),
    }
    index, old = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (tmp_path / "out", inputs[0]))
    assert index == old
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG
    record = json.loads((tmp_path / "out" / "lowland_merge.json").read_text())
    assert record["method"] == {"name": "SWA"} and record["inputs"] == list(map(str, inputs))
    one = tmp_path / "single"
    one.mkdir()
    average([single(one / "a", weights_at(0))], one / "out", through(SWA))
    with safe_open(one / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_another_dtype_and_one_file_for_many(tmp_path: Path) -> None:
    inputs = written(tmp_path, sharded)
    average(inputs, tmp_path / "wide", through(SWA), dtype=torch.float32)
    got, wanted = read(tmp_path / "wide"), in_memory(SWA())
    assert {name for name, t in got.items() if t.dtype != torch.float32} == {"steps", "mask"}
    index = json.loads((tmp_path / "wide" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in got.values())
    assert index["metadata"]["note"] == "kept"
    assert torch.equal(got["layer.weight"].bfloat16(), wanted["layer.weight"])
    average(inputs, tmp_path / "one.safetensors", through(SWA))
    assert_same(read(tmp_path / "one.safetensors"), wanted)
    average(inputs, tmp_path / "one.pt", through(SWA))
    assert_same(read(tmp_path / "one.pt"), wanted)


def test_torch_files_keep_ties_strides_and_checksums(tmp_path: Path) -> None:
    def tied(step: int) -> dict[str, Tensor]:
        weights = weights_at(step)
        weights["head.weight"] = weights["embed.weight"]
        weights["across"] = weights["layer.weight"].T
        weights["part"] = torch.arange(12.0)[4:8] + step
        return weights

    inputs = [nested(tmp_path / str(step), tied(step)) for step in STEPS]
    assert open_checkpoint(inputs[0]).ties() == [("embed.weight", "head.weight")]
    average(inputs, tmp_path / "out.pt", through(SWA))
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(content) == ["model", "epoch"]  # an optimiser's state is no part of an average
    got = read(tmp_path / "out.pt")
    assert got["head.weight"].data_ptr() == got["embed.weight"].data_ptr()
    wanted = in_memory(SWA())
    assert_same({name: got[name] for name in wanted}, wanted)
    assert torch.equal(got["across"], wanted["layer.weight"].T)
    assert torch.equal(got["part"], torch.arange(12.0)[4:8] + 2)
    assert zipfile.ZipFile(tmp_path / "out.pt").testzip() is None
    mapped = torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)
    assert torch.equal(mapped["model"]["state_dict"]["part"], got["part"])


def test_one_tie_less_is_no_tie(tmp_path: Path) -> None:
    shared, apart = torch.ones(3), torch.zeros(3)
    one = nested(tmp_path / "1", {"a": shared, "b": shared})
    two = nested(tmp_path / "2", {"a": apart, "b": torch.full((3,), 5.0)})
    average([one, two], tmp_path / "out.pt", through(SWA))
    assert read(tmp_path / "out.pt")["a"].tolist() == [0.5] * 3
    assert read(tmp_path / "out.pt")["b"].tolist() == [3.0] * 3


def test_mixed_kinds_and_types_are_paired_by_name(tmp_path: Path) -> None:
    wide = {name: t.float() if t.is_floating_point() else t for name, t in weights_at(1).items()}
    inputs = [sharded(tmp_path / "a", weights_at(0)), nested(tmp_path / "b", wide), sharded_bin(tmp_path / "c", wide)]
    average(inputs, tmp_path / "out", through(SWA))
    got = read(tmp_path / "out")
    mean = (weights_at(0)["layer.weight"].double() + 2 * wide["layer.weight"].double()) / 3
    torch.testing.assert_close(got["layer.weight"], mean.float())  # the widest type of the three


def test_averages_that_lowland_saved_are_ingredients(tmp_path: Path) -> None:
    paths = []
    for step in (0, 1):
        averager = SWA()
        averager.update({"w": torch.full((3,), float(step))})
        lowland.save(averager, tmp_path / f"{step}.safetensors")
        paths.append(tmp_path / f"{step}.safetensors")
    average(paths, tmp_path / "out.safetensors", through(SWA))
    assert read(tmp_path / "out.safetensors")["w"].tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="not one of lowland.save"):
        lowland.load(tmp_path / "out.safetensors")


def test_adapters_keep_their_configuration_and_want_one_scale(tmp_path: Path) -> None:
    def adapter(name: str, alpha: int) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file({"lora_A.weight": torch.full((2, 3), float(alpha))}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}))
        return folder

    average([adapter("a", 4), adapter("b", 4)], tmp_path / "out", through(SWA))
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "lowland_merge.json"),
    }
    assert open_checkpoint(tmp_path / "out").kind == "adapter"
    with pytest.raises(ValueError, match="is scaled otherwise than .*lora_alpha 8 instead of 4"):
        average([tmp_path / "a", adapter("c", 8)], tmp_path / "other", through(SWA))


def test_inputs_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in (2000, 100, 900):
        single(run / f"checkpoint-{step}", weights_at(step))
    names = ["checkpoint-100", "checkpoint-900", "checkpoint-2000"]
    assert [path.name for path in expand([run])] == names
    assert [path.name for path in expand([str(run / "checkpoint-*")])] == names
    given = [run / "checkpoint-900", run / "checkpoint-100"]
    assert expand(given, keep_order=True) == given and expand(given) == given[::-1]
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*nothing-"):
        expand([str(tmp_path / "nothing-*")])
    with pytest.raises(ValueError, match="named twice"):
        expand([run, run / "checkpoint-100"])


def test_describe_reads_headers_only(tmp_path: Path) -> None:
    held = describe(sharded(tmp_path / "a", weights_at(0)))
    assert held["class"] == "sharded safetensors" and held["tensors"] == 7 and len(held["parts"]) == 2
    assert held["numbers"] == {"float32": 2100, "int64": 2, "bfloat16": 1320, "float16": 33, "bool": 3, "float64": 1}
    assert held["bytes"] == sum(t.numel() * t.element_size() for t in weights_at(0).values())
    mixture = lowland.Mixture([weights_at(0), weights_at(1)])
    lowland.save(mixture, tmp_path / "mixture.safetensors")
    held = describe(tmp_path / "mixture.safetensors")
    assert held["class"] == "Mixture" and [part["class"] for part in held["parts"]] == ["weights", "weights"]


def test_a_plan_says_what_it_will_move(tmp_path: Path) -> None:
    inputs = written(tmp_path, sharded)
    moved: list[int] = []
    plan = plan_average(inputs, tmp_path / "out", through(SWA))
    rates = checkpoints.estimate(plan)
    assert rates.read > 0 and rates.write > 0 and rates.seconds > 0
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    plan.run(moved.append)
    one = sum(t.numel() * t.element_size() for t in weights_at(0).values())
    assert plan.bytes_read == 5 * one and plan.bytes_written == one
    # Integers are read from the last alone.
    others = sum(t.numel() * t.element_size() for t in weights_at(0).values() if not t.is_floating_point())
    assert sum(moved) == plan.bytes_read + plan.bytes_written - 4 * others
