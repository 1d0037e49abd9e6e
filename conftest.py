"""Import the package before pytest imports its files one by one for their examples.

`lowland.predict` is a function and a module. pytest, when it is the first to import the module, puts the module in the
function's place.
"""

import importlib.util

import lowland as lowland

# The kernel of a GPU imports triton, which comes with torch's builds for CUDA.
collect_ignore = [] if importlib.util.find_spec("triton") else ["src/lowland/arithmetic/kernels/draws_triton.py"]
