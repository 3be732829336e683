"""The registered ops: schemas, fakes, autograd and device dispatch, one file each.

Imports torch only. The Triton kernels load on the first call that runs one, so the package works without
Triton on machines that never do.
"""

from ..activations import ACTIVATIONS, check_activation
from .conv1x1_shift_conv1x1 import conv1x1_shift_conv1x1
from .convolution import convolution
from .depthwise import depthwise_convolution
from .library import let_inductor_decompose
from .residual_shift import residual_shift, residual_shift_backward
from .shift_conv1x1 import shift_conv1x1
from .shift_step import shift_step, shift_step_into
from .shift_step_conv1x1 import shift_step_conv1x1
from .stem import stem_convolution
from .temporal_shift import shift_by_copies, temporal_shift
from .temporal_shift_packed import temporal_shift_packed

__all__ = [
    "ACTIVATIONS",
    "check_activation",
    "conv1x1_shift_conv1x1",
    "convolution",
    "depthwise_convolution",
    "let_inductor_decompose",
    "residual_shift",
    "residual_shift_backward",
    "shift_by_copies",
    "shift_conv1x1",
    "shift_step",
    "shift_step_conv1x1",
    "shift_step_into",
    "stem_convolution",
    "temporal_shift",
    "temporal_shift_packed",
]
