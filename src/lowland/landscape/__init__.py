"""The ground between and around weights: what a loss does along lines, curves and rays, on planes, and how it bends.

Functions of weights and of a measure, any function from weights to numbers; no model is needed but to train a curve and
for gradients.
"""

from .curve import Curve as Curve
from .curve import along as along
from .curve import bezier as bezier
from .curve import chain as chain
from .estimate import Estimate as Estimate
from .grid import Grid as Grid
from .grid import plane as plane
from .grid import window as window
from .hessian import Spectrum as Spectrum
from .hessian import curvature as curvature
from .hessian import spectrum as spectrum
from .hessian import spectrum_of as spectrum_of
from .lanczos import lanczos as lanczos
from .line import line as line
from .measures import Measured as Measured
from .measures import classification as classification
from .measures import measured as measured
from .perturbed import Worst as Worst
from .perturbed import differentiated as differentiated
from .perturbed import perturbed as perturbed
from .perturbed import worst as worst
from .plane import Plane as Plane
from .rays import Rays as Rays
from .rays import rays as rays
from .refreshes import exact as exact
from .refreshes import fast as fast
from .refreshes import frozen as frozen
from .results import load_result as load_result
from .results import save_result as save_result
from .sharpness import CriticalSharpness as CriticalSharpness
from .sharpness import critical_sharpness as critical_sharpness
from .training import CurveTraining as CurveTraining
from .vectors import filter_normalised as filter_normalised
from .vectors import random_direction as random_direction
from .walk import Summary as Summary
from .walk import Walk as Walk
from .working import Work as Work
