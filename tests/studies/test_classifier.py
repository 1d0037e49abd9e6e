"""The classifier: adapters folded in, lower layers cached, and both equal to the plain forward pass."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from lowland.studies.adapters.classifier import AdaptedClassifier, TextClassifier, adapt, load_encoder
from lowland.studies.adapters.lower_layers import layers_of
from lowland.studies.adapters.tokens import Buckets, Tokens
from lowland.studies.adapters.training import class_probabilities
from lowland.studies.text import Lora, Model
from lowland.weights import weights_of
from lowland.weights.named import trainable

from .tiny_study import random_encoder, write_encoder

KINDS = ("bert", "electra", "roberta", "distilbert")


def texts(count: int = 9) -> Tokens:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (count,), generator=g).tolist()
    return Tokens([torch.randint(4, 40, (n,), generator=g).tolist() for n in lengths], pad=0)


def shaken(classifier: AdaptedClassifier, seed: int = 1) -> dict[str, torch.Tensor]:
    """Weights far enough from the start that a forgotten factor shows."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=g) * 0.3 for name, t in weights_of(classifier.model, trainable).items()
    }


def encoder_of(kind: str, layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    encoder: nn.Module = random_encoder(kind, 40, layers)
    return encoder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_folded_adapters_equal_peft(kind: str) -> None:
    tokens = texts()
    classifier = adapt(encoder_of(kind), Model(head_dropout=0.0), Lora(rank=4, alpha=6.0), 3, [tokens])
    from lowland import copy_to

    for seed in (1, 2):  # the second draw starts from W_0 again
        weights = shaken(classifier, seed)
        copy_to(classifier.model, weights)
        classifier.write(weights)
        expected = class_probabilities(classifier.model.eval(), tokens, 4)
        assert torch.allclose(class_probabilities(classifier.merged, tokens, 4), expected, atol=1e-5)
    assert {name.rsplit(".", 1)[-1] for name in weights} == {"weight", "bias"}
    assert sum("head" in name for name in weights) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_cached_lower_layers_equal_the_whole_forward(kind: str) -> None:
    settings, lora = Model(head_dropout=0.0), Lora(rank=4, layers=(1, 2))
    cached, tokens = texts(), texts()
    quick = adapt(encoder_of(kind), settings, lora, 2, [cached])
    slow_encoder = encoder_of(kind)
    slow = AdaptedClassifier(
        TextClassifier(slow_encoder, 32, 2, "mean", 0.0).requires_grad_(False),
        Lora(rank=4, targets=lora.targets, layers=(0, 1, 2)),
    )
    weights = shaken(quick)
    assert quick.lowest == 1 and slow.lowest == 0 and cached.hidden and not tokens.hidden
    slow.write({name: weights.get(name, torch.zeros_like(t)) for name, t in weights_of(slow.model, trainable).items()})
    quick.write(weights)
    expected = class_probabilities(slow.merged, tokens, 4)
    assert torch.allclose(class_probabilities(quick.merged, cached, 4), expected, atol=1e-5)
    # Another batching pads otherwise.
    assert torch.allclose(class_probabilities(quick.merged, cached, 9), expected, atol=1e-5)
    from lowland import copy_to

    copy_to(quick.model, weights)
    assert torch.allclose(class_probabilities(quick.model.eval(), cached, 4), expected, atol=1e-5)


def test_a_cached_batch_trains_the_adapters() -> None:
    tokens = texts()
    classifier = adapt(encoder_of("bert"), Model(), Lora(rank=4, layers=(2,)), 2, [tokens])
    classifier.reset(torch.Generator().manual_seed(0))
    loss = classifier.model(**tokens.batch([0, 1, 2]), labels=torch.tensor([0, 1, 0]))["loss"]
    loss.backward()
    grads = [p.grad for p in classifier.model.parameters() if p.requires_grad]
    assert all(g is not None for g in grads) and any(bool(g.abs().sum() > 0) for g in grads if g is not None)


def test_layers_that_cannot_be_cached_are_refused() -> None:
    class Odd(nn.Module):
        """An encoder whose layers are no list."""

        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"hidden_size": 8, "num_hidden_layers": 2})()

    with pytest.raises(ValueError, match=r'of Odd cannot be cached .*set lora.layers = "all"'):
        layers_of(Odd())


def test_wrong_layers_and_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora.layers names \[7\], the encoder has layers \[0, 1, 2\]"):
        adapt(encoder_of("bert"), Model(), Lora(layers=(7,)), 2, [texts()])
    with pytest.raises(ValueError, match=r"no linear layers named \('qkv',\): set lora.targets to some of"):
        adapt(encoder_of("bert"), Model(), Lora(targets=("qkv",)), 2, [texts()])


def test_reset_is_the_seed_alone() -> None:
    classifier = adapt(encoder_of("bert"), Model(), Lora(), 2, [texts()])
    classifier.reset(torch.Generator().manual_seed(5))
    first = {name: t.clone() for name, t in weights_of(classifier.model, trainable).items()}
    classifier.model.load_state_dict({k: torch.zeros_like(v) for k, v in first.items()}, strict=False)
    torch.manual_seed(99)
    classifier.reset(torch.Generator().manual_seed(5))
    again = weights_of(classifier.model, trainable)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(bool((t == 0).all()) == ("lora_B" in name) for name, t in first.items())


def test_an_encoder_comes_from_a_folder(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")
    encoder, tokenizer, home = load_encoder(Model(encoder=str(folder), max_length=16, encoder_dropout=0.25))
    assert home == folder and tokenizer.pad_token_id == 0
    assert {m.p for m in encoder.modules() if isinstance(m, nn.Dropout)} == {0.25}


def test_unreadable_encoders_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"max_length 512 is beyond the encoder's 64 positions"):
        load_encoder(Model(encoder=str(folder), max_length=512))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*\): it must hold config.json"):
        load_encoder(Model(encoder=str(folder)))
    with pytest.raises(ValueError, match="is no folder: name a model's folder or a hub name"):
        load_encoder(Model(encoder=str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_encoder(Model(encoder=str(tmp_path / "empty")))


def test_buckets_hold_every_text_once_and_change_from_epoch_to_epoch() -> None:
    lengths = [int(n) for n in torch.randint(1, 50, (100,), generator=torch.Generator().manual_seed(0))]
    buckets = Buckets(lengths, 8, torch.Generator().manual_seed(1))
    one, two = list(buckets), list(buckets)
    assert sorted(one) == sorted(two) == list(range(100)) and one != two
    assert {frozenset(one[i : i + 8]) for i in range(0, 96, 8)} != {frozenset(two[i : i + 8]) for i in range(0, 96, 8)}
    spread = [
        max(lengths[r] for r in one[i : i + 8]) - min(lengths[r] for r in one[i : i + 8]) for i in range(0, 96, 8)
    ]
    assert sum(spread) / len(spread) < 12
