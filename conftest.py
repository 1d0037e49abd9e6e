"""What holds for every test: one thread, no process left behind, torch's hooks put back.

The package is imported before pytest imports its files one by one for their examples: `lowland.predict` is a function
and a module, and pytest, when it is the first to import the module, puts the module in the function's place.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator

# On small tensors a second thread spins more than it works. Processes that tests start inherit the number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import pytest

import lowland as lowland

# The kernel of a GPU imports triton, which comes with torch's builds for CUDA.
collect_ignore = [] if importlib.util.find_spec("triton") else ["src/lowland/arithmetic/kernels/draws_triton.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts processes or trains has a limit for a machine that is many times slower than an idle one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """End what a test started and did not end, and put back the hook by which torch marks a rank's tracebacks."""
    hook, before = sys.excepthook, _children()
    yield
    sys.excepthook = hook
    left = [child for child in _children() - before if not _helper(child)]
    for child in left:
        child.kill()
    psutil.wait_procs(left, timeout=10)


def _children() -> set[psutil.Process]:
    """All processes below this one. The system is asked first whether there is any, which is one short call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    return set(psutil.Process().children(recursive=True))


def _helper(child: psutil.Process) -> bool:
    """Whether it is a helper of multiprocessing or joblib that serves the tests after this one too."""
    try:
        return any("resource_tracker" in word or "forkserver" in word for word in child.cmdline())
    except psutil.Error:
        return False
