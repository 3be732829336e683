"""What `tsm-triton verify` checks of videos, where PyAV is installed."""

import tempfile
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ...video import read_frames

__all__ = ["displayed_order"]

FRAMES = 12


def displayed_order(device: str) -> str:
    """H.264 with B-frames in AVI, which keeps no time at which a frame is shown: frame i is the i-th displayed."""
    if find_spec("av") is None:
        return "PyAV is not installed"
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "frames.avi"))
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", 25, {"bf": "3", "b-adapt": "0", "g": "30"})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for number in range(FRAMES):
                pixels = np.full((64, 64, 3), 20 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        # one by one: what reads them all notices the wrong order by itself, and counts
        frames = torch.cat([read_frames(path, [number]) for number in range(FRAMES)])
    brightness = frames.float().mean((1, 2, 3))
    order = brightness.argsort().tolist()
    assert order == list(range(FRAMES)), f"expected the frames in order, got {order}"
    torch.testing.assert_close(brightness, 20.0 * torch.arange(FRAMES), rtol=0.0, atol=8.0)
    return f"{FRAMES} frames"
