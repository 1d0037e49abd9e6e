"""Lightning: averages in the Trainer."""

from .callback import AveragingCallback as AveragingCallback
from .saving import raw_weights as raw_weights
