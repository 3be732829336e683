"""Clips of moving textures, in eight classes that no single frame tells apart.

A texture is a sum of plane waves whose directions, phases and log wavelengths are uniform. A motion only adds
to these: a translation to the phases, a rotation to the directions, a zoom to the log wavelengths, where a
wave that leaves the band at one end, with amplitude zero, enters at the other (a Shepard tone in two
dimensions). So every frame of every class has the same distribution; and a clip played backwards is a clip of
another class, made of the same frames.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from ...extras import requirements
from ..common import replacing

__all__ = ["CLASSES", "REVERSED", "Texture", "render", "sample_textures", "write_clip"]

CLASSES = ("right", "left", "down", "up", "clockwise", "anticlockwise", "zoom in", "zoom out")
REVERSED = (1, 0, 3, 2, 5, 4, 7, 6)  # the class of a clip played backwards

NUM_WAVES = 48
WAVELENGTHS = (5.0, 80.0)  # in pixels
# Slowest and fastest, per frame.
TRANSLATION = (1.0, 3.0)  # pixels
ROTATION = (0.06, 0.14)  # radians
ZOOM = (0.05, 0.10)  # log scale
CONTRAST = 0.18  # standard deviation of a channel, on a scale from 0 to 1


class Texture(NamedTuple):
    """The random numbers of N clips: W waves and one speed each.

    Attributes:
        direction: of the waves in mid-clip, in radians, `[N, W]`.
        position: of their log wavelengths in the band, in mid-clip, from 0 to 1, `[N, W]`.
        phase: in the centre of the view in mid-clip, in radians, `[N, W]`.
        color: amplitudes in the channels R, G, B, `[N, W, 3]`.
        speed: from 0, slowest, to 1, fastest, `[N]`.
    """

    direction: Tensor
    position: Tensor
    phase: Tensor
    color: Tensor
    speed: Tensor


def sample_textures(num_clips: int, generator: torch.Generator) -> Texture:
    """Draw the textures of `num_clips` clips; nothing in them depends on a class."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    grey = torch.randn(num_clips, NUM_WAVES, 1, generator=generator)
    tint = torch.randn(num_clips, NUM_WAVES, 3, generator=generator)
    return Texture(
        direction=uniform(num_clips, NUM_WAVES) * 2 * math.pi,
        position=uniform(num_clips, NUM_WAVES),
        phase=uniform(num_clips, NUM_WAVES) * 2 * math.pi,
        color=(grey + 0.7 * tint) / math.hypot(1, 0.7),
        speed=uniform(num_clips),
    )


def render(texture: Texture, labels: Tensor, num_segments: int = 8, size: int = 48) -> Tensor:
    """The frames of N clips.

    Args:
        texture: of N clips.
        labels: indices into `CLASSES`, `[N]`.
        num_segments: T, the frames of a clip.
        size: H and W in pixels.

    Returns:
        uint8 `[N, T, 3, H, W]`; `render(texture, REVERSED of labels)` is the same, flipped in time.
    """
    time = torch.arange(num_segments) - (num_segments - 1) / 2

    def moved(forward: str, backward: str, limits: tuple[float, float]) -> Tensor:
        """How far the frames are from mid-clip, `[N, T]`."""
        sign = (labels == CLASSES.index(forward)).float() - (labels == CLASSES.index(backward)).float()
        return (sign * torch.lerp(torch.tensor(limits[0]), torch.tensor(limits[1]), texture.speed))[
            :, None
        ] * time

    shortest, longest = WAVELENGTHS
    band = math.log(longest / shortest)
    position = (texture.position[:, None] + moved("zoom in", "zoom out", ZOOM)[..., None] / band) % 1
    direction = texture.direction[:, None] + moved("clockwise", "anticlockwise", ROTATION)[..., None]
    wavenumber = 2 * math.pi / (shortest * torch.exp(position * band))
    amplitude = torch.sin(math.pi * position).square()[..., None] * texture.color[:, None]

    # A plane wave is the product of one along x and one along y, so no wave is sampled on the whole grid.
    pixel = torch.arange(size) - (size - 1) / 2
    x = pixel - moved("right", "left", TRANSLATION)[..., None]
    y = pixel - moved("down", "up", TRANSLATION)[..., None]
    along_x = (wavenumber * direction.cos())[..., None] * x[:, :, None]
    along_y = (wavenumber * direction.sin())[..., None] * y[:, :, None] + texture.phase[:, None, :, None]
    frames = einsum(
        amplitude.to(torch.complex64),
        torch.polar(torch.ones_like(along_y), along_y),
        torch.polar(torch.ones_like(along_x), along_x),
        "n t wave rgb, n t wave y, n t wave x -> n t rgb y x",
    ).real
    # The mean square of sin^2 is 3/8, of a wave 1/2.
    frames = 0.5 + CONTRAST * frames / math.sqrt(NUM_WAVES * 3 / 8 / 2)
    return frames.clamp(0, 1).mul(255).round().to(torch.uint8)


def write_clip(path: Path, frames: Tensor, fps: int = 8) -> None:
    """Write uint8 frames `[T, 3, H, W]` as MP4: H.264, or MPEG-4 where FFmpeg comes without x264.

    Each frame is coded alone and at the same quality: none carries traces of its neighbours.

    Raises:
        ImportError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"writing clips needs PyAV (module 'av'): pip install {requirements('av')}"
        ) from error
    if "libx264" in av.codecs_available:
        codec, options = "libx264", {"qp": "10", "preset": "veryfast", "tune": "zerolatency"}
    else:
        codec, options = "mpeg4", {"qmin": "2", "qmax": "2"}
    with replacing(path) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 1
        stream.thread_count = 1
        for frame in frames.permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
