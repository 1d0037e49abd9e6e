"""A grid study: cells of data set, model and seed, each run once, then judged together over seeds and over pairs."""

from .cells import Cell as Cell
from .cells import Result as Result
from .kinds import Kind as Kind
from .kinds import Metric as Metric
from .running import run_grid as run_grid
