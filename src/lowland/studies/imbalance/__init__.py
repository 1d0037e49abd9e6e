"""The study of imbalance: branches averaged in episodes where a few classes have most of the examples.

After Huang, Cai, Chen, Zhang, Wu 2024, "Iterative Model Weights Averaging" (arXiv 2404.16331).
"""

from .cell import run_cell as run_cell
from .config import ImbalanceStudy as ImbalanceStudy
from .config import cells as cells
from .config import from_mapping as from_mapping
from .config import read_config as read_config
from .kind import KIND as KIND
from .sets import check_data as check_data
