"""The table that `tsm-triton sites` prints."""

import argparse

import torch
from torch import nn

from ...backbones import create_backbone
from ...functional import check_shift, fold_counts
from ...patching.finding import choose_sites

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    check_shift(1, args.shift_div, "bidirectional")
    found = choose_sites(_without_weights(args.model), args.place, None, None, None)
    sites = found.sites
    folds = [fold_counts(site.channels, args.shift_div, "bidirectional")[0] for site in sites]
    rows = [("name", "module", "channels", "axis", "fold")]
    for site, fold in zip(sites, folds, strict=True):
        rows.append(
            (site.name, type(site.module).__name__, str(site.channels), str(site.channel_dim), str(fold))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, module, *numbers in rows:
        aligned = [f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True)]
        print(f"{name:<{widths[0]}}", f"{module:<{widths[1]}}", *aligned, sep="  ")

    print(f"\n{args.model}: {len(sites)} sites, place={args.place}; at each, fold channels move each way.")
    if 0 in folds:
        print(f"Where fold is 0, shift_div={args.shift_div} is too large: patch refuses such a site.")
    reasons: dict[str, list[str]] = {}
    for skip in found.skipped:
        reasons.setdefault(skip.reason, []).append(skip.name)
    if reasons:
        print("\nNot shifted, and why:")
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"  {', '.join(names[:3])}{more}: {reason}")
    return 0


def _without_weights(name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return create_backbone(name)
    except (NotImplementedError, RuntimeError):  # some constructors compute with values
        return create_backbone(name)
