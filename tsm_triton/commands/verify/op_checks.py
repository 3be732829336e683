"""What `tsm-triton verify` checks of the ops on inputs of its own: torch's tests, repeats, 64-bit offsets."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ... import ops, reference
from ...functional import clip_boundaries
from ...testing import LAYOUTS, ShiftCase, assert_close, fused, laid_out, moved_to, properties

__all__ = [
    "copy_engine",
    "frames_beyond_32_bits",
    "gradcheck",
    "launched",
    "opcheck",
    "repeats",
    "tensors_beyond_32_bits",
]


def opcheck(device: str) -> str:
    """torch's own tests of a registration: schema, fake, autograd, aot_autograd."""
    shift = (2, 1, 2, False)
    calls = 0
    for layout in ("channels_last", "cropped"):
        x = laid_out(torch.randn(4, 8, 3, 3), layout).to(device)
        vectors, weight = torch.randn(2, 8, device=device), torch.randn(5, 8, device=device)
        cache, identity = x[:, :2].clone(), torch.randn(4, 5, 3, 3, device=device)
        samples = (
            (ops.temporal_shift, (x, *shift, 1)),
            (ops.temporal_shift_packed, (x, clip_boundaries([1, 3], 4, device), 1, 2, False, 1)),
            (ops.residual_shift, (x, *vectors, x.clone(), *shift, "relu")),
            (ops.shift_conv1x1, (x, weight, None, None, *shift, "relu")),
            (ops.shift_step, (x, cache, 1)),
            (ops.shift_step_conv1x1, (x, cache, weight, None, identity, "relu")),
        )
        kernel, apiece = torch.randn(5, 8, 3, 3, device=device), torch.randn(8, 1, 3, 3, device=device)
        form = ([1, 1], [1, 1], [1, 1])
        # these stand below autograd, or refuse it
        without_gradient = (
            (ops.shift_step_into, (x, cache, torch.empty_like(cache), 1)),
            (
                ops.residual_shift_backward,
                (x, x.clone(), x.clone(), None, vectors[0], None, None, *shift, "relu"),
            ),
            (ops.convolution, (x, kernel, None, identity, *form, 1, "relu")),
            (ops.depthwise_convolution, (x, apiece, vectors[0], *form, "relu")),
            (ops.stem_convolution, (x[:, :3], kernel[:, :3], vectors[0][:5], *form[:2], "relu")),
        )
        for op, arguments in without_gradient:
            torch.library.opcheck(op, arguments)
            calls += 1
        for op, arguments in samples:
            torch.library.opcheck(op, arguments)
            wanted = [
                v.detach().clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
                for v in arguments
            ]
            torch.library.opcheck(op, tuple(wanted))
            calls += 2
    return f"{calls} calls"


def gradcheck(device: str) -> str:
    """Both orders, forward and backward mode, against finite differences."""
    calls = 0
    shifts = {"contiguous": (2, 1, 2, False), "channels_last": (1, 0, 2, True), "tokens": (4, 0, 3, False)}
    for layout, shift in shifts.items():
        x = laid_out(torch.randn(4, 4, 2, 1, dtype=torch.float64), layout).to(device).requires_grad_()
        call = partial(_call_shift, shift, LAYOUTS[layout])
        torch.autograd.gradcheck(call, x, check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(call, x, fast_mode=True)
        calls += 2
    return f"{calls} calls"


def _call_shift(shift: tuple[Any, ...], channel_dim: int, x: Tensor) -> Tensor:
    return ops.temporal_shift(x, *shift, channel_dim)


def repeats(device: str) -> str:
    """The same bits again and again: a race, or memory that nobody wrote, would show."""
    # a hundred times, in frames of several programs, where programs run side by side
    size, times = (56, 100) if torch.device(device).type == "cuda" else (3, 10)
    calls = 0
    for layout in ("contiguous", "channels_last"):
        # the seed asks for every operand
        case = ShiftCase(
            num_segments=2, channels=24, height=size, width=size, n_first=3, n_second=3, layout=layout, seed=7
        )
        for call in _calls(case, device):
            properties.is_deterministic(call, case, device, repeats=times)
            calls += times
    return f"{calls} calls"


def _calls(case: ShiftCase, device: str) -> Iterator[Callable[..., Tensor | tuple[Tensor, ...]]]:
    """Each op on a case, as functions of what a shift takes."""
    yield ops.temporal_shift
    prepared = (
        (ops.residual_shift, fused.residual_arguments(case, "relu")),
        (ops.shift_conv1x1, fused.conv_arguments(case, 40, "relu")),
        (ops.shift_step, (case.x, case.x[:, :3].clone(), 1)),
        (ops.shift_step_conv1x1, fused.step_conv_arguments(case, 40, "relu")),
        (ops.convolution, fused.convolution_arguments(case, 40, "relu")),
        (ops.depthwise_convolution, fused.depthwise_arguments(case, "relu")),
        (ops.stem_convolution, fused.stem_arguments(case, 40, "relu")),
    )
    for op, arguments in prepared:
        values: list[Any] = [moved_to(x, device) if isinstance(x, Tensor) else x for x in arguments]
        yield lambda *_, op=op, values=values: op(*values)
        if op is ops.residual_shift:
            tracked = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in values]
            yield partial(_gradients_of_residual, tracked)


def _gradients_of_residual(tracked: list[Any], *_: Any) -> tuple[Tensor, ...]:
    y, shifted = ops.residual_shift(*tracked)
    return torch.autograd.grad((y * shifted).sum(), tracked[:4])


def frames_beyond_32_bits(device: str) -> str:
    """Every frame counts as larger than 2**31 elements, so that its offsets are computed in 64 bits."""
    from ...kernels import temporal_shift as kernel

    with mock.patch.object(kernel, "INT32_FRAME", 0):
        for layout in LAYOUTS:
            case = ShiftCase(2, 3, channels=24, height=3, width=3, n_first=3, n_second=5, layout=layout)
            properties.matches_reference(kernel.temporal_shift, case, device)
    return f"{len(LAYOUTS)} calls"


def copy_engine(device: str) -> str:
    """The 1x1 convolution of Hopper and Blackwell, of clips and columns that end inside a tile."""
    from ...kernels import shift_conv1x1_tma as kernel

    at = torch.device(device)
    if at.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(at)[0] not in (9, 10)):
        return "not here"
    tile = kernel.Tile(32 if at.type == "cpu" else 128, 32, 4, 2)
    seeds = (2, 5)  # of a residual alone, of a bias and a weight of rank 4
    for seed in seeds:
        case = ShiftCase(
            2,
            num_segments=3,
            channels=128,
            height=3,
            width=4,
            n_first=64,
            n_second=32,
            reverse=bool(seed & 1),
            layout="channels_last",
            dtype=torch.float16,
            seed=seed,
        )
        arguments = fused.conv_arguments(case, 40, "relu")
        values: list[Any] = [moved_to(x, device) if isinstance(x, Tensor) else x for x in arguments]
        assert_close(launched(*values, tile=tile), reference.shift_conv1x1(*arguments), roundings=2)
    return f"{len(seeds)} calls"


def launched(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    identity: Tensor | None,
    num_segments: int,
    n_first: int,
    n_second: int,
    reverse: bool,
    activation: str,
    tile: Any,
    multiprocessors: int = 3,
) -> Tensor:
    """`ops.shift_conv1x1` of maps `[frames, C, H, W]` by the copy engine's kernel, whatever `ops` would choose."""
    from ...kernels import shift_conv1x1_tma as kernel

    x = x.movedim(1, -1).contiguous()
    identity = None if identity is None else identity.movedim(1, -1).contiguous()
    frames, height, width, _ = x.shape
    weight, pixels = weight.flatten(1), height * width
    out = x.new_empty(frames, height, width, len(weight))
    clip_rows = pixels * (num_segments if n_first + n_second else frames)
    ends = (n_first, n_first + n_second)
    assert kernel.takes(x, weight, identity, *ends)
    kernel.launch(
        x, weight, bias, identity, out, clip_rows, pixels, *ends, reverse, activation, tile, multiprocessors
    )  # fmt: skip
    return out.movedim(-1, 1)


def tensors_beyond_32_bits(device: str) -> str:
    """More than 2**31 elements, where there is a GPU to hold them; their shapes everywhere."""
    for shape in ((2**16, 2**16, 2), (8, 2**33)):
        assert ops.temporal_shift(torch.empty(shape, device="meta"), 8, 1, 1, False, 1).shape == shape
    if torch.device(device).type != "cuda":
        return "shapes only"
    x = torch.empty(8, 64, 2049, 2048, dtype=torch.int8, device=device).random_(-128, 128)
    y = ops.temporal_shift(x, 8, 8, 8, False, 1)
    assert torch.equal(y[:-1, :8], x[1:, :8]), "expected the next frame's channels"
    assert torch.equal(y[1:, 8:16], x[:-1, 8:16]), "expected the previous frame's channels"
    assert torch.equal(y[:, 16:], x[:, 16:]), "expected the other channels unchanged"
    assert not y[-1, :8].any(), "expected zeros behind the clip's end"
    assert not y[0, 8:16].any(), "expected zeros before the clip's start"
    return "2 GiB"
