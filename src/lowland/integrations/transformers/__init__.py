"""Transformers: averages in the Trainer."""

from .callback import AveragingCallback as AveragingCallback
from .trainer import last_checkpoint as last_checkpoint
