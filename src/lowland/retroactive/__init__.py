"""Retroactive or post-hoc averages: record a few averages in training, choose any profile in time afterwards."""

from .profiles import CUTOFF as CUTOFF
from .profiles import MOST_CELLS as MOST_CELLS
from .profiles import Exponential as Exponential
from .profiles import Fit as Fit
from .profiles import Floats as Floats
from .profiles import PowerLaw as PowerLaw
from .profiles import Profile as Profile
from .profiles import Window as Window
from .profiles import fit as fit
from .profiles import fits as fits
from .profiles import profile_of as profile_of
from .recorder import Recorder as Recorder
from .recorder import recorded as recorded
from .records import Recorded as Recorded
from .records import Source as Source
from .records import header_of as header_of
from .records import intervals as intervals
from .records import opened as opened
from .sweep import Scored as Scored
from .sweep import Sweep as Sweep
from .sweep import Trial as Trial
from .sweep import coefficients as coefficients
from .sweep import sweep as sweep
from .sweep import synthesise as synthesise
