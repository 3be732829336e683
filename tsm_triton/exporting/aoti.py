"""An AOTInductor package: compiled for the device that the model is on, run from C++ or Python with torch's runtime.

Of a CUDA model whose graph keeps our ops it holds their kernels as machine code, as it does Inductor's own.
"""

from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from .. import ops
from ..files import replacing
from ..torch_private import aoti_compile_and_package, inductor_config
from .description import KEY, as_text
from .interface import Interface

__all__ = ["write"]


def write(program: ExportedProgram, interface: Interface, description: dict[str, Any], path: Path) -> None:
    options: dict[str, Any] = {"aot_inductor.metadata": {KEY: as_text(description)}}
    if hasattr(inductor_config.aot_inductor, "check_lowerbound"):
        # one clip is as good as two, which AOTI_RUNTIME_CHECK_INPUTS=1 would not let pass
        options["aot_inductor.check_lowerbound"] = False
    with replacing(path) as temporary, temporary.open("w+b") as file, ops.without_python():
        aoti_compile_and_package(program, package_path=file, inductor_configs=options)
