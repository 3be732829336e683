"""The shift as others write it, in our own words, for comparison and as the correctness gate's other side.

All take `x` `[N*T, C, H, W]` and move `C // shift_div` channels each way.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tsm_triton

# the authors' own, and every benchmark's that does not say otherwise
NUM_SEGMENTS = 8
SHIFT_DIV = 8


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


def shifted_network(
    model: nn.Module, shift: Callable[[Tensor, int, int], Tensor], num_segments: int, shift_div: int
) -> nn.Module:
    """A copy of `model` whose sites are shifted by one of these."""
    sites = tsm_triton.find_sites(model)
    model = copy.deepcopy(model)
    for site in sites:
        model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args: (shift(args[0], num_segments, shift_div), *args[1:])
        )
    return model


def with_open_branches(model: nn.Module) -> nn.Module:
    """`model` itself, every batch-norm's weight one: where a branch begins at zero no check would see the shift."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model
