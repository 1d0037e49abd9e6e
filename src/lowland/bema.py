"""Bias-corrected exponential moving average of weights (BEMA).

    ema_0 = w_0,   ema_t = (1 - beta_t) ema_{t-1} + beta_t w_t,   mean_t = ema_t + alpha_t (w_t - w_0)

    alpha_t = (lag + multiplier t) ** -bias_power,   beta_t = max((lag + multiplier t) ** -ema_power, least)

for the t-th update after the first. The plain average lags behind weights that drift; the second term gives a share of
the way back that fades as the average grows old. In the paper's letters: lag rho, multiplier gamma, bias_power eta,
ema_power kappa.

Block, Zhang 2025, arXiv 2508.00180.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic.moments import wide_zeros
from .averager.averager import Averager, Settings, Slot
from .weights.named import Select, Weights, parameters
from .weights.shards import local


class BEMA(Averager):
    """The average of the weights it is shown, corrected for its lag; three numbers a weight, in float32 or wider.

    The first update sets `w_0`: begin where the fine-tuning does. TRL's `BEMACallback(update_freq=f, update_after=a)`
    counts steps of the optimiser: its numbers are those of `BEMA(multiplier=f * multiplier, lag=lag + multiplier * a)`
    updated every `f` steps from step `a` on. Other than floating-point tensors are copied from the latest update.

    Args:
        ema_power: how fast the average slows down; 0 makes it the latest weights.
        bias_power: how fast the correction fades; 0 keeps it whole.
        lag: the age at which the average is taken to begin.
        multiplier: how much older it grows at an update.
        least: no update has a smaller share than this.
        select: which tensors of a model are taken; a mapping given to `update` is taken as it is.
        device: where averages are kept; None: beside the weights.
        check_finite: refuse an iterate with a NaN or an infinity, by the name of its tensor.

    Raises:
        ValueError: lag or multiplier is not positive, a power is negative, or least is outside [0, 1].

    >>> average = BEMA(ema_power=1.0, bias_power=1.0, lag=1.0)
    >>> for w in (0.0, 4.0, 8.0):
    ...     average.update({"w": torch.tensor([w])})
    >>> average.mean()  # ema: 0, 2, 4; and 1/3 of the way from 0 to 8
    {'w': tensor([6.6667])}
    """

    def __init__(
        self,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        *,
        lag: float = 10.0,
        multiplier: float = 1.0,
        least: float = 0.0,
        select: Select = parameters,
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(select=select, device=device, check_finite=check_finite)
        for name, value in (("ema_power", ema_power), ("bias_power", bias_power)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {value}")
        for name, value in (("lag", lag), ("multiplier", multiplier)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= least <= 1:
            raise ValueError(f"least must lie in [0, 1], got {least}")
        self.ema_power, self.bias_power = float(ema_power), float(bias_power)
        self.lag, self.multiplier, self.least = float(lag), float(multiplier), float(least)

    @property
    def settings(self) -> Settings:
        names = ("ema_power", "bias_power", "lag", "multiplier", "least")
        return {name: getattr(self, name) for name in names}

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        return {slot: wide_zeros(like) for slot in ("ema", "first", "latest")}

    def _absorb(self, weights: Weights) -> None:
        slots = self._slots
        if self.count == 1:
            for name, tensor in slots["first"].items():
                local(tensor).copy_(local(weights[name]))
        self._passes.lerp_(slots["ema"], weights, 1.0 if self.count == 1 else self._share())
        for name, tensor in slots["latest"].items():
            local(tensor).copy_(local(weights[name]))

    def _age(self) -> float:
        return self.lag + self.multiplier * (self.count - 1)

    def _share(self) -> float:
        # Below an age of 1 a power would give more than the whole.
        return float(min(max(self._age() ** -self.ema_power, self.least), 1.0))

    @torch.no_grad()
    def mean(self) -> dict[str, Tensor]:
        """Return the corrected average: copies, in float32 or wider; other tensors are the latest ones.

        Raises:
            RuntimeError: there has been no update.
        """
        with self._lock:
            self._need()
            ema, first, latest = (self._slots[slot] for slot in ("ema", "first", "latest"))
            alpha = self._age() ** -self.bias_power
            return {
                name: ema[name] + alpha * (tensor - first[name]) if tensor.is_floating_point() else tensor.clone()
                for name, tensor in latest.items()
            }
