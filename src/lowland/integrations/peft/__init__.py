"""PEFT: adapters as weights, folders, products and batches."""

from .batches import forward_adapters as forward_adapters
from .folders import active_adapter as active_adapter
from .folders import bare_peft as bare_peft
from .folders import check_method as check_method
from .folders import check_saved as check_saved
from .folders import held_names as held_names
from .folders import read_adapter as read_adapter
from .folders import saved_config as saved_config
from .folders import saved_keys as saved_keys
from .folders import write_adapter as write_adapter
from .folders import write_folder as write_folder
from .isotropic import IsotropicAdapters as IsotropicAdapters
from .products import AdapterAverage as AdapterAverage
from .products import Factors as Factors
from .products import Member as Member
from .products import average_adapters as average_adapters
from .products import product_gap as product_gap
from .samples import sample_adapters as sample_adapters
