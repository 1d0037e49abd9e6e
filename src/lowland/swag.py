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

from .arithmetic.gaussian import Gaussian, draw, stream
from .arithmetic.moments import second_moment, term, wide_zeros
from .arithmetic.philox import new_key
from .averager.averager import Averager, Settings, Slot
from .weights.named import Select, Weights, check_same, clone_of, parameters
from .weights.shards import is_sharded


class SWAG(Averager):
    """A low-rank plus diagonal Gaussian over the weights it is shown; an averager and a posterior.

    Args:
        rank: how many of the latest deviations are held (the paper's K); 0 keeps the diagonal only.
        deviations_dtype: float32, or bfloat16 for half the memory at a relative error of 1e-3 in the deviations.

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
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 or rank == 1:
            raise ValueError(f"rank must be 0 (diagonal only) or a whole number of at least 2, got {rank!r}")
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        name = str(deviations_dtype).removeprefix("torch.")
        if name not in dtypes:
            raise ValueError(f"deviations_dtype must be float32 or bfloat16, got {name}")
        self.rank = rank
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
        self._need()
        return clone_of(self._slots["mean"])

    # The posterior.

    @torch.no_grad()
    def variance(self, scale: float = 1.0) -> dict[str, Tensor]:
        """Return the marginal variance of each weight under the posterior: the diagonal of its covariance.

        Raises:
            RuntimeError: there has been no update.
        """
        factor = self._factor(scale)
        result = {}
        for name, v in self._diagonal().items():
            columns = self._columns(name)
            if columns is not None:
                v = second_moment(v, columns, [1 / (len(columns) - 1)] * len(columns))
            result[name] = v.mul_(factor)
        return result

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        scale: float = 1.0,
        block: bool = False,
        out: Weights | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw weights, in float32 or wider; with `n` every tensor gains a leading axis of `n` draws.

        The deviations are read once whatever `n` is. A draw depends on the generator's state, the names and the
        statistics, not on chunks, threads, shards or devices (`lowland.arithmetic.philox`). Beside the result 16 MB
        are held.

        Args:
            n: how many draws; None gives one without the axis.
            scale: multiplies the covariance.
            block: draw the low-rank coefficients anew for each tensor. Covariances between tensors vanish, all others
                stay; as some implementations do it.
            out: where to write instead of new tensors, by name: shaped like the result, of any floating dtype.
            generator: where the key of the draws comes from; the same generator state gives the same draw. Shards of
                one model are drawn together when every rank gives a generator in the same state.

        Raises:
            RuntimeError: there has been no update.
            ValueError: n < 1 or scale < 0, `out` does not fit, or the weights are sharded and there is no generator.
        """
        gaussian, key = self._gaussian(scale, block), self._key(n, generator)
        if n is not None:
            return draw(gaussian, key, range(n), out)
        rows = None if out is None else {name: tensor.unsqueeze(0) for name, tensor in out.items()}
        made = draw(gaussian, key, range(1), rows)
        return {name: made[name][0] if out is None else out[name] for name in made}

    @torch.no_grad()
    def draws(
        self,
        n: int,
        *,
        scale: float = 1.0,
        block: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Return an iterator over the `n` draws of `sample(n)`, one at a time, bit for bit.

        They are made in groups of at most 64 MB, or one by one, of the posterior as it is then. Draws of a group share
        memory, so one that is kept may keep 64 MB.

        Raises:
            RuntimeError: there has been no update.
            ValueError: n < 1 or scale < 0, or the weights are sharded and there is no generator.
        """
        gaussian, key = self._gaussian(scale, block), self._key(n, generator)
        return stream(gaussian, key, n)

    def tempered(self, scale: float, *, block: bool = False) -> ScaledSWAG:
        """Return this posterior with its covariance multiplied by `scale`, for `predict` and the like.

        The view follows later updates.
        """
        self._factor(scale)
        return ScaledSWAG(self, scale, block)

    @torch.no_grad()
    def log_prob(self, weights: Weights, scale: float = 1.0) -> float:
        """Return the log-density of `weights` in nats, by Woodbury's identity in float64: O(k^2 d), no d x d matrix.

        Raises:
            ValueError: names or shapes differ, scale is not positive, or a weight's variance is zero (the Gaussian has
                no density: leave tensors that never move out by `select=trainable`).
        """
        self._need()
        check_same(self._slots["mean"], weights, what="log_prob")
        factor = self._factor(scale)
        if factor == 0:
            raise ValueError("scale=0 is a single point and has no density: pass a positive scale")
        held = self._held()
        gram, projection = torch.eye(held, dtype=torch.float64), torch.zeros(held, dtype=torch.float64)
        total, size = 0.0, 0
        for name, v in self._diagonal().items():
            variance = v.double().flatten().cpu() * factor  # (p,)
            if not bool((variance > 0).all()):
                raise ValueError(
                    f"{name} holds a weight whose variance is zero, so the Gaussian has no density: "
                    "leave tensors that never move out with select="
                )
            residual = weights[name].double().flatten().cpu() - self._slots["mean"][name].double().flatten().cpu()
            total += float((residual.square() / variance + variance.log()).sum())
            size += residual.numel()
            columns = self._columns(name)
            if columns is not None:
                u = columns.double().reshape(held, -1).cpu() * math.sqrt(factor / (held - 1))  # (k, p)
                gram += (u / variance) @ u.T
                projection += (u / variance) @ residual
        root = torch.linalg.cholesky(gram)
        solved = torch.linalg.solve_triangular(root, projection[:, None], upper=False)
        total += 2 * float(root.diagonal().log().sum()) - float(solved.square().sum())
        return -0.5 * (total + size * math.log(2 * math.pi))

    @torch.no_grad()
    def distribution(self, scale: float = 1.0) -> LowRankMultivariateNormal:
        """Return the posterior over all weights as one flat vector, tensors in the order of their sorted names.

        For small models: it holds d (k + 2) numbers more.

        Raises:
            RuntimeError: there has been no update.
            ValueError: a variance is zero or scale is not positive.
        """
        self._need()
        factor, held = self._factor(scale), self._held()
        diagonal = self._diagonal()
        names = sorted(diagonal)
        mean = torch.cat([self._slots["mean"][name].flatten() for name in names])
        columns = [self._columns(name) for name in names]
        factors = torch.zeros(len(mean), 1, dtype=mean.dtype, device=mean.device)
        if held > 1:
            flat = [c.to(mean.dtype).reshape(held, -1) for c in columns if c is not None]
            factors = torch.cat(flat, dim=1).T * math.sqrt(factor / (held - 1))  # (d, k)
        variance = torch.cat([diagonal[name].flatten() for name in names]) * factor
        if not bool((variance > 0).all()):
            raise ValueError("a weight's variance is zero: leave tensors that never move out with select=")
        return LowRankMultivariateNormal(mean, factors, variance)

    # Private helpers.

    def _factor(self, scale: float) -> float:
        """What multiplies diag(v) and D D^T / (k - 1)."""
        if not scale >= 0 or math.isinf(scale):
            raise ValueError(f"scale multiplies the covariance and must be finite and >= 0, got {scale}")
        return scale / 2 if self.rank else scale

    def _gaussian(self, scale: float, block: bool) -> Gaussian:
        self._need()
        factor, held = self._factor(scale), self._held()
        return Gaussian(
            mean=self._slots["mean"],
            base=self._base(),
            columns=self._slots["deviations"] if held else None,
            terms=self._terms() if held else (),
            diagonal=factor / self.count,
            low_rank=math.sqrt(factor / (held - 1)) if held else 0.0,
            block=block,
        )

    def _key(self, n: int | None, generator: torch.Generator | None) -> int:
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if generator is None and any(is_sharded(mean) for mean in self._slots["mean"].values()):
            raise ValueError(
                "the weights are sharded, and ranks with different random states would draw different weights: "
                "pass generator=torch.Generator().manual_seed(seed) with the same seed on every rank"
            )
        return new_key(generator)

    def _held(self) -> int:
        held = min(self.count, self.rank)
        return held if held > 1 else 0

    def _columns(self, name: str) -> Tensor | None:
        """The (k, *shape) deviations of one tensor, or None while there are fewer than two."""
        held = self._held()
        return self._slots["deviations"][name][:held] if held else None

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

    def _diagonal(self) -> Slot:
        """v, the variance of the iterates around their mean."""
        self._need()
        ring, terms = self._slots.get("deviations"), self._terms()
        return {
            name: second_moment(base, None if ring is None else ring[name], terms).div_(self.count)
            for name, base in self._base().items()
        }


@dataclass(frozen=True)
class ScaledSWAG:
    """A SWAG whose draws use another `scale` or independent blocks; made by `SWAG.tempered`."""

    swag: SWAG
    scale: float
    block: bool = False

    def mean(self) -> dict[str, Tensor]:
        """Return the mean of the posterior: the scale leaves it alone."""
        return self.swag.mean()

    def sample(
        self, n: int | None = None, *, out: Weights | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw as `SWAG.sample` does, at this scale."""
        return self.swag.sample(n, scale=self.scale, block=self.block, out=out, generator=generator)

    def draws(self, n: int, *, generator: torch.Generator | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield `n` draws as `SWAG.draws` does, at this scale."""
        return self.swag.draws(n, scale=self.scale, block=self.block, generator=generator)
