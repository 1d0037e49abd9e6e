"""The schedules as the released training loops compute them: in epochs and iterations, as rates."""

import math


def swa_script(epoch: int, swa_start: int, swa_lr: float, lr_init: float) -> float:
    """The SWA, SWAG and ASWA training scripts; `epoch` from 0."""
    t = epoch / swa_start
    ratio = swa_lr / lr_init
    if t <= 0.5:
        factor = 1.0
    elif t <= 0.9:
        factor = 1.0 - (1.0 - ratio) * (t - 0.5) / 0.4
    else:
        factor = ratio
    return lr_init * factor


def fge_script(epoch: int, iteration: int, iterations: int, cycle: int, high: float, low: float) -> float:
    """The FGE script; `epoch` and `iteration` from 0, `cycle` in epochs."""
    t = ((epoch % cycle) + iteration / iterations) / cycle
    if t < 0.5:
        return high * (1.0 - 2.0 * t) + low * 2.0 * t
    return low * (2.0 - 2.0 * t) + high * (2.0 * t - 1.0)


def snapshot_script(epoch: int, iteration: int, batches: int, epochs: int, cycles: int, high: float) -> float:
    """The Snapshot Ensembles script with its phase as released; `epoch` and `iteration` from 1."""
    length = epochs // cycles
    if epoch > length * (cycles - 1):
        length = epochs - length * (cycles - 1)
    current = ((epoch - 1) % length) * batches + iteration
    return high / 2 * (1 + math.cos(math.pi * current / (length * batches)))


def snapshot_paper(t: int, steps: int, cycles: int, high: float) -> float:
    """The formula of the Snapshot Ensembles paper; `t` from 1."""
    length = math.ceil(steps / cycles)
    return high / 2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1)


def swa_cyclic_paper(i: int, cycle: int, high: float, low: float) -> float:
    """The cyclical rate of the SWA paper; `i` from 1."""
    t = (((i - 1) % cycle) + 1) / cycle
    return (1 - t) * high + t * low


def tiled(per_cycle: int, cycles: int, high: float, low: float, cosine: bool) -> list[float]:
    """The saw-tooth of an iteration-wise re-implementation: one cycle, laid `cycles` times end to end."""
    phase = [k / (per_cycle - 1) for k in range(per_cycle)]
    if cosine:
        one = [low + (high - low) / 2 * (1 + math.cos(math.pi * t)) for t in phase]
    else:
        one = [high + (low - high) * t for t in phase]
    return one * cycles
