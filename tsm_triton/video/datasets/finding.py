"""The files that a list means: by their path, or by their name anywhere below a folder."""

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property

from ..pictures import PICTURES, natural

__all__ = ["VIDEOS", "Finder", "is_frame_folder", "videos_below"]

# fmt: off
VIDEOS = (
    ".3gp", ".asf", ".avi", ".avif", ".flv", ".gif", ".h264", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)
# fmt: on


class Finder:
    """Find videos below a folder by the name that a list gives them, which may lack folders and the suffix."""

    def __init__(self, root: str) -> None:
        self.root = root

    def find(self, name: str) -> str | None:
        """The path; None if there is no such video.

        Raises:
            ValueError: several have this name.
        """
        for base in self.bases:
            path = os.path.join(base, name)
            if os.path.exists(path):
                return path
        wanted = os.path.normpath(name)
        ends = [
            path
            for path in self.by_stem.get(_stem(os.path.basename(wanted)), ())
            if f"{os.sep}{path}".endswith(f"{os.sep}{wanted}")
            or f"{os.sep}{_stem(path)}".endswith(f"{os.sep}{wanted}")
        ]
        if len(ends) > 1:
            raise ValueError(
                f"expected one video {name!r} below {self.root!r}, got {', '.join(map(repr, ends[:3]))}: write the "
                "whole path into the list"
            )
        return os.path.join(self.root, ends[0]) if ends else None

    @cached_property
    def bases(self) -> list[str]:
        """The root and the folders in it, so that not each of their folders of frames must be looked into."""
        return [self.root, *(os.path.join(self.root, name) for name in _folders(self.root))]

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for path in videos_below(self.root):
            path = os.path.relpath(path, self.root)
            found[_stem(os.path.basename(path))].append(path)
        return found


def videos_below(folder: str, _seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The video files and the folders of frames below a folder, in natural order; links are followed, circles not."""
    real = os.path.realpath(folder)
    if real in _seen:
        return
    with os.scandir(folder) as scanned:
        inside = sorted((entry.name for entry in scanned if entry.name[0] != "."), key=natural)
    for name in inside:
        path = os.path.join(folder, name)
        if name.lower().endswith(VIDEOS) and os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            if is_frame_folder(path):
                yield path
            else:
                yield from videos_below(path, _seen | {real})


def is_frame_folder(folder: str) -> bool:
    """Whether pictures lie in a folder, and no videos."""
    with os.scandir(folder) as scanned:
        names = [entry.name.lower() for entry in scanned if entry.name[0] != "."]
    return any(name.endswith(PICTURES) for name in names) and not any(name.endswith(VIDEOS) for name in names)


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as scanned:
        names = [entry.name for entry in scanned if entry.is_dir() and entry.name[0] != "."]
    return sorted(names, key=natural)


def _stem(path: str) -> str:
    """Without the suffix of a video; other dots belong to the name."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in VIDEOS else path
