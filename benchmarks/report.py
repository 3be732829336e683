"""Results as JSON and Markdown; the figures of README and docs are made here, never typed."""

import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from . import goals


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
    """Write `results.json` and `results.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))


def save_loading(folder: Path, environment: dict[str, Any], loading: dict[str, Any]) -> str:
    """Write `loading.json` and `loading.md`, of that section alone; what the latter says."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {"environment": environment, "loading": loading}
    (folder / "loading.json").write_text(json.dumps(held, indent=1) + "\n")
    text = "\n".join([*_head(environment)[:-1], *loading_lines(loading)]) + "\n"
    (folder / "loading.md").write_text(text)
    return text


def _head(environment: dict[str, Any]) -> list[str]:
    shown = {k: v for k, v in environment.items() if k != "gpu" and v is not None}
    return [f"# {environment['device']}", "", ", ".join(f"{k} {v}" for k, v in shown.items()), ""]


def markdown(results: dict[str, Any]) -> str:
    lines = _head(results["environment"])
    lines += [
        "## Shift",
        "",
        "Time over that of a copy of the same tensor (`spread`: width of the middle half of ours).",
        "",
    ]
    if not results["environment"]["gpu"]:
        lines += [
            "Ours is asked for in huge pages, as in `copy, our pages`. `fresh`: each call gets memory that it must "
            "touch first, as glibc gives above 32 MB; `recycled`: what the call before freed. Goals are for `fresh`.",
            "",
        ]
    if results["shift"]:
        names = list(results["shift"][0]["over_copy"])[1:]
        lines += _table(
            ["shape", "dtype", "layout", "MB", "memory", *names, "spread", "goal"],
            [
                [
                    "x".join(map(str, row["shape"])),
                    row["dtype"],
                    row["layout"],
                    f"{row['megabytes']:.0f}",
                    row.get("memory", ""),
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
        "Time of one run over that of the network without a shift, eager.",
        "",
    ]
    lines += _table(
        ["model", "frames", "dtype", "form", "time", "spread"],
        [
            [
                row["model"],
                "x".join(map(str, row["shape"])),
                row["dtype"],
                form,
                f"{ratio:.2f}",
                f"{row['spread'][form]:.0%}",
            ]
            for row in results["models"]
            for form, ratio in row["over_unshifted"].items()
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
    lines += ["", "## Fused kernels and training: GPU only", ""]
    lines += _table(
        ["shape", "C_out", "dtype", "residual_shift bandwidth / copy", "shift_conv1x1 speed / conv"],
        [
            [
                "x".join(map(str, row["shape"])),
                str(row["c_out"]),
                row["dtype"],
                f"{row['residual_bandwidth_over_copy']:.2f}",
                f"{row['conv_speed_over_bare']:.2f}",
            ]
            for row in results["fused"]
        ],
    )
    lines += [""]
    lines += _table(
        ["model", "train step", "time / unshifted", "spread", "kept MB", "peak MB"],
        [
            [
                row["model"],
                row["form"],
                f"{row['over_unshifted']:.2f}",
                f"{row['spread']:.0%}",
                f"{row['kept_bytes'] / 1e6:.0f}",
                f"{(row['peak_bytes'] or 0) / 1e6:.0f}",
            ]
            for row in results["training"]
        ],
    )
    lines += loading_lines(results["loading"])
    lines += _traffic(results["traffic"])
    lines += ["", "## Goals", ""]
    lines += _table(["metric", "goal", "measured"], [list(row) for row in goals.table(results)])
    return "\n".join(lines) + "\n"


def loading_lines(loading: dict[str, Any]) -> list[str]:
    """The tables of what `loading` measured."""
    lines = ["", "## Loading: a video is 8 frames at 224 pixels, as trained on", ""]
    lines += _table(
        ["ten seconds of H.264", "videos/s a core", "spread", "decoded frames per used frame"],
        [
            [
                row["source"],
                f"{row['videos_per_second']:.1f}",
                f"{row['spread']:.0%}",
                f"{row['decoded_per_used']:.1f}",
            ]
            for row in loading["loader"]
        ],
    )
    lines += [""]
    return lines + _table(
        ["model, eager", "form", "videos/s", "spread"],
        [
            [row["model"], row["form"], f"{row['videos_per_second']:.1f}", f"{row['spread']:.0%}"]
            for row in loading["model"]
        ],
    )


def _traffic(traffic: dict[str, Any]) -> list[str]:
    lines = ["", "## Bytes: counted, not measured", "", traffic["how"], ""]
    lines += _table(
        ["one layer", "times its bytes", "requested", "byte model", "agrees", "kernels"],
        [
            [
                row["code"],
                f"{row['multiple']:.2f}",
                f"{row['multiple'] * row['requested'] / row['bytes']:.2f}" if "requested" in row else "",
                "" if row["model"] is None else f"{row['model']:.2f}",
                "" if row["model"] is None else "yes" if row["agrees"] else "**no**",
                str(row.get("kernels", 1)),
            ]
            for row in traffic["layers"]
        ],
    )
    if not traffic["networks"]:
        return [*lines, "", "Whole networks are counted without `--quick`."]
    lines += [""]
    lines += _table(
        ["network, one clip", "form", "MB", "over unshifted, in S", "byte model", "kernels"],
        [
            [
                row["model"],
                row["form"],
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['extra_S']:+.2f}",
                "" if row["model_S"] is None else f"{row['model_S']:+.0f}",
                str(row["kernels"]),
            ]
            for row in traffic["networks"]
        ],
    )
    return lines


def _goal(row: dict[str, Any]) -> str:
    if row.get("goal") is None:
        return ""
    return f"{row['goal']} {goals.verdict(row['over_copy']['ours'], '<=', row['goal'])}"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
