"""Addresses in numba's loops: the tensors stay where they are, and kernels are told where that is."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils as _untyped
from numba.extending import intrinsic as _intrinsic

_cgutils: Any = _untyped
intrinsic: Any = _intrinsic  # as what it makes is typed by numba alone


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer for `carray`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], _cgutils.voidptr_t)

    return types.voidptr(types.int64), generate
