"""How the kernels of this package are compiled: one decision, made once.

Every kernel is cached on disk (the first call on a machine compiles, later processes load),
and releases the interpreter lock, so that the batch runner's threads cluster different fields
at the same time.  No kernel is parallel inside and none uses fast-math: the same input gives
the same bits, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., object])


def compiled(kernel: _Kernel) -> _Kernel:
    """The kernel as machine code, with the types of the Python function it was made from."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(_Kernel, numba.njit(cache=True, **options)(kernel))
    except RuntimeError:  # neither the package nor the home folder can be written
        return cast(_Kernel, numba.njit(**options)(kernel))
