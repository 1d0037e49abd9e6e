"""Convolutional networks for small images, each with the depth and width of its paper and a small default.

    cnn          convolution, BatchNorm, ReLU, pooling; a plain baseline
    vgg          no BatchNorm: Simonyan & Zisserman 2015, arXiv 1409.1556, with the 512-512 head of the SWA code
    preresnet    pre-activation residual network: He et al. 2016, arXiv 1603.05027
    wrn          wide residual network: Zagoruyko & Komodakis 2016, arXiv 1605.07146
    mobilenetv2  inverted residuals: Sandler et al. 2018, arXiv 1801.04381, without the first two strides

The averaging papers (SWA, Izmailov et al. 2018, arXiv 1803.05407, and its successors) train VGG-16, PreResNet-110 and
-164 and WRN-28-10 on images of 32 x 32. Convolutions start from He et al.'s normal distribution over the fan-out
(arXiv 1502.01852); vgg takes the fan-in, for its hidden linear layers too, as nothing in it rescales what fades.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_VGG = {7: (1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_MOBILE = {  # depth -> blocks a stage; the paper's is 17
    7: (1, 1, 1, 1, 1, 1, 1),
    17: (1, 2, 3, 4, 3, 3, 1),
}
_DEFAULTS: dict[str, tuple[int, float]] = {  # depth, width
    "cnn": (3, 16),
    "vgg": (7, 16),
    "preresnet": (8, 8),
    "wrn": (10, 1),
    "mobilenetv2": (7, 0.25),
}
NETWORKS = tuple(_DEFAULTS)


def build(
    name: str, *, channels: int, size: int, classes: int, depth: int | None = None, width: float | None = None
) -> nn.Module:
    """Return a freshly initialised network from images (N, channels, size, size) to logits (N, classes).

    Args:
        depth: cnn: convolutions. vgg: layers with weights, 7, 11, 13, 16 or 19. preresnet: 6n + 2 with basic blocks
            below 44, 9n + 2 with bottlenecks from there on, as in the SWA code. wrn: 6n + 4. mobilenetv2: blocks,
            7 or 17.
        width: cnn, vgg, preresnet: channels of the first stage (64 and 16 in the papers). wrn: the factor k on 16
            channels. mobilenetv2: the factor on all channels.

    Raises:
        ValueError: the name is unknown, a number is below 1 or the depth is none of the network's.

    >>> import torch
    >>> build("cnn", channels=1, size=8, classes=10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if name not in _DEFAULTS:
        raise ValueError(f"there is no network {name!r}: use one of {', '.join(NETWORKS)}")
    default_depth, default_width = _DEFAULTS[name]
    depth, width = depth or default_depth, width or default_width
    for what, value in (("channels", channels), ("size", size), ("classes", classes), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{what} of {name} must be at least 1, got {value}: raise it")
    if width <= 0:
        raise ValueError(f"width of {name} must be above 0, got {width}: raise it")
    if name == "wrn":
        model: nn.Module = PreResNet(channels, classes, *_wide(depth, width))
    elif name == "preresnet":
        model = PreResNet(channels, classes, *_preactivated(depth, _whole(name, width)))
    elif name == "mobilenetv2":
        model = MobileNetV2(channels, classes, _blocks(depth), width)
    elif name == "vgg":
        model = _vgg(channels, classes, depth, _whole(name, width))
    else:
        model = _cnn(channels, size, classes, depth, _whole(name, width))
    last = list(model.modules())[-1]  # the linear layer to the logits keeps torch's own start
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and module is not last and name == "vgg"):
            if name == "vgg":
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


class PreResNet(nn.Module):
    """A pre-activation residual network: stem, three stages that halve the image, BatchNorm, ReLU, mean, linear.

    >>> PreResNet(3, 10, 16, (16, 32, 64), 2, bottleneck=False).head.in_features
    64
    """

    def __init__(
        self, channels: int, classes: int, stem: int, planes: tuple[int, int, int], blocks: int, bottleneck: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        given = stem
        for stage, plane in enumerate(planes):
            made = 4 * plane if bottleneck else plane
            for block in range(blocks):
                stages.append(_Residual(given, plane, made, 2 if stage and not block else 1, bottleneck))
                given = made
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(given)
        self.head = nn.Linear(given, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _Residual(nn.Module):
    """x' + convolutions of ReLU(BatchNorm(x)), where x' is x, or a 1 x 1 convolution of x where shapes change."""

    def __init__(self, given: int, plane: int, made: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        sizes = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        layers: list[nn.Module] = []
        last = given
        for index, (kernel, step) in enumerate(sizes):
            out = made if index == len(sizes) - 1 else plane
            layers += [
                nn.BatchNorm2d(last),
                nn.ReLU(),
                nn.Conv2d(last, out, kernel, stride=step, padding=kernel // 2, bias=False),
            ]
            last = out
        self.layers = nn.Sequential(*layers)
        changed = stride != 1 or given != made
        self.shortcut = nn.Conv2d(given, made, 1, stride=stride, bias=False) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.layers(x)
        return out


class MobileNetV2(nn.Module):
    """Inverted residuals: each block widens by 1 x 1, filters each channel by 3 x 3, narrows by 1 x 1.

    >>> MobileNetV2(3, 100, (1, 2, 3, 4, 3, 3, 1), 1.0).head.in_features
    1280
    """

    # (factor of widening, channels, stride) of each stage; the second stage's stride is 2 in the paper.
    STAGES = ((1, 16, 1), (6, 24, 1), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))

    def __init__(self, channels: int, classes: int, blocks: tuple[int, ...], width: float) -> None:
        super().__init__()
        given = _of_four(32 * width)
        layers: list[nn.Module] = [_normed(channels, given, 3)]
        for (widen, plane, stride), count in zip(self.STAGES, blocks, strict=True):
            made = _of_four(plane * width)
            for block in range(count):
                layers.append(_Inverted(given, made, widen, 1 if block else stride))
                given = made
        last = _of_four(1280 * width)
        self.layers = nn.Sequential(*layers, _normed(given, last, 1))
        self.head = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x).mean((2, 3)))
        return out


class _Inverted(nn.Module):
    def __init__(self, given: int, made: int, widen: int, stride: int) -> None:
        super().__init__()
        inner = given * widen
        wide = [_normed(given, inner, 1)] if widen > 1 else []
        self.layers = nn.Sequential(
            *wide,
            _normed(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, made, 1, bias=False),
            nn.BatchNorm2d(made),
        )
        self.same = stride == 1 and given == made

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.same else out


def _normed(given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(given, made, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.ReLU6())


def _cnn(channels: int, size: int, classes: int, depth: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    given, side = channels, size
    for index in range(depth):
        made = width * 2 ** min(index, 2)
        layers += [nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
        if side > 1:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            side = -(-side // 2)
        given = made
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(given * side * side, classes))


def _vgg(channels: int, classes: int, depth: int, width: int) -> nn.Sequential:
    if depth not in _VGG:
        raise ValueError(f"depth of vgg must be one of {', '.join(map(str, _VGG))}, got {depth}: choose one of them")
    layers: list[nn.Module] = []
    given = channels
    for stage, count in enumerate(_VGG[depth]):
        made = width * 2 ** min(stage, 3)
        for _ in range(count):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
            given = made
        # Rounding up keeps one pixel of images below 32 x 32.
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    # The small network is trained for too few epochs to gain by the papers' dropout.
    dropout = 0.5 if depth > 7 else 0.0
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(given, given), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(given, given), nn.ReLU(),
        nn.Linear(given, classes),
    )  # fmt: skip


def _preactivated(depth: int, width: int) -> tuple[int, tuple[int, int, int], int, bool]:
    bottleneck = depth >= 44
    step = 9 if bottleneck else 6
    if depth < 8 or (depth - 2) % step:
        raise ValueError(
            f"depth of preresnet must be 6n + 2 below 44 and 9n + 2 from there on, got {depth}: try 8, 20, 110 or 164"
        )
    return width, (width, 2 * width, 4 * width), (depth - 2) // step, bottleneck


def _wide(depth: int, factor: float) -> tuple[int, tuple[int, int, int], int, bool]:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth of wrn must be 6n + 4, got {depth}: try 10, 16 or 28")
    width = max(1, round(16 * factor))
    return 16, (width, 2 * width, 4 * width), (depth - 4) // 6, False


def _blocks(depth: int) -> tuple[int, ...]:
    if depth not in _MOBILE:
        raise ValueError(f"depth of mobilenetv2 must be 7 or 17, got {depth}: choose one of them")
    return _MOBILE[depth]


def _whole(name: str, width: float) -> int:
    if width != int(width):
        raise ValueError(f"width of {name} must be a whole number of channels, got {width}: round it")
    return int(width)


def _of_four(channels: float) -> int:
    return max(4, 4 * round(channels / 4))
