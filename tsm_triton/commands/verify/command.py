"""`tsm-triton verify`: check the kernels on the machine at hand, and print a report for a bug report."""

import argparse
import importlib
import pkgutil
import platform
import shutil
import subprocess
import sys
import time
import warnings
from types import ModuleType
from typing import Any

import torch

from ... import __version__, kernels
from ...extras import requirements
from ..common import pick_device

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    if args.examples < 1:
        raise ValueError(f"--examples must be at least 1, got {args.examples}. Leave it out for the default.")
    device = pick_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"expected cpu or cuda, got {str(device)!r}: the ops have no other form. Pass --device cpu."
        )
    checks = _import_checks(device)
    found = checks.checks(str(device), args.examples, args.seed)
    if args.only:
        found = [
            check for check in found if any(words in " ".join(str(check).split()) for words in args.only)
        ]
    if not found:
        raise ValueError(
            f"expected words of a line of the report, got --only {' '.join(map(repr, args.only))}: "
            "leave it out to see them all"
        )

    print(f"tsm-triton verify, {_environment(device)}")
    print(f"{args.examples} cases a property, seed {args.seed}\n", flush=True)
    start = time.perf_counter()
    passed, failures = _passed_and_failed(found, args.seed, args.fail_fast)
    for number, (check, error) in enumerate(failures, start=1):
        print(f"\nFailure {number}: {check.subject} {check.claim} ({check.form})")
        _print_failure(check, error)
    seconds = time.perf_counter() - start
    print(f"\n{passed} checks passed, {len(failures)} failed, in {seconds:.0f} s.")
    left = len(found) - passed - len(failures)
    if left:
        print(f"Stopped at the first failure; {left} checks were not run.")
    return 1 if failures else 0


def _passed_and_failed(
    found: list[Any], seed: int, fail_fast: bool
) -> tuple[int, list[tuple[Any, Exception]]]:
    """How many checks hold, and those that do not; a line of each is printed."""
    passed, failures = 0, []
    for check in found:
        began = time.perf_counter()
        torch.manual_seed(seed)
        try:
            # not ours: numpy's in the interpreter, torch's of its own parts
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                amount = check.run()
        except Exception as error:
            failures.append((check, error))
            print(f"FAIL  {check}", flush=True)
            if fail_fast:
                break
        else:
            passed += 1
            print(f"ok    {check} {amount:>13} {time.perf_counter() - began:6.1f} s", flush=True)
    return passed, failures


def _print_failure(check: Any, error: Exception) -> None:
    """What a check says, and of a property the lines that show it again."""
    reproducer = getattr(error, "reproducer", None)
    message = str(error) if reproducer else f"{type(error).__name__}: {error}"
    print("    " + message.strip().replace("\n", "\n    "))
    if reproducer:
        print("Reproduce it with")
        print(f"    {_imports(check.form)}")
        print(f"    {reproducer}")


def _import_checks(device: torch.device) -> ModuleType:
    """The checks; on a CPU with the kernels imported for Triton's interpreter, which they choose at import."""
    try:
        from . import checks
    except ImportError as error:
        raise ImportError(
            "tsm-triton verify needs Hypothesis and Triton, of which one is missing: "
            f"pip install {requirements('hypothesis')} triton ({error})"
        ) from error
    with checks.interpreted("interpreter" if device.type == "cpu" else "triton"):
        for module in pkgutil.iter_modules(kernels.__path__):
            importlib.import_module(f"{kernels.__name__}.{module.name}")
    return checks


def _imports(form: str) -> str:
    interpret = "import os; os.environ['TRITON_INTERPRET'] = '1'; " if form == "interpreter" else ""
    return (
        f"{interpret}import torch; from tsm_triton import ops; "
        "from tsm_triton.testing import ShiftCase, fused, guarded_memory, properties"
    )


def _environment(device: torch.device) -> str:
    import timm
    import triton

    where = "CPU, Triton interpreted"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        where = f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB), {toolkit}{_driver()}"
    return (
        f"tsm_triton {__version__}\n"
        f"torch {torch.__version__}, triton {triton.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}, {sys.platform} {platform.machine()}\n{where}"
    )


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return f", driver {answer.stdout.split()[0]}" if answer.returncode == 0 and answer.stdout.strip() else ""
