"""A 2D model over frames, made a model over clips."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..arguments import as_count, as_ints
from ..functional import clip_boundaries
from ..modules.clip_layer import CutsClips, fixed_length_in
from ..patching.hooks import check_no_clip_layers, frames_out, going_by, is_patched
from ..torch_private import assert_async
from .clips import (
    check_fixed_length,
    check_frame_model,
    check_video,
    clips_of_length,
    fixed_length,
    of_traced_length,
    packing_of,
)

__all__ = ["CONSENSUS", "VIEW_AVERAGE", "VideoClassifier"]

CONSENSUS = ("avg", "identity")
VIEW_AVERAGE = ("logits", "softmax")


class VideoClassifier(CutsClips, nn.Module):
    """Fold clips into frames, run the model, and average the frames' logits.

    Args:
        model: a model of frames, `[N*T, 3, H, W] -> [N*T, num_classes]`; patched (TSM) or not (TSN).
        num_segments: T of a folded input; T of an unfolded one is read from its shape.
        consensus: `"avg"`, the mean of the frames' logits, or `"identity"`, every frame's.
        view_average: over the views of a six-dimensional input, the mean of `"logits"` (the authors')
            or of `"softmax"` (mmaction2's).

    Shapes:
        `[N, T, 3, H, W]` -> `[N, num_classes]`, any T; `[N, T, num_classes]` with `"identity"`, or half as many behind
        a `TemporalPool`.
        `[N, V, T, 3, H, W]`, V views (crops, clips) of each video -> the same, averaged over V.
        `[N*T, 3, H, W]`, already folded -> the same, with T = `num_segments`.
        `[T1 + T2 + ..., 3, H, W]` with `clip_lengths=[T1, T2, ...]`, clips of different lengths packed
        without padding -> the same; `[T1 + T2 + ..., num_classes]` with `"identity"`.

    Under `torch.compile` one dynamic graph serves every T, and every packing whose `clip_lengths` come as a tensor; a
    list is a constant of the graph, compiled anew for each number of clips at least.

    A call leaves the model's own T as it was. With gradient checkpointing its backward runs blocks again with the T, or
    the packing, of the call, whatever the model was told since. A call of the model itself has no such memory: its
    backward comes before `set_num_segments`. What threads call side by side with other T is right or refused there.

    Threads may share the model, each with a T of its own in eager. A compiled model inside of it takes its T from what
    those threads share: give them one T, and packed clips one at a time.

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
        check_frame_model(model)
        num_segments = as_count(num_segments, "num_segments")
        for name, value, known in (
            ("consensus", consensus, CONSENSUS),
            ("view_average", view_average, VIEW_AVERAGE),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        fixed_length_in(model)  # looks at captured graphs, which compiled calls cannot
        self.model = model
        self.training = getattr(model, "training", False)  # a frozen ScriptModule does not say
        self.num_segments = num_segments
        self.consensus = consensus
        self.view_average = view_average

    def forward(self, video: Tensor, clip_lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        check_video(video, self.model)
        if isinstance(clip_lengths, Tensor) and torch.compiler.is_compiling():
            return self._traced_packed_scores(video, clip_lengths)
        if clip_lengths is not None:
            return self._packed_scores(video, as_ints(clip_lengths, "clip_lengths"))
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
            f"T = num_segments = {self.num_segments}, got {tuple(video.shape)}"
        )

    def _scores(self, video: Tensor) -> Tensor:
        video, num_segments = of_traced_length(video, self.model)
        with clips_of_length(self.model, num_segments) as recorded:
            logits = recorded(self.model(video.flatten(0, 1)))
        logits = logits.unflatten(0, (video.shape[0], frames_out(self.model, num_segments)))
        return logits.mean(1) if self.consensus == "avg" else logits

    def _packed_scores(self, video: Tensor, clip_lengths: list[int]) -> Tensor:
        if video.dim() != 4 or min(clip_lengths, default=0) < 1 or sum(clip_lengths) != len(video):
            raise ValueError(
                "with clip_lengths, video must have shape [T1 + T2 + ..., 3, H, W] for lengths of at least 1, "
                f"got {tuple(video.shape)} for {clip_lengths}, together {sum(clip_lengths)}. "
                "Pass the lengths the frames were joined with."
            )
        check_no_clip_layers(self.model, "clip_lengths")
        check_fixed_length(self.model, clip_lengths)
        with packing_of(self.model, clip_lengths) as recorded:
            logits = recorded(self.model(video))
        if self.consensus == "identity":
            return logits
        return torch.stack([clip.mean(0) for clip in logits.split(clip_lengths)])

    def _traced_packed_scores(self, video: Tensor, clip_lengths: Tensor) -> Tensor:
        """The same in a graph that takes any lengths."""
        if video.dim() != 4:
            raise ValueError(
                f"with clip_lengths, video must have shape [T1 + T2 + ..., 3, H, W], got {tuple(video.shape)}. "
                "Pass the frames of all clips, joined."
            )
        if fixed_length(self.model) is not None:
            raise ValueError(
                "expected clip_lengths as a list of ints for a fused model, whose clip length is fixed, got a "
                "tensor in a traced call. Pass clip_lengths.tolist()."
            )
        check_no_clip_layers(self.model, "clip_lengths")
        boundaries = clip_boundaries(clip_lengths, len(video), video.device)
        with going_by(self.model, boundaries) if is_patched(self.model) else nullcontext():
            logits = self.model(video)
        if self.consensus == "identity":
            return logits
        lengths = clip_lengths.to(logits.device)
        assert_async((lengths >= 1).all(), "clip_lengths must be at least 1: leave empty clips out")
        clip = boundaries[:-1].cumsum(0) - 1
        sums = logits.new_zeros(len(lengths), *logits.shape[1:]).index_add(0, clip, logits)
        return sums / lengths.view(-1, *[1] * (logits.dim() - 1)).to(logits.dtype)

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, consensus={self.consensus!r}"
