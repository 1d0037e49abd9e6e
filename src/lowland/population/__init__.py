"""Many models at once: rules that mix live members, in one process or with one member a rank."""

from .dart import DART as DART
from .diloco import DiLoCo as DiLoCo
from .imwa import IMWA as IMWA
from .independent import Independent as Independent
from .local_sgd import LocalSGD as LocalSGD
from .meter import Meter as Meter
from .meter import Traffic as Traffic
from .papa import PAPA as PAPA
from .papa2 import PAPA2 as PAPA2
from .papa_all import PAPAAll as PAPAAll
from .population import Population as Population
from .population import Probe as Probe
from .rule import Rule as Rule
from .state import load_members as load_members
from .state import save_members as save_members
from .wash import WASH as WASH
