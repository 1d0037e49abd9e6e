"""The study of multiple-choice questions: SWAG on the adapters of a small language model.

After Onal, Floege, Caldwell, Sheverdin, Fortuin 2024, "Gaussian Stochastic Weight Averaging for Bayesian Low-Rank
Adaptation of Large Language Models" (arXiv 2405.03425).
"""

from .config import ChoiceStudy as ChoiceStudy
from .config import read_config as read_config
from .study import run_choice_study as run_choice_study
