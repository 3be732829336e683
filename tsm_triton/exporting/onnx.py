"""ONNX: one file, for onnxruntime, OpenVINO, TensorRT."""

import re
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..extras import check_installed
from ..files import replacing
from .description import KEY, as_text
from .interface import Interface

__all__ = ["OPSET", "write"]

OPSET = 18  # what torch's translations are written in: nothing is converted afterwards


def write(program: ExportedProgram, interface: Interface, description: dict[str, Any], path: Path) -> None:
    check_installed("export to ONNX", "onnx", "onnxscript")
    translated: Any = torch.onnx.export(
        program,
        (),
        opset_version=OPSET,
        input_names=list(interface.inputs),
        output_names=description["outputs"],
        verbose=False,
    )
    model = translated.model
    _name_axes(model, interface)
    for value in (model, model.graph, *model.graph.inputs, *model.graph.outputs, *model.graph.all_nodes()):
        value.metadata_props.clear()  # where in which folder of this machine a line of Python stood
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    model.metadata_props[KEY] = as_text(description)
    model.producer_name = KEY
    model.producer_version = description["versions"]["tsm_triton"]
    with replacing(path) as temporary:
        translated.save(temporary, external_data=False)


def _name_axes(model: Any, interface: Interface) -> None:
    """Call the free sizes what the interface calls them, where torch numbers its symbols."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in zip(interface.axes[value.name], value.shape, strict=True):
            symbols = re.findall(r"\bs\d+\b", str(dim))
            if isinstance(axis, str) and len(symbols) == 1:
                names[symbols[0]] = axis.rpartition("*")[2]
    for value in (*model.graph.inputs, *model.graph.outputs, *_values(model)):
        if value.shape is None:
            continue
        for i, dim in enumerate(value.shape):
            if not isinstance(dim, int):
                named = re.sub(r"\bs\d+\b", lambda symbol: names.get(symbol[0], symbol[0]), str(dim.value))
                value.shape[i] = named


def _values(model: Any) -> Any:
    return (value for node in model.graph.all_nodes() for value in node.outputs)
