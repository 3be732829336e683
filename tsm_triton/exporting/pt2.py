"""torch.export's archive: for Python with torch, and what else reads it."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..files import replacing
from ..modules.captured import KEPT
from .description import KEY, as_text
from .interface import Interface

__all__ = ["write"]


def write(program: ExportedProgram, interface: Interface, description: dict[str, Any], path: Path) -> None:
    if "frames" in interface.inputs:  # for a VideoClassifier over what `torch.export.load` gives
        first = next(node for node in program.graph.nodes if node.op == "call_function")
        first.meta["custom"] = {**first.meta.get("custom", {}), KEPT: interface.num_segments}
    with replacing(path) as temporary, temporary.open("wb") as file, warnings.catch_warnings():
        # of weights in channels_last, as fused ones are: the archive keeps their strides
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, file, extra_files={f"{KEY}.json": as_text(description)})
