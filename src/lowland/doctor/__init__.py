"""The doctor: can these weights be averaged, and if not, why?

`diagnose` looks at two or more ingredients: checkpoints of a run, fine-tuned copies, draws. From the weights alone come
names, shapes, types, values that are not finite, equal files, distances and cosines by layer, orders of units and
classes, running statistics, steps lost in low precision and, of a row of iterates, the effective number of samples.
With a score come the barrier on the line between each pair and what averaging gains; with a model and training
batches, BatchNorm statistics before and after a refresh. `Diagnosis` says it in sentences, as data and as an exit code.
"""

from .along import barrier as barrier
from .assignment import assign as assign
from .diagnose import diagnose as diagnose
from .diagnosis import Diagnosis as Diagnosis
from .findings import Finding as Finding
from .scoring import Scores as Scores
from .trajectory import Correlation as Correlation
from .trajectory import autocorrelation as autocorrelation
