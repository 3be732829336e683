"""Files that appear whole or not at all, and names that may be printed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["printable", "replacing"]


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
