"""Data sets as they lie on a disk, made one listing: lists, a folder for each class, published layouts."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from .finding import VIDEOS, Finder, is_frame_folder, videos_below
from .folders import (
    check_no_frames,
    check_no_split,
    class_folders,
    holds_videos,
    labelled_by_folder,
    report_left_out,
    split_folder,
    split_folders,
)
from .labels import number_labels, read_classes
from .lists import SPLITS, read_entries
from .samples import AnyPath, Listing, Sample

__all__ = ["Missing", "find_list", "read_listing"]

Missing: TypeAlias = Literal["raise", "skip"]
LISTS = (".json", ".csv", ".tsv", ".txt")


def read_listing(
    data: AnyPath,
    *,
    split: str | None = None,
    root: AnyPath | None = None,
    classes: Sequence[str] | None = None,
    missing: Missing = "raise",
) -> Listing:
    """The videos of a data set and their classes; no video is opened but `.avif` and `.gif` named by their
    numbers, to see whether they are the frames of one.

    Args:
        data: one of

            - a folder with a folder for each class, which is its name, of videos or of folders of frames, at any depth;
              a folder without any is no class, and files whose suffix is none of videos are left out: a warning says
              which
            - a folder `train`, `val`, `test` of those, in capitals or not, or of videos with a list (below) beside them
            - a folder of videos, or of folders of frames (`00001.jpg`, ...), or one of those: they have no labels
            - a list: CSV, TSV or text of `path,label` or `path label`, with a header or without; the authors' `path
              frames label`; JSON
              of `{path: label}`, of pairs, or of objects with `path` and `label`
            - a list of Kinetics (`youtube_id`, `time_start`, `time_end`; CSV or JSON), of Something-Something or of
              Jester (`id;label`, or JSON with `id` and `template`), whose classes are read from the file of labels
              that comes beside it
        split: `"train"`, `"val"` or `"test"`, where `data` holds several: folders, lists, or the rows of a list with a
            column `split`, `subset`, `set`, `partition` or `fold`, whose other values are splits, too. A row without a
            value belongs to each.
        root: the folder that a list's paths start from, its own if None. A name without its folders or its suffix is
            looked for below it.
        classes: their names in the order of their numbers, as those of the training data for a validation. Where a
            list gives numbers, they count from 0; they are names where all classes are numbers. None for the classes
            that occur, in natural order.
        missing: of videos that a list names and that are not there: `"raise"`, or `"skip"`, with one warning.

    Returns:
        The `Listing`: in the order of the list, or in natural order of the paths.

    Raises:
        ValueError: nothing there, no videos, missing ones, labels that are not among the classes, another form; a split
            that must be named, or that a list's column does not have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("left/a.mp4", "left/b.mp4", "right/c.mp4"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()
        ...     listing = read_listing(folder)
        >>> listing.classes, [sample.label for sample in listing.samples]
        (('left', 'right'), [0, 0, 1])
    """
    if missing not in ("raise", "skip"):
        raise ValueError(f"missing must be 'raise' or 'skip', got {missing!r}")
    path = os.fspath(data)
    if os.path.isfile(path) and path.lower().endswith(VIDEOS):
        return Listing((Sample(path),), tuple(classes or ()))
    if os.path.isfile(path):
        return _from_list(Path(path), split, root, classes, missing)
    if not os.path.isdir(path):
        raise ValueError(f"expected a folder of videos or a list of them, got {path!r}: check the path")
    if split is None:
        if splits := split_folders(path):
            raise ValueError(
                f"expected the name of a split for {path!r}, got none: pass one of {', '.join(splits)}"
            )
        return _from_folder(path, classes)
    folder = split_folder(path, split)
    if folder is not None and labelled_by_folder(folder):
        return _from_folder(folder, classes)
    annotations = find_list(path, split)
    if annotations is not None:
        return _from_list(annotations, split, root or path, classes, missing)
    if folder is None:
        raise ValueError(
            f"expected a folder or a list of the split {split!r} in {path!r}, got neither: pass the list itself, or "
            "make a folder of that name"
        )
    return _from_folder(folder, classes)


def _from_list(
    path: Path, split: str | None, root: AnyPath | None, classes: Sequence[str] | None, missing: Missing
) -> Listing:
    entries = read_entries(path, split)
    if classes is None:
        classes = _classes_beside(path)
    labels, classes = number_labels([entry.label for entry in entries], classes, repr(str(path)))
    root = os.fspath(root) if root is not None else str(path.parent)
    if not os.path.isdir(root):
        raise ValueError(
            f"expected the folder that {str(path)!r} starts from, got root={root!r}: check the path"
        )
    finder = Finder(root)
    samples, lost = list[Sample](), list[str]()
    for entry, label in zip(entries, labels, strict=True):
        found = finder.find(entry.name)
        if found is None:
            lost.append(entry.name)
        else:
            samples.append(Sample(found, label))
    if lost:
        shown = ", ".join(map(repr, lost[:5])) + (", ..." if len(lost) > 5 else "")
        if missing == "raise" or not samples:
            advice = ", or pass missing='skip' (--on-error skip) to leave them out" if samples else ""
            raise ValueError(
                f"expected the videos of {str(path)!r} below {finder.root!r}, got {len(samples)} of {len(entries)} "
                f"without {shown}: check root{advice}"
            )
        warnings.warn(
            f"left out {len(lost)} of the {len(entries)} videos of {str(path)!r}, which are not below "
            f"{finder.root!r}: {shown}",
            stacklevel=3,
        )
    return Listing(tuple(samples), classes, tuple(lost))


def _from_folder(folder: str, classes: Sequence[str] | None) -> Listing:
    if is_frame_folder(folder):
        return Listing((Sample(folder),), tuple(classes or ()))
    inside = class_folders(folder)
    folders = [name for name in inside if holds_videos(os.path.join(folder, name))]
    check_no_split(folder, folders)
    report_left_out(folder, [name for name in inside if name not in set(folders)])
    if not folders:
        paths = list(videos_below(folder))
        check_no_frames(paths)
        samples = tuple(Sample(path) for path in paths)
        if samples:
            return Listing(samples, tuple(classes or ()))
    found = [(path, name) for name in folders for path in videos_below(os.path.join(folder, name))]
    check_no_frames(path for path, _ in found)
    if not found:
        raise ValueError(
            f"expected videos ({' '.join(VIDEOS)}) or folders of frames in {folder!r}, got none: check the path"
        )
    if classes is None:
        classes = folders
    labels, classes = number_labels([name for _, name in found], classes, repr(folder), are_names=True)
    return Listing(
        tuple(Sample(path, label) for (path, _), label in zip(found, labels, strict=True)), classes
    )


def find_list(folder: str, split: str) -> Path | None:
    """The list of a split in a folder, by its name."""
    word = re.compile(rf"(^|[^a-z])({'|'.join(SPLITS.get(split, (re.escape(split),)))})([^a-z]|$)")
    for suffix in LISTS:
        found = [
            path
            for below in (".", "annotations", "labels")
            for path in sorted(Path(folder, below).glob(f"*{suffix}"))
            if word.search(path.stem.lower()) and "answers" not in path.stem
        ]
        if len(found) > 1:
            raise ValueError(
                f"expected one list of the split {split!r} in {folder!r}, got "
                f"{', '.join(repr(str(path)) for path in found)}: pass the one itself"
            )
        if found:
            return found[0]
    return None


def _classes_beside(path: Path) -> list[str] | None:
    """The classes of Something-Something and Jester, whose file is named as the list is."""
    words = "|".join(word for words in SPLITS.values() for word in words)
    stem = re.sub(rf"(^|(?<=[-_.]))({words})$", "labels", path.stem.lower())
    if stem == path.stem.lower():
        return None
    files = {other.name.lower(): other for other in path.parent.iterdir()}
    other = files.get(f"{stem}{path.suffix.lower()}")
    return None if other is None else read_classes(other)
