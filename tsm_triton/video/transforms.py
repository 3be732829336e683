"""Preprocessing of clips: uint8 `[..., T, 3, H, W]` as decoded, to normalised float32.

Every frame of a clip is cropped, resized and mirrored alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..preparation import IMAGENET_MEAN, IMAGENET_STD, preparation_of

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MultiScaleCrop",
    "ViewCrops",
    "eval_transform",
    "train_transform",
    "transform_for",
]

# Where crops may stand, in quarters of the room that the frame leaves: (down, right).
CORNERS_AND_CENTRE = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
EDGES_AND_QUARTERS = ((2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))


class MultiScaleCrop(v2.Transform):
    """Cut out a rectangle of random scale, shape and place, and resize it to `size` x `size`.

    Height and width are drawn from `scales` of the short side, at most `max_distort` entries apart; the place
    is one of thirteen: corners, centre, middles of the edges, and the quarter points between.

    Args:
        size: the side of the output in pixels.
        scales: fractions of the short side, in (0, 1].
        max_distort: how many entries of `scales` height and width may lie apart.

    Example:
        >>> clip = torch.zeros(8, 3, 120, 160, dtype=torch.uint8)
        >>> MultiScaleCrop(112)(clip).shape
        torch.Size([8, 3, 112, 112])

    Source: `GroupMultiScaleCrop` of the authors' release, after TSN (arXiv 1608.00859, section 3.2).
    """

    def __init__(
        self, size: int, scales: Sequence[float] = (1, 0.875, 0.75, 0.66), max_distort: int = 1
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}: pass the side of the output")
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(
                f"scales must be fractions of the short side in (0, 1], got {tuple(scales)}: "
                "divide them by the largest"
            )
        if max_distort < 0:
            raise ValueError(f"max_distort must be at least 0, got {max_distort}: pass 0 for squares only")
        self.size = size
        self.scales = tuple(scales)
        self.max_distort = max_distort

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        _check_clip(flat_inputs)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        short = min(height, width)
        # A side within two pixels of the output takes its size, which saves a blurring resize.
        sides = [int(short * scale) for scale in self.scales]
        sides = [min(short, self.size) if abs(side - self.size) < 3 else max(1, side) for side in sides]
        shapes = [
            (h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= self.max_distort
        ]
        h, w = _choice(shapes)
        down, right = _choice(CORNERS_AND_CENTRE + EDGES_AND_QUARTERS)
        top, left = _offset(height, width, h, w, down, right)
        return {"top": top, "left": left, "height": h, "width": w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resized_crop(inpt, **params, size=[self.size, self.size], antialias=True)


class ViewCrops(v2.Transform):
    """Resize the short side, then cut out 1, 3 or 10 square views for testing.

    Args:
        size: the side of a view in pixels; 3 views ignore it and have `short_side`.
        short_side: what the frame's short side is resized to.
        views: 1, the centre; 3, squares of the whole short side at the left, the right and the centre of the long one,
            or its top, bottom and centre; 10, the four corners and the centre, each followed by its mirror image.

    Returns:
        For `[..., T, 3, H, W]`, one view `[..., T, 3, size, size]`; more views gain an axis in front of T:
        `[..., V, T, 3, size, size]`.

    Example:
        >>> clips = torch.zeros(2, 8, 3, 120, 160, dtype=torch.uint8)
        >>> ViewCrops(112, 128)(clips).shape
        torch.Size([2, 8, 3, 112, 112])
        >>> ViewCrops(112, 128, views=3)(clips).shape
        torch.Size([2, 3, 8, 3, 128, 128])

    Source: `GroupCenterCrop`, `GroupFullResSample` and `GroupOverSample` of the authors' release, whose three
    views of a portrait video are all its centre; here they lie along the long side. The views come in its order.
    """

    def __init__(self, size: int, short_side: int, views: int = 1) -> None:
        super().__init__()
        if views not in (1, 3, 10):
            raise ValueError(f"views must be 1, 3 or 10, got {views}")
        if not 1 <= size <= short_side:
            raise ValueError(
                f"expected 1 <= size <= short_side, got size={size}, short_side={short_side}: "
                "a crop cannot be larger than the frame. Lower size."
            )
        self.size = size
        self.short_side = short_side
        self.views = views

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        _check_clip(flat_inputs)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        clip = F.resize(inpt, [self.short_side], antialias=True)
        if self.views == 1:
            return F.center_crop(clip, [self.size, self.size])
        height, width = clip.shape[-2:]
        side = self.short_side if self.views == 3 else self.size
        along = ((0, 2), (4, 2), (2, 2)) if height > width else ((2, 0), (2, 4), (2, 2))
        crops = []
        for place in along if self.views == 3 else CORNERS_AND_CENTRE:
            crop = F.crop(clip, *_offset(height, width, side, side, *place), side, side)
            crops += [crop] if self.views == 3 else [crop, F.horizontal_flip(crop)]
        return torch.stack(crops, dim=-5)


def train_transform(
    size: int = 224,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    flip: bool = True,
) -> v2.Compose:
    """Multi-scale crop, horizontal flip with probability 1/2, /255, normalise.

    Randomness comes from torch's global generator; all clips of one call are cropped and mirrored alike.

    Args:
        size: the side of the output in pixels.
        mean, std: of the channels R, G, B, on a scale from 0 to 1.
        flip: False where left and right change the label, as in Something-Something.

    Returns:
        A transform from uint8 `[..., T, 3, H, W]` to float32 `[..., T, 3, size, size]`.

    Raises:
        ValueError: a size below 1; when called, anything but uint8 clips.

    Example:
        >>> clip = torch.zeros(8, 3, 120, 160, dtype=torch.uint8)
        >>> train_transform(112, flip=False)(clip).shape
        torch.Size([8, 3, 112, 112])
    """
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose([MultiScaleCrop(size), *mirror, *_normalise(mean, std)])


def eval_transform(
    size: int = 224,
    *,
    short_side: int = 256,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    views: int = 1,
) -> v2.Compose:
    """Resize the short side, crop 1, 3 or 10 views (see `ViewCrops`), /255, normalise.

    Args:
        size: the side of a view in pixels; 3 views ignore it and have `short_side`.
        short_side: what the frame's short side is resized to.
        mean, std: of the channels R, G, B, on a scale from 0 to 1.
        views: 1, 3 or 10.

    Returns:
        A transform from uint8 `[..., T, 3, H, W]` to float32: `[..., T, 3, size, size]` for one view, and
        `[..., V, T, 3, size, size]` for more. `.flatten(0, -5)` makes all clips and views one batch.

    Raises:
        ValueError: other views, or a size above the short side; when called, anything but uint8 clips.

    Example:
        >>> clips = torch.zeros(2, 8, 3, 120, 160, dtype=torch.uint8)
        >>> views = eval_transform(112, short_side=128, views=10)(clips)
        >>> views.shape, views.flatten(0, -5).shape
        (torch.Size([2, 10, 8, 3, 112, 112]), torch.Size([20, 8, 3, 112, 112]))
    """
    return v2.Compose([ViewCrops(size, short_side, views), *_normalise(mean, std)])


def transform_for(
    model: Any,
    *,
    size: int | None = None,
    short_side: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    train: bool = False,
    flip: bool = True,
    views: int = 1,
) -> v2.Compose:
    """The preprocessing that a model's weights were trained with, as the model says it.

    Args:
        model: a timm model, whose `pretrained_cfg` gives mean and std, and the size where the model was made for
            no other (`img_size=384`); a torchvision model, for which the size, mean and std of the weights of
            its builder are taken; any other with a `pretrained_cfg` of its own. Or what holds such a model: a
            VideoClassifier, a wrapper of torch's, a fused or compiled copy, a Streaming, a network of one's own. A
            network that says nothing gets 224 pixels and ImageNet's mean and std.
        size, short_side, mean, std: instead of what the model says. The short side is 256/224 of the size where
            nothing else is said.
        train: `train_transform` instead of `eval_transform`.
        flip: for training, see `train_transform`.
        views: for testing, see `eval_transform`.

    Raises:
        TypeError: no model.
        ValueError: a model whose input is not square, RGB pictures; models inside that want other frames than each
            other; one that does not tell (a traced or scripted graph, some made with another `img_size`).

    Example:
        >>> import timm
        >>> clip = torch.zeros(8, 3, 120, 160, dtype=torch.uint8)
        >>> transform_for(timm.create_model("test_vit"))(clip).shape
        torch.Size([8, 3, 160, 160])
        >>> transform_for(torch.nn.Identity(), size=112)(clip).shape
        torch.Size([8, 3, 112, 112])
    """
    said = preparation_of(model, size=size, short_side=short_side, mean=mean, std=std)
    if train:
        return train_transform(said.size, mean=said.mean, std=said.std, flip=flip)
    return eval_transform(said.size, short_side=said.short_side, mean=said.mean, std=said.std, views=views)


def _normalise(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def _offset(height: int, width: int, h: int, w: int, down: int, right: int) -> tuple[int, int]:
    # The step is rounded before it is multiplied, as in the release: up to 3 pixels short of the far edge.
    return down * ((height - h) // 4), right * ((width - w) // 4)


def _choice(items: Sequence[Any]) -> Any:
    return items[int(torch.randint(len(items), ()))]


def _check_clip(flat_inputs: list[Any]) -> None:
    clip = next((x for x in flat_inputs if isinstance(x, Tensor)), None)
    if clip is None:
        raise TypeError(
            f"expected a clip as a tensor, got {[type(x).__name__ for x in flat_inputs]}: "
            "pass frames as read_frames returns them"
        )
    if clip.dim() < 4 or clip.shape[-3] != 3 or clip.dtype != torch.uint8:
        raise ValueError(
            f"expected a uint8 clip [..., T, 3, H, W], got {clip.dtype} {tuple(clip.shape)}: "
            "pass frames as read_frames returns them"
        )
