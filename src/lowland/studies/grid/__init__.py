"""A grid study: cells of data set, model and seed, each run once, then judged together over seeds and over pairs."""

from .cells import Cell, Result
from .kinds import Kind, Metric
from .running import run_grid

__all__ = ["Cell", "Kind", "Metric", "Result", "run_grid"]
