"""Per-frame feature maps of a patched backbone, for dense tasks: action spotting, detection, segmentation."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..arguments import as_count
from ..modules.clip_layer import CutsClips, fixed_length_in
from ..patching.hooks import frames_out
from .clips import check_frame_model, check_video, clips_of_length, of_traced_length

__all__ = ["VideoFeatures"]


class VideoFeatures(CutsClips, nn.Module):
    """Fold clips into frames, run a backbone that returns feature maps, and unfold the maps.

    Args:
        model: a model of frames that returns a list (or a dict) of maps, shallow to deep; timm's
            `create_model(name, features_only=True, out_indices=...)`, patched or not.
        num_segments: T of a folded input; T of an unfolded one is read from its shape.

    Attributes:
        channels: channels of each map, where the model has timm's `feature_info`.
        reductions: how many input pixels a side each map's pixel covers.

    Shapes:
        `[N, T, 3, H, W]` or `[N*T, 3, H, W]` -> a list of `[N, T, C, H / reduction, W / reduction]`.
        Backbones that return NHWC maps (Swin) give `[N, T, H / reduction, W / reduction, C]`.

    Raises:
        TypeError: the model does not return a list, tuple or dict of maps.
        ValueError: a classifier of timm's, bad arguments, or an input of another shape.

    Example:
        >>> import timm, torch, tsm_triton
        >>> backbone = timm.create_model("resnet18", features_only=True, out_indices=(2, 4))
        >>> features = VideoFeatures(tsm_triton.patch(backbone, num_segments=8))
        >>> [tuple(x.shape) for x in features(torch.randn(1, 8, 3, 64, 64))]
        [(1, 8, 128, 8, 8), (1, 8, 512, 2, 2)]
        >>> features.channels, features.reductions
        ([128, 512], [8, 32])
    """

    def __init__(self, model: nn.Module, num_segments: int = 8) -> None:
        super().__init__()
        check_frame_model(model)
        if hasattr(model, "forward_features") and hasattr(model, "reset_classifier"):
            raise ValueError(
                f"expected a backbone that returns feature maps, got {type(model).__name__}, a classifier of timm's. "
                "Create it with timm.create_model(name, features_only=True, out_indices=...)."
            )
        fixed_length_in(model)  # looks at captured graphs, which compiled calls cannot
        self.model = model
        self.training = getattr(model, "training", False)  # a frozen ScriptModule does not say
        self.num_segments = as_count(num_segments, "num_segments")
        info = getattr(model, "feature_info", None)
        self.channels: list[int] = info.channels() if info is not None else []
        self.reductions: list[int] = info.reduction() if info is not None else []

    def forward(self, video: Tensor) -> list[Tensor]:
        check_video(video, self.model)
        if video.dim() == 4 and video.shape[0] % self.num_segments == 0:
            video = video.unflatten(0, (-1, self.num_segments))
        if video.dim() != 5:
            raise ValueError(
                f"video must have shape [N, T, 3, H, W], or [N*T, 3, H, W] with T = num_segments = "
                f"{self.num_segments}, got {tuple(video.shape)}"
            )
        video, num_segments = of_traced_length(video, self.model)
        with clips_of_length(self.model, num_segments) as recorded:
            maps = recorded(self.model(video.flatten(0, 1)))
        if frames_out(self.model, num_segments) != num_segments:
            raise ValueError(
                f"expected a backbone that keeps its frames, got {type(self.model).__name__} with a TemporalPool. Call "
                "the model itself, or create it without."
            )
        if isinstance(maps, Mapping):
            maps = list(maps.values())
        if not isinstance(maps, Sequence):
            raise TypeError(
                f"expected a model that returns a list of feature maps, got {type(maps).__name__} from "
                f"{type(self.model).__name__}. Create it with timm.create_model(..., features_only=True), or "
                "a model of torchvision's with torchvision.models.feature_extraction.create_feature_extractor."
            )
        return [one.unflatten(0, video.shape[:2]) for one in maps]
