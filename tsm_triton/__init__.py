"""The Temporal Shift Module as Triton kernels, for any timm or torchvision model."""

from .checkpoints import load_checkpoint, save_checkpoint
from .finding import find_sites, skipped_sites
from .functional import temporal_shift
from .fusion import fuse
from .hooks import is_patched, packed_clips, set_num_segments, shift_disabled
from .patching import patch, unpatch
from .sites import ShiftSite
from .streaming import Streaming
from .version import __version__
from .video.classifier import VideoClassifier

__all__ = [
    "ShiftSite",
    "Streaming",
    "VideoClassifier",
    "__version__",
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
