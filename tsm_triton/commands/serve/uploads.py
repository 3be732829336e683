"""A client's video: received into a file, read frame by frame, and gone when it is not needed any more."""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.error import FFmpegError
from PIL import Image
from torch import Tensor

from ...video.decoding import play
from ..common import printable
from .service import Limits

__all__ = ["Picture", "Upload"]

# Formats that name other files. A stranger's could name those of this machine, and show what they hold.
LISTS = ("concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp")
SHOWN = 640  # pixels of a picture's longer side


class Picture(NamedTuple):
    """A frame of a video.

    Attributes:
        time: in seconds from the first one.
        frame: `[3, H, W]`, as the model takes it.
        jpeg: what the page shows.
    """

    time: float
    frame: Tensor
    jpeg: bytes


class Upload:
    """A video that comes in parts; a context manager that removes its file.

    Args:
        folder: for the file.
        name: what the client calls it, for messages.
        size: of the whole, in bytes, as the client says.
        limits: for it.

    Raises:
        ValueError: no such size, or too large.
    """

    def __init__(self, folder: Path, name: Any, size: Any, limits: Limits) -> None:
        self.name = printable(name)[:100] if isinstance(name, str) else "video"
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(
                f"expected the size of {self.name!r} in bytes, got a {type(size).__name__}: pass a whole number"
            )
        if size < 1:
            raise ValueError(f"expected a video, got {self.name!r}, which is empty: choose another file")
        if size > limits.max_bytes:
            raise ValueError(
                f"expected a video of at most {limits.max_bytes / 1e6:.0f} MB, got {self.name!r} of "
                f"{size // 10**6} MB: cut or scale it down, or pass tsm-triton serve a larger --max-upload"
            )
        self.folder = folder
        self.size = size
        self.chunk = limits.chunk
        self.expected = 0
        self.frames: Any = None

    def __enter__(self) -> "Upload":
        # FFmpeg knows formats by what they hold, the name is ours
        self.file = tempfile.NamedTemporaryFile(dir=self.folder, delete=False)
        self.path = Path(self.file.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.frames is not None:
            with suppress(ValueError):  # a thread reads on; its end closes what it reads
                self.frames.close()
        with suppress(OSError):  # Windows keeps what is open; the folder goes with the server
            self.path.unlink(missing_ok=True)

    def parts(self) -> Iterator[tuple[int, int]]:
        """The first byte and the one behind the last of each part, to be written before the next."""
        for begin in range(0, self.size, self.chunk):
            end = min(begin + self.chunk, self.size)
            self.expected = end - begin
            yield begin, end

    def write(self, data: bytes) -> None:
        """Take the next part.

        Raises:
            ValueError: it is longer or shorter than asked, or the disk is full.
        """
        if len(data) != self.expected:
            raise ValueError(
                f"expected {self.expected} bytes of {self.name!r}, got {len(data)}: choose the file again, it has "
                "changed"
            )
        try:
            self.file.write(data)
            self.file.flush()
        except OSError as error:
            raise ValueError(
                f"expected room for {self.name!r}, got an error of the server's disk ({error.strerror}): try a smaller "
                "video"
            ) from error

    def open(self) -> dict[str, Any]:
        """Begin to read.

        Returns:
            What the video holds: `num_frames`, `fps`, `width`, `height`, `duration`.

        Raises:
            ValueError: it is none, or names other files.
        """
        self.file.close()
        self._check_format()
        try:
            info, self.frames = play(self.path)
        except ValueError as error:
            error.args = (str(error).replace(str(self.path), self.name),)  # as the client knows it
            raise
        return {name: getattr(info, name) for name in ("num_frames", "fps", "width", "height", "duration")}

    def picture(self, prepared: Callable[[Tensor], Tensor]) -> Picture | None:
        """The next frame, None behind the last; `prepared` makes of a picture what the model takes."""
        item = next(self.frames, None)
        if item is None:
            return None
        frame, time = item
        ready = prepared(frame)
        image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.BILINEAR, reducing_gap=2.0)
        file = io.BytesIO()
        image.save(file, "jpeg", quality=80)
        return Picture(time, ready, file.getvalue())

    def _check_format(self) -> None:
        """Raise for all that FFmpeg does not read, without opening a file that it may name."""
        formats = {part for name in av.formats_available for part in name.split(",")}
        allowed = {
            "format_whitelist": ",".join(sorted(formats - {*LISTS})),
            "protocol_whitelist": "file",
            "pattern_type": "none",
        }
        try:
            av.open(str(self.path), metadata_errors="replace", options=allowed).close()
        except (FFmpegError, ValueError) as error:
            raise ValueError(
                f"expected a video file, got {self.name!r}, which FFmpeg cannot read "
                f"({getattr(error, 'strerror', None) or error}): is it a video? Choose another file."
            ) from error
