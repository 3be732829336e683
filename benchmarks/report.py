"""Results as JSON and Markdown; the figures of README and docs are made here, never typed."""

import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tsm_triton.files import replacing

from . import goals
from .page import table
from .sections import SECTIONS


def environment(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    on_gpu = device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton_version,
        "gpu": on_gpu,
        "cuda": torch.version.cuda if on_gpu else None,
        "rocm": torch.version.hip if on_gpu else None,
        "python": platform.python_version(),
        "clock_mhz": _clock_mhz() if on_gpu else None,
    }


def _clock_mhz() -> int | None:
    with suppress(ImportError, RuntimeError):  # needs pynvml, or amdsmi, which torch does not bring
        return torch.cuda.clock_rate()
    return None


def save(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, whole at every moment, and `results.md`."""
    save_json(folder, results)
    with replacing(folder / "results.md") as path:
        path.write_text(markdown(results))


def save_json(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n")


def markdown(results: dict[str, Any]) -> str:
    """The page: the goals, what is missing and why, then every section."""
    shown = {k: v for k, v in results["environment"].items() if k != "gpu" and v is not None}
    lines = [f"# {results['environment']['device']}", "", ", ".join(f"{k} {v}" for k, v in shown.items())]
    lines += ["", "## Goals", "", *table(["metric", "goal", "measured"], goals.table(results))]
    lines += _missing(results)
    for name, section in SECTIONS.items():
        if results.get(name):
            lines += ["", f"## {section.title}", "", *section.lines(results[name])]
    return "\n".join(lines) + "\n"


def _missing(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if results["failures"]:
        lines += ["", "## Failed", ""]
        lines += [
            f"- {failure['section']}, {failure['case']}: {' <- '.join(failure['error'].splitlines())}"
            for failure in results["failures"]
        ]
    if results["left_out"]:
        lines += ["", "## Left out: no time was left", ""]
        lines += [f"- {entry['section']}: {entry['case']}" for entry in results["left_out"]]
    return lines


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
