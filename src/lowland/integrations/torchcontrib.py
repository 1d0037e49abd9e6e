"""The optimiser wrapper of torchcontrib, `SWA(optimizer, swa_start, swa_freq, swa_lr)`, on today's torch.

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson 2018, arXiv 1803.05407; package `torchcontrib`, last released in 2019.
The original fails at its first step on a recent torch, and loses its averages when its state is loaded. The call
signature and the numbers are the same here; averages are kept in float32 or wider, and a state resumes.

    before a step:  lr = swa_lr            in a group that has taken swa_start steps or more
    after step k:   average_n = average_{n-1} + (w - average_{n-1}) / n      if k > swa_start and k mod swa_freq = 0

New code reads better with `lowland.SWA` and `with applied(model, average.mean())`: there is no state in which one has
to remember which weights the model holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arithmetic.moments import lerp_, wide
from ..batchnorm.refresh import refresh_bn

_COUNTERS = ("step_counter", "n_avg")


class SWA(Optimizer):
    """An optimiser that averages what it trains.

    In automatic mode, with `swa_start` and `swa_freq`, the rate is `swa_lr` from step `swa_start` on, whatever a
    scheduler sets, and every `swa_freq` steps the weights enter the average. In manual mode, without the two, call
    `update_swa`. At the end call `swap_swa_sgd`, and then `bn_update` for a model with BatchNorm.

    Args:
        optimizer: any torch optimiser; its groups and its state are used in place.
        swa_start: steps before averaging begins.
        swa_freq: steps from one update of the average to the next.
        swa_lr: the rate while averaging; None leaves it to the optimiser and its scheduler.

    Raises:
        ValueError: swa_start or swa_lr is negative, or swa_freq is below 1.

    Warns:
        UserWarning: one of swa_start and swa_freq is given without the other, or swa_lr without both: manual mode; or
            one of the two is no whole number, and is cut to one.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> optimiser = SWA(torch.optim.SGD(model.parameters(), lr=0.1), swa_start=10, swa_freq=5, swa_lr=0.05)
    >>> for _ in range(20):
    ...     optimiser.zero_grad()
    ...     (model.weight - 1).square().sum().backward()
    ...     optimiser.step()
    >>> optimiser.param_groups[0]["n_avg"], optimiser.param_groups[0]["lr"]
    (2, 0.05)
    >>> optimiser.swap_swa_sgd()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_start: int | None = None,
        swa_freq: int | None = None,
        swa_lr: float | None = None,
    ) -> None:
        self._auto_mode, (swa_start, swa_freq) = _mode(swa_start, swa_freq)
        if swa_lr is not None and not self._auto_mode:
            warnings.warn("swa_lr is ignored without swa_start and swa_freq", UserWarning, stacklevel=2)
            swa_lr = None
        if swa_lr is not None and swa_lr < 0:
            raise ValueError(f"swa_lr must be at least 0, got {swa_lr}")
        if swa_start is not None and swa_start < 0:
            raise ValueError(f"swa_start must be at least 0, got {swa_start}")
        if swa_freq is not None and swa_freq < 1:
            raise ValueError(f"swa_freq must be at least 1, got {swa_freq}")
        self._settings = {"swa_start": swa_start, "swa_freq": swa_freq, "swa_lr": swa_lr}
        self.optimizer = optimizer
        self._averages: dict[Tensor, Tensor] = {}
        self._aside: dict[Tensor, Tensor] = {}  # the trained weights while the model holds the averages
        # The base class makes the hooks that schedulers and gradient scalers expect; the groups stay the optimiser's.
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()
        for group in self.param_groups:
            self._count_from_zero(group)

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    def _count_from_zero(self, group: dict[str, Any]) -> None:
        group.update(self._settings)
        for counter in _COUNTERS:
            group.setdefault(counter, 0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimiser. Its own count of steps begins now, so its average starts `swa_start` later."""
        if self.param_groups is not getattr(self.optimizer, "param_groups", None):
            super().add_param_group(param_group)  # the base class collects the groups that are there already
            return
        self.optimizer.add_param_group(param_group)
        self._count_from_zero(self.param_groups[-1])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the optimiser does."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step of the optimiser, and in automatic mode set the rate and collect.

        Raises:
            RuntimeError: the average is due while the model holds the averages: call `swap_swa_sgd` first.
        """
        for group in self.param_groups:
            if self._auto_mode and group["swa_lr"] is not None and group["step_counter"] >= group["swa_start"]:
                group["lr"] = group["swa_lr"]
        loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        for group in self.param_groups:
            group["step_counter"] += 1
            if not self._auto_mode:
                continue
            if group["step_counter"] > group["swa_start"] and group["step_counter"] % group["swa_freq"] == 0:
                self.update_swa_group(group)
        return loss

    @torch.no_grad()
    def update_swa_group(self, group: dict[str, Any]) -> None:
        """Take the present weights of one group into its average; the first are copied.

        Raises:
            RuntimeError: the model holds the averages: call `swap_swa_sgd` first.
        """
        if self._aside:
            raise RuntimeError("the model holds the averages: call swap_swa_sgd() to have the trained weights back")
        for p in group["params"]:
            if p not in self._averages:
                self._averages[p] = torch.zeros_like(p, dtype=wide(p.dtype))
        lerp_([self._averages[p] for p in group["params"]], group["params"], 1 / (group["n_avg"] + 1))
        group["n_avg"] += 1

    def update_swa(self) -> None:
        """Take the present weights of every group into its average."""
        for group in self.param_groups:
            self.update_swa_group(group)

    @torch.no_grad()
    def swap_swa_sgd(self) -> None:
        """Exchange the trained weights and the averages; a second call puts them back bit for bit.

        Warns:
            UserWarning: parameters have no average yet; they stay as they are.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        without = sum(p not in self._averages for p in params)
        if without:
            warnings.warn(f"{without} parameters have no average yet and stay as they are", UserWarning, stacklevel=2)
        if self._aside:
            for p, trained in self._aside.items():
                # Whoever changed the averages in the model keeps the change, as when the two are exchanged.
                if not torch.equal(p, self._averages[p].to(p.dtype)):
                    self._averages[p].copy_(p)
                p.copy_(trained)
            self._aside = {}
            return
        for p in params:
            if p in self._averages:
                self._aside[p] = p.detach().clone()
                p.copy_(self._averages[p])

    @staticmethod
    def bn_update(loader: Iterable[Any], model: nn.Module, device: torch.device | str | None = None) -> None:
        """Replace the running statistics of BatchNorm by averages over `loader`, weighted by the batches' sizes.

        Call it after `swap_swa_sgd`. The same as `lowland.refresh_bn`.
        """
        refresh_bn(model, loader if device is None else (_to(batch, device) for batch in loader))

    def state_dict(self) -> dict[str, Any]:
        """Return `opt_state`, `swa_state` and `param_groups`; parameters are numbered in the order of the groups."""
        base = self.optimizer.state_dict()
        numbers = {p: n for n, p in enumerate(p for group in self.param_groups for p in group["params"])}
        swa = {numbers[p]: {"swa_buffer": average.clone()} for p, average in self._averages.items()}
        for p, trained in self._aside.items():
            swa[numbers[p]]["sgd_buffer"] = trained.clone()
        return {"opt_state": base["state"], "swa_state": swa, "param_groups": base["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state made by `state_dict`, averages and counts included.

        Raises:
            ValueError: the state is not of this wrapper, or its groups or shapes are not the optimiser's.
        """
        missing = [key for key in ("opt_state", "swa_state", "param_groups") if key not in state_dict]
        if missing:
            raise ValueError(f"the state lacks {missing}: pass what state_dict() of this wrapper returned")
        params = [p for group in self.param_groups for p in group["params"]]
        for number, buffers in state_dict["swa_state"].items():
            shapes = {tuple(t.shape) for t in buffers.values()}
            if not isinstance(number, int) or not 0 <= number < len(params) or shapes != {tuple(params[number].shape)}:
                raise ValueError(f"the state's average of parameter {number} with shapes {shapes} fits none here")
        self.optimizer.load_state_dict({"state": state_dict["opt_state"], "param_groups": state_dict["param_groups"]})
        self._share()  # loading replaces the optimiser's groups and state
        self._averages, self._aside = {}, {}
        for number, buffers in state_dict["swa_state"].items():
            p = params[number]
            self._averages[p] = buffers["swa_buffer"].to(p.device, wide(p.dtype), copy=True)
            if "sgd_buffer" in buffers:
                self._aside[p] = buffers["sgd_buffer"].to(p.device, p.dtype, copy=True)


def _mode(swa_start: int | None, swa_freq: int | None) -> tuple[bool, tuple[int | None, int | None]]:
    """Whether averaging is automatic, and the two as whole numbers."""
    if swa_start is None and swa_freq is None:
        return False, (None, None)
    if swa_start is None or swa_freq is None:
        lacking = "swa_start" if swa_start is None else "swa_freq"
        warnings.warn(f"{lacking} is None: averaging waits for update_swa()", UserWarning, stacklevel=3)
        return False, (None, None)
    whole = int(swa_start), int(swa_freq)
    if whole != (swa_start, swa_freq):
        warnings.warn(f"swa_start and swa_freq are cut to {whole}", UserWarning, stacklevel=3)
    return True, whole


def _to(batch: Any, device: torch.device | str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_to(part, device) for part in batch]
    return batch
