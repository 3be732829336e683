"""Lists of videos as files: CSV, TSV, text and JSON, those of published data sets among them."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...files import read_text
from .finding import VIDEOS

__all__ = ["SPLITS", "Entry", "read_entries", "tells_apart"]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
# what a column, or a key, may be called
PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "video", "video_path", "video_name"),
    *("video_id", "clip", "id", "name"),
)
LABELS = ("template", "label", "class", "class_id", "label_id", "class_name", "category", "action", "target")
# where a row's video begins or ends in a longer one
PART = re.compile(r"(time_|frame_|t_)?(start|begin|end|stop)(_(time|frame|sec|seconds|timestamp))?|segment")
SUBSETS = ("split", "subset", "set", "partition", "fold")
FILM = rf"\.({'|'.join(suffix[1:] for suffix in VIDEOS)})"


class _Malformed(Exception):
    """What is wrong with a row; `read_entries` says of which file."""


class Entry(NamedTuple):
    """A video as a list names it, and its label there."""

    name: str
    label: str | int | None = None


def read_entries(path: Path, split: str | None = None) -> list[Entry]:
    """The videos of a list; of one split, where the list tells them apart.

    Raises:
        ValueError: no such file, another form, or no videos.
    """
    text = read_text(path, "videos and their labels")
    try:
        rows = _rows(text, path)
        # of the whole list: a row without a value there has no label, whatever its other columns hold
        labels = next((key for key in LABELS if any(_holds(row, key) for row in rows)), None)
        entries = [_entry(row, labels) for row in rows if _belongs(row, split)]
        subsets = sorted({subset for row in rows if (subset := _subset(row))})
    except (_Malformed, ValueError, TypeError, KeyError, csv.Error) as error:
        raise _no_list(path, error) from error
    if not entries and subsets:
        raise ValueError(
            f"expected a split that {str(path)!r} has, {', '.join(map(repr, subsets[:5]))}, got {split!r}: pass split "
            "(--split), or drop that column"
        )
    if not entries:
        raise ValueError(
            f"expected videos{f' of the split {split!r}' if split else ''} in {str(path)!r}, got none: check the file"
        )
    return entries


def tells_apart(path: Path, split: str) -> bool:
    """Whether rows of a list name a split.

    Raises:
        ValueError: no such file, or another form.
    """
    text = read_text(path, "videos and their labels")
    try:
        return any(_subset(row) is not None and _belongs(row, split) for row in _rows(text, path))
    except (_Malformed, ValueError, TypeError, KeyError, csv.Error) as error:
        raise _no_list(path, error) from error


def _rows(text: str, path: Path) -> list[Mapping[str, Any]]:
    return list(_json_rows(json.loads(text)) if path.suffix.lower() == ".json" else _text_rows(text))


def _no_list(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"expected a list of videos and labels (path,label), got {str(path)!r} ({error}): write it as CSV, TSV or JSON"
    )


def _text_rows(text: str) -> Iterator[Mapping[str, Any]]:
    lines = [line for line in text.split("\n") if line.strip()]
    rows = _columns(lines)
    if rows and (header := _header(rows[0])):
        rows = rows[1:]
        yield from (dict(zip(header, row, strict=True)) for row in rows)
        return
    for row in rows:
        if len(row) == 3 and row[1].isdecimal():  # the authors' lists: path, number of frames, label
            if int(row[1]) == 0:
                raise _Malformed(f"a video of 0 frames, or of two labels: {row}")
            row = [row[0], row[2]]
        if len(row) > 2:
            raise _Malformed(f"a line holds {len(row)} columns: {row}")
        yield dict(zip(("path", "label"), row, strict=False))


def _columns(lines: list[str]) -> list[list[str]]:
    """Lines split where all of them can be: at tabs, semicolons, behind a video or before a number, at commas."""
    for mark in "\t;":
        if all(mark in line for line in lines):
            return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    words = lines[0].split() if lines else []
    if len(words) > 1 and "," not in lines[0] and _header(words):
        rows = _columns(lines[1:])
        return [words, *rows] if all(len(row) == len(words) for row in rows) else [[line] for line in lines]
    if _are_cells(lines):
        return [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True)]
    if all(re.search(r"[^,\s]\s+[0-9]+\s*$", line) for line in lines):
        framed = all(re.search(r"\s[0-9]+\s+[0-9]+\s*$", line) for line in lines)
        return [line.strip().rsplit(None, 2 if framed else 1) for line in lines]
    named = [re.match(rf"(.*?{FILM})\s+([^\s,].*)$", line.strip(), re.IGNORECASE) for line in lines]
    if named and all(named):
        return [[match[1], match[3]] for match in named if match]
    if any("," in line for line in lines):
        return [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True)]
    return [[line.strip()] for line in lines]


def _are_cells(lines: list[str]) -> bool:
    """Whether a comma stands behind every video, which tells `a.mp4,class 1` from `a, b.mp4 1`."""
    rows = list(csv.reader(lines, skipinitialspace=True))
    return all(len(row) > 1 and re.search(rf"{FILM}\s*$", row[0], re.IGNORECASE) for row in rows) or (
        all(len(row) == 2 for row in rows)
        and not any(re.search(rf"{FILM}(\s+[0-9]+)+\s*$", line, re.IGNORECASE) for line in lines)
        and not all(re.search(r"\s[0-9]+\s+[0-9]+\s*$", line) for line in lines)
    )


def _header(row: Sequence[str]) -> list[str] | None:
    names = [_word(cell) for cell in row]
    named = {"youtube_id", *PATHS} & set(names)
    return names if named and (len(names) == 1 or set(names) & {"youtube_id", *LABELS, *SUBSETS}) else None


def _json_rows(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, Mapping):
        data = data.get("database", data)
        for name, value in data.items():
            if not isinstance(value, Mapping):
                yield {"path": name, "label": value}
            elif "annotations" in value:  # Kinetics; ActivityNet's are lists
                yield _kinetics(name, value)
            else:
                yield {"path": name, **value}
        return
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise _Malformed(f"it holds {type(data).__name__}")
    for row in data:
        if isinstance(row, str):
            yield {"path": row}
        else:
            yield row if isinstance(row, Mapping) else dict(zip(("path", "label"), row, strict=True))


def _kinetics(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    annotation = value["annotations"]
    if not isinstance(annotation, Mapping):
        raise _Malformed(f"{name} has several annotations, a clip has one")
    start, end = annotation["segment"]
    row = {"youtube_id": name, "time_start": start, "time_end": end, "label": annotation.get("label")}
    return {**row, "subset": value.get("subset")}


def _entry(row: Mapping[str, Any], labels: str | None) -> Entry:
    label = row[labels] if labels is not None and _holds(row, labels) else None
    if isinstance(label, str) and labels == "template":
        label = label.replace("[", "").replace("]", "")
    if not isinstance(label, str | int | None) or isinstance(label, bool):
        raise _Malformed(f"a label is {label!r}")
    if "youtube_id" in row:
        times = (f"{int(float(row[key])):06d}" for key in ("time_start", "time_end"))
        return Entry("_".join((row["youtube_id"], *times)), label)
    if parts := {key: row[key] for key in row if PART.fullmatch(_word(key)) and _holds(row, key)}:
        raise _Malformed(f"a row is a part of its video, {parts}: cut the clips first")
    name = next((row[key] for key in PATHS if _holds(row, key)), None)
    if name is None:
        raise _Malformed(f"no path in {dict(row)}")
    return Entry(str(name), label)


def _holds(row: Mapping[str, Any], key: str) -> bool:
    return row.get(key) not in (None, "")


def _word(name: Any) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def _belongs(row: Mapping[str, Any], split: str | None) -> bool:
    subset = _subset(row)
    if split is None or subset is None:
        return True
    return subset in SPLITS.get(split, (split.lower(),))


def _subset(row: Mapping[str, Any]) -> str | None:
    """The split that a row names; one that names none belongs to each."""
    found = next((row[key] for key in SUBSETS if _holds(row, key)), None)
    return None if found is None else str(found).strip().lower()
