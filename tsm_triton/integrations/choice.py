"""Which form of a place is the faster one: the rule, and the only place that knows.

On a GPU nothing has been timed yet. The rule there follows the byte model: a fused op moves each map once where
the separate ones move it two to four times, so it is taken wherever it needs no copy to another layout.

On a CPU the ops are made of torch's own operators, the same ones that the graph calls without them, but for sums
and activations in place: `python -m benchmarks` times whole models, patched and fused
(benchmarks/results/<device>/results.md).
"""

from typing import Any

from torch import Tensor

__all__ = ["is_channels_last", "is_faster", "takes_norm"]


def is_faster(kind: str, x: Tensor) -> bool:
    """Whether the fused form of a place is taken.

    Args:
        kind: as in `Fusion.kind`.
        x: the map that the place reads, of its shape, strides, dtype and device; no values are needed.
    """
    if kind == "residual + shift":
        return True
    if kind == "conv1x1" and _known(x.shape[2] * x.shape[3] == 1):
        return False  # a pooled vector: no traffic to save, and one more shape to tune
    return x.device.type == "cpu" or is_channels_last(x)


def takes_norm(x: Tensor) -> bool:
    """Whether `residual_shift` does the batch-norm of the branch in inference, or else the convolution before it.

    On CUDA the convolution would add the bias in a pass of its own, on a CPU it adds it on the way.
    """
    return x.device.type != "cpu"


def is_channels_last(x: Tensor) -> bool:
    """The question of `is_contiguous`, of which symbolic sizes make no guard."""
    channels, width = x.shape[1], x.shape[3]
    strides = ((1, 1), (3, channels), (2, channels * width))
    return all(_known(x.stride(axis) == stride) for axis, stride in strides)


def _known(condition: Any) -> bool:
    """Whether it is true of all sizes that a symbol stands for, without a guard."""
    if isinstance(condition, bool):
        return condition
    # brings sympy along: half a second, and whoever has symbols has it already
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
