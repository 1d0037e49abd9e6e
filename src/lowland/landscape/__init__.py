"""The ground between weights: what a loss does along lines and along curves that are trained to stay low.

Functions of weights and of a measure, any function from weights to numbers; no model is needed but to train a curve.
"""

from .curve import Curve as Curve
from .curve import along as along
from .curve import bezier as bezier
from .curve import chain as chain
from .line import line as line
from .measures import classification as classification
from .measures import measured as measured
from .training import CurveTraining as CurveTraining
from .walk import Summary as Summary
from .walk import Walk as Walk
