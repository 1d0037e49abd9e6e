"""The files here are scripts that import each other by plain name; only tests are collected."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
collect_ignore = ["adapters.py", "run.py"]
