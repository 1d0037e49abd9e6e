"""Transformers: averages in the Trainer."""

from .callback import AveragingCallback as AveragingCallback
