"""Tokenised texts: cut once, then handed out in padded batches of texts of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

Batch = dict[str, Tensor]


class Corpus(Protocol):
    """What training and predictions read: items of some length, in padded batches for a model."""

    def __len__(self) -> int: ...

    @property
    def ids(self) -> list[list[int]]:
        """The tokens of each item."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the items `rows` as the model wants them."""

    def batches(self, size: int) -> list[tuple[list[int], Batch]]:
        """Return every item once, in batches, with their rows."""


@dataclass
class Tokens:
    """Token numbers of texts, and what the frozen layers make of them where that is cached.

    >>> tokens = Tokens([[5, 6, 7], [5]], pad=0)
    >>> tokens.batch([0, 1])["attention_mask"]
    tensor([[1, 1, 1],
            [1, 0, 0]])
    """

    ids: list[list[int]]
    pad: int
    hidden: list[Tensor] = field(default_factory=list)  # (length, width) each
    shortened: list[int] = field(default_factory=list)  # the texts that were cut
    _sorted: dict[int, list[tuple[list[int], Batch]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Tokens:
        """Return the first texts, as their own object."""
        return Tokens(self.ids[:count], self.pad, self.hidden[:count])

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the texts `rows`, padded to the longest of them: input_ids and attention_mask (B, L)."""
        longest = max(len(self.ids[row]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for place, row in enumerate(rows):
            length = len(self.ids[row])
            ids[place, :length] = torch.tensor(self.ids[row])
            mask[place, :length] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.hidden:
            width = self.hidden[0].shape[-1]
            batch["hidden"] = torch.zeros((len(rows), longest, width))  # (B, L, H)
            for place, row in enumerate(rows):
                batch["hidden"][place, : len(self.ids[row])] = self.hidden[row]
        return batch

    def batches(self, size: int) -> list[tuple[list[int], Batch]]:
        """Return every text once, in batches sorted by length, with their rows; padded once and kept."""
        if size not in self._sorted:
            order = sorted(range(len(self)), key=lambda row: (len(self.ids[row]), row))
            parts = [order[start : start + size] for start in range(0, len(order), size)]
            self._sorted[size] = [(rows, self.batch(rows)) for rows in parts]
        return self._sorted[size]


def tokenise(tokenizer: Any, texts: Sequence[str], max_length: int, pad: int | None = None) -> Tokens:
    """Cut texts into tokens with any Transformers tokenizer, at most `max_length` of them; note which were cut.

    `pad` stands in for the tokenizer's own padding token.

    Raises:
        ValueError: the tokenizer has no padding token.
    """
    pad = tokenizer.pad_token_id if pad is None else pad
    if pad is None:
        raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token and save it beside the model")
    ids = whole_tokens(tokenizer, texts)
    long = [row for row, one in enumerate(ids) if len(one) > max_length]
    if long:
        again = [texts[row] for row in long]
        cut = tokenizer(again, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
        for row, one in zip(long, cut, strict=True):
            ids[row] = list(one)
    return Tokens(ids, int(pad), shortened=long)


def whole_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return all tokens of each text."""
    found = tokenizer(list(texts), truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [list(one) for one in found]


def fitting_length(lengths: Sequence[int], most: int, budget: float = 128.0) -> int:
    """Return the number of tokens to keep of a text: all of the longest text, unless that is too much.

    `most` is what the encoder can take. `budget` is the time that a study may spend, in tokens: what is kept of a text
    is so long on the average at most.

    >>> fitting_length([10, 12, 24_000], most=512), fitting_length([300, 400, 500], most=512)
    (362, 128)
    """
    low, high = 4, max(4, min(most, max(lengths)))
    allowed = budget * len(lengths)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(length, middle) for length in lengths) <= allowed:
            low = middle
        else:
            high = middle - 1
    return low


def cut_sentence(cut: Mapping[str, tuple[int, int]], length: int, things: str = "texts") -> str:
    """Say how many texts were cut at `length` tokens; empty where none was.

    `cut` holds, of each split, how many were cut of how many.

    >>> cut_sentence({"training": (1, 60), "test": (0, 20)}, 48)
    '1 of 60 training and 0 of 20 test texts were cut at 48 tokens (model.max_length)'
    """
    if not any(count for count, _ in cut.values()):
        return ""
    parts = [f"{count} of {of} {what}" for what, (count, of) in cut.items()]
    listed = " and ".join(", ".join(parts).rsplit(", ", 1))
    return f"{listed} {things} were cut at {length} tokens (model.max_length)"


class Buckets(Sampler[int]):
    """Rows in random order, but such that every `size` in a row have similar lengths.

    Texts are shuffled, sorted by length within pools of eight batches, and the batches are shuffled: padding nearly
    vanishes while the composition of the batches still changes from epoch to epoch.
    """

    def __init__(self, lengths: Sequence[int], size: int, generator: torch.Generator) -> None:
        self.lengths = list(lengths)
        self.size = size
        self.generator = generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=self.generator).tolist()
        whole = len(self) - len(self) % self.size
        pool = 8 * self.size
        pools = [sorted(order[i : min(i + pool, whole)], key=self.lengths.__getitem__) for i in range(0, whole, pool)]
        rows = [row for part in pools for row in part]
        batches = [rows[i : i + self.size] for i in range(0, whole, self.size)]
        for index in torch.randperm(len(batches), generator=self.generator).tolist():
            yield from batches[index]
        yield from order[whole:]  # the short batch comes last, where the loader expects it
