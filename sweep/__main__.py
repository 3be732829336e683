"""`python -m sweep`: patch and check every model; goes on where it was stopped."""

import argparse
import json
import multiprocessing
import random
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from tsm_triton.commands.common import say

from . import checks, report, zoo
from .checks import Record, Task

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sweep", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="names to check, as timm/vit_*")
    parser.add_argument("--sample", type=int, metavar="N", help="check N names drawn at random")
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=("structure", "numbers", "compilers"),
        default=("structure", "numbers", "compilers"),
        help="(default: all)",
    )
    parser.add_argument("--progress", type=Path, default=ROOT / ".sweep.jsonl", help="what is done already")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of models.md and models.json")
    args = parser.parse_args()

    versions = {package: version(package) for package in ("torch", *zoo.LIBRARIES)}
    made_with = {**versions, "code": _code()}
    records = _read(args.progress, made_with)
    wanted = [
        (lib, name) for lib in zoo.LIBRARIES for name in zoo.names(lib) if fnmatch(f"{lib}/{name}", args.only)
    ]
    if args.sample:
        wanted = random.Random(0).sample(wanted, args.sample)
    for step in args.steps:
        if step == "structure":
            tasks = [(step, library, name, 0, 0) for library, name in wanted]
        else:
            chosen = set(wanted)
            known = [r for r in records if r["kind"] == "structure" and (r["library"], r["name"]) in chosen]
            tasks = _of_groups(step, known)
        records += _run(step, tasks, records, args.jobs, args.progress, made_with)
    results = report.table(records, versions)
    report.save(args.out, results)
    for library, total in results["totals"].items():
        print(library, *(f"{key}={value}" for key, value in total.items()))
    print(f"Wrote {args.out}/models.md and models.json")


def _of_groups(step: str, structures: Iterable[Record]) -> list[Task]:
    """The smallest member of each group of like models, or of each family for the compilers."""
    smallest: dict[tuple[str, str], Record] = {}
    for record in structures:
        if record["status"] == "passed":
            group = record["library"], record["signature" if step == "numbers" else "family"]
            best = smallest.setdefault(group, record)
            if (record["weights"], record["input"]) < (best["weights"], best["input"]):
                smallest[group] = record
    return [
        (step, record["library"], record["name"], record["sites"], record["input"][1])
        for record in sorted(smallest.values(), key=lambda record: record["weights"])
    ]


def _run(
    step: str, tasks: list[Task], records: list[Record], jobs: int, progress: Path, made_with: dict[str, str]
) -> list[Record]:
    done = {(record["kind"], record["library"], record["name"]) for record in records}
    tasks = [task for task in tasks if task[:3] not in done]
    new: list[Record] = []
    spawn = multiprocessing.get_context("spawn")
    # Fresh processes now and then: large models leave memory behind.
    with spawn.Pool(jobs, maxtasksperchild=400) as pool, progress.open("a") as file:
        found = pool.imap_unordered(checks.run, tasks)
        bar = tqdm(found, step, total=len(tasks), mininterval=2, disable=None)
        for count, record in enumerate(bar, start=1):
            if count % 20 == 0 or count == len(tasks):
                say(f"{step}: {count} of {len(tasks)}")
            file.write(json.dumps({**record, "versions": made_with}) + "\n")
            file.flush()
            new.append(record)
    return new


def _code() -> str:
    """A short name of our own code: what other code came to says nothing of this one."""
    files = [file for folder in ("tsm_triton", "sweep") for file in sorted((ROOT / folder).rglob("*.py"))]
    return zoo.short([(str(file.relative_to(ROOT)), file.read_bytes()) for file in files])


def _read(progress: Path, made_with: dict[str, str]) -> list[Record]:
    """What an earlier run of the same code, with the same libraries, has finished."""
    if not progress.exists():
        return []
    records = [json.loads(line) for line in progress.read_text().splitlines()]
    return [record for record in records if record.pop("versions") == made_with]


if __name__ == "__main__":
    main()
