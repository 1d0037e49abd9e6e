"""Checkpoint folders: averages, posteriors and draws, streamed through bounded memory whatever their size.

Checkpoints are folders or files of safetensors, of `torch.save`, of `torch.distributed.checkpoint`, PEFT adapters and
lowland's own state files. What reduces them is handed in: a function of `lowland.soup`, or an averager.
"""

from .account import Account as Account
from .average import Merge as Merge
from .average import average as average
from .average import plan_average as plan_average
from .average import through as through
from .describe import describe as describe
from .draw import sample as sample
from .inputs import expand as expand
from .inputs import final_models as final_models
from .layout import Checkpoint as Checkpoint
from .layout import Left as Left
from .layout import Shard as Shard
from .layout import Stored as Stored
from .plan import Estimate as Estimate
from .plan import Plan as Plan
from .plan import estimate as estimate
from .posterior import plan_posterior as plan_posterior
from .posterior import posterior as posterior
from .sources import open_checkpoint as open_checkpoint
from .verify import Verified as Verified
from .verify import verify as verify
