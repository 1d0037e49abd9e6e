"""Tokenised texts: cut once, then handed out in padded batches of texts of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def tokenise(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """Cut texts into tokens with any Transformers tokenizer, at most `max_length` of them.

    Raises:
        ValueError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token and save it beside the model")
    cut = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False)
    return Tokens([list(ids) for ids in cut["input_ids"]], int(tokenizer.pad_token_id))


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
