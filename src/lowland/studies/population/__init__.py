"""The study of populations: many networks trained at once on small images, under every rule, at equal cost."""

from .cell import run_cell as run_cell
from .config import PopulationStudy as PopulationStudy
from .config import cells as cells
from .config import from_mapping as from_mapping
from .config import read_config as read_config
from .kind import KIND as KIND
