"""A study's randomness: a stream of its own for each purpose, and the surroundings put back."""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for each purpose, so that no two draws share a stream.

    >>> derived_seed(1, "order") != derived_seed(1, "draws") != derived_seed(2, "draws")
    True
    """
    state = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)
    return int(state[0])


def stream(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


@contextmanager
def own_randomness() -> Iterator[None]:
    """Put every global random state back: the Trainer seeds them all."""
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block on one thread, as sums over threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers' bars, logs and warnings away for a while, and put its settings back."""
    try:
        from transformers.utils import logging as their_logging
    except ImportError:  # who needs it says so in a sentence of its own
        yield
        return
    logging: Any = their_logging  # parts of it carry no annotations
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|huggingface_hub|torch)(\.|$)")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
