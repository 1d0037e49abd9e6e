"""L1 logistic regression on rows that lie on many machines: averages and merges by sparsity."""

from .cell import KIND as KIND
from .cell import run_cell as run_cell
from .config import LinearStudy as LinearStudy
from .config import cells as cells
from .config import from_mapping as from_mapping
from .config import read_config as read_config
