"""SWA-Gaussian (Maddox, Garipov, Izmailov, Vetrov, Wilson 2019, arXiv 1902.02476).

A Gaussian over weights from the iterates w_1..w_n of SGD, with the running mean of SWA and the last `rank` deviations

    dev_i = w_i - mean_i          (mean_i already holds w_i)         D = the k <= rank deviations held
    v     = sum_i (w_i - mean_n)^2 / n  =  sum_i dev_i^2 i / (i - 1) / n

    w ~ N(mean_n, scale * 1/2 (diag(v) + D D^T / (k - 1)))           rank > 0
    w ~ N(mean_n, scale * diag(v))                                   rank = 0, SWAG-diagonal

`scale=1` is the paper's posterior. On the adapter of a PEFT model (`select=trainable`) this is SWAG-LoRA (Onal, Floege,
Caldwell, Sheverdin, Fortuin 2024, arXiv 2405.03425).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from .arguments import whole
from .arithmetic import density
from .arithmetic.gaussian import Gaussian, draw, stream
from .arithmetic.moments import SQUARES, term, wide_zeros
from .arithmetic.philox import new_key
from .averager.averager import Averager, Settings, Slot
from .averager.posteriors import check_draws
from .weights.named import Select, Weights, clone_of, parameters
from .weights.shards import is_sharded

MOST = 10_000  # deviations of one state


class SWAG(Averager):
    """A low-rank plus diagonal Gaussian over the weights it is shown; an averager and a posterior.

    Args:
        rank: how many of the latest deviations are held (the paper's K); 0 keeps the diagonal only.
        deviations_dtype: float32, or bfloat16 for half the memory at a relative error of 1e-3 in the deviations.
        select: which tensors of a model are taken; a mapping given to `update` is taken as it is.
        device: where averages are kept; None: beside the weights.
        check_finite: refuse an iterate with a NaN or an infinity, by the name of its tensor.

    Memory, in bytes a parameter: 8 + 4 rank with float32 deviations, 8 + 2 rank with bfloat16. While no deviation
    has been overwritten, `v` follows from float32 deviations, and the slot "evicted" keeps the part of the sum whose
    deviations are no longer held; otherwise the slot "squares" keeps the whole sum.

    Raises:
        ValueError: rank is negative or 1 (one deviation has no covariance), or the dtype is not one of the two.

    >>> swag = SWAG(rank=3)
    >>> for w in ([1.0, 2.0], [3.0, 1.0], [2.0, 5.0], [6.0, 0.0]):
    ...     swag.update({"w": torch.tensor(w)})
    >>> swag.mean()["w"], swag.variance()["w"]
    (tensor([3., 2.]), tensor([4.2500, 4.1736]))
    >>> swag.sample(5, generator=torch.Generator().manual_seed(0))["w"].shape
    torch.Size([5, 2])
    """

    _room = SQUARES

    def __init__(
        self,
        rank: int = 20,
        *,
        deviations_dtype: torch.dtype | str = torch.float32,
        select: Select = parameters,
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(select=select, device=device, check_finite=check_finite)
        if rank != 0 or isinstance(rank, bool):
            rank = whole("rank", rank, 2, MOST, "0 (diagonal only) or ")
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        name = str(deviations_dtype).removeprefix("torch.")
        if name not in dtypes:
            raise ValueError(f"deviations_dtype must be float32 or bfloat16, got {name}")
        self.rank = int(rank)
        self.deviations_dtype = dtypes[name]

    @property
    def settings(self) -> Settings:
        return {"rank": self.rank, "deviations_dtype": str(self.deviations_dtype).removeprefix("torch.")}

    def _allocate(self, like: Slot) -> dict[str, Slot]:
        other = [name for name, tensor in like.items() if not tensor.is_floating_point()]
        if other:
            raise ValueError(f"a Gaussian needs floating-point tensors, got {other[:5]}: leave them out by select=")
        slots = {"mean": wide_zeros(like), "evicted" if self._lazy() else "squares": wide_zeros(like)}
        if self.rank:
            slots["deviations"] = {
                name: torch.zeros((self.rank, *t.shape), dtype=self.deviations_dtype, device=t.device)
                for name, t in like.items()
            }
        return slots

    def _absorb(self, weights: Weights) -> None:
        evicted = term(self.count - self.rank) if self._lazy() else None
        slots = self._slots
        self._passes.welford_(slots["mean"], self._base(), weights, self.count, slots.get("deviations"), evicted)

    def mean(self) -> dict[str, Tensor]:
        with self._lock:
            self._need()
            return clone_of(self._slots["mean"])

    # The posterior; `tempered` has the same verbs at another scale.

    def tempered(self, scale: float, *, block: bool = False) -> Tempered:
        """Return this posterior with its covariance multiplied by `scale`, for `predict`, `Mixture` and the like.

        The view follows later updates.

        Args:
            block: draw the low-rank coefficients anew for each tensor. Covariances between tensors vanish, all others
                stay; as some implementations do it.

        Raises:
            ValueError: the scale is negative or not finite.
        """
        return Tempered(self, scale, block)

    def variance(self) -> dict[str, Tensor]:
        """Return the marginal variance of each weight under the posterior: the diagonal of its covariance.

        Raises:
            RuntimeError: there has been no update.
        """
        return self.tempered(1.0).variance()

    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw weights, in float32 or wider; with `samples` every tensor gains a leading axis of so many draws.

        The deviations are read once whatever their number is. A draw depends on the generator's state, the names and
        the statistics, not on chunks, threads, shards or devices (`lowland.arithmetic.philox`). Beside the result 16 MB
        are held.

        Args:
            samples: how many draws; None gives one without the axis.
            generator: where the key of the draws comes from; the same generator state gives the same draw. Shards of
                one model are drawn together when every rank gives a generator in the same state.

        Raises:
            RuntimeError: there has been no update.
            ValueError: samples < 1, a draw is not finite, or the weights are sharded and there is no generator.
        """
        return self.tempered(1.0).sample(samples, generator=generator)

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[dict[str, Tensor]]:
        """Return an iterator over the draws of `sample(samples)`, one at a time, bit for bit.

        They are made in groups of at most 64 MB, or one by one, of the posterior as it is then. Draws of a group share
        memory, so one that is kept may keep 64 MB.

        Raises:
            RuntimeError: there has been no update.
            ValueError: as `sample`.
        """
        return self.tempered(1.0).draws(samples, generator=generator)

    def draws_into(self, rows: Weights, *, generator: torch.Generator | None = None) -> None:
        """Write the draws of `sample(samples)` into the rows of tensors (samples, *shape) of any floating dtype.

        Raises:
            RuntimeError: there has been no update.
            ValueError: as `sample`, or a tensor is missing or does not fit.
        """
        self.tempered(1.0).draws_into(rows, generator=generator)

    def log_prob(self, weights: Weights) -> float:
        """Return the log-density of `weights` in nats, in float64: O(k^2 d), no d x d matrix.

        Raises:
            ValueError: names or shapes differ, or a weight's variance is zero (the Gaussian has no density: leave
                tensors that never move out by `select=trainable`).
        """
        return self.tempered(1.0).log_prob(weights)

    def distribution(self) -> LowRankMultivariateNormal:
        """Return the posterior over all weights as one flat vector, tensors in the order of their sorted names.

        For small models: it holds d (k + 2) numbers more.

        Raises:
            RuntimeError: there has been no update.
            ValueError: a variance is zero.
        """
        return self.tempered(1.0).distribution()

    # Private helpers.

    def _gaussian(self, scale: float, block: bool) -> Gaussian:
        self._need()
        held = self._held()
        factor = scale / 2 if self.rank else scale  # multiplies diag(v) and D D^T / (k - 1)
        return Gaussian(
            mean=self._slots["mean"],
            base=self._base(),
            columns=self._slots["deviations"] if held else None,
            terms=self._terms() if held else (),
            diagonal=factor / self.count,
            low_rank=math.sqrt(factor / (held - 1)) if held else 0.0,
            block=block,
        )

    def _held(self) -> int:
        held = min(self.count, self.rank)
        return held if held > 1 else 0

    def _lazy(self) -> bool:
        """Whether the second moment of the deviations held is formed from them when it is asked for."""
        # Rounded deviations would give a rounded variance: there the sum is kept at each update.
        return self.rank > 0 and self.deviations_dtype == torch.float32

    def _base(self) -> Slot:
        """The part of the sum of squared deviations that is kept as such."""
        return self._slots["evicted" if self._lazy() else "squares"]

    def _terms(self) -> tuple[float, ...]:
        """What each held column's square adds to `_base`, by its place in the ring."""
        places = range(min(self.count, self.rank))
        if not self._lazy():
            return tuple(0.0 for _ in places)
        # The latest iterate i <= count with (i - 1) % rank == place.
        return tuple(term(self.count - (self.count - 1 - place) % self.rank) for place in places)


@dataclass(frozen=True)
class Tempered:
    """A SWAG with its covariance multiplied by `scale`, or with independent blocks; made by `SWAG.tempered`.

    >>> swag = SWAG(rank=0)
    >>> for w in (1.0, 3.0):
    ...     swag.update({"w": torch.tensor([w])})
    >>> swag.tempered(4.0).variance()["w"], swag.tempered(0.0).sample()["w"]
    (tensor([4.]), tensor([2.]))
    """

    swag: SWAG
    scale: float
    block: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not number or not 0 <= self.scale <= torch.finfo(torch.float32).max:
            raise ValueError(f"scale multiplies the covariance and must be a number from 0 to 3e38, got {self.scale!r}")

    def mean(self) -> dict[str, Tensor]:
        """Return the mean of the posterior: the scale leaves it alone."""
        return self.swag.mean()

    def variance(self) -> dict[str, Tensor]:
        """Return the marginal variances, as `SWAG.variance` does."""
        with self.swag._lock:
            return density.variance(self._gaussian())

    @torch.no_grad()
    def sample(self, samples: int | None = None, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw as `SWAG.sample` does."""
        with self.swag._lock:
            gaussian, key = self._gaussian(), self._key(samples, generator)
            made = draw(gaussian, key, range(1 if samples is None else samples), finite=True)
        return made if samples is not None else {name: tensor[0] for name, tensor in made.items()}

    def draws(self, samples: int, *, generator: torch.Generator | None = None) -> Iterator[dict[str, Tensor]]:
        """Return an iterator over draws, as `SWAG.draws` does."""
        gaussian, key = self._gaussian(), self._key(samples, generator)
        return stream(gaussian, key, samples, finite=True)

    @torch.no_grad()
    def draws_into(self, rows: Weights, *, generator: torch.Generator | None = None) -> None:
        """Write draws into rows, as `SWAG.draws_into` does."""
        with self.swag._lock:
            gaussian, samples = self._gaussian(), len(next(iter(rows.values()), ()))
            draw(gaussian, self._key(samples, generator), range(samples), rows, finite=True)

    def log_prob(self, weights: Weights) -> float:
        """Return the log-density of `weights`, as `SWAG.log_prob` does."""
        return density.log_prob(self._with_density(), weights)

    def distribution(self) -> LowRankMultivariateNormal:
        """Return the flat distribution, as `SWAG.distribution` does."""
        return density.distribution(self._with_density())

    def _gaussian(self) -> Gaussian:
        return self.swag._gaussian(self.scale, self.block)

    def _with_density(self) -> Gaussian:
        if self.scale == 0:
            raise ValueError("scale=0 is a single point and has no density: pass a positive scale")
        return self._gaussian()

    def _key(self, samples: int | None, generator: torch.Generator | None) -> int:
        check_draws(samples, generator)
        if generator is None and any(is_sharded(mean) for mean in self.swag._slots["mean"].values()):
            raise ValueError(
                "the weights are sharded, and ranks with different random states would draw different weights: "
                "pass generator=torch.Generator().manual_seed(seed) with the same seed on every rank"
            )
        return new_key(generator)
