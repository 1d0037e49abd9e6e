"""Import the package before pytest imports its files one by one for their examples.

`lowland.predict` is a function and a module. pytest, when it is the first to import the module, puts the module in the
function's place.
"""

import lowland as lowland
