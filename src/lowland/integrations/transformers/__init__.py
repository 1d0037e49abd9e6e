"""Transformers: averages in the Trainer, and teachers that are averages."""

from .callback import AveragingCallback as AveragingCallback
from .callback import last_checkpoint as last_checkpoint
from .teacher import TeacherCallback as TeacherCallback
