"""What the folders of a data set are: splits, classes, or videos."""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence

from PIL import Image

from .finding import VIDEOS, is_frame_folder, others_below, subfolders, videos_below
from .lists import SPLITS

__all__ = [
    "check_no_frames",
    "check_no_split",
    "class_folders",
    "holds_videos",
    "labelled_by_folder",
    "report_left_out",
    "split_folder",
    "split_folders",
]


# of videos, and of single pictures
EITHER = (".avif", ".gif")


def split_folder(folder: str, split: str) -> str | None:
    """The folder of a split, under one of the names that it may have, in capitals or not.

    Raises:
        ValueError: several.
    """
    names = [name for name in subfolders(folder) if name.lower() in SPLITS.get(split, (split.lower(),))]
    if len(names) > 1:
        names = [name for name in names if holds_videos(os.path.join(folder, name))] or names[:1]
    if len(names) > 1:
        raise ValueError(
            f"expected one folder of the split {split!r} in {folder!r}, got {', '.join(map(repr, names))}: pass the "
            "one itself, or rename the other"
        )
    return os.path.join(folder, names[0]) if names else None


def split_folders(folder: str) -> list[str]:
    """The splits that a folder holds: nothing but them, or two of them beside annotations and the like."""
    names = [name for name in subfolders(folder) if holds_videos(os.path.join(folder, name))]
    found = [split for name in names if (split := _split_of(name)) is not None]
    return found if len(found) == len(names) or len(set(found)) > 1 else []


def check_no_split(folder: str, classes: Sequence[str]) -> None:
    """Raise where a folder that is to be a class has the name of a split and holds classes itself."""
    for name in classes:
        inner = os.path.join(folder, name)
        if _split_of(name) is not None and labelled_by_folder(inner):
            others = ", ".join(repr(other) for other in classes if other != name)
            raise ValueError(
                f"expected a folder for each class in {folder!r}, got {name!r}, which holds classes itself, beside "
                f"{others}: pass split={_split_of(name)!r} (--split), or the folder {inner!r}; rename it if it is one"
            )


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


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


def check_no_frames(paths: Iterable[str]) -> None:
    """Raise where videos are single pictures named by their number: as `.jpg` they were the frames of one."""
    beside = defaultdict[str, list[str]](list)
    for path in paths:
        if path.lower().endswith(EITHER):
            beside[os.path.dirname(path)].append(path)
    for folder, inside in beside.items():
        numbered = {re.sub(r"[0-9]+(?=\.[^.]*$)", "#", os.path.basename(path)) for path in inside}
        if len(inside) > 1 and len(numbered) == 1 and "#" in numbered.pop() and all(map(_is_still, inside)):
            raise ValueError(
                f"expected videos, got {len(inside)} single pictures in {folder!r}, named by their numbers as the "
                "frames of one video: save them as JPEG or PNG, or rename them if each is a video"
            )


def _is_still(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return not getattr(image, "is_animated", False)
    except Exception:  # each of Pillow's formats fails in its own ways
        return False


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
