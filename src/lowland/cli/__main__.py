"""`python -m lowland.cli`."""

from . import main

main()
