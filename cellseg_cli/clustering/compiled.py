"""How the kernels of this package are compiled: one decision, made once.

Every kernel is cached on disk (the first call on a machine compiles, later processes load),
and releases the interpreter lock, so that the batch runner's threads cluster different fields
at the same time.  No kernel is parallel inside and none uses fast-math: the same input gives
the same bits, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., object])

#: Numba's switch for code that counts no references to arrays; without it, kernels are only
#: slower.
_LEAN: dict[str, Any] = (
    {"_nrt": False} if hasattr(getattr(numba.core.options, "DefaultOptions", None), "_nrt") else {}
)


def compiled(kernel: _Kernel) -> _Kernel:
    """The kernel as machine code, with the types of the Python function it was made from."""
    return _machine_code(kernel)


def lean(kernel: _Kernel) -> _Kernel:
    """The same for a kernel that makes no arrays and spends its time in calls of others.

    Each call counts references to all arrays, those in tuples too, in atomic steps.  The chain of
    ``linkage`` takes two thirds of the time without (0.049 against 0.072 s for 20 480 pixels).
    """
    return _machine_code(kernel, **_LEAN)


def inlined(kernel: _Kernel) -> _Kernel:
    """The same for a small kernel that others call often: it becomes part of each of them.

    A call hands over every array by value, a dozen words each.  Makes no arrays either.
    """
    return _machine_code(kernel, forceinline=True, **_LEAN)


def _machine_code(kernel: _Kernel, **more: Any) -> _Kernel:
    options = {"nogil": True, "error_model": "numpy", **more}
    try:
        return cast(_Kernel, numba.njit(cache=True, **options)(kernel))
    except RuntimeError:  # neither the package nor the home folder can be written
        return cast(_Kernel, numba.njit(**options)(kernel))
