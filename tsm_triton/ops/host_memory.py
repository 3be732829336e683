"""Memory for a large result on a CPU."""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

_LARGE = 4 * 2**20  # NumPy's own bound; the call takes 1.5 us, a shift of 4 MB 250
_PAGE = mmap.PAGESIZE

if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def empty_like(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`, its pages huge ones where Linux gives those to who asks.

    The first touch of 40 MB takes 10,000 page faults, which are two thirds of a `clone()`; in pages of 2 MB the same
    clone takes 0.55 of the time, and a shift 0.55 to 0.8 of its own. NumPy asks for its arrays, torch only if the
    environment variable THP_MEM_ALLOC_ENABLE is set. Every byte of a result is written, so its huge pages hold no
    more than small ones would.

    Two traps. glibc may take results below 32 MB from its heap, where the advice outlives them: small blocks that come
    to lie there later touch 2 MB at a time. To take the advice back would be no better, MADV_NOHUGEPAGE stays as well.
    And a virtual machine that hands free pages back to its host gets some late, which the spread of `fresh` rows in
    `python -m benchmarks` shows.
    """
    out = torch.empty_like(x)
    if sys.platform == "linux" and out.device.type == "cpu" and out.nbytes >= _LARGE:
        start = -(-out.data_ptr() // _PAGE) * _PAGE
        # Advice: a kernel without huge pages refuses it, and all is as it was.
        _madvise(start, out.data_ptr() + out.nbytes - start, mmap.MADV_HUGEPAGE)
    return out
