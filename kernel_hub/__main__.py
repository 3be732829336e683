"""`python -m kernel_hub [FOLDER]`: lay the kernel out and say what `kernels` loads it with."""

import argparse
from pathlib import Path

from .layout import ROOT, lay_out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernel_hub", description=lay_out.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "kernel_hub")
    folder = parser.parse_args().folder
    identity = lay_out(folder)
    print(f"{folder}: {identity}\nkernels.get_local_kernel(pathlib.Path({str(folder)!r}))")


if __name__ == "__main__":
    main()
