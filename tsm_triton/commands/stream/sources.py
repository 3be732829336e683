"""Where frames come from: a video file, a folder of images, a camera or a URL, all read in order."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor

from ...video.decoding import play
from ...video.live import Source, is_url, open_camera, open_url
from ..common import printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Source", "open_source"]

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGES_PER_SECOND = 25.0
BITS_PER_SAMPLE = 258  # TIFF's tag


def open_source(source: str) -> Source:
    """Recognise a source and open it.

    Args:
        source: the path of a video file or of a folder of images (read in the order of their names, 2 before 10),
            the number of a camera, or a URL. A file that is called `0` is `./0`.

    Raises:
        FileNotFoundError, ImportError, ValueError: there is no such thing, or it cannot be read.
    """
    if source.isdecimal():
        return open_camera(int(source))
    if is_url(source) and urlsplit(source).scheme == "file":
        source = unquote(urlsplit(source).path)
    if is_url(source):
        return open_url(source)
    if Path(source).is_dir():
        return _folder(Path(source))
    info, frames = play(source)
    return Source(frames, info.fps or IMAGES_PER_SECOND, info.num_frames)


def _folder(folder: Path) -> Source:
    # not the ._name files that macOS leaves beside each file elsewhere, nor other hidden ones
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and path.name[0] != "."]
    paths = sorted((path for path in paths if path.is_file()), key=_natural)
    if not paths:
        raise ValueError(
            f"expected a folder of images ({', '.join(IMAGES)}), got none in {str(folder)!r}: "
            "pass the folder they lie in"
        )

    frames = ((_image(path), number / IMAGES_PER_SECOND) for number, path in enumerate(paths))
    return Source(frames, IMAGES_PER_SECOND, len(paths))


def _natural(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.stem.casefold())  # text and numbers in turn
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name


def _image(path: Path) -> Tensor:
    """The RGB picture in a file: upright, without its alpha, 16 bits a channel scaled to 8."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import pil_to_tensor

    unfit = ""
    try:
        with Image.open(path) as image:
            kind, mode, pages = image.format, image.mode, getattr(image, "n_frames", 1)
            bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
            if pages > 1 and kind != "MPO":  # a photograph, and beside it what the phone made of it
                unfit = f"{pages} pictures in one file: save each in a file of its own"
            elif mode == "F" or (mode == "I" and kind not in ("PNG", "PPM")):
                unfit = "numbers of 32 bits, of which none is known to be white: save it with 8 or 16 bits"
            else:
                image = ImageOps.exif_transpose(image)
                wide = mode == "I" or mode.startswith("I;16")
                return _eight_bits(image, 2**bits - 1) if wide else pil_to_tensor(image.convert("RGB"))
    except Exception as error:  # each of Pillow's formats fails in its own ways
        raise ValueError(
            f"expected an image, got {str(path)!r}, which cannot be read ({printable(str(error))}): "
            "save it again, or take it out of the folder"
        ) from error
    raise ValueError(f"expected an image, got {str(path)!r} with {unfit}, or drop it from the folder")


def _eight_bits(image: "Image.Image", white: int) -> Tensor:
    """A grey picture of up to 16 bits."""
    import numpy as np

    grey = (np.asarray(image).astype(np.int64).clip(0, white) * 255 + white // 2) // white
    return torch.from_numpy(grey.astype(np.uint8)).expand(3, -1, -1)
