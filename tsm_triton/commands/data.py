"""Data sets, as the command line names them."""

from collections.abc import Sequence
from pathlib import Path

from ..video.datasets import Listing, read_listing
from ..video.datasets.folders import split_folders

__all__ = ["read_data"]


def read_data(
    data: str,
    split: str | None,
    root: Path | None,
    *,
    default_split: str,
    classes: Sequence[str] | None = None,
) -> Listing:
    """The videos of a folder or a list, of the part that is asked for.

    Args:
        data: see `read_listing`.
        split: of it; None for the default one of a folder that holds several, and all of another.
        root: what the paths of a list start from.
        default_split: `"train"`, `"val"` or `"test"`.
        classes: of the model, in their order.

    Raises:
        ValueError: as `read_listing`.
    """
    if split is None and Path(data).is_dir():
        splits = split_folders(data)
        if default_split in splits:
            split = default_split
    return read_listing(data, split=split, root=root, classes=classes)
