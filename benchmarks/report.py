"""Results as JSON and Markdown; the figures of README and docs are made here, never typed."""

import json
import platform
from pathlib import Path
from typing import Any

import torch


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
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
        "clock_mhz": torch.cuda.clock_rate() if on_gpu else None,
    }


def save(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json` and `results.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    environment = ", ".join(f"{k} {v}" for k, v in results["environment"].items() if v is not None)
    lines = [f"# {results['environment']['device']}", "", environment, ""]
    lines += [
        "## Shift",
        "",
        "Time over that of a copy of the same tensor (`spread`: half-width of ours).",
        "",
    ]
    if results["shift"]:
        names = list(results["shift"][0]["over_copy"])[1:]
        lines += _table(
            ["shape", "dtype", "layout", "MB", *names, "spread", "goal"],
            [
                [
                    "x".join(map(str, row["shape"])),
                    row["dtype"],
                    row["layout"],
                    f"{row['megabytes']:.0f}",
                    *(f"{row['over_copy'][name]:.2f}" for name in names),
                    f"{row['spread']['ours']:.0%}",
                    _goal(row),
                ]
                for row in results["shift"]
            ],
        )
    lines += ["", "## Host overhead of one eager call", ""]
    lines += _table(
        ["call", "us"], [[row["call"], f"{row['microseconds']:.1f}"] for row in results["overhead"]]
    )
    lines += [
        "",
        "## Whole models",
        "",
        "Time of one eager run over that of the network without a shift.",
        "",
    ]
    lines += _table(
        ["model", "frames", "dtype", "patched", "fused", "spread"],
        [
            [
                row["model"],
                "x".join(map(str, row["shape"])),
                row["dtype"],
                *(f"{row['over_unshifted'][call]:.2f}" for call in ("patched", "fused")),
                f"{row['spread']['fused']:.0%}",
            ]
            for row in results["models"]
        ],
    )
    lines += ["", "## Streaming: one frame of one stream, host overhead included", ""]
    lines += _table(
        ["model", "dtype", "form", "stream ms", "spread", "unshifted ms", "stream / unshifted"],
        [
            [
                *(row[key] for key in ("model", "dtype", "form")),
                f"{1000 * row['stream_seconds']:.2f}",
                f"{row['spread']:.0%}",
                f"{1000 * row['unshifted_seconds']:.2f}",
                f"{row['over_unshifted']:.3f}",
            ]
            for row in results["streaming"]
        ],
    )
    return "\n".join(lines) + "\n"


def _goal(row: dict[str, Any]) -> str:
    if row.get("goal") is None:
        return ""
    return f"{row['goal']} {'met' if row['over_copy']['ours'] <= row['goal'] else 'missed'}"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
