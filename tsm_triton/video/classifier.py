"""A 2D model over frames, made a model over clips."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..functional import as_lengths, check_shift
from ..hooks import is_patched, packed_clips, set_num_segments, shift_hooks

__all__ = ["VideoClassifier"]

CONSENSUS = ("avg", "identity")
VIEW_AVERAGE = ("logits", "softmax")


class VideoClassifier(nn.Module):
    """Fold clips into frames, run the model, and average the frames' logits.

    Args:
        model: a model of frames, `[N*T, 3, H, W] -> [N*T, num_classes]`; patched (TSM) or not (TSN).
        num_segments: T of a folded input; T of an unfolded one is read from its shape.
        consensus: `"avg"`, the mean of the frames' logits, or `"identity"`, every frame's.
        view_average: over the views of a six-dimensional input, the mean of `"logits"` (the authors')
            or of `"softmax"` (mmaction2's).

    Shapes:
        `[N, T, 3, H, W]` -> `[N, num_classes]`, any T; `[N, T, num_classes]` with `"identity"`.
        `[N, V, T, 3, H, W]`, V views (crops, clips) of each video -> the same, averaged over V.
        `[N*T, 3, H, W]`, already folded -> the same, with T = `num_segments`.
        `[T1 + T2 + ..., 3, H, W]` with `clip_lengths=[T1, T2, ...]`, clips of different lengths packed
        without padding -> the same; `[T1 + T2 + ..., num_classes]` with `"identity"`.

    With gradient checkpointing, which runs blocks again in the backward, one T's backward comes before the
    next T's forward, and `with packed_clips(model, clip_lengths):` stands around a packed forward and backward.

    Raises:
        TypeError, ValueError: bad arguments, or an input of another shape.

    Example:
        >>> import timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("resnet18", num_classes=5), num_segments=8)
        >>> VideoClassifier(model)(torch.randn(2, 4, 3, 64, 64)).shape
        torch.Size([2, 5])

    Source: arXiv 1811.08383; the average consensus is TSN's (arXiv 1608.00859).
    """

    def __init__(
        self, model: nn.Module, num_segments: int = 8, consensus: str = "avg", *, view_average: str = "logits"
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, got {type(model).__name__}. Pass timm.create_model(name)."
            )
        num_segments, _ = check_shift(num_segments, 8, "causal")
        for name, value, known in (
            ("consensus", consensus, CONSENSUS),
            ("view_average", view_average, VIEW_AVERAGE),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}: choose one"
                )
        self.model = model
        self.num_segments = num_segments
        self.consensus = consensus
        self.view_average = view_average

    def forward(self, video: Tensor, clip_lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        if not isinstance(video, Tensor):
            raise TypeError(
                f"video must be a torch.Tensor, got {type(video).__name__}. Convert an array with "
                "torch.from_numpy, read a file with tsm_triton.video.read_clip."
            )
        if clip_lengths is not None:
            return self._packed_scores(video, as_lengths(clip_lengths))
        if any(size == 0 for size in video.shape[1:-3]):
            raise ValueError(
                f"video must have at least one frame and view, got {tuple(video.shape)}. Leave empty videos out."
            )
        if video.dim() == 6:
            scores = self._scores(video.flatten(0, 1))
            if self.view_average == "softmax":
                scores = scores.softmax(-1)
            return scores.unflatten(0, video.shape[:2]).mean(1)
        if video.dim() == 5:
            return self._scores(video)
        if video.dim() == 4 and video.shape[0] % self.num_segments == 0:
            return self._scores(video.unflatten(0, (-1, self.num_segments)))
        raise ValueError(
            f"video must have shape [N, T, 3, H, W], [N, V, T, 3, H, W], or [N*T, 3, H, W] with "
            f"T = num_segments = {self.num_segments}, got {tuple(video.shape)}: reshape it"
        )

    def _scores(self, video: Tensor) -> Tensor:
        num_segments = video.shape[1]
        if is_patched(self.model) and any(
            hook.num_segments != num_segments for hook in shift_hooks(self.model)
        ):
            set_num_segments(self.model, num_segments)
        check_fixed_length(self.model, [num_segments])
        logits = self.model(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return logits.mean(1) if self.consensus == "avg" else logits

    def _packed_scores(self, video: Tensor, clip_lengths: list[int]) -> Tensor:
        if video.dim() != 4 or min(clip_lengths, default=0) < 1 or sum(clip_lengths) != len(video):
            raise ValueError(
                "with clip_lengths, video must have shape [T1 + T2 + ..., 3, H, W] for lengths of at least 1, "
                f"got {tuple(video.shape)} for {clip_lengths}, together {sum(clip_lengths)}. "
                "Pass the lengths the frames were joined with."
            )
        check_fixed_length(self.model, clip_lengths)
        with packed_clips(self.model, clip_lengths) if is_patched(self.model) else nullcontext():
            logits = self.model(video)
        if self.consensus == "identity":
            return logits
        return torch.stack([clip.mean(0) for clip in logits.split(clip_lengths)])

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, consensus={self.consensus!r}"


def check_fixed_length(model: nn.Module, clip_lengths: list[int]) -> None:
    """Raise where a fused model, whose clip length is fixed, would mix clips."""
    fixed = None if is_patched(model) else getattr(model, "num_segments", None)
    if fixed is not None and any(length != fixed for length in clip_lengths):
        got = clip_lengths[0] if len(clip_lengths) == 1 else clip_lengths
        raise ValueError(
            f"expected clips of {fixed} frames, the length {type(model).__name__} was fused for, got {got}. "
            "Call tsm_triton.set_num_segments on the patched model and fuse it again."
        )
