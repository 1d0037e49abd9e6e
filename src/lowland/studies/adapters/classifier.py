"""A text classifier: any encoder of Transformers, mean pooling, dropout and a linear head, under LoRA adapters."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland import weights_of
from lowland.integrations.peft.folded import Folded
from lowland.weights import Weights, trainable

from ..packaged import packaged_encoder
from .config import Lora, Model
from .lower_layers import record_lower_layers, skip_lower_layers
from .tokens import Tokens

ATTENTION = (("query", "value"), ("q_lin", "v_lin"), ("q_proj", "v_proj"), ("q", "v"))


class TextClassifier(nn.Module):
    """Encoder, pooling, dropout, head.

    Args:
        encoder: maps input_ids and attention_mask (B, L) to an output with last_hidden_state (B, L, H).
        pooling: "mean" over the tokens that are not padding, or "cls", the first token.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int, pooling: str, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.pooling = pooling
        self.given: Tensor | None = None  # hidden states for the first adapted layer, while a forward runs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        hidden: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return logits (B, C), and the mean cross-entropy where labels (B,) are given."""
        self.given = hidden
        try:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, H)
        finally:
            self.given = None
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = attention_mask[..., None].to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp_min(1.0)  # (B, H)
        logits: Tensor = self.head(self.dropout(pooled))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class AdaptedClassifier:
    """A `TextClassifier` twice over: `model` with adapters, to train; `merged` with adapters folded in, to predict.

    W = W_0 + alpha / r * B A    (Hu et al. 2021, arXiv 2106.09685)

    The two share every frozen tensor that no adapter changes.
    """

    def __init__(self, classifier: nn.Module, lora: Lora) -> None:
        from peft import LoraConfig, get_peft_model

        encoder, head = classifier.get_submodule("encoder"), classifier.get_submodule("head")
        self.paths, self.lowest = adapted_paths(encoder, lora)
        linears = [_linear(classifier, path) for path in self.paths]
        own = {id(linear.weight) for linear in linears} | {id(p) for p in head.parameters()}
        shared: dict[int, Any] = {id(p): p for p in classifier.parameters() if id(p) not in own}
        shared |= {id(b): b for b in classifier.buffers()}
        self.merged: nn.Module = copy.deepcopy(classifier, shared).eval().requires_grad_(False)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=list(self.paths),
            modules_to_save=["head"],
        )
        self.model: nn.Module = get_peft_model(classifier, config)
        self._folded = Folded(self.model, weights_of(self.model, trainable))
        if self.lowest > 0:
            for half in (self.merged, classifier):
                skip_lower_layers(half, self.lowest)

    def to(self, device: torch.device) -> None:
        """Move both halves; what they share stays shared."""
        self.model.to(device)
        self.merged.to(device)

    @property
    def _head(self) -> nn.Linear:
        return _linear(self.merged, "head")

    def reset(self, generator: torch.Generator, head: Weights | None = None) -> None:
        """Start afresh: A uniform as PEFT draws it, B zero, the head as given, or as torch draws it."""
        with torch.no_grad():
            for name, tensor in sorted(weights_of(self.model, trainable).items()):
                if ".lora_B." in name:
                    tensor.zero_()
                    continue
                own = name.rsplit(".", 1)[-1]
                if head is not None and ".modules_to_save." in name:
                    tensor.copy_(head[own])
                    continue
                fan_in = tensor.shape[-1] if tensor.ndim > 1 else self._head.in_features
                bound = 1 / math.sqrt(fan_in)
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))

    @torch.no_grad()
    def write(self, weights: Weights) -> None:
        """Fold the adapters of `weights` into `merged`."""
        self._folded.fold(weights, out={name: tensor.data for name, tensor in self.merged.named_parameters()})


def need_extra(study: str) -> None:
    """See that the packages of text studies are there, before any data are read.

    Raises:
        ImportError: one is missing.
    """
    missing = [name for name in ("transformers", "peft", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{study} studies need {' and '.join(missing)}: pip install 'lowland[text]'")


def load_encoder(settings: Model) -> tuple[nn.Module, Any, Path | None]:
    """Load the encoder and its tokenizer; the third is the encoder's folder, if it has one.

    The packaged encoder and local folders never ask the network.

    Raises:
        ValueError: the folder or the hub name holds no readable encoder, or max_length is beyond its positions.
        ImportError: transformers is missing.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ImportError("text studies need transformers and peft: pip install 'lowland[text]'") from None
    folder = packaged_encoder() if settings.encoder == "packaged" else Path(settings.encoder)
    local = folder.is_dir()
    if not local and (folder.exists() or settings.encoder.count("/") > 1 or settings.encoder[0] in "/.~"):
        raise ValueError(f"model.encoder {settings.encoder!r} is no folder: name a model's folder or a hub name")
    source = str(folder) if local else settings.encoder
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        encoder = AutoModel.from_pretrained(
            source, local_files_only=local, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )
    except Exception as error:  # whatever the many loaders of Transformers raise on a foreign folder
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"model.encoder {source!r} cannot be loaded ({reason[0][:200]}): it must hold config.json, "
            "model.safetensors and a tokenizer"
        ) from error
    positions = positions_of(encoder)
    if 0 < positions < settings.max_length:
        raise ValueError(
            f"model.max_length {settings.max_length} is beyond the encoder's {positions} positions: lower it"
        )
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = settings.encoder_dropout
        elif hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = settings.encoder_dropout
    return encoder, tokenizer, folder if local else None


def positions_of(encoder: nn.Module) -> int:
    """Return how many tokens an encoder can take; 0 where it does not say."""
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return 0
    # RoBERTa and its kin count positions from behind their padding token's number.
    first = next((m.padding_idx for name, m in encoder.named_modules() if name.endswith("position_embeddings")
                  and isinstance(m, nn.Embedding) and m.padding_idx is not None), -1)  # fmt: skip
    return positions - first - 1


def adapt(
    encoder: nn.Module, settings: Model, lora: Lora, classes: int, corpora: Sequence[Tokens], batch_size: int = 32
) -> AdaptedClassifier:
    """Put pooling, head and adapters on an encoder; where its lower layers stay as they are, compute them now.

    Args:
        corpora: the texts that the classifier will see; they take in what the lower layers make of them.

    Raises:
        ValueError: the encoder lacks the layers that `lora` names, or its lower layers cannot be cached.
    """
    width = getattr(encoder.config, "hidden_size", None) or getattr(encoder.config, "dim", None)
    if not isinstance(width, int):
        raise ValueError(f"{type(encoder).__name__} states no hidden size: choose an encoder like BERT")
    _, lowest = adapted_paths(encoder, lora)
    classifier = TextClassifier(encoder, width, classes, settings.pooling, settings.head_dropout).requires_grad_(False)
    return with_adapters(classifier, lora, lowest, corpora, corpora, batch_size)


def with_adapters(
    classifier: nn.Module,
    lora: Lora,
    lowest: int,
    corpora: Sequence[Any],
    tokens: Sequence[Tokens],
    batch_size: int,
) -> AdaptedClassifier:
    """Put adapters on a model made of `encoder` and `head`, and compute the layers below `lowest` now.

    Args:
        corpora: give batches for the model by `batch(rows)`; the first is looked at for whether caching is right.
        tokens: the texts of each, which take in what the lower layers make of them.

    Raises:
        ValueError: the lower layers cannot be cached.
    """
    if lowest == 0:
        return AdaptedClassifier(classifier, lora)
    encoder: nn.Module = classifier.encoder  # type: ignore[assignment]
    probe = list(range(min(4, len(corpora[0]))))
    with torch.no_grad():
        expected = classifier.eval()(**corpora[0].batch(probe))["logits"]
    for each in tokens:
        record_lower_layers(encoder, lowest, each, batch_size)
    adapted = AdaptedClassifier(classifier, lora)
    with torch.no_grad():
        got = adapted.merged(**corpora[0].batch(probe))["logits"]
    if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"the lower layers of {type(encoder).__name__} cannot be cached (the outputs would change): "
            'set lora.layers = "all"'
        )
    return adapted


def adapted_paths(encoder: nn.Module, lora: Lora) -> tuple[list[str], int]:
    """Return the linear layers to adapt, and the number of the lowest layer that must run for each draw."""
    linears = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    choices: Sequence[tuple[str, ...]] = (lora.targets,) if lora.targets else ATTENTION
    found = next((f for names in choices if (f := [n for n in linears if n.rsplit(".", 1)[-1] in names])), [])
    if not found:
        known = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise ValueError(
            f"{type(encoder).__name__} has no linear layers named {choices[0]}: set lora.targets to some of {known}"
        )
    if not lora.layers:
        return [f"encoder.{name}" for name in found], 0
    numbers = {name: _layer(name) for name in found}
    available = sorted({number for number in numbers.values() if number is not None})
    absent = sorted(set(lora.layers) - set(available))
    if absent:
        raise ValueError(f"lora.layers names {absent}, the encoder has layers {available}: choose among these")
    kept = [name for name, number in numbers.items() if number in lora.layers]
    return [f"encoder.{name}" for name in kept], min(lora.layers)


def _layer(path: str) -> int | None:
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def _linear(model: nn.Module, path: str) -> nn.Linear:
    module = model.get_submodule(path)
    assert isinstance(module, nn.Linear)
    return module
