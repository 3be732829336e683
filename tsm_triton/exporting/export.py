"""`export`: a model as a file that runs without Python, or without this package."""

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .. import ops
from .calibration import calibration_inputs, check_clips
from .capture import captured, check_exportable, of_kernels, portable
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
    int8: Tensor | Iterable[Tensor] | None = None,
) -> dict[str, Any]:
    """Write a model as a file that others run, with all they need to know to use it.

    | model | inputs | outputs |
    | --- | --- | --- |
    | `VideoClassifier` | `video` `[N, T, C, H, W]`, any N, any T if not fused or pooled | `logits` `[N, classes]` |
    | patched or fused | `frames` `[N*T, C, H, W]`, any N, T fixed: no shape tells it | `logits`, a row a frame |
    | `Streaming`, `StreamStep` | `frame` `[B, C, H, W]` and `cache.SITE` each, any B | `logits`, `next.SITE` each |

    A stream's caches begin at zero, and each `next.SITE` is the next frame's `cache.SITE`. The shift becomes reshapes,
    pads and slices, which every runtime has: the file is read without this package. The model stays as it is.

    Args:
        model: in eval mode. A `Streaming` with `consensus` or `every` is more than its step, and refused.
        to: `"onnx"` (opset 18, one file), `"pt2"` (`torch.export.load`) or `"aoti"` (an AOTInductor package for the
            device that the model is on, which takes a C++ compiler to make and torch's runtime to run). A package reads
            its inputs as contiguous and of their dtype and shape, and looks only where the process that runs it has
            `AOTI_RUNTIME_CHECK_INPUTS=1` in its environment; `load_exported` looks.
        path: of the file, which appears whole or not at all: `.onnx`, or `.pt2` for the others.
        example_input: zeros, say, of the input's shape, of which the sizes are read that are not free; by default the
            model's own.
        native: leave the registered ops in a `"pt2"`, which then runs where `tsm_triton` is imported; in an `"aoti"`
            of a fused model on CUDA their kernels, compiled, which needs nothing of ours to run.
        dynamic_size: H and W are free, multiples of 32 from 64 on. Not of a stream or a fused model, and not of
            MobileViT, whose windows keep the capture busy for ever.
        int8: normalised clips `[N, T, C, H, W]` that the model was trained on, a tensor or batches, some hundred clips
            together: convolutions and linear layers are computed in int8, in the ranges that these have. `"onnx"` by
            onnxruntime's static quantisation, `"pt2"` by torchao's PT2E, of an fp32 model. The shift moves floats.

    Returns:
        What the file says of itself: `inputs`, `outputs`, `num_segments`, `direction`, `labels`, `size`, `short_side`,
        `mean`, `std`, `sampling`, `consensus`, `view_average`, `needs`, `int8`, `dtypes`, `device`, `versions`. It
        stands in it as JSON: in ONNX's `metadata_props` and in an AOTInductor package's metadata by the key
        `tsm_triton`, in a `.pt2` in the extra file `tsm_triton.json`.

    Raises:
        TypeError: no model of ours.
        ValueError: an unknown format, another file name, an example of another shape or of no whole clips, `native` of
            ONNX or of a package whose code has no kernel of ours, bfloat16 in ONNX, which onnxruntime does not run.
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
    if native and to == "onnx":
        raise ValueError(
            "expected to='pt2' or to='aoti' with native=True, got to='onnx', of which no runtime has our ops: leave "
            "native out"
        )
    if example_input is not None and not isinstance(example_input, Tensor):
        raise TypeError(
            f"example_input must be a tensor, got {type(example_input).__name__}: only its shape is read"
        )
    check_exportable(model)
    clips = None if int8 is None else check_clips(int8)
    interface = interface_of(model, example_input, dynamic_size)
    if to == "onnx":
        _check_onnx_dtype(interface)
    if clips is not None:
        _check_int8(to, native, interface)
    if native and to == "aoti":
        _check_on_cuda(interface)
    program = captured(interface)
    needs = ops.NAMESPACE if native and to == "pt2" else None
    if clips is not None and to == "pt2":
        from .int8 import NEEDS as needs
        from .int8 import quantised

        program = quantised(program, interface, calibration_inputs(interface, clips))
    if not native:
        program = portable(program)
    elif to == "aoti":
        program = of_kernels(program)
    description = described(model, interface, _outputs(program, interface), needs, clips is not None)
    if clips is not None and to == "onnx":
        from .int8 import write_int8

        write_int8(program, interface, description, target, calibration_inputs(interface, clips))
    else:
        import_module(f".{to}", __package__).write(program, interface, description, target)
    return description


def _check_onnx_dtype(interface: Interface) -> None:
    if any(x.dtype == torch.bfloat16 for x in (*interface.inputs.values(), *interface.module.parameters())):
        raise ValueError(
            "expected a float32 or float16 model with to='onnx', got a bfloat16 one, of which onnxruntime runs next to "
            "no operator: pass model.half() or model.float(), or to='pt2'"
        )


def _check_int8(to: str, native: bool, interface: Interface) -> None:
    if to == "aoti" or native:
        raise ValueError(
            f"expected to='onnx', or to='pt2' without native, with int8, got to={to!r} and native={native}: export "
            "a .pt2, and compile what torch.export.load reads of it"
        )
    dtypes = {str(x.dtype).removeprefix("torch.") for x in interface.inputs.values()}
    if dtypes != {"float32"}:
        raise ValueError(
            f"expected a float32 model with int8, whose ranges are measured in it, got {', '.join(sorted(dtypes))}: "
            "pass model.float()"
        )


def _check_on_cuda(interface: Interface) -> None:
    device = next(iter(interface.inputs.values())).device
    if device.type != "cuda":
        raise ValueError(
            f"expected a model on a CUDA device with native=True and to='aoti', got one on {device}, where no kernel "
            "of ours runs: move the model, or leave native out"
        )


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
