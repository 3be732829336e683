"""What the folders of a data set are: splits, classes, or videos."""

import os
import warnings
from collections.abc import Sequence

from .finding import VIDEOS, is_frame_folder, others_below, subfolders, videos_below
from .lists import SPLITS

__all__ = [
    "class_folders",
    "holds_videos",
    "labelled_by_folder",
    "report_left_out",
    "split_folder",
    "split_folders",
]


def split_folder(folder: str, split: str) -> str | None:
    """The folder of a split, under one of the names that it may have."""
    for name in SPLITS.get(split, (split,)):
        if os.path.isdir(path := os.path.join(folder, name)):
            return path
    return None


def split_folders(folder: str) -> list[str]:
    """The splits that a folder holds: nothing but them, or two of them beside annotations and the like."""
    known = {name: split for split, names in SPLITS.items() for name in names}
    names = [name for name in subfolders(folder) if holds_videos(os.path.join(folder, name))]
    found = [known[name] for name in names if name in known]
    return found if len(found) == len(names) or len(set(found)) > 1 else []


def labelled_by_folder(folder: str) -> bool:
    return not is_frame_folder(folder) and bool(class_folders(folder))


def holds_videos(folder: str) -> bool:
    return is_frame_folder(folder) or next(videos_below(folder), None) is not None


def class_folders(folder: str) -> list[str]:
    """The names of the folders in a folder, one a class if it holds videos; none where it holds videos itself.

    Raises:
        ValueError: it holds both.
    """
    folders = subfolders(folder)
    videos = [name for name in folders if is_frame_folder(os.path.join(folder, name))]
    with os.scandir(folder) as scanned:
        videos += [entry.name for entry in scanned if entry.name.lower().endswith(VIDEOS) and entry.is_file()]
    others = [name for name in folders if name not in set(videos)]
    if videos and any(next(videos_below(os.path.join(folder, name)), None) for name in others):
        raise ValueError(
            f"expected a folder for each class or videos in {folder!r}, got both: the folder {others[0]!r} and the "
            f"video {videos[0]!r}. Leave videos only in folders of their class."
        )
    return [] if videos else others


def report_left_out(folder: str, empty: Sequence[str]) -> None:
    """Warn of folders that are no class, and of files that are no video by their suffix."""
    if empty:
        warnings.warn(
            f"took {len(empty)} folders in {folder!r} for no class, which hold no videos: {_shown(empty)}",
            stacklevel=4,
        )
    if others := sorted(os.path.relpath(path, folder) for path in others_below(folder)):
        warnings.warn(
            f"left out {len(others)} files in {folder!r}, whose suffixes are none of videos: {_shown(others)}",
            stacklevel=4,
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
