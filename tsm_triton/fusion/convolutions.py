"""What the arguments of a convolution's call come to."""

from typing import Any

from torch.fx import Node

from .graphs import arguments

__all__ = ["convolution_form", "is_depthwise", "is_stem", "why_not_pointwise"]


def convolution_form(conv: Node) -> tuple[list[int], list[int], list[int], int] | None:
    """Stride, padding and dilation of both axes, and the groups.

    None of a convolution that is transposed, pads unevenly or reads no maps `[N, C, H, W]`.

    Example:
        >>> import torch
        >>> from tsm_triton.fusion.graphs import CONVOLUTIONS
        >>> program = torch.export.export(torch.nn.Conv2d(3, 8, (1, 3), padding="same"), (torch.ones(1, 3, 4, 4),))
        >>> (conv,) = (node for node in program.graph.nodes if node.target in CONVOLUTIONS)
        >>> convolution_form(conv)
        ([1, 1], [0, 1], [1, 1], 1)
    """
    values = arguments(conv)
    weight, dilation, padding = values["weight"].meta["val"], _pair(values["dilation"]), values["padding"]
    if values.get("transposed", False) or weight.dim() != 4 or values["input"].meta["val"].dim() != 4:
        return None
    if padding == "same":
        whole = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        if any(size % 2 for size in whole):
            return None
        padding = [size // 2 for size in whole]
    return _pair(values["stride"]), _pair(0 if padding == "valid" else padding), dilation, values["groups"]


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values


def why_not_pointwise(conv: Node) -> str | None:
    """Why a convolution is no product of its rows with a matrix, None where it is one."""
    values = arguments(conv)
    kernel = values["weight"].meta["val"].shape[2:]
    if values["input"].meta["val"].dim() != 4 or any(size != 1 for size in kernel):
        return f"conv is {'x'.join(map(str, kernel))}"
    padding = values["padding"]
    if padding in ("valid", "same"):  # the same for a 1x1
        padding = 0
    for name, value, plain in (("stride", values["stride"], 1), ("padding", padding, 0)):
        sizes = value if isinstance(value, (list, tuple)) else [value]
        if any(size != plain for size in sizes):
            return f"{name} {max(sizes)}"
    if values["groups"] != 1:
        return f"groups {values['groups']}"
    return "transposed" if values.get("transposed", False) else None


def is_depthwise(conv: Node) -> bool:
    """Whether each channel is convolved with a kernel of its own."""
    values = arguments(conv)
    weight, x = values["weight"].meta["val"], values["input"].meta["val"]
    return 1 < values["groups"] == weight.shape[0] == x.shape[1]


def is_stem(conv: Node) -> bool:
    """Whether a convolution reads so few channels as the images themselves have."""
    weight, form = arguments(conv)["weight"].meta["val"], convolution_form(conv)
    if form is None or is_depthwise(conv):
        return False
    _, _, dilation, groups = form
    return groups == 1 and weight.shape[1] <= 4 and max(weight.shape[2:]) > 1 and max(dilation) == 1
