"""Claim: an average of constant-rate iterates stands for a decay; its coefficients, and its error where that is known.

    python benchmarks/decays.py            seconds

(1) Coefficients of four checkpoints, by hand. (2) Megatron-LM's merge styles `linear` and `minus-sqrt`, written anew by
its rule (the rate at 0, 1/n, ..., (n - 1)/n; differences, the last its own), and its manual weights, for 2 to 40
checkpoints. (3) SGD on a quadratic with noisy gradients, w <- w - rate (h w + noise): the expected square of the
decayed run and of the average of the constant run's iterates, in closed form and over 20,000 chains that share their
noise. The number of a direction is rate x h x steps of the decay: 0.3 hardly moves while the rate decays, 30 forgets
where it began many times. Begun at rest (stationary under the constant rate), or 3 standard deviations away.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from harness import write

from lowland import soup
from lowland.retroactive import decayed, rate

STEPS, CHAINS, RATE = 300, 20_000, 0.1
SHAPES = ("linear", "minus-sqrt", "cosine", "(1-x)^2")
BY_HAND = {
    "linear": [1 / 4, 1 / 4, 1 / 4, 1 / 4],
    "minus-sqrt": [0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.75) - math.sqrt(0.5), 1 - math.sqrt(0.75)],
    "cosine": [(1 - math.sqrt(0.5)) / 2, math.sqrt(0.5) / 2, math.sqrt(0.5) / 2, (1 - math.sqrt(0.5)) / 2],
    "(1-x)^2": [7 / 16, 5 / 16, 3 / 16, 1 / 16],
}
STYLES: dict[str, Callable[[float], float]] = {"linear": lambda x: 1 - x, "minus-sqrt": lambda x: 1 - math.sqrt(x)}


def by_index(style: Callable[[float], float], n: int) -> list[float]:
    """Megatron's rule."""
    rates = [style(place / n) for place in range(n)]
    inner = [rates[place] - rates[place + 1] for place in range(1, n - 1)]
    return [1 - math.fsum([*inner, rates[-1]]), *inner, rates[-1]]


def styles() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, style in STYLES.items():
        gaps = [
            abs(a - b)
            for n in range(2, 41)
            for a, b in zip(decayed(name, list(range(100, 100 * n + 1, 100))), by_index(style, n), strict=True)
        ]
        rows.append({"style": name, "checkpoints": "2 to 40", "largest difference": f"{max(gaps):.1e}"})
    g, gaps = torch.Generator().manual_seed(0), []
    for n in range(2, 41):
        rows_of = [{"w": torch.randn(64, generator=g, dtype=torch.float64)} for _ in range(n)]
        shares = torch.rand(n, generator=g, dtype=torch.float64).tolist()
        total = math.fsum(shares)
        wanted = sum(share / total * row["w"] for share, row in zip(shares, rows_of, strict=True))
        got = soup.weighted(rows_of, shares, normalise=True)["w"]
        gaps.append(float((got - wanted).abs().max()))
    rows.append({"style": "manual", "checkpoints": "2 to 40", "largest difference": f"{max(gaps):.1e}"})
    return rows


def quadratic(number: float, shape: str, offset: float) -> dict[str, object]:
    """Expected squares of the constant run's last iterate, of the decayed run and of the average, and their means."""
    h = number / (RATE * STEPS)
    keep = 1 - RATE * h
    rest = RATE**2 / (1 - keep**2)  # the stationary variance of noise 1
    # Shares of a step's own length: the rate in the middle of the stretch for which an iterate stands.
    rates = RATE * rate(shape, np.arange(STEPS) / STEPS)
    shares = np.array(decayed(shape, list(range(1, STEPS + 1))))
    # Every end is a sum of the start and of each step's noise; here are the factors.
    falls = 1 - rates * h
    after = np.append(np.cumprod(falls[::-1])[::-1], 1.0)
    of_decayed = (after[0], after[1:] * rates)
    powers = keep ** np.arange(STEPS + 1)
    table = np.where(np.arange(STEPS)[:, None] <= np.arange(STEPS)[None, :], 1.0, 0.0)
    table = table * keep ** np.maximum(0, np.arange(STEPS)[None, :] - np.arange(STEPS)[:, None]) * RATE
    of_merged = (float(shares @ powers[1:]), table @ shares)
    of_constant = (powers[STEPS], table[:, -1])
    r = np.random.default_rng(int(number * 10) + len(shape))
    start = offset * math.sqrt(rest) + math.sqrt(rest) * r.standard_normal(CHAINS)
    row: dict[str, object] = {"rate h steps": f"{number:g}", "begun": f"{offset:g} sd away" if offset else "at rest"}
    row["shape"] = shape
    closed, ends = {}, {}
    # By the recursions themselves, with the same noise.
    constant, falling, merged = start.copy(), start.copy(), np.zeros(CHAINS)
    for step in range(STEPS):
        noise = r.standard_normal(CHAINS)
        constant -= RATE * (h * constant + noise)
        falling -= rates[step] * (h * falling + noise)
        merged += shares[step] * constant
    ends = {"constant": constant, "decayed": falling, "merged": merged}
    for name, (of_start, of_noise) in {"constant": of_constant, "decayed": of_decayed, "merged": of_merged}.items():
        closed[name] = (of_start**2 * (1 + offset**2) * rest + float((of_noise**2).sum())) / rest
        row[name] = f"{closed[name]:.4f}"
        row[f"{name}, chains"] = f"{float((ends[name] ** 2).mean()) / rest:.4f}"
    row["merged over decayed"] = f"{closed['merged'] / closed['decayed']:.2f}"
    row["largest gap to the chains"] = max(
        abs(float((ends[name] ** 2).mean()) / rest / closed[name] - 1) for name in closed
    )
    return row


def main() -> None:
    hand = [
        {
            "shape": shape,
            "by hand": " ".join(f"{value:.6f}" for value in wanted),
            "coefficients": " ".join(f"{value:.6f}" for value in decayed(shape, [100, 200, 300, 400])),
        }
        for shape, wanted in BY_HAND.items()
    ]
    apart = max(
        abs(a - b) for s, wanted in BY_HAND.items() for a, b in zip(wanted, decayed(s, [1, 2, 3, 4]), strict=True)
    )
    known = styles()
    rows = [quadratic(n, s, o) for n in (0.3, 3.0, 30.0) for o in (0.0, 3.0) for s in SHAPES]
    worst = max(float(str(row.pop("largest gap to the chains"))) for row in rows)
    gap = max(float(str(row["largest difference"])) for row in known)
    checks = [
        ("coefficients by hand", "<= 1e-12", f"{apart:.1e}", apart <= 1e-12),
        ("Megatron's styles", "<= 1e-12", f"{gap:.1e}", gap <= 1e-12),
        ("expected squares against 20,000 chains", "<= 5 %", f"{worst:.1%}", worst <= 0.05),
    ]
    tables = {
        "Four checkpoints at equal distances": hand,
        "Megatron-LM's merge styles": known,
        "Expected squares, in stationary variances of the constant rate": rows,
    }
    notes = [
        "At rest the average is as good as the decay where the run hardly moves while the rate decays, and better "
        "where it turns over many times. Where the run is still on its way to the minimum the average takes steps back "
        "that a decayed run never has to: it loses, `minus-sqrt`, whose weight lies earliest, most. Averages stand for "
        "decays where the run has settled.",
    ]
    write("decays", "Averages in place of decays", tables, notes, checks)


if __name__ == "__main__":
    main()
