"""The Temporal Shift Module as Triton kernels, for any timm or torchvision model."""

import sys
from typing import TYPE_CHECKING, Any

from . import late
from .version import __version__

if TYPE_CHECKING or "torch" in sys.modules:
    from .backbones import create_model
    from .checkpoints import load_checkpoint, save_checkpoint
    from .exporting.export import export
    from .functional import temporal_shift
    from .fusion.fuse import fuse
    from .patching.finding import find_sites, skipped_sites
    from .patching.hooks import is_patched, packed_clips, set_num_segments, shift_disabled
    from .patching.patch import patch, unpatch
    from .sites import ShiftSite
    from .streaming.stream import Streaming
    from .video.classifier import VideoClassifier
else:  # `tsm-triton --help`, or torch is imported behind us
    late.register_ops_with_torch()

__all__ = [
    "ShiftSite",
    "Streaming",
    "VideoClassifier",
    "__version__",
    "create_model",
    "export",
    "find_sites",
    "fuse",
    "is_patched",
    "load_checkpoint",
    "packed_clips",
    "patch",
    "save_checkpoint",
    "set_num_segments",
    "shift_disabled",
    "skipped_sites",
    "temporal_shift",
    "unpatch",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        return late.attribute(sys.modules[__name__], name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
