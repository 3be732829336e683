"""What several commands share: models by name, devices, and files that appear whole or not at all."""

import codecs
import re
import sys
from pathlib import Path

import torch

from ..backbones import create_backbone as create_model
from ..files import printable, replacing

__all__ = ["create_model", "make_folder", "pick_device", "printable", "read_labels", "replacing", "say"]

# UTF-32 before UTF-16, which begins as it does
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected a device that torch can use here, got {name!r} ({reason}). Try --device cpu."
        ) from error
    return device


def make_folder(path: Path) -> None:
    """A folder for results, with those around it; it may be there already.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"expected a folder for results, got {str(path)!r} ({error.strerror}): pass another --out"
        ) from error


def say(line: str) -> None:
    """A line on stderr where it is no terminal: there no bar is drawn, and minutes would pass in silence."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def read_labels(path: Path) -> list[str]:
    """Class names, one on each line that is not empty: UTF-8 or UTF-16, of any system.

    Raises:
        ValueError: there is no such file, or it holds another encoding; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.txt")
        ...     _ = path.write_text("swipe left\\r\\nswipe right\\r\\n", "utf-16")
        ...     read_labels(path)
        ['swipe left', 'swipe right']
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"expected a file of labels, got {str(path)!r} ({error.strerror}): check the path"
        ) from error
    encoding = next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), "utf-8")
    if (
        encoding == "utf-8" and b"\0" in data
    ):  # UTF-16 without a mark: a line's end, if nothing else, has a zero
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise ValueError(
            f"expected labels in UTF-8 or UTF-16, got line {line} of {str(path)!r}, which is not {encoding.upper()}: "
            "save the file as UTF-8"
        ) from error
    lines = (line.strip("\ufeff \t\f\v\xa0") for line in re.split(r"\r\n|\r|\n", text))
    return [printable(line) for line in lines if line]
