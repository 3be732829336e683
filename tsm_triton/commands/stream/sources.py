"""Where frames come from: a video file, a folder of images, a camera or a URL, all read in order."""

from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image
from torch import Tensor

from ...video.decoding import play
from ...video.live import Source, is_url, open_camera, open_url
from ...video.pictures import PICTURES, pictures_in, upright_picture
from ..common import printable

__all__ = ["Source", "open_source"]

IMAGES_PER_SECOND = 25.0


def open_source(source: str) -> Source:
    """Recognise a source and open it.

    Args:
        source: the path of a video file or of a folder of images (read in the order of their names, 2 before 10,
            without pictures of optical flow), the number of a camera, or a URL. A file that is called `0` is `./0`.

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
    names = [name for name in pictures_in(str(folder)) if (folder / name).is_file()]
    if not names:
        raise ValueError(
            f"expected a folder of images ({', '.join(PICTURES)}), got none in {str(folder)!r}: "
            "pass the folder they lie in"
        )

    stems = Counter(Path(name).stem for name in names)
    if twice := [stem for stem, times in stems.items() if times > 1]:
        raise ValueError(
            f"expected a picture for each frame, got several that are called {twice[0]!r} in {str(folder)!r}: "
            "make a folder of those of one kind"
        )
    frames = ((_image(folder / name), number / IMAGES_PER_SECOND) for number, name in enumerate(names))
    return Source(frames, IMAGES_PER_SECOND, len(names))


def _image(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return upright_picture(image)
    except Exception as error:  # each of Pillow's formats fails in its own ways
        raise ValueError(
            f"expected an image, got {str(path)!r}, which cannot be read ({printable(str(error))}): "
            "save it again, or take it out of the folder"
        ) from error
