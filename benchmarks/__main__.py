"""`python -m benchmarks`: check, then measure, then write `benchmarks/results/<device>/`.

Made for a machine lent for minutes: what does not fit into them is left out and named, the most important is kept.
"""

import argparse
import re
import signal
import sys
from pathlib import Path

import torch

from tsm_triton.commands.common import say

from . import charts, lease, report
from .run import Run
from .sections import SECTIONS, cost, plan

WHOLE_MINUTES, QUICK_MINUTES = 8.0, 4.0


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # sections that stand still are ended, too
    seconds = 60 * arguments.minutes
    try:
        taken, left_out = plan(arguments.sections, arguments.device, arguments.quick, seconds)
    except ValueError as error:
        sys.exit(f"error: {error}")
    environment = report.environment(arguments.device)
    folder = re.sub(r"\W+", "-", environment["device"]).strip("-").lower()
    out = arguments.out or Path(__file__).parent / "results" / folder
    about = {"environment": environment, "quick": arguments.quick, "minutes": arguments.minutes}
    say(f"{arguments.minutes:g} minutes for {', '.join(taken)}; no time for {', '.join(left_out) or 'none'}")

    def whole(results: dict) -> dict:
        unplanned = [{"section": name, "case": "all of it: not begun"} for name in left_out]
        return {**about, **results, "left_out": results["left_out"] + unplanned}

    results = lease.drive(
        {name: SECTIONS[name] for name in taken},
        {name: cost(name, arguments.device, arguments.quick).timing for name in taken},
        Run(arguments.device, arguments.quick),
        seconds,
        lambda results: report.save_json(out, whole(results)),
    )
    report.save(out, whole(results))
    print(report.markdown(whole(results)))
    print(charts.save(out, whole(results)))
    print(f"Wrote {out}/results.json and results.md")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer forms, shapes and repeats")
    parser.add_argument(
        "--sections",
        type=lambda value: value.split(","),
        help=f"a,b,c of {', '.join(SECTIONS)} (default: all but tuned)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"for everything (default: {WHOLE_MINUTES:g}, {QUICK_MINUTES:g} with --quick)",
    )
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results/<device>)")
    arguments = parser.parse_args()
    if arguments.minutes is None:
        arguments.minutes = QUICK_MINUTES if arguments.quick else WHOLE_MINUTES
    return arguments


if __name__ == "__main__":
    main()
