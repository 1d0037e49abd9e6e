"""State files: one file for an averager, a folder for snapshots."""

from .snapshots import SnapshotFiles as SnapshotFiles
from .state import FORMAT as FORMAT
from .state import load as load
from .state import load_into as load_into
from .state import save as save
