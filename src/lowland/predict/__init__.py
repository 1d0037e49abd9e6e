"""Predictions of an average, a posterior or a mixture."""

from .accumulation import METRICS as METRICS
from .accumulation import Accumulation as Accumulation
from .accumulation import Metric as Metric
from .accumulation import accumulate as accumulate
from .predict import SAMPLES as SAMPLES
from .predict import Refresh as Refresh
from .predict import one_by_one as one_by_one
from .predict import predict as predict
from .predict import predict_regression as predict_regression
from .prediction import Prediction as Prediction
from .prediction import Regression as Regression
