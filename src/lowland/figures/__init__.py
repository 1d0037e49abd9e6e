"""Figures of library objects: a sweep, a trace of ASWA, a schedule, an ensemble that grows, a landscape.

Needs matplotlib: `pip install 'lowland[plot]'`.
"""

from .landscape_page import write_page as write_page
from .write import write_accumulation as write_accumulation
from .write import write_choice as write_choice
from .write import write_landscape as write_landscape
from .write import write_schedule as write_schedule
from .write import write_sweep as write_sweep
from .write import write_trace as write_trace
