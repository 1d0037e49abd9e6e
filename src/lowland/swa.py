"""Stochastic weight averaging (Izmailov, Podoprikhin, Garipov, Vetrov, Wilson 2018, arXiv 1803.05407).

mean_n = mean_{n-1} + (w_n - mean_{n-1}) / n
"""

from __future__ import annotations

from torch import Tensor

from .arithmetic.moments import wide_zeros
from .averager.averager import Averager, Settings, Slot
from .weights.named import Weights, clone_of


class SWA(Averager):
    """The equal average of the weights it is shown.

    Call `update` when the rate is constant or at the minimum of its cycle (`lowland.cycles`), and refresh BatchNorm
    before using the mean (`refresh_bn`). The first update copies: no initial weights are counted. Other than
    floating-point tensors are copied from the latest update.

    Args:
        select: which tensors of a model are taken; a mapping given to `update` is taken as it is.
        device: where averages are kept; None: beside the weights.
        check_finite: refuse an iterate with a NaN or an infinity, by the name of its tensor.

    >>> import torch
    >>> average = SWA()
    >>> for w in ([1.0, 2.0], [3.0, 1.0], [2.0, 5.0], [6.0, 0.0]):
    ...     average.update({"w": torch.tensor(w)})
    >>> average.mean()["w"]
    tensor([3., 2.])
    """

    @property
    def settings(self) -> Settings:
        return {}

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {"mean": wide_zeros(like)}

    def _absorb(self, weights: Weights) -> None:
        self._passes.lerp_(self._slots["mean"], weights, 1 / self.count)

    def mean(self) -> dict[str, Tensor]:
        with self._lock:
            self._need()
            return clone_of(self._slots["mean"])
