"""The study of averages instead of a decay: a small language model, its decayed runs, and merges of its constant run.

After Tian, Wang et al. 2025, "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging" (arXiv 2507.17634) and Li
et al. 2025, "Model Merging in Pre-training of Large Language Models" (arXiv 2505.12082).
"""

from .cell import run_cell as run_cell
from .config import DecayStudy as DecayStudy
from .config import cells as cells
from .config import from_mapping as from_mapping
from .config import read_config as read_config
from .kind import KIND as KIND
