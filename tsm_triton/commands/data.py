"""Data sets, as the command line names them."""

from collections.abc import Sequence
from pathlib import Path

from ..video.datasets import Listing, read_listing
from ..video.datasets.finding import VIDEOS
from ..video.datasets.folders import split_folders
from ..video.datasets.listing import Missing, find_list
from ..video.datasets.lists import tells_apart

__all__ = ["check_labels", "holds", "names", "read_data"]


def read_data(
    data: str,
    split: str | None,
    root: Path | None,
    *,
    default_split: str,
    classes: Sequence[str] | None = None,
    on_error: Missing = "raise",
) -> Listing:
    """The videos of a folder or a list, of the part that is asked for.

    Args:
        data: see `read_listing`.
        split: of it; None for the default one where there are several, and all of another. Rows of a list that name
            no split belong to each.
        root: what the paths of a list start from.
        default_split: `"train"`, `"val"` or `"test"`.
        classes: of the model, in their order.
        on_error: of what a list names and is not there, too: `"raise"`, or `"skip"`.

    Raises:
        ValueError: as `read_listing`.
    """
    if split is None and holds(data, default_split):
        split = default_split
    return read_listing(data, split=split, root=root, classes=classes, missing=on_error)


def check_labels(listing: Listing, data: str) -> None:
    """Raise for a video to test on whose class nobody says."""
    without = next((sample.path for sample in listing.samples if sample.label is None), None)
    if without is not None:
        raise ValueError(
            f"expected a label for each video of {data!r}, got none for {without!r}: use tsm-triton classify for "
            "videos without"
        )


def holds(data: str, split: str) -> bool:
    """Whether a data set tells its splits apart, or may: a list has a column for them, or has none."""
    if Path(data).is_dir():
        return split in split_folders(data) or find_list(data, split) is not None
    return not data.lower().endswith(VIDEOS)


def names(data: str, split: str) -> bool:
    """Whether a data set has a part of that name: a folder, a list, or rows of a list."""
    path = Path(data)
    return holds(data, split) and (path.is_dir() or tells_apart(path, split))
