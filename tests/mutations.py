"""Break the kernels and the patching in named ways: `tsm-triton verify` must find each.

python -m tests.mutations            # all of them
python -m tests.mutations leak       # those whose name holds a word
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tsm_triton"
VERIFY = ("-m", "tsm_triton.cli", "verify", "--device", "cpu", "--examples", "60", "--fail-fast")


@dataclass(frozen=True)
class Mutation:
    """One place of the source, exactly once in its file, and what it becomes."""

    name: str
    path: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "kernel: fold off by one",
        "kernels/temporal_shift.py",
        "first_end, second_end = n_first * channel_stride, (",
        "first_end, second_end = max(n_first - 1, 0) * channel_stride, (",
    ),
    Mutation("kernel: wrong edge", "kernels/temporal_shift.py", "(source_t <= last)", "(source_t < last)"),
    Mutation(
        "kernel: directions swapped",
        "kernels/temporal_shift.py",
        "first_dt: tl.constexpr = -1 if REVERSE else 1",
        "first_dt: tl.constexpr = 1 if REVERSE else -1",
    ),
    Mutation(
        "kernel: leak across clips",
        "kernels/temporal_shift.py",
        "mask = in_frame & (source_t >= 0) & (source_t <= last)",
        "mask = in_frame & (frame + dt >= 0) & (frame + dt < 1000)",
    ),
    Mutation(
        "kernel: wrong stride of frames",
        "kernels/temporal_shift.py",
        "own = frame.to(tl.int64) * stride_x_frame",
        "own = frame.to(tl.int64) * frame_size",
    ),
    Mutation(
        "kernel: wrong stride of rows",
        "kernels/temporal_shift.py",
        "(vec // row_size).to(tl.int64) * stride_x_row",
        "(vec // row_size).to(tl.int64) * row_size",
    ),
    Mutation(
        "kernel: missing mask of the store",
        "kernels/temporal_shift.py",
        "value, mask=in_frame[:, None])",
        "value)",
    ),
    Mutation(
        "kernel: straddling vectors go to one group",
        "kernels/temporal_shift.py",
        "channel = start[:, None] + lane",
        "channel = start[:, None] + 0 * lane",
    ),
    Mutation(
        "kernel: packed clips have no end",
        "kernels/temporal_shift.py",
        "boundaries_ptr + frame + 1) != 0",
        "boundaries_ptr + frame + 1) != 1",
    ),
    Mutation(
        "copies: the last frame is not zeroed", "ops/shift.py", "here[:, -1].zero_()", "here[:, -1:0].zero_()"
    ),
    Mutation(
        "copies: clips are not told apart",
        "ops/shift.py",
        "clips = (-1, num_segments, *source.shape[1:])",
        "clips = (1, -1, *source.shape[1:])",
    ),
    Mutation(
        "backward: not the adjoint",
        "ops/shift.py",
        "grads[0], num_segments, n_past, n_future, not future_first",
        "grads[0], num_segments, n_future, n_past, future_first",
    ),
    Mutation(
        "memory format lost",
        "kernels/temporal_shift.py",
        "    out = torch.empty_like(x)\n",
        "    out = torch.empty_like(x, memory_format=torch.contiguous_format)\n",
    ),
    Mutation(
        "residual: the backward drops the activation's mask",
        "kernels/residual_shift.py",
        "grad = activation_backward(grad, y, ACTIVATION)",
        "grad = grad + 0 * y",
    ),
    Mutation(
        "residual: no zero behind the clip's end",
        "kernels/residual_shift.py",
        "wrapped = (to < 0) | (to >= num_segments)",
        "wrapped = (to < 0) & (to >= num_segments)",
    ),
    Mutation(
        "conv1x1: leak across clips",
        "kernels/shift_conv1x1.py",
        "(source_t >= 0) & (source_t < num_segments)",
        "(source_t >= 0) & (source_t <= num_segments)",
    ),
    Mutation(
        "step: the cache keeps the past",
        "kernels/shift_step.py",
        "tl.store(kept_ptr + in_cache, value, ",
        "tl.store(kept_ptr + in_cache, past, ",
    ),
    Mutation(
        "patch: the identity is shifted too",
        "integrations/residual.py",
        'yield ShiftSite(f"{stage}.{name}.conv1", conv1, channels)',
        'yield ShiftSite(f"{stage}.{name}", block, channels)',
    ),
)


def found(mutation: Mutation) -> str:
    """Run `verify` on a copy of the package with the mutation; the first line that fails.

    Raises:
        AssertionError: the source has changed, or nothing failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder, "tsm_triton"), ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder, "tsm_triton", mutation.path)
        source = path.read_text()
        count = source.count(mutation.old)
        assert count == 1, (
            f"expected {mutation.old!r} once in {mutation.path}, got {count}: change the mutation"
        )
        path.write_text(source.replace(mutation.old, mutation.new))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, *VERIFY],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    failures = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    assert run.returncode == 1, (
        f"expected verify to fail, got status {run.returncode}:\n{run.stdout}{run.stderr}"
    )
    assert failures, f"expected a failure in the report, got:\n{run.stdout}{run.stderr}"
    return " ".join(failures[0].split()[1:])


def attempt(mutation: Mutation) -> tuple[bool, str]:
    start = time.perf_counter()
    try:
        result, well = f"found by: {found(mutation)}", True
    except AssertionError as error:
        result, well = f"NOT FOUND: {error}", False
    return well, f"{mutation.name:<52} {result}  ({time.perf_counter() - start:.0f} s)"


def main() -> int:
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    missed = 0
    with ThreadPoolExecutor(2) as pool:
        for well, line in pool.map(attempt, chosen):
            missed += not well
            print(line, flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} mutations found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
