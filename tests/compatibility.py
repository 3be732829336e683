"""Try the package with other versions of Python, torch, Triton and timm; write `docs/compatibility.md`.

    python -m tests.compatibility                 # every row that an interpreter is found for
    python -m tests.compatibility --only 3.10     # rows that hold a word; the others keep their last result

Each row gets an environment of its own from PyPI, in a temporary folder, and runs the tests below in it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/compatibility.md"
RESULTS = ROOT / "docs/compatibility.json"
# What depends on versions: the ops in torch, kernels in the interpreter and through the compiler, patching
# through timm's classes, hooks under compile and export, streaming.
TESTS = (
    "tests/test_temporal_shift.py",
    "tests/test_ops.py",
    "tests/test_codegen.py",
    "tests/test_patching.py",
    "tests/test_streaming.py",
    "tests/test_packed.py",
)


@dataclass(frozen=True)
class Row:
    """One environment; a version that is empty is the newest on PyPI."""

    python: str
    torch: str = ""
    timm: str = ""


ROWS = (
    Row("3.10", torch="2.11"),
    Row("3.11"),
    Row("3.12", torch="2.12"),
    Row("3.13"),
    Row("3.11", torch="2.11", timm="1.0.16"),
    Row("3.12", timm="1.0.20"),
)


def interpreter(version: str) -> str | None:
    """A Python of this version on this machine."""
    candidates = [f"python{version}", *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for candidate in map(str, candidates):
        # a shim of a version manager may stand for a Python that is not there
        if (
            shutil.which(candidate)
            and not subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode
        ):
            return candidate
    return None


def try_row(row: Row) -> dict[str, str]:
    """Install, run, and say with which versions and what came of it."""
    python = interpreter(row.python)
    if python is None:
        return {"result": f"not tested: no Python {row.python} on the machine that wrote this page"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = f"{folder}/environment"
        inside = f"{environment}/bin/python"
        run([python, "-m", "venv", environment])
        run([inside, "-m", "pip", "install", "--quiet", "uv"])
        pins = [f"torch=={row.torch}.*"] if row.torch else []
        run(
            [
                inside,
                "-m",
                "uv",
                "pip",
                "install",
                "--quiet",
                "--python",
                inside,
                "-e",
                f"{ROOT}[test]",
                *pins,
            ]
        )
        if row.timm:  # older than what we ask for, to learn whether it would do
            run([inside, "-m", "uv", "pip", "install", "--quiet", "--python", inside, f"timm=={row.timm}"])
        names = ("torch", "triton", "timm", "torchvision")
        code = f"from importlib.metadata import version; print(*map(version, {names}))"
        versions = dict(zip(names, run([inside, "-c", code]).split(), strict=True))
        tests = subprocess.run(
            [inside, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    summary = (
        tests.stdout.strip().splitlines()[-1].strip("= ") if tests.stdout.strip() else tests.stderr[-200:]
    )
    print(tests.stdout[-3000:] if tests.returncode else "", end="")
    result = summary.partition(" in ")[0].partition(",")[0] if tests.returncode == 0 else f"FAILED: {summary}"
    return {**versions, "result": result, "seconds": f"{time.perf_counter() - start:.0f}"}


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def page(results: dict[str, dict[str, str]]) -> str:
    """The table, and what could not be tried."""
    lines = [
        "# Compatibility",
        "",
        "Written by `python -m tests.compatibility`: each row is an environment from PyPI in which the tests of",
        "kernels, ops, patching and streaming ran, on a CPU, with Triton's interpreter and its compiler.",
        "",
        "| Python | torch | Triton | timm | torchvision | result |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        result = results.get(key(row), {"result": "not tested yet"})
        cells = [result.get(name, "") for name in ("torch", "triton", "timm", "torchvision", "result")]
        lines.append("| " + " | ".join([row.python, *cells]) + " |")
    lines += [
        "",
        "The whole suite runs on the newest torch (`make test`) and on torch 2.11 (`make test-oldest`).",
        "",
        "- NVIDIA: every kernel is compiled ahead of time for sm_80, sm_90 and sm_100, and its machine code read.",
        "  `tsm-triton verify` runs them on the GPU at hand.",
        "- AMD: every kernel is compiled ahead of time for gfx942 and read; none has run on an AMD GPU.",
        "- Windows and macOS: not tested. There is no Triton on PyPI for macOS, so the CPU form of each op serves.",
    ]
    return "\n".join(lines) + "\n"


def key(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(row).items() if value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this word, such as 3.10 or timm=")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row in ROWS:
        if args.only in key(row):
            results[key(row)] = try_row(row)
            print(key(row), results[key(row)], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            PAGE.write_text(page(results))
    return 1 if any(result["result"].startswith("FAILED") for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
