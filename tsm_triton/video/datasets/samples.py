"""What a data set lists: videos, each with the number of its class."""

import os
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["AnyPath", "Listing", "Sample"]

AnyPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Sample:
    """A video.

    Attributes:
        path: of a video file, or of a folder of its frames.
        label: the number of its class; None where it is not known, and to be found out.
    """

    path: str
    label: int | None = None


@dataclass(frozen=True)
class Listing:
    """The videos of a data set.

    Attributes:
        samples: the videos.
        classes: their names in the order of their numbers; none where no video has a label.
        missing: what a list names and is not there, where that is left out.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
