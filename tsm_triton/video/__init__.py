"""Videos: frames out of files (decoding, sampling), what a model wants of them (transforms), and the model.

`tsm_triton.video.transforms` is imported by its own name: it brings torchvision's models along, which
`import tsm_triton` must not.
"""

from .classifier import VideoClassifier
from .decoding import VideoInfo, probe, read_clip, read_frames
from .sampling import sample_dense, sample_frames, sample_uniform

__all__ = [
    "VideoClassifier",
    "VideoInfo",
    "probe",
    "read_clip",
    "read_frames",
    "sample_dense",
    "sample_frames",
    "sample_uniform",
]
