"""The activations inside the fused kernels, and their derivatives.

    none      z
    relu      max(z, 0)
    relu6     min(max(z, 0), 6)
    hardswish z * relu6(z + 3) / 6
    silu      z / (1 + exp(-z))

NaN stays NaN, as in torch: `tl.maximum` would drop it, a comparison that it fails keeps it.
"""

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "relu6":
        return tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif ACTIVATION == "hardswish":
        return z * tl.where(z < -3, 0.0, tl.where(z > 3, 6.0, z + 3)) / 6
    elif ACTIVATION == "silu":
        return z / (1 + tl.exp(-z))
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        return z


@triton.jit
def activation_backward(grad, value, ACTIVATION: tl.constexpr):
    """The gradient of z; `value` is the activation's output for relu and relu6, else z itself."""
    if ACTIVATION == "relu":
        return tl.where(value <= 0, 0.0, grad)
    elif ACTIVATION == "relu6":
        return tl.where((value <= 0) | (value >= 6), 0.0, grad)
    elif ACTIVATION == "hardswish":
        return tl.where(value <= -3, 0.0, tl.where(value < 3, grad * (value / 3 + 0.5), grad))
    elif ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-value))
        return grad * sigmoid * (1 + value * (1 - sigmoid))
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        return grad
