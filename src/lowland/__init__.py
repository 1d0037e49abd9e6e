"""Averaged weights, Gaussian posteriors over weights, and what to do with them."""

from . import calibration as calibration
from . import cycles as cycles
from . import soup as soup
from . import weights as weights
from .arithmetic import kernels as kernels
from .aswa import ASWA as ASWA
from .batchnorm import refresh_bn as refresh_bn
from .ema import EMA as EMA
from .files import load as load
from .files import save as save
from .mixture import Mixture as Mixture
from .predict import predict as predict
from .snapshots import Snapshots as Snapshots
from .swa import SWA as SWA
from .swag import SWAG as SWAG
from .weights import applied as applied
from .weights import copy_to as copy_to
from .weights import weights_of as weights_of
