"""Frames that come as encoded pictures: folders of them, in the natural order of their names, or one by one."""

import io
import os
import re

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..arguments import as_count
from .containers import MAX_PIXELS, scaled
from .sampling import Strategy, sample_frames

__all__ = [
    "PICTURES",
    "decode_picture",
    "frame_files",
    "natural",
    "pictures_in",
    "read_frame_folder",
    "upright_picture",
]

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_BITS_PER_SAMPLE = 258  # TIFF's tag
FLOW = re.compile(
    r"flow[_-]?[xy]|[xy]_", re.IGNORECASE
)  # that extractors of optical flow write beside the frames


def natural(name: str) -> tuple[list[str | int], str]:
    """The key that sorts numbers in names by their value.

    Example:
        >>> sorted(["b10", "b9", "a"], key=natural)
        ['a', 'b9', 'b10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name


def pictures_in(folder: str) -> list[str]:
    """The names of a folder's pictures in natural order, without hidden ones and those of optical flow.

    Raises:
        OSError: the folder cannot be read.
        ValueError: they are named by decimal numbers, which natural order takes for two numbers.
    """
    names = [name for name in os.listdir(folder) if name.lower().endswith(PICTURES) and name[0] != "."]
    names = [name for name in names if not FLOW.match(name)] or names
    decimals = {len(match[1]) for name in names if (match := re.search(r"[0-9]\.([0-9]+)\.[^.]*$", name))}
    if len(decimals) > 1:
        raise ValueError(
            f"expected decimal numbers of as many digits in each name, as 0.25 and 0.50, got {min(decimals)} to "
            f"{max(decimals)} behind the point in {folder!r}: save the pictures under whole numbers"
        )
    return sorted(names, key=lambda name: (natural(name.casefold()), name))


def frame_files(folder: str) -> list[str]:
    """The names of a folder's pictures in natural order: `00001.jpg`, `img_00001.jpg`, `1.png`, ...

    Pictures of optical flow beside them (`flow_x_00001.jpg`) are left out.

    Raises:
        OSError: the folder cannot be read.
        ValueError: the pictures are named in several ways, so they are not the frames of one video.
    """
    names = pictures_in(folder)
    schemes = {re.sub(r"[0-9]+(?=\.[^.]*$)", "#", name) for name in names}
    if len(schemes) > 1:
        shown = ", ".join(sorted(schemes)[:4])
        raise ValueError(
            f"expected the frames of one video, named alike but for their number, got {shown} in {folder!r}: move "
            "the others elsewhere, or make a folder for each video"
        )
    return names


def read_frame_folder(
    folder: str,
    num_segments: int,
    strategy: Strategy = "uniform",
    *,
    train: bool = False,
    generator: torch.Generator | None = None,
    num_clips: int | None = None,
    size: int | None = None,
) -> Tensor:
    """Sample frames of a folder of pictures and decode them, as `read_clip` does of a video file.

    Args:
        folder: with a picture for each frame, see `frame_files`.
        num_segments, strategy, train, generator, num_clips: see `sample_frames`.
        size: what the short side is scaled to in pixels: bilinear, antialiased; None for the pictures' own. A JPEG
            is decoded at a half, a quarter or an eighth of its size where that is enough.

    Returns:
        uint8 `[num_clips, T, 3, H, W]` on the CPU, RGB.

    Raises:
        OSError: the folder cannot be read.
        ValueError: no pictures, pictures of several videos or of several sizes, one that cannot be decoded; and as
            for `sample_frames`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in range(1, 21):
        ...         Image.new("RGB", (64, 48), (number, 0, 0)).save(f"{folder}/{number:05d}.png")
        ...     clip = read_frame_folder(folder, 4, size=24)
        >>> clip.shape, clip[0, :, 0, 0, 0]
        (torch.Size([1, 4, 3, 24, 32]), tensor([ 3,  8, 13, 18], dtype=torch.uint8))
    """
    names = frame_files(folder)
    if not names:
        raise ValueError(
            f"expected a folder of frames, got {folder!r} without a picture ({', '.join(PICTURES)}): check the path"
        )
    wanted = sample_frames(
        len(names), num_segments, strategy, train=train, generator=generator, num_clips=num_clips
    )
    numbers, rows = wanted.unique(return_inverse=True)
    paths = [os.path.join(folder, names[number]) for number in numbers.tolist()]
    pictures = [_picture(path, size) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise ValueError(
                f"expected pictures of one size, got {picture.shape[1]} x {picture.shape[0]} for {path!r} and "
                f"{pictures[0].shape[1]} x {pictures[0].shape[0]} before: make a folder for each video"
            )
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)[rows]


def decode_picture(data: bytes) -> Tensor:
    """The RGB picture, uint8 `[3, H, W]`, in the bytes of a JPEG, PNG or WebP, as a stranger may send them.

    Raises:
        ValueError: they are no such picture, not all of it, or of more than `MAX_PIXELS`.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (64, 48), (255, 0, 0)).save(file, "png")
        >>> decode_picture(file.getvalue())[:, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    try:
        # by name: of Pillow's other formats some start programs
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"expected at most MAX_PIXELS = {MAX_PIXELS} pixels, got {image.width} x {image.height}: scale it "
                    "down first"
                )
            return upright_picture(image)
    except Exception as error:  # each of Pillow's formats fails in its own ways
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ValueError(
            f"expected a picture, got {len(data)} bytes that are none{reason}: encode it as JPEG or PNG"
        ) from error


def upright_picture(image: Image.Image) -> Tensor:
    """An opened picture as uint8 `[3, H, W]`: RGB, upright, without its alpha, 16 bits a channel scaled to 8.

    Raises:
        ValueError: it is several pictures, or of numbers of which none is known to be white.
    """
    _check_single(image)
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            "expected 8 or 16 bits a channel, got a picture with numbers of 32 bits, of which none is known to be "
            "white: save it with 8 or 16 bits"
        )
    wide = image.mode == "I" or image.mode.startswith("I;16")
    white = 2 ** getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0] - 1
    image = ImageOps.exif_transpose(image)
    if wide:
        grey = (np.asarray(image).astype(np.int64).clip(0, white) * 255 + white // 2) // white
        return torch.from_numpy(grey.astype(np.uint8)).expand(3, -1, -1)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _check_single(image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # a photograph, and beside it what the phone made of it
        raise ValueError(
            f"expected one picture, got one with {pages} pictures in one file: save each in a file of its own"
        )


def _picture(path: str, size: int | None) -> np.ndarray:
    """uint8 `[H, W, 3]`."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            target = (width, height) if size is None else scaled(width, height, as_count(size, "size"))
            if max(width * height, target[0] * target[1]) > MAX_PIXELS:
                raise ValueError(
                    f"expected frames of at most MAX_PIXELS = {MAX_PIXELS} pixels, got {width} x {height}: scale "
                    "the picture down first"
                )
            _check_single(image)
            if image.mode[0] in "IF":
                raise ValueError(f"expected 8 bits a channel, got mode {image.mode!r}: save it as RGB")
            if size is not None:
                image.draft("RGB", target)
            # resized as it lies, then turned: the short side is the same
            picture = image.convert("RGB").resize(target, Image.Resampling.BILINEAR)
            ImageOps.exif_transpose(picture, in_place=True)
            return np.asarray(picture)
    except Exception as error:  # each of Pillow's formats fails in its own ways
        raise ValueError(
            f"expected a picture that can be decoded, got {path!r} ({error}): copy or extract it again"
        ) from error
