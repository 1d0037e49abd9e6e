"""Posteriors from checkpoint files and draws written as checkpoints: the numbers of the same in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lowland
from lowland import EMA, SWAG, Mixture, Snapshots, checkpoints
from lowland.averager import Averager, Posterior, draws
from lowland.checkpoints import open_checkpoint, posterior, sample, through
from lowland.weights.named import matching

from .checkpoint_kinds import nested, sharded, single, weights_at


def floats(step: int) -> dict[str, Tensor]:
    return {name: t for name, t in weights_at(step).items() if t.is_floating_point()}


def seen(averager: Averager, steps: int = 6) -> Averager:
    for step in range(steps):
        averager.update(floats(step))
    return averager


@pytest.mark.parametrize(
    "make",
    [
        *(partial(SWAG, rank=3), partial(SWAG, rank=6), partial(SWAG, rank=4, deviations_dtype="bfloat16")),
        *(partial(SWAG, rank=0), partial(EMA, decay=0.9)),
    ],
    ids=["evicting", "whole", "bfloat16", "diagonal", "ema"],
)
def test_the_file_is_the_state_in_memory(
    make: partial[Averager], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowland.checkpoints.streaming._LONGEST", 500)
    monkeypatch.setattr("lowland.checkpoints.streaming._SHORTEST", 16)
    inputs = [sharded(tmp_path / str(step), weights_at(step)) for step in range(6)]
    posterior(inputs, tmp_path / "p.safetensors", make)
    got, wanted = lowland.load(tmp_path / "p.safetensors").state_dict(), seen(make()).state_dict()
    assert {key: got[key] for key in ("class", "count", "settings", "scalars")} == {
        key: wanted[key] for key in ("class", "count", "settings", "scalars")
    }
    assert set(got["slots"]) == set(wanted["slots"])
    for slot, tensors in wanted["slots"].items():
        assert set(got["slots"][slot]) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(got["slots"][slot][name], tensor), (slot, name)


def test_selected_and_tied_tensors(tmp_path: Path) -> None:
    def tied(step: int) -> dict[str, Tensor]:
        weights = weights_at(step)
        return {**weights, "head.weight": weights["embed.weight"]}

    inputs = [nested(tmp_path / str(step), tied(step)) for step in range(3)]
    posterior(inputs, tmp_path / "p.safetensors", partial(SWAG, rank=2), select=matching("^embed|^head"))
    swag = lowland.load(tmp_path / "p.safetensors")
    assert list(swag.mean()) == ["embed.weight"]
    made = sample(tmp_path / "p.safetensors", inputs[2], 2, tmp_path / "draws", seed=3)
    assert made == [tmp_path / "draws" / f"sample-{n}" for n in range(2)]
    drawn = swag.sample(2, generator=torch.Generator().manual_seed(3))["embed.weight"]
    for number in range(2):
        got = torch.load(made[number] / "last.pt", weights_only=True)["model"]["state_dict"]
        assert torch.equal(got["embed.weight"], drawn[number]) and torch.equal(got["head.weight"], drawn[number])
        assert torch.equal(got["layer.weight"], weights_at(2)["layer.weight"])
    with pytest.raises(ValueError, match="the selection holds no floating-point tensor"):
        posterior(inputs, tmp_path / "q.safetensors", partial(SWAG, rank=2), select=matching("nothing"))
    with pytest.raises(ValueError, match="a state is one file"):
        posterior(inputs, tmp_path / "folder", partial(SWAG, rank=2))


def drawn_from(path: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(path.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.mark.parametrize("kind", ["swag", "tempered", "snapshots", "mixture"])
def test_draws_are_those_of_the_posterior_in_memory(kind: str, tmp_path: Path) -> None:
    like = sharded(tmp_path / "like", weights_at(0))
    averager = seen(Snapshots(3) if kind == "snapshots" else SWAG(rank=4))
    held = Mixture([averager, seen(SWAG(rank=2), 3)]) if kind == "mixture" else averager
    lowland.save(held, tmp_path / "p.safetensors")
    view = (lambda swag: swag.tempered(0.25)) if kind == "tempered" else None
    made = sample(tmp_path / "p.safetensors", like, 3, tmp_path / "draws", seed=5, view=view)
    generator = torch.Generator().manual_seed(5)
    source = held.tempered(0.25) if isinstance(held, SWAG) and kind == "tempered" else held
    assert isinstance(source, Posterior)
    wanted = list(draws(source, 3, generator))
    for number, path in enumerate(made):
        got = drawn_from(path)
        for name, tensor in weights_at(0).items():
            expected = wanted[number][name].to(tensor.dtype) if tensor.is_floating_point() else tensor
            assert got[name].dtype == tensor.dtype and torch.equal(got[name], expected), name
        assert (path / "config.json").exists() and (path / "model.safetensors.index.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_draws_of_a_live_adapter_find_the_names_that_peft_saves(tmp_path: Path) -> None:
    swag = SWAG(rank=2)
    for step in range(3):
        swag.update({
            "base_model.model.q.lora_A.default.weight": torch.full((2, 3), float(step)),
            "base_model.model.head.modules_to_save.default.bias": torch.ones(2) * step,
        })  # fmt: skip
    lowland.save(swag, tmp_path / "p.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    saved = {"base_model.model.q.lora_A.weight": torch.zeros(2, 3), "base_model.model.head.bias": torch.zeros(2)}
    save_file(saved, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2}))
    (made,) = sample(tmp_path / "p.safetensors", folder, 1, tmp_path / "draws")
    assert (made / "adapter_config.json").exists()
    whole = swag.sample(generator=torch.Generator().manual_seed(0))
    got = load_file(made / "adapter_model.safetensors")
    assert torch.equal(got["base_model.model.head.bias"], whole["base_model.model.head.modules_to_save.default.bias"])
    assert torch.equal(got["base_model.model.q.lora_A.weight"], whole["base_model.model.q.lora_A.default.weight"])


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    like = single(tmp_path / "like", weights_at(0))
    lowland.save(seen(EMA(0.5)), tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match="holds a EMA, which is one point"):
        sample(tmp_path / "ema.safetensors", like, 1, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no posterior of lowland"):
        sample(like / "model.safetensors", like, 1, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sample(tmp_path / "none.safetensors", like, 1, tmp_path / "out")
    lowland.save(seen(SWAG(rank=2)), tmp_path / "p.safetensors")
    other = single(tmp_path / "other", {"w": torch.ones(1)})
    with pytest.raises(ValueError, match="holds embed.weight, which is not in .*other"):
        sample(tmp_path / "p.safetensors", other, 1, tmp_path / "out")
    shaped = single(tmp_path / "shaped", {**weights_at(0), "layer.bias": torch.ones(3).half()})
    with pytest.raises(ValueError, match=r"layer.bias \(33,\) instead of \(3,\)"):
        sample(tmp_path / "p.safetensors", shaped, 1, tmp_path / "out")
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        sample(tmp_path / "p.safetensors", like, 0, tmp_path / "out")
    with pytest.raises(OSError, match="is there already"):
        sample(tmp_path / "p.safetensors", like, 1, like)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


RANK = """
    import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    rank, home = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{home}/meeting")
    mesh = init_device_mesh("cpu", (2,))
    for step in range(2):
        torch.manual_seed(step)
        rows, columns, scale = torch.randn(5, 3), torch.randn(4, 7), torch.randn(2)
        dcp.save({"model": {
            "rows": distribute_tensor(rows, mesh, [Shard(0)]),
            "columns": distribute_tensor(columns, mesh, [Shard(1)]),
            "scale": scale,
        }}, checkpoint_id=f"{home}/{step}")
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_pieces_of_several_ranks_are_put_together(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RANK)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    assert [process.wait(900) for process in ranks] == [0, 0]
    first = open_checkpoint(tmp_path / "0")
    assert len(first.tensors["rows"].runs) == 2 and first.tensors["columns"].whole is not None
    checkpoints.average([first, tmp_path / "1"], tmp_path / "out", through(lowland.SWA))
    got = load_file(tmp_path / "out" / "model.safetensors")
    wanted = lowland.SWA()
    for step in range(2):
        torch.manual_seed(step)
        wanted.update({"rows": torch.randn(5, 3), "columns": torch.randn(4, 7), "scale": torch.randn(2)})
    mean = wanted.mean()
    assert set(got) == set(mean) and all(torch.equal(got[name], mean[name]) for name in mean)


@pytest.mark.slow
def test_models_that_transformers_saved_in_shards(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    models = []
    for step in range(3):
        torch.manual_seed(step)
        models.append(transformers.BertForMaskedLM(config))
        models[-1].save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="30KB")
    inputs = checkpoints.expand([tmp_path])
    assert len(open_checkpoint(inputs[0]).shards) > 1
    checkpoints.average(inputs, tmp_path / "out", through(lowland.SWA))
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out")
    average = lowland.SWA()
    for model in models:
        average.update(model)
    for name, tensor in average.mean().items():
        assert torch.equal(dict(loaded.named_parameters())[name], tensor), name
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
