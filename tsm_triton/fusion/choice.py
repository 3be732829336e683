"""Which form of a place is the faster one: the rule, and the only place that knows.

On a GPU the rule follows the byte model: a fused op moves each map once where the separate ones move it two to four
times, so it is taken wherever it needs no copy to another layout. An H200 ran a fused ResNet-50 1.82 times as fast as
the compiled unshifted one, a MobileNetV2 1.72 times (benchmarks/results/nvidia-h200).

On a CPU the ops are made of torch's own operators, the same ones that the graph calls without them, but for sums
and activations in place: `python -m benchmarks` times whole models, patched and fused
(benchmarks/results/<device>/results.md).
"""

import torch
from torch import Tensor

from .graphs import known

__all__ = ["compiles_faster", "is_faster", "rewrites_convolutions", "takes_norm"]


def is_faster(kind: str, x: Tensor) -> bool:
    """Whether the fused form of a place is taken.

    Args:
        kind: as in `Fusion.kind`.
        x: the map that the place reads, of its shape, dtype and device; no values are needed. Its strides say
            nothing on a GPU, see `layouts`.
    """
    if kind in ("conv1x1", "convolution", "stem", "depthwise") and known(x.shape[2] * x.shape[3] == 1):
        return False  # a pooled vector: no traffic to save, and one more shape to tune
    halves = (torch.float16, torch.bfloat16)
    if kind in ("stem", "depthwise"):
        return rewrites_convolutions(x) and x.dtype in (*halves, torch.float32)
    if kind.startswith("convolution"):
        # cuDNN takes bias and ReLU along, at the price of the bare convolution (0.56 to 0.81 of
        # convolution and pass on an H200, bf16)
        return rewrites_convolutions(x) and x.dtype in halves and torch.version.hip is None
    return True


def compiles_faster(kind: str, device: str) -> bool:
    """Whether Inductor's code of a fused place can be faster than that of the place as it was, in inference.

    Inductor is given `residual + shift` on a CPU as the operators that the graph had (`ops.inductor`): the same code. A
    folded batch-norm is what pays there, 0.93 to 0.97 of plain `torch.compile` for MobileNetV2, EfficientNet-B0 and
    RegNetY-002 in channels_last.
    """
    return device != "cpu" or kind != "residual + shift"


def takes_norm(x: Tensor) -> bool:
    """Whether `residual_shift` does the batch-norm of the branch in inference, or else the convolution before it.

    On CUDA the convolution would add the bias in a pass of its own, on a CPU it adds it on the way.
    """
    return x.device.type != "cpu"


def rewrites_convolutions(x: Tensor) -> bool:
    """Whether convolutions of other sizes than 1x1 are fused too, and biases moved into the next kernel that has one.

    On a CPU oneDNN adds the bias on its way, and Inductor the activation.
    """
    return x.device.type != "cpu"
