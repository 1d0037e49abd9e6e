"""L1 logistic regression on huge sparse data in one or two rounds, as scikit-learn estimators.

Needs scikit-learn and scipy: pip install 'lowland[linear]'.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("lowland.linear needs scikit-learn: pip install 'lowland[linear]'") from error

from .acowa import ACOWALogisticRegression as ACOWALogisticRegression
from .averages import DebiasedAverageLogisticRegression as DebiasedAverageLogisticRegression
from .averages import NaiveAverageLogisticRegression as NaiveAverageLogisticRegression
from .csl import CSLLogisticRegression as CSLLogisticRegression
from .model import from_bytes as from_bytes
from .model import to_bytes as to_bytes
from .owa import OWALogisticRegression as OWALogisticRegression
from .proxcsl import ProxCSLLogisticRegression as ProxCSLLogisticRegression
from .shards import Shard as Shard
from .shards import shards_in as shards_in
from .shards import write_shard as write_shard
