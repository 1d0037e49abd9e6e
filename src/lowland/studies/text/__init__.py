"""The text study: fine-tuned classifiers on little data."""

from ..adapters.config import Lora as Lora
from ..adapters.config import Model as Model
from .config import Data as Data
from .config import Evaluation as Evaluation
from .config import Swag as Swag
from .config import TextStudy as TextStudy
from .config import Training as Training
from .config import demo as demo
from .config import from_mapping as from_mapping
from .config import read_config as read_config
from .review import Reviewed as Reviewed
from .review import review_texts as review_texts
from .review import sentence as sentence
from .review import write_reviewed as write_reviewed
from .study import read_study as read_study
from .study import run_text_study as run_text_study
