"""Named tensors: read, write, apply and choose them."""

from .named import applied as applied
from .named import check_same as check_same
from .named import clone_of as clone_of
from .named import copy_to as copy_to
from .named import selected as selected
from .named import weights_of as weights_of
from .selection import Score as Score
from .selection import Select as Select
from .selection import Weights as Weights
from .selection import bare_name as bare_name
from .selection import floating as floating
from .selection import matching as matching
from .selection import parameters as parameters
from .selection import select_from as select_from
from .selection import select_name as select_name
from .selection import trainable as trainable
