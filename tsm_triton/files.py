"""Files that appear whole or not at all, text of any system, and names that may be printed."""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["printable", "read_text", "replacing"]

# UTF-32 before UTF-16, which begins as it does
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text(path: Path, what: str) -> str:
    """A file's text, in UTF-8 or UTF-16, of any system: lines end in a line feed, whatever they ended in.

    Args:
        path: of the file.
        what: it holds, for messages.

    Raises:
        ValueError: there is no such file, or it holds another encoding; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.txt")
        ...     _ = path.write_text("swipe left\\r\\nswipe right\\r\\n", "utf-16")
        ...     read_text(path, "labels")
        'swipe left\\nswipe right\\n'
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"expected a file of {what}, got {str(path)!r} ({error.strerror}): check the path"
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
            f"expected {what} in UTF-8 or UTF-16, got line {line} of {str(path)!r}, which is not {encoding.upper()}: "
            "save the file as UTF-8"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def printable(text: str) -> str:
    """What may go to a terminal or a picture: other characters, undecodable bytes of a name among them, become U+FFFD.

    Example:
        >>> printable("caf\\udce9.mp4")
        'caf\ufffd.mp4'
    """
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name in its folder; it takes its own name when complete.

    An error or Ctrl-C inside the `with` removes the temporary file and leaves what was there before.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/numbers.txt") as temporary:
        ...         _ = temporary.write_text("1 2 3")
        ...     os.listdir(folder)
        ['numbers.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
