"""BatchNorm's statistics after the weights have changed: exactly, or from a reference."""

from .draws import FastRefresh as FastRefresh
from .reference import FEW as FEW
from .reference import LARGEST_RATIO as LARGEST_RATIO
from .reference import BNReference as BNReference
from .reference import Half as Half
from .reference import Layers as Layers
from .reference import Refreshed as Refreshed
from .reference import bn_reference as bn_reference
from .refresh import refresh_bn as refresh_bn
