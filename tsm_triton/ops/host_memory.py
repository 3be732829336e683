"""Memory for a large result on a CPU."""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

_LARGE = 32 * 2**20  # above it glibc always maps a block anew (M_MMAP_THRESHOLD_MAX of 64 bits)
_PAGE = mmap.PAGESIZE

if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def empty_like(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`, a large one in huge pages where Linux gives those to who asks.

    The first touch of 40 MB takes 10,000 page faults, most of a `clone()`, in pages of 2 MB 20: what that gains is the
    row "copy, our pages" beside "copy" of `python -m benchmarks` on a CPU. NumPy asks for its arrays, torch only if the
    environment variable THP_MEM_ALLOC_ENABLE is set. Whoever takes it writes every byte, so its huge pages hold no more
    than small ones would. Smaller results may come from glibc's heap, where the advice would outlive them: small blocks
    that come to lie there later would touch 2 MB at a time.

    A trap: a virtual machine that hands free pages back to its host gets some late, which the spread of `fresh` rows in
    `python -m benchmarks` shows.
    """
    out = torch.empty_like(x)
    if out.nbytes >= _LARGE and out.device.type == "cpu" and sys.platform == "linux":
        start = -(-out.data_ptr() // _PAGE) * _PAGE
        # Advice: a kernel without huge pages refuses it, and all is as it was.
        _madvise(start, out.data_ptr() + out.nbytes - start, mmap.MADV_HUGEPAGE)
    return out
