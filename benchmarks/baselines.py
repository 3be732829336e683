"""The shift as others write it, in our own words, for comparison and as the correctness gate's other side.

All take `x` `[N*T, C, H, W]` and move `C // shift_div` channels each way.
"""

import torch
from torch import Tensor


def slicing(x: Tensor, num_segments: int, shift_div: int) -> Tensor:
    """The authors': zeros, then three slices written, on a 5-D view of the batch."""
    clips = x.view(-1, num_segments, *x.shape[1:])
    fold = x.shape[1] // shift_div
    out = torch.zeros_like(clips)
    out[:, :-1, :fold] = clips[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return out.flatten(0, 1)


def concatenating(x: Tensor, num_segments: int, shift_div: int) -> Tensor:
    """mmaction2's: blank frames made by subtraction, concatenated along time, then along channels."""
    clips = x.view(-1, num_segments, *x.shape[1:])
    fold = x.shape[1] // shift_div
    future, past, rest = clips.split([fold, fold, x.shape[1] - 2 * fold], dim=2)
    future = torch.cat([future[:, 1:], future[:, :1] - future[:, :1]], dim=1)
    past = torch.cat([past[:, :1] - past[:, :1], past[:, :-1]], dim=1)
    return torch.cat([future, past, rest], dim=2).flatten(0, 1)


def flat(x: Tensor, num_segments: int, shift_div: int) -> Tensor:
    """Pointwise reads of the flat frame axis: the form that Inductor fuses best."""
    fold = x.shape[1] // shift_div
    frame = torch.arange(x.shape[0], device=x.device)
    t = (frame % num_segments).view(-1, 1, 1, 1)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    future = torch.where(t < num_segments - 1, x[:, :fold][(frame + 1).clamp(max=len(x) - 1)], zero)
    past = torch.where(t > 0, x[:, fold : 2 * fold][(frame - 1).clamp(min=0)], zero)
    return torch.cat([future, past, x[:, 2 * fold :]], dim=1)


SHIFTS = {"slicing": slicing, "concatenating": concatenating, "flat": flat}
