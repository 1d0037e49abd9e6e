"""The study of images: averages of weights and Gaussian posteriors over networks trained from scratch."""

from .cell import run_cell as run_cell
from .config import ImagesStudy as ImagesStudy
from .config import cells as cells
from .config import from_mapping as from_mapping
from .config import read_config as read_config
from .kind import KIND as KIND
from .reading import check_data as check_data
