"""Tables of a command's results: as text, CSV, JSON and Parquet, whole or not at all."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import printable, replacing

__all__ = ["as_text", "save_csv", "save_json", "save_parquet"]

Rows = Sequence[dict[str, Any]]


def as_text(rows: Rows) -> str:
    """Columns for a terminal.

    Example:
        >>> print(as_text([{"video": "a.mp4", "top1": 99.5}, {"video": "long.mp4", "top1": 5.0}]))
        video     top1
        a.mp4     99.5
        long.mp4   5.0
    """
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [columns, *[[printable(str(row[column])) for column in columns] for row in rows]]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    right = [isinstance(rows[0][column], (int, float)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )


def save_csv(path: Path, rows: Rows) -> None:
    """One line a row; bytes of a path that are no text stay as backslash escapes."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def save_json(path: Path, values: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_parquet(path: Path, rows: Rows) -> None:
    """One file, with the types of the first row."""
    import pyarrow
    from pyarrow import parquet

    named = [
        # bytes of a path that are no text, as in CSV
        {
            key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for key, value in row.items()
        }
        for row in rows
    ]
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(named), temporary)
