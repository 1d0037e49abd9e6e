"""Link prediction on knowledge graphs: averages of the weights along one training run, judged by filtered ranks."""

from .cell import KIND as KIND
from .cell import run_cell as run_cell
from .config import LinksStudy as LinksStudy
from .config import cells as cells
from .config import from_mapping as from_mapping
from .config import read_config as read_config
from .graphs import check_data as check_data
