"""The registered ops, one file each: what an op checks, its forms and derivatives, and at its end the declaration.

Imports torch only. The Triton kernels load on the first call that runs one, so the package works without
Triton on machines that never do.
"""

from ..activations import check_activation
from .checks import check_channel_dim, check_frames
from .convolution import convolution
from .copies import shift_by_copies
from .declare import ATEN_FORMS, NAMESPACE
from .depthwise import depthwise_convolution
from .direct import in_onnx_export
from .inductor import KERNEL_FORMS, let_inductor_decompose
from .lowering import without_python
from .residual_shift import residual_shift, residual_shift_backward
from .shift_conv1x1 import shift_conv1x1
from .shift_step import shift_step, shift_step_into
from .shift_step_conv1x1 import shift_step_conv1x1
from .stem import stem_convolution
from .temporal_shift import shift, temporal_shift
from .temporal_shift_packed import temporal_shift_packed

__all__ = [
    "ATEN_FORMS",
    "KERNEL_FORMS",
    "NAMESPACE",
    "check_activation",
    "check_channel_dim",
    "check_frames",
    "convolution",
    "depthwise_convolution",
    "in_onnx_export",
    "let_inductor_decompose",
    "residual_shift",
    "residual_shift_backward",
    "shift",
    "shift_by_copies",
    "shift_conv1x1",
    "shift_step",
    "shift_step_conv1x1",
    "shift_step_into",
    "stem_convolution",
    "temporal_shift",
    "temporal_shift_packed",
    "without_python",
]
