"""Adapters: draws as folders that PEFT alone loads, averages of factors and of products, one pass for many."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model

from lowland import SWA, SWAG, Mixture, Snapshots, applied
from lowland.integrations.peft import sample_adapters
from lowland.integrations.peft.samples import (
    average_adapters,
    forward_adapters,
    product_gap,
    read_adapter,
    write_adapter,
)
from lowland.predict import predict
from lowland.weights import weights_of
from lowland.weights.named import trainable
from tests.integrations.tiny_trainer import ROWS, adapted, classifier

IDS = torch.tensor([row["input_ids"] for row in ROWS])
Named = dict[str, Tensor]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from transformers.utils import logging

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(model: nn.Module, spread: float = 0.1, updates: int = 6) -> SWAG:
    """A SWAG of iterates around the model's adapter, close enough to be of one run."""
    swag, g = SWAG(rank=4, select=trainable), generator(1)
    start = {name: tensor.clone() for name, tensor in weights_of(model, trainable).items()}
    for _ in range(updates):
        swag.update(
            {n: t + spread * t.std().nan_to_num(0.1) * torch.randn(t.shape, generator=g) for n, t in start.items()}
        )
    return swag


def members(model: nn.Module, number: int = 3, spread: float = 1.0) -> list[Named]:
    """Adapters apart from each other, as those of different runs are."""
    g = generator(2)
    own = weights_of(model, trainable)
    return [{n: t + spread * torch.randn(t.shape, generator=g) * 0.2 for n, t in own.items()} for _ in range(number)]


@torch.no_grad()
def logits(model: nn.Module, **more: Any) -> Tensor:
    model.eval()
    return model(input_ids=IDS, **more).logits


def merged(model: Any) -> Named:
    """What a PEFT model computes with, as plain weights: the naive twin of products."""
    import copy

    base = copy.deepcopy(model).merge_and_unload()
    return {name: tensor.double() for name, tensor in base.state_dict().items()}


# Draws as folders.

ALONE = """
import json, sys
import torch
from transformers import BertForSequenceClassification
from peft import PeftModel

base, folders, ids = json.loads(sys.argv[1])
model = BertForSequenceClassification.from_pretrained(base)
model = PeftModel.from_pretrained(model, folders[0], adapter_name="draw-0")
for index, folder in enumerate(folders[1:], start=1):
    model.load_adapter(folder, adapter_name=f"draw-{index}")
model.eval()
probs = []
for index in range(len(folders)):
    model.set_adapter(f"draw-{index}")
    with torch.no_grad():
        probs.append(torch.softmax(model(input_ids=torch.tensor(ids)).logits.double(), -1))
rows = torch.tensor(ids[: len(folders)])
with torch.no_grad():
    names = [f"draw-{i}" for i in range(len(rows))]
    mixed = torch.softmax(model(input_ids=rows, adapter_names=names).logits.double(), -1)
assert not [name for name in sys.modules if name.split(".")[0] == "lowland"]
print(json.dumps({"mean": torch.stack(probs).mean(0).tolist(), "mixed": mixed.tolist(),
                  "each": [p[i].tolist() for i, p in enumerate(probs)]}))
"""


@pytest.mark.slow
def test_draws_loaded_by_peft_alone_and_averaged_are_what_predict_returns(tmp_path: Path) -> None:
    base, model = classifier(), adapted()
    base.save_pretrained(tmp_path / "base")
    swag = posterior(model)
    folders = sample_adapters(swag, model, 4, tmp_path / "draws", generator=generator())
    prediction = predict(model, swag, [{"input_ids": IDS}], samples=4, generator=generator())
    argument = json.dumps([str(tmp_path / "base"), [str(folder) for folder in folders], IDS.tolist()])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, argument],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(found["mean"]), prediction.probs.to(torch.float32), rtol=1e-5, atol=1e-6)
    # One batch, each row by an adapter of its own.
    torch.testing.assert_close(torch.tensor(found["mixed"]), torch.tensor(found["each"]), rtol=1e-5, atol=1e-6)
    assert float(prediction.mutual_information.max()) > 1e-4, "the draws differ"


def test_a_folder_is_what_servers_of_many_adapters_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folders = sample_adapters(posterior(model), model, 11, tmp_path, generator=generator())
    assert [folder.name for folder in folders[:3]] == ["draw-00", "draw-01", "draw-02"] and len(folders) == 11
    assert sorted(path.name for path in folders[0].iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    keys = load_file(folders[0] / "adapter_model.safetensors")
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert f"{layer}.lora_A.weight" in keys and f"{layer}.lora_B.weight" in keys
    assert not [key for key in keys if ".default." in key]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items()), "left as it was"


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"use_dora": True},
        {"lora_bias": True},
        {"target_modules": ["word_embeddings", "query"]},
        {"modules_to_save": ["pooler"]},
    ],
    ids=lambda lora: "-".join(lora) or "plain",
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_draw_loads_as_it_was_drawn_whatever_the_kind_of_adapter(tmp_path: Path, lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    swag = posterior(model)
    (folder,) = sample_adapters(swag, model, 1, tmp_path, generator=generator())
    draw = swag.sample(generator=generator())
    loaded = PeftModel.from_pretrained(classifier(), folder)
    with applied(model, draw):
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
    back = read_adapter(model, folder)
    assert all(torch.equal(back[name], tensor.to(back[name].dtype)) for name, tensor in draw.items())


def test_members_and_averages_are_written_too(tmp_path: Path) -> None:
    model = adapted()
    snapshots, average = Snapshots(3), SWA(select=trainable)
    for weights in members(model):
        snapshots.update(weights)
        average.update(weights)
    folders = sample_adapters(snapshots, model, None, tmp_path / "snapshots")
    assert len(folders) == 3
    read = Mixture([read_adapter(model, folder) for folder in folders])
    batches = [{"input_ids": IDS}]
    torch.testing.assert_close(predict(model, read, batches).probs, predict(model, snapshots, batches).probs)
    (one,) = sample_adapters(average, model, None, tmp_path / "average")
    for name, tensor in read_adapter(model, one).items():
        torch.testing.assert_close(tensor, average.mean()[name])
    with pytest.raises(ValueError, match="say how many draws"):
        sample_adapters(posterior(model), model, None, tmp_path / "swag")
    with pytest.raises(RuntimeError, match="has no weights yet"):
        sample_adapters(Snapshots(3), model, None, tmp_path / "nothing")


def test_an_adapter_of_another_name(tmp_path: Path) -> None:
    model = get_peft_model(classifier(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]), "mine")
    (folder,) = sample_adapters(posterior(model), model, 1, tmp_path, generator=generator())
    assert (folder / "adapter_config.json").exists()
    with applied(model, posterior(model).sample(generator=generator())):
        torch.testing.assert_close(logits(PeftModel.from_pretrained(classifier(), folder)), logits(model))


def test_what_no_adapter_folder_holds_is_refused(tmp_path: Path) -> None:
    model = adapted()
    base = SWAG(rank=2)
    base.update(model)
    base.update(model)
    with pytest.raises(ValueError, match="no part of the adapter 'default'.*select=lowland.weights.trainable"):
        sample_adapters(base, model, 1, tmp_path / "base")
    with pytest.raises(ValueError, match="a PEFT model is wanted, got a BertForSequenceClassification"):
        sample_adapters(posterior(model), classifier(), 1, tmp_path / "plain")
    (tmp_path / "mine" / "draw-0").mkdir(parents=True)
    (tmp_path / "mine" / "draw-0" / "notes.txt").write_text("not yours")
    with pytest.raises(OSError, match="is no adapter folder"):
        sample_adapters(posterior(model), model, 1, tmp_path / "mine")
    assert (tmp_path / "mine" / "draw-0" / "notes.txt").exists()
    other = adapted(r=3)
    with pytest.raises(ValueError, match="other shapes"):
        read_adapter(other, write_adapter(model, tmp_path / "two"))
    with pytest.raises(ValueError, match="adapter of another kind.*missing"):
        read_adapter(adapted(target_modules=["query", "key"]), tmp_path / "two")


def test_a_failed_writing_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lowland.integrations.peft.folders as adapters

    model = adapted()
    folder = write_adapter(model, tmp_path / "adapter")
    before = read_adapter(model, folder)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(adapters, "save_file", crash)
    with pytest.raises(OSError, match="no space left"):
        write_adapter(model, folder, members(model)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_adapter(model, folder).items())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# Averages of factors and of products.


def product_mean(model: Any, all_members: list[Named]) -> Named:
    """The twin: every adapter merged into its base, and the mean of what comes out."""
    sums: Named = {}
    for weights in all_members:
        with applied(model, weights):
            for name, tensor in merged(model).items():
                sums[name] = sums.get(name, 0) + tensor / len(all_members)
    return sums


# peft#3111, #3761: wrong for rank-stabilised LoRA and lora_bias. peft#1155: weights applied to one factor only.
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"bias": "all"},
        {"rank_pattern": {"query": 3}, "alpha_pattern": {"value": 1}},
        {"target_modules": ["word_embeddings", "query"]},
        {"lora_bias": True},
    ],
    ids=lambda lora: "-".join(lora) or "plain",
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_the_mean_of_products_is_exact_at_rank_n_r(tmp_path: Path, lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    several = members(model)
    result = average_adapters(model, several, tmp_path / "mean", space="products")
    assert result.rank == 3 * max([2, *lora.get("rank_pattern", {}).values()]) and result.error < 1e-12
    loaded = PeftModel.from_pretrained(classifier(), result.folder)
    found, wanted = merged(loaded), product_mean(model, several)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=2e-6)


def test_the_gap_is_the_distance_of_the_factors_product(tmp_path: Path) -> None:
    model = adapted()
    several = members(model)
    wanted, base = product_mean(model, several), classifier().state_dict()
    factors = average_adapters(model, several, tmp_path / "factors")
    found = merged(PeftModel.from_pretrained(classifier(), factors.folder))
    layers = [name for name in wanted if name.endswith(("query.weight", "value.weight"))]
    apart = sum(float((wanted[name] - found[name]).square().sum()) for name in layers)
    whole = sum(float((wanted[name] - base[name].double()).square().sum()) for name in layers)
    assert factors.gap == pytest.approx((apart / whole) ** 0.5, rel=1e-4)
    assert factors.error == factors.gap == pytest.approx(product_gap(model, several), rel=1e-12)
    # Within one run the factors stay close together, and so does what they multiply to.
    assert (
        product_gap(model, [dict(posterior(model).sample(generator=generator(i))) for i in range(4)]) < factors.gap / 4
    )


def test_the_nearest_product_of_a_lower_rank(tmp_path: Path) -> None:
    model = adapted()
    several = members(model)
    base, wanted = classifier().state_dict(), product_mean(model, several)
    errors = []
    for rank in (1, 2, 4, 6):
        result = average_adapters(model, several, tmp_path / f"rank-{rank}", space="products", rank=rank)
        found = merged(PeftModel.from_pretrained(classifier(), result.folder))
        apart = whole = best = 0.0
        for name in wanted:
            if name.endswith(("query.weight", "value.weight")):
                delta = wanted[name] - base[name].double()
                apart += float((wanted[name] - found[name]).square().sum())
                best += float(torch.linalg.svdvals(delta)[rank:].square().sum())
                whole += float(delta.square().sum())
        assert result.error == pytest.approx((best / whole) ** 0.5, rel=1e-4, abs=1e-7)
        assert result.error == pytest.approx((apart / whole) ** 0.5, rel=1e-3, abs=1e-6)
        errors.append(result.error)
    assert errors[0] > errors[1] > errors[2] > errors[3] < 1e-7


# PEFT's `linear` combination of an adapter with itself, weights a half each, is twice the adapter.
@pytest.mark.parametrize("space", ["factors", "products"])
def test_the_average_of_an_adapter_with_itself_is_the_adapter(tmp_path: Path, space: Any) -> None:
    model = adapted()
    folder = write_adapter(model, tmp_path / "one")
    result = average_adapters(model, [folder, folder], tmp_path / "twice", space=space)
    assert result.error == pytest.approx(0, abs=1e-12) and result.gap == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(classifier(), result.folder)), logits(model))


# peft#2918: signs. An adapter and its opposite, B for -B, cancel.
def test_opposite_adapters_cancel(tmp_path: Path) -> None:
    model = adapted()
    one = weights_of(model, trainable)
    other = {name: -tensor if "lora_B" in name else tensor for name, tensor in one.items()}
    result = average_adapters(model, [one, other], tmp_path / "mean", space="products")
    found = merged(PeftModel.from_pretrained(classifier(), result.folder))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(found[name].float(), classifier().state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base weights"),
    ],
)
def test_adapters_whose_products_do_not_average_are_refused_by_name(
    tmp_path: Path, lora: dict[str, Any], message: str
) -> None:
    model = adapted(**lora)
    with pytest.raises(ValueError, match=message):
        average_adapters(model, members(model), tmp_path / "mean", space="products")
    assert not (tmp_path / "mean").exists()


def test_wrong_arguments_of_an_average(tmp_path: Path) -> None:
    model = adapted()
    with pytest.raises(ValueError, match="at least one adapter"):
        average_adapters(model, [], tmp_path / "mean")
    with pytest.raises(ValueError, match='space must be "factors" or "products"'):
        average_adapters(model, members(model), tmp_path / "mean", space="delta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='rank is for space="products"'):
        average_adapters(model, members(model), tmp_path / "mean", rank=2)
    one, two = members(model, 2)
    two.pop(next(iter(two)))
    with pytest.raises(ValueError, match="named differently: missing"):
        average_adapters(model, [one, two], tmp_path / "mean")


# One pass for many.


@pytest.mark.parametrize(
    "lora",
    [{}, {"use_rslora": True}, {"bias": "lora_only"}, {"lora_bias": True}, {"target_modules": "all-linear"}],
    ids=lambda lora: "-".join(lora) or "plain",
)
def test_one_pass_over_n_adapters_equals_n_passes(lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    swag = posterior(model)
    stacked = swag.sample(5, generator=generator())
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    found = forward_adapters(model, stacked, batch)
    assert found.shape == (5, len(IDS), 2)
    singles = [{name: tensor[i] for name, tensor in stacked.items()} for i in range(5)]
    for index, weights in enumerate(singles):
        with applied(model, weights):
            torch.testing.assert_close(found[index], logits(model), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(forward_adapters(model, singles, batch), found)
    averaged = torch.softmax(found.double(), -1).mean(0)
    wanted = predict(model, Mixture(singles), [batch]).probs
    torch.testing.assert_close(averaged, wanted.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extra", [{"modules_to_save": ["LayerNorm"]}, {"use_rslora": True}, {"bias": "lora_only"}])
def test_draws_of_other_layers_share_a_pass_too(extra: dict[str, Any]) -> None:
    model = adapted(**extra)
    stacked = posterior(model).sample(3, generator=generator())
    found = forward_adapters(model, stacked, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    for index in range(3):
        with applied(model, {name: tensor[index] for name, tensor in stacked.items()}):
            torch.testing.assert_close(found[index], logits(model), rtol=1e-5, atol=1e-6)


def test_what_cannot_share_a_pass_is_refused_and_the_model_left() -> None:
    dora = adapted(use_dora=True)
    with pytest.raises(ValueError, match="DoRA"):
        forward_adapters(dora, posterior(dora).sample(2), {"input_ids": IDS})
    hooked = adapted()
    drawn = posterior(hooked).sample(2)
    hooked.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match="has hooks, which would see several draws at once"):
        forward_adapters(hooked, drawn, {"input_ids": IDS})
    model = adapted()
    before = logits(model)
    stacked = posterior(model).sample(2)
    with pytest.raises(ValueError, match="same leading axis"):
        forward_adapters(model, {**stacked, next(iter(stacked)): torch.zeros(3, 1)}, {"input_ids": IDS})
    with pytest.raises(ValueError, match="no draws"):
        forward_adapters(model, [], {"input_ids": IDS})
    model.train()
    forward_adapters(model, stacked, {"input_ids": IDS})
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert torch.equal(logits(model), before)
