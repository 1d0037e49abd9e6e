"""The page of a run: written from the run's folder alone."""

from .write import write as write
