"""`python -m benchmarks`: check, then measure, then write `benchmarks/results/<device>/`."""

import argparse
import re
from pathlib import Path

import torch

from tsm_triton.commands.common import say

from . import charts, fused, loading, models, overhead, report, shift, streaming, traffic, training


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repeats")
    parser.add_argument("--only", choices=["loading"], help="measure this alone -> loading.json, loading.md")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results/<device>)")
    args = parser.parse_args()

    environment = report.environment(args.device)
    name = re.sub(r"\W+", "-", environment["device"]).strip("-").lower()
    out = args.out or Path(__file__).parent / "results" / name
    if args.only:
        print(report.save_loading(out, environment, loading.run(args.device, args.quick)))
        return
    results = {
        "environment": environment,
        "quick": args.quick,
    }
    for section in (shift, fused, overhead, models, streaming, training, loading):
        name = section.__name__.rpartition(".")[2]
        say(f"Measuring {name}")
        results[name] = section.run(args.device, args.quick)
    say("Counting traffic")
    results["traffic"] = traffic.run(args.quick)
    report.save(out, results)
    print(report.markdown(results))
    print(charts.save(out, results))
    print(f"Wrote {out}/results.json and results.md")


if __name__ == "__main__":
    main()
