"""What runs an exported file: onnxruntime, torch's exported program, or an AOTInductor package."""

import warnings
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..extras import check_installed
from .description import KEY, checked
from .int8 import NEEDS

__all__ = ["Runtime", "open_file"]


class Runtime:
    """An open file: tensors in the order of its inputs in, in the order of its outputs out.

    Attributes:
        path: of the file.
        said: its description.
        device: where its inputs are taken and its outputs come.
    """

    def __init__(self, path: Path, said: dict[str, Any], device: torch.device) -> None:
        self.path, self.said, self.device = path, said, device

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError


class _Onnx(Runtime):
    """onnxruntime, on the CPU, or with its CUDA provider, which takes and gives tensors of the CPU too."""

    def __init__(self, path: Path, device: torch.device | None) -> None:
        check_installed("running an ONNX file", "onnxruntime")
        import onnxruntime

        cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
        there = cuda in onnxruntime.get_available_providers()
        if device is not None and (
            device.type not in ("cpu", "cuda") or (device.type == "cuda" and not there)
        ):
            raise ValueError(
                f"expected a device that the installed onnxruntime runs on, got device={str(device)!r}: it has "
                f"{', '.join(onnxruntime.get_available_providers())}. Leave device out, or install onnxruntime-gpu."
            )
        first = (cuda, {"device_id": (device and device.index) or 0})
        providers = [first, cpu] if there and (device is None or device.type == "cuda") else [cpu]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's own kinds, a class a code
            raise ValueError(
                f"expected an ONNX file that onnxruntime {onnxruntime.__version__} runs, got {str(path)!r} "
                f"({type(error).__name__}: {error}): write it with tsm_triton.export"
            ) from error
        said = checked(self.session.get_modelmeta().custom_metadata_map.get(KEY), path)
        super().__init__(path, said, torch.device("cpu"))
        named = [
            [value.name for value in values]
            for values in (self.session.get_inputs(), self.session.get_outputs())
        ]
        _check_names(path, self.said, *named)
        if "bfloat16" in self.said["dtypes"].values():
            raise ValueError(
                f"expected an ONNX file of float32 or float16, got bfloat16 in {str(path)!r}, which NumPy does not "
                "have: export model.half(), or a .pt2"
            )

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: x.detach().numpy() for name, x in zip(self.said["inputs"], inputs, strict=True)}
        return [torch.from_numpy(y) for y in self.session.run(self.said["outputs"], given)]


class _Program(Runtime):
    def __init__(self, path: Path, device: torch.device | None) -> None:
        import_module(NEEDS)  # an int8 file's operators, which torch does not know before
        extra = {f"{KEY}.json": ""}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message="The given buffer is not writable"
                )  # torch 2.11 reads so
                program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # of a file that is none of torch's, or of a later torch: many kinds
            raise ValueError(
                f"expected a file of torch.export that torch {torch.__version__} reads, got {str(path)!r} "
                f"({type(error).__name__}: {error}): write it with tsm_triton.export"
            ) from error
        said = checked(extra[f"{KEY}.json"], path)
        device = torch.device(said["device"]) if device is None else device
        if device.type != said["device"]:
            from torch.export.passes import move_to_device_pass  # which imports the compiler

            program = move_to_device_pass(program, str(device))
        super().__init__(path, said, device)
        # shapes are checked against what the file says: torch's own guards refuse one clip behind a TemporalPool
        self.module = program.module(check_guards=False)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return _flat(self.module(*inputs))


class _Package(Runtime):
    def __init__(self, path: Path, device: torch.device | None) -> None:
        try:
            from ..torch_private import aoti_load_package  # Inductor

            self.package: Any = aoti_load_package(path)
            text = self.package.get_metadata().get(KEY)
        except Exception as error:
            raise ValueError(
                f"expected an AOTInductor package for this machine and torch {torch.__version__}, got {str(path)!r} "
                f"({type(error).__name__}: {error}): make it here with tsm_triton.export(to='aoti')"
            ) from error
        said = checked(text, path)
        if device is not None and device.type != said["device"]:
            raise ValueError(
                f"expected device={said['device']!r}, which the package {str(path)!r} was compiled for, got "
                f"{str(device)!r}: leave it out, or export on the other one"
            )
        super().__init__(path, said, torch.device(said["device"]) if device is None else device)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return _flat(self.package(*inputs))


def open_file(path: Path, device: torch.device | None) -> Runtime:
    """What runs the file, on a device, or on the one that it was made for.

    Raises:
        FileNotFoundError, ValueError: no such file, none of `export`'s, or not for this device.
        ImportError: onnxruntime is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"expected an exported file at {str(path)!r}, which does not exist: check the path"
        )
    if path.suffix.lower() == ".onnx":
        return _Onnx(path, device)
    if path.suffix.lower() != ".pt2":
        raise ValueError(
            f"expected a file that ends in .onnx or .pt2, got {str(path)!r}: pass one that tsm_triton.export wrote"
        )
    return (_Package if _is_package(path) else _Program)(path, device)


def _is_package(path: Path) -> bool:
    """Whether compiled code is in the archive: both kinds of file are called .pt2."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"expected a .pt2 file, got {str(path)!r}, which is no archive: write it with tsm_triton.export"
        )
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def _check_names(path: Path, said: dict[str, Any], inputs: list[str], outputs: list[str]) -> None:
    if inputs != list(said["inputs"]) or outputs != said["outputs"]:
        raise ValueError(
            f"expected inputs {', '.join(said['inputs'])} and outputs {', '.join(said['outputs'])}, as {str(path)!r} "
            f"says of itself, got {', '.join(inputs)} and {', '.join(outputs)}: it was changed, export it again"
        )


def _flat(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
