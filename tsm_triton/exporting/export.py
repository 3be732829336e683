"""`export`: a model as a file that runs without Python, or without this package."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from .capture import captured, check_exportable, portable
from .description import described
from .interface import Interface, interface_of

__all__ = ["FORMATS", "export"]

# format -> how its files are called; what writes it is the file of this folder of that name
FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}


def export(
    model: Any,
    to: str = "onnx",
    path: str | os.PathLike[str] | None = None,
    example_input: Tensor | None = None,
    native: bool = False,
    *,
    dynamic_size: bool = False,
) -> dict[str, Any]:
    """Write a model as a file that others run, with all they need to know to use it.

    | model | inputs | outputs |
    | --- | --- | --- |
    | `VideoClassifier` | `video` `[N, T, C, H, W]`, any N, and any T if not fused | `logits` `[N, num_classes]` |
    | patched or fused | `frames` `[N*T, C, H, W]`, any N, T fixed: no shape tells it | `logits`, a row a frame |
    | `Streaming`, `StreamStep` | `frame` `[B, C, H, W]` and `cache.SITE` each, any B | `logits`, `next.SITE` each |

    A stream's caches begin at zero, and each `next.SITE` is the next frame's `cache.SITE`. The shift becomes reshapes,
    pads and slices, which every runtime has: the file is read without this package. The model stays as it is.

    Args:
        model: in eval mode. A `Streaming` with `consensus` or `every` is more than its step, and refused.
        to: `"onnx"` (opset 18, one file), `"pt2"` (`torch.export.load`) or `"aoti"` (an AOTInductor package for the
            device that the model is on, which takes a C++ compiler to make and torch's runtime to run).
        path: of the file, which appears whole or not at all: `.onnx`, or `.pt2` for the others.
        example_input: zeros, say, of the input's shape, of which the sizes are read that are not free; by default the
            model's own.
        native: leave the registered ops in a `"pt2"`, which then runs where `tsm_triton` is imported.
        dynamic_size: H and W are free, multiples of 32 from 64 on. Not of a stream or a fused model.

    Returns:
        What the file says of itself: `inputs`, `outputs`, `num_segments`, `direction`, `labels`, `size`, `short_side`,
        `mean`, `std`, `needs`, `versions`. It stands in it as JSON: in ONNX's `metadata_props` and in an AOTInductor
        package's metadata by the key `tsm_triton`, in a `.pt2` in the extra file `tsm_triton.json`.

    Raises:
        TypeError: no model of ours.
        ValueError: an unknown format, another file name, an example of another shape, `native` of another format.
        ImportError: onnx or onnxscript are missing.
        RuntimeError: a model that is not patched, in training mode or compiled, or that torch cannot capture.

    Example:
        >>> import tempfile, timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5).eval(), num_segments=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     said = tsm_triton.export(model, "pt2", f"{folder}/model.pt2", torch.zeros(4, 3, 64, 64))
        ...     program = torch.export.load(f"{folder}/model.pt2")
        >>> said["inputs"]
        {'frames': ['4*clips', 3, 64, 64]}
        >>> program.module()(torch.zeros(3 * 4, 3, 64, 64)).shape
        torch.Size([12, 5])
    """
    target = _checked_path(to, path)
    if native and to != "pt2":
        raise ValueError(
            f"expected to='pt2' with native=True, got to={to!r}: no runtime of ONNX has our ops, and a package with "
            "our kernels inside was never run. Leave native out, the shift is then part of the compiled code."
        )
    if example_input is not None and not isinstance(example_input, Tensor):
        raise TypeError(
            f"example_input must be a tensor, got {type(example_input).__name__}: only its shape is read"
        )
    check_exportable(model)
    interface = interface_of(model, example_input, dynamic_size)
    program = captured(interface)
    if not native:
        program = portable(program)
    description = described(model, interface, _outputs(program, interface), native)
    import_module(f".{to}", __package__).write(program, interface, description, target)
    return description


def _checked_path(to: str, path: str | os.PathLike[str] | None) -> Path:
    if to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(map(repr, FORMATS))}, got {to!r}")
    if path is None or Path(path).suffix != FORMATS[to]:
        raise ValueError(
            f"path must be of a file that ends in {FORMATS[to]}, got {path if path is None else os.fspath(path)!r}"
        )
    if not Path(path).parent.is_dir():
        raise ValueError(
            f"expected a path in a folder that is there, got {os.fspath(path)!r}: make {str(Path(path).parent)!r} first"
        )
    return Path(path)


def _outputs(program: ExportedProgram, interface: Interface) -> list[str]:
    count = len(program.graph_signature.user_outputs)
    if interface.outputs is not None and len(interface.outputs) == count:
        return list(interface.outputs)
    return ["logits"] if count == 1 else [f"output.{i}" for i in range(count)]
