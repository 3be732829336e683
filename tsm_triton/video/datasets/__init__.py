"""Data sets of videos for training and testing: what lies on the disk, as clips with labels.

    listing = read_listing("kinetics400", split="train")
    dataset = VideoDataset(listing, num_segments=8, transform=transform_for(model, train=True), training=True)
    loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=4, collate_fn=collate)

A video's way: `listing` (which videos) -> `dataset` -> `reading` (`..decoding` or `..pictures`) -> `flips` -> the
transform -> `collate`. What cannot be read is never replaced by something else.
"""

from .dataset import UNLABELLED, VideoDataset
from .flips import find_flips
from .listing import read_listing
from .reading import Unreadable, collate
from .samples import Listing, Sample
from .shards import ShardDataset, read_shards

__all__ = [
    "UNLABELLED",
    "Listing",
    "Sample",
    "ShardDataset",
    "Unreadable",
    "VideoDataset",
    "collate",
    "find_flips",
    "read_listing",
    "read_shards",
]
