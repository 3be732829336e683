"""TensorFlow's padding, as of timm's `tf_` networks, where sizes are symbols."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["whole_number_padding"]


@contextmanager
def whole_number_padding() -> Iterator[None]:
    """A context in which timm computes `"same"` padding in whole numbers: the values are those of its own formula.

    That divides, rounds up and multiplies again, which the symbols of a capture carry from layer to layer: the one of
    tf_mobilenetv3_small_minimal_100 had not come to an end after 15 minutes. Here what sides are multiples of cancels.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # no network of timm's
        yield
        return
    original = padding.get_same_padding

    def same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
        if isinstance(x, Tensor):  # of a trace in another thread
            return original(x, kernel_size, stride, dilation)
        return max((kernel_size - 1) * dilation + 1 - stride + -x % stride, 0)

    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = original
