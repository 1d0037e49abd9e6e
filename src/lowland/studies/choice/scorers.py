"""What answers a question: an encoder by cosines of question and options, or a causal language model by letters.

Both are an encoder under LoRA adapters and a small head, so that the adapters fold in for predictions as in the text
study (`AdaptedClassifier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland.calibration import fit_temperature

from ..adapters.classifier import AdaptedClassifier, adapted_paths, with_adapters
from ..adapters.config import Lora
from ..adapters.training import class_probabilities
from .config import Model
from .gguf import smollm2
from .questions import LETTERS, Question, Questions

FORBIDDEN = float("-inf")
START_SCALE = 10.0  # at which the untrained model is asked what scale it wants


class PairScorer(nn.Module):
    """Scores of options: `scale` times the cosine of the mean-pooled question and option, after one linear map.

    Args:
        encoder: maps input_ids and attention_mask (T, L) to an output with last_hidden_state (T, L, H).
    """

    def __init__(self, encoder: nn.Module, width: int, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.head.weight)
        self.scale = scale
        self.given: Tensor | None = None  # hidden states for the first adapted layer, while a forward runs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        allowed: Tensor,
        hidden: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return logits (B, C); rows of `input_ids` are the B questions, then the options of each, `allowed` (B, C)."""
        count = len(allowed)
        # Options are short: on their own they need no padding to the length of a question.
        longest = int(attention_mask[count:].sum(1).max())
        rows = ((slice(None, count), slice(None)), (slice(count, None), slice(None, longest)))
        pooled = [
            self._pooled(input_ids[own], attention_mask[own], None if hidden is None else hidden[own]) for own in rows
        ]
        directions = nn.functional.normalize(self.head(torch.cat(pooled)), dim=-1)  # (T, H)
        questions, options = directions[: len(allowed)], directions[len(allowed) :]
        owner = torch.arange(len(allowed), device=allowed.device).repeat_interleave(allowed.sum(1))
        scores = self.scale * (questions[owner] * options).sum(-1)  # (sum of counts,)
        logits = scores.new_full(allowed.shape, FORBIDDEN).masked_scatter(allowed, scores)
        return _answer(logits, labels)

    def _pooled(self, input_ids: Tensor, attention_mask: Tensor, hidden: Tensor | None) -> Tensor:
        self.given = hidden
        try:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (T, L, H)
        finally:
            self.given = None
        mask = attention_mask[..., None].to(states.dtype)
        pooled: Tensor = (states * mask).sum(1) / mask.sum(1).clamp_min(1.0)
        return pooled


class LetterScorer(nn.Module):
    """Scores of options: the logits of their letters, or of the options themselves, after the prompt.

    Prompts are padded on the right and read at their own last token, which a causal model computes from what stands
    before it alone: the result is that of padding on the left.

    Args:
        encoder: the decoder's stack, mapping input_ids and attention_mask (B, L) to last_hidden_state (B, L, H).
        rows: (C, H), the rows of the output layer that belong to the letters.
    """

    def __init__(self, encoder: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
        with torch.no_grad():
            self.head.weight.copy_(rows)
        self.given: Tensor | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        allowed: Tensor,
        hidden: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return logits (B, C); letters that a question does not offer have minus infinity."""
        self.given = hidden
        try:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, H)
        finally:
            self.given = None
        last = attention_mask.sum(1) - 1
        logits = self.head(states[torch.arange(len(states), device=states.device), last])
        return _answer(logits.masked_fill(~allowed, FORBIDDEN), labels)


def _answer(logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    if labels is None:
        return {"logits": logits}
    return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def load_scorer(settings: Model, width: int, words: Sequence[str] = ()) -> tuple[nn.Module, Any, Path | None]:
    """Load what answers, its tokenizer, and its folder, if it has one; `width` is the largest number of options.

    `words` are the options of every question, for a model of the kind "words".

    Raises:
        ValueError: the folder or the hub name holds no readable model, or a letter is more than one token.
        ImportError: transformers is missing.
    """
    from ..adapters.config import Model as Encoder

    if settings.kind == "pairs":
        from ..adapters.classifier import load_encoder

        chosen = Encoder(encoder=settings.model, max_length=settings.max_length)
        encoder, tokenizer, folder = load_encoder(chosen)
        size = getattr(encoder.config, "hidden_size", None) or getattr(encoder.config, "dim", None)
        if not isinstance(size, int):
            raise ValueError(f"{type(encoder).__name__} states no hidden size: choose an encoder like BERT")
        return PairScorer(encoder, size, settings.scale or START_SCALE), tokenizer, folder
    language, tokenizer, folder = _language_model(settings.model)
    rows = language.get_output_embeddings().weight.detach()[option_tokens(tokenizer, words or LETTERS[:width])]
    return LetterScorer(language.base_model, rows), tokenizer, folder


def option_tokens(tokenizer: Any, options: Sequence[str]) -> list[int]:
    """Return the token of each letter or word as it follows "Answer:", a space before it where the tokenizer has one.

    Raises:
        ValueError: one is not a token of its own.
    """
    found: list[int] = []
    for option in options:
        forms = (tokenizer.encode(form, add_special_tokens=False) for form in (f" {option}", option))
        single = [ids[0] for ids in forms if len(ids) == 1]
        if not single or single[0] in found:
            what = "letter" if option in LETTERS else "option"
            raise ValueError(f"the {what} {option} is no single token of this tokenizer: choose another model")
        found.append(int(single[0]))
    return found


def set_scale(scorer: PairScorer, train: Questions, labels: Sequence[int], batch_size: int) -> float:
    """Set the scale of the cosine by which the untrained model has the lowest NLL of its training questions.

    Whatever it is unsure or too sure by later, training has done. Returned is the scale.
    """
    scorer.eval()
    probs = class_probabilities(scorer, train, batch_size)
    scorer.scale /= fit_temperature(probs, list(labels))
    train._sorted.clear()  # these batches were made before the lower layers were cached
    return scorer.scale


def words_of(questions: Sequence[Question]) -> tuple[str, ...]:
    """Return the options of all questions, which must be the same.

    Raises:
        ValueError: they are not.
    """
    first = questions[0].options
    other = next((question for question in questions if question.options != first), None)
    if other is not None:
        raise ValueError(
            f'model.kind "words" wants the same options in every question, got {first} and {other.options}: use '
            '"letters" or "pairs"'
        )
    return first


def _language_model(name: str) -> tuple[Any, Any, Path | None]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ImportError("choice studies need transformers and peft: pip install 'lowland[text]'") from None
    folder = smollm2() if name == "packaged" else Path(name)
    local = folder.is_dir()
    source = str(folder) if local else name
    if not local and (folder.exists() or name.count("/") > 1 or name[0] in "/.~"):
        raise ValueError(f"model.model {name!r} is no folder: name a model's folder or a hub name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        model = AutoModelForCausalLM.from_pretrained(
            source, local_files_only=local, dtype=torch.float32, attn_implementation="sdpa"
        )
    except Exception as error:  # whatever the many loaders of Transformers raise on a foreign folder
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"model.model {source!r} cannot be loaded ({reason[0][:200]}): it must hold a causal language model and a "
            "tokenizer"
        ) from error
    return model, tokenizer, folder if local else None


def adapt_scorer(scorer: nn.Module, lora: Lora, corpora: Sequence[Questions], batch_size: int) -> AdaptedClassifier:
    """Put adapters on what answers; where its lower layers stay as they are, compute them now.

    Raises:
        ValueError: the model lacks the layers that `lora` names, or its lower layers cannot be cached.
    """
    scorer.requires_grad_(False)
    encoder: nn.Module = scorer.encoder  # type: ignore[assignment]
    _, lowest = adapted_paths(encoder, lora)
    return with_adapters(scorer, lora, lowest, corpora, [corpus.tokens for corpus in corpora], batch_size)
