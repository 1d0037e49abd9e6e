"""The seam between methods and what uses them: what an averager is, and what a posterior is."""

from .acceptance import favour as favour
from .averager import KINDS as KINDS
from .averager import Averager as Averager
from .posteriors import COMPOSITES as COMPOSITES
from .posteriors import Composite as Composite
from .posteriors import Drawable as Drawable
from .posteriors import Finite as Finite
from .posteriors import Posterior as Posterior
from .posteriors import Streamed as Streamed
from .posteriors import draws as draws
from .posteriors import members_of as members_of
from .scores import EachScore as EachScore
from .scores import judge as judge
from .scores import judge_each as judge_each
from .slots import Settings as Settings
from .slots import Slot as Slot
