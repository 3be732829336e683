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
    """Videos, and the names of their classes in the order of their numbers; none where no video has a label."""

    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ()
