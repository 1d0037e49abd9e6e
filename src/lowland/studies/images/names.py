"""What the name of a network says, and the rates that suit the small ones."""

from __future__ import annotations

import re
from typing import NamedTuple

# Base rate and SWA rate of each network; chosen on validation images by benchmarks/images_tune.py.
RATES: dict[str, tuple[float, float]] = {
    "cnn": (0.01, 0.005),
    "vgg": (0.01, 0.01),
    "preresnet": (0.1, 0.05),
    "wrn": (0.1, 0.05),
    "mobilenetv2": (0.1, 0.05),
}
_NETWORK = re.compile(rf"({'|'.join(RATES)})(\d+)?(?:x(\d+(?:\.\d+)?))?")


class Network(NamedTuple):
    """What the name of a network says."""

    name: str
    depth: int | None
    width: float | None


def network_of(model: str) -> Network:
    """Read the name of a network.

    Raises:
        ValueError: there is no such network.

    >>> network_of("wrn28x10")
    Network(name='wrn', depth=28, width=10.0)
    """
    match = _NETWORK.fullmatch(model)
    if match is None:
        raise ValueError(
            f"{model!r} is no network: use one of {', '.join(RATES)}, with a depth and a width such as wrn28x10"
        )
    name, depth, width = match.groups()
    return Network(name, int(depth) if depth else None, float(width) if width else None)
