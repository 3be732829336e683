"""The files that a list means: by their path, or by their name anywhere below a folder."""

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property

from ..pictures import PICTURES, natural

__all__ = ["VIDEOS", "Finder", "is_frame_folder", "others_below", "subfolders", "videos_below"]

# fmt: off
VIDEOS = (
    ".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".avif", ".divx", ".dv", ".f4v", ".flv", ".gif", ".gxf",
    ".h261", ".h263", ".h264", ".h265", ".hevc", ".ismv", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mp4v", ".mpe", ".mpeg", ".mpg", ".mpv",
    ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".roq", ".tod", ".trp", ".ts",
    ".vob", ".webm", ".wmv", ".wtv", ".xvid", ".y4m",
)
# what lies beside videos, and is expected to be left out
BESIDE = (".csv", ".db", ".ini", ".json", ".md", ".srt", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml")
# fmt: on


MAX_BASES = 8


class Finder:
    """Find videos below a folder by the name that a list gives them, which may lack folders and the suffix."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> str | None:
        """The path; None if there is no such video.

        Raises:
            ValueError: several have this name.
        """
        path = os.path.join(self.root, name)
        if os.path.exists(path):
            return path
        name = os.path.normpath(name)
        found = list(self._near(name))
        # folders of frames may be too many to look for others
        if not found or any(map(os.path.isfile, found)):
            wanted = f"{os.sep}{name}"
            found += [
                path
                for path in self.by_stem.get(_stem(os.path.basename(wanted)), ())
                if path.endswith(wanted) or _stem(path).endswith(wanted)
            ]
        if len(found) > 1:  # where several are links, they may be one
            found = [*{os.path.realpath(path): path for path in reversed(found)}.values()][::-1]
        if len(found) > 1:
            found = [path for path in found if os.path.isfile(path) or is_frame_folder(path)] or found
        if len(found) > 1:
            raise ValueError(
                f"expected one video {name!r} below {self.root!r}, got {', '.join(map(repr, found[:3]))}: write the "
                "whole path into the list"
            )
        return found[0] if found else None

    def _near(self, name: str) -> Iterator[str]:
        """Those of this name in the root and in the folders in it."""
        above, last = os.path.split(name)
        for base in (self.root, *self.bases):
            folder = os.path.join(base, above)
            if os.path.exists(path := os.path.join(folder, last)):
                yield path
            if folder not in self._stems:
                self._stems[folder] = _by_stem(folder)
            yield from self._stems[folder].get(last, ())

    @cached_property
    def bases(self) -> list[str]:
        """The folders in the root, if few: they may hold a folder of frames for each video, too many to look into."""
        names = subfolders(self.root)
        return [os.path.join(self.root, name) for name in names] if len(names) <= MAX_BASES else []

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for path in videos_below(self.root):
            found[_stem(os.path.basename(path))].append(path)
        return found


def _by_stem(folder: str) -> dict[str, list[str]]:
    """The video files in a folder by their names without the suffix."""
    found = defaultdict(list)
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if name[0] != "." and (stem := _stem(name)) != name:
                found[stem].append(os.path.join(folder, name))
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


def others_below(folder: str) -> Iterator[str]:
    """The files below a folder that are no videos, no frames, and no notes beside them."""
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        if not is_frame_folder(above):
            known = (*VIDEOS, *BESIDE)
            yield from (
                os.path.join(above, n) for n in names if n[0] != "." and not n.lower().endswith(known)
            )


def is_frame_folder(folder: str) -> bool:
    """Whether pictures lie in a folder, and no videos; nor below, where the pictures are of what is there."""
    with os.scandir(folder) as scanned:
        entries = [entry for entry in scanned if entry.name[0] != "."]
    names = [entry.name.lower() for entry in entries]
    pictures = sum(name.endswith(PICTURES) for name in names)
    if not pictures or any(name.endswith(VIDEOS) for name in names):
        return False
    # one picture beside folders of frames is no video of one frame
    held = VIDEOS if pictures > 1 else (*VIDEOS, *PICTURES)
    folders = [entry.path for entry in entries if entry.is_dir()]
    return not any(
        name.lower().endswith(held) and name[0] != "."
        for path in folders
        for _, _, below in os.walk(path)
        for name in below
    )


def subfolders(folder: str) -> list[str]:
    """Their names in natural order, without hidden ones."""
    with os.scandir(folder) as scanned:
        names = [entry.name for entry in scanned if entry.is_dir() and entry.name[0] != "."]
    return sorted(names, key=natural)


def _stem(path: str) -> str:
    """Without the suffix of a video; other dots belong to the name."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in VIDEOS else path
