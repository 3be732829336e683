"""Break the kernels and the patching in named ways: `tsm-triton verify` must find each, and nothing else.

python -m tests.mutations            # all of them
python -m tests.mutations leak       # those whose name holds a word
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tsm_triton"
VERIFY = ("-m", "tsm_triton.cli", "verify", "--device", "cpu", "--fail-fast")
# Wall seconds in which each must be found, two at a time on two cores that do nothing else: a busy machine
# takes longer, and fails here for no fault of the package.
LIMIT = 300.0


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
        "copies: the last frame is not zeroed",
        "ops/temporal_shift.py",
        "target[:, -1, start:end] = 0",
        "target[:, -1:0, start:end] = 0",
    ),
    Mutation(
        "copies: clips are not told apart",
        "ops/temporal_shift.py",
        "clips = (-1, num_segments, *x.shape[1:])",
        "clips = (1, -1, *x.shape[1:])",
    ),
    Mutation(
        "backward: not the adjoint",
        "ops/temporal_shift.py",
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
        "step: it may not know of its write",
        "ops/shift_step.py",
        "shift_step_into(Tensor x, Tensor cache, Tensor(a!) kept, int channel_dim)",
        "shift_step_into(Tensor x, Tensor cache, Tensor kept, int channel_dim)",
    ),
    Mutation(
        "activations: hardswish bends too late",
        "activations.py",
        "tl.where(z > 3, 6.0, z + 3)",
        "tl.where(z > 4, 6.0, z + 3)",
    ),
    Mutation(
        "activations: a derivative of relu6 without its upper end",
        "activations.py",
        "(value <= 0) | (value >= 6)",
        "(value <= 0) | (value > 6)",
    ),
    Mutation(
        "conv1x1: the gradient is shifted the wrong way",
        "ops/shift_conv1x1.py",
        "adjoint = (num_segments, n_past, n_future, not future_first, 1)",
        "adjoint = (num_segments, n_future, n_past, future_first, 1)",
    ),
    Mutation(
        "step conv1x1: the cache keeps the past",
        "kernels/shift_conv1x1.py",
        "tl.store(kept_ptr + in_cache, now, mask=in_fold)",
        "tl.store(kept_ptr + in_cache, past, mask=in_fold)",
    ),
    Mutation(
        "step conv1x1: columns of other programs read x",
        "kernels/shift_conv1x1.py",
        "x = tl.where(in_fold, past, now)",
        "x = tl.where(in_fold & (tile_n == 0), past, now)",
    ),
    Mutation(
        "conv1x1 pair: leak out of the clip",
        "kernels/conv1x1_shift_conv1x1.py",
        "inside = (t + dt >= 0) & (t + dt < NUM_SEGMENTS)",
        "inside = (t + dt >= -1) & (t + dt < NUM_SEGMENTS)",
    ),
    Mutation(
        "conv1x1 pair: both groups read one way",
        "kernels/conv1x1_shift_conv1x1.py",
        "_moved(second, t, -first_dt,",
        "_moved(second, t, first_dt,",
    ),
    Mutation(
        "conv1x1 pair: missing mask of the store",
        "kernels/conv1x1_shift_conv1x1.py",
        "tl.store(y_ptr + at, rounded, mask=mask)",
        "tl.store(y_ptr + at, rounded, mask=in_c[None, :])",
    ),
    Mutation(
        "conv1x1 pair: the fake promises another layout",
        "ops/conv1x1_shift_conv1x1.py",
        "memory_format=torch.channels_last,",
        "memory_format=torch.contiguous_format,",
    ),
    Mutation(
        "fuse: the residual sum is forgotten",
        "fusion/patterns/shift_conv1x1.py",
        "ops.shift_conv1x1, self.x, weight, bias, identity, *counts, self.activation",
        "ops.shift_conv1x1, self.x, weight, bias, None, *counts, self.activation",
    ),
    Mutation(
        "fuse: a stream forgets the activation",
        "fusion/patterns/shift_conv1x1.py",
        "convolved_step(self.graph.graph, self.shift, weight, bias, identity, self.activation)",
        'convolved_step(self.graph.graph, self.shift, weight, bias, identity, "none")',
    ),
    Mutation(
        "patch: the identity is shifted too",
        "integrations/residual.py",
        'yield ShiftSite(f"{name}.conv1", conv1, channels)',
        "yield ShiftSite(name, block, channels)",
    ),
    Mutation(
        "video: frames in decoding order",
        "video/decoding.py",
        "        if not packets or _doubtful(stream, first, shown, packets, keeps_pts):\n",
        "        if not packets:\n",
    ),
    Mutation(
        "patch: a stale graph runs",
        "patching/hook_guards.py",
        "    config = sys.modules.get(CONFIG)\n",
        "    return\n",
    ),
    Mutation(
        "patch: a hook is lost on replacement",
        "patching/keeping.py",
        "        place.register_forward_pre_hook(hook, with_kwargs=True)\n",
        "",
    ),
    Mutation(
        "frames: wrong normalisation of a model that is wrapped",
        "video/preparation.py",
        "for name, module in model.named_modules():",
        'for name, module in [("", model)]:',
    ),
)


def verified(mutation: Mutation | None) -> subprocess.CompletedProcess[str]:
    """Run `verify` on a copy of the package, with the mutation if there is one.

    Raises:
        AssertionError: the source has changed, or the mutation was not found in `LIMIT`.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder, "tsm_triton"), ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            path = Path(folder, "tsm_triton", mutation.path)
            path.write_text(mutated(mutation, path.read_text()))
        try:
            return subprocess.run(
                [sys.executable, *VERIFY],
                cwd=folder,
                # what a broken package compiles must not be left where others look for compiled code
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"},
                capture_output=True,
                text=True,
                check=False,
                timeout=None if mutation is None else LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"expected a failure within {LIMIT:g} s, got none (load {os.getloadavg()[0]:.1f}; the limit is "
                "of two idle cores)"
            ) from None


def mutated(mutation: Mutation, source: str) -> str:
    count = source.count(mutation.old)
    assert count == 1, f"expected {mutation.old!r} once in {mutation.path}, got {count}: change the mutation"
    return source.replace(mutation.old, mutation.new)


def found(mutation: Mutation) -> str:
    """The first line of the report that fails.

    Raises:
        AssertionError: as `verified`, or nothing failed.
    """
    run = verified(mutation)
    failures = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    assert run.returncode == 1, (
        f"expected verify to fail, got status {run.returncode}:\n{run.stdout}{run.stderr}"
    )
    assert failures, f"expected a failure in the report, got:\n{run.stdout}{run.stderr}"
    return "found by: " + " ".join(failures[0].split()[1:])


def nothing_found() -> str:
    """Without a mutation all holds, or what the others find would show nothing.

    Raises:
        AssertionError: something failed.
    """
    run = verified(None)
    assert run.returncode == 0, (
        f"expected no failure without a mutation, got status {run.returncode}:\n{run.stdout}{run.stderr}"
    )
    return "nothing found"


def attempt(mutation: Mutation | None) -> tuple[bool, str]:
    start = time.perf_counter()
    try:
        result, well = nothing_found() if mutation is None else found(mutation), True
    except AssertionError as error:
        result, well = f"WRONG: {error}", False
    name = "no mutation" if mutation is None else mutation.name
    return well, f"{name:<58} {result}  ({time.perf_counter() - start:.0f} s)"


def main(words: Sequence[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    wrong = 0
    with ThreadPoolExecutor(2) as pool:
        for well, line in pool.map(attempt, [None, *chosen]):
            wrong += not well
            print(line, flush=True)
    print(f"{len(chosen)} mutations and none at all: {wrong} of them went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
