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
# Wall seconds in which each must be found, two at a time on two idle cores. A busy or slower machine, as CI's may be,
# takes longer for no fault of the package: it says how long.
LIMIT = float(os.environ.get("MUTATION_SECONDS", "60"))


@dataclass(frozen=True)
class Mutation:
    """One place of the source, exactly once in its file, what it becomes, and the words of the check that finds it."""

    name: str
    check: str
    path: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "kernel: fold off by one",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "first_end, second_end = n_first * channel_stride, (",
        "first_end, second_end = max(n_first - 1, 0) * channel_stride, (",
    ),
    Mutation(
        "kernel: wrong edge",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "(source_t <= last)",
        "(source_t < last)",
    ),
    Mutation(
        "kernel: directions swapped",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "first_dt: tl.constexpr = -1 if REVERSE else 1",
        "first_dt: tl.constexpr = 1 if REVERSE else -1",
    ),
    Mutation(
        "kernel: leak across clips",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "mask = in_frame & (source_t >= 0) & (source_t <= last)",
        "mask = in_frame & (frame + dt >= 0) & (frame + dt < 1000)",
    ),
    Mutation(
        "kernel: wrong stride of frames",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "own = frame.to(tl.int64) * stride_x_frame",
        "own = frame.to(tl.int64) * frame_size",
    ),
    Mutation(
        "kernel: wrong stride of rows",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "(vec // row_size).to(tl.int64) * stride_x_row",
        "(vec // row_size).to(tl.int64) * row_size",
    ),
    Mutation(
        "kernel: missing mask of the store",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "value, mask=in_frame[:, None])",
        "value)",
    ),
    Mutation(
        "kernel: straddling vectors go to one group",
        "shift matches the reference",
        "kernels/temporal_shift.py",
        "channel = start[:, None] + lane",
        "channel = start[:, None] + 0 * lane",
    ),
    Mutation(
        "kernel: packed clips have no end",
        "packed clips of any length",
        "kernels/temporal_shift.py",
        "boundaries_ptr + frame + 1) != 0",
        "boundaries_ptr + frame + 1) != 1",
    ),
    Mutation(
        "copies: the last frame is not zeroed",
        "shift matches the reference",
        "ops/copies.py",
        "end = num_segments - 1 if reads_next else 0",
        "end = 0",
    ),
    Mutation(
        "copies: clips are not told apart",
        "shift matches the reference",
        "ops/copies.py",
        "end, channel, frames // num_segments, channels)",
        "end, channel, 1, channels)",
    ),
    Mutation(
        "backward: not the adjoint",
        "shift gradients of both orders",
        "ops/temporal_shift.py",
        "temporal_shift(grads[0], *counts, not reverse",
        "temporal_shift(grads[0], *counts, reverse",
    ),
    Mutation(
        "memory format lost",
        "shift keeps the memory format",
        "kernels/temporal_shift.py",
        "    out = torch.empty_like(x)\n",
        "    out = torch.empty_like(x, memory_format=torch.contiguous_format)\n",
    ),
    Mutation(
        "residual: the backward drops the activation's mask",
        "residual gradients match",
        "kernels/residual_shift.py",
        "grad = activation_backward(grad, y, ACTIVATION)",
        "grad = grad + 0 * y",
    ),
    Mutation(
        "residual: no zero behind the clip's end",
        "residual matches the reference",
        "kernels/residual_shift.py",
        "wrapped = (to < 0) | (to >= num_segments)",
        "wrapped = (to < 0) & (to >= num_segments)",
    ),
    Mutation(
        "conv1x1: leak across clips",
        "conv1x1 matches the reference",
        "kernels/shift_conv1x1.py",
        "(source_t >= 0) & (source_t < num_segments)",
        "(source_t >= 0) & (source_t <= num_segments)",
    ),
    Mutation(
        "step: the cache keeps the past",
        "step exchanges channels",
        "kernels/shift_step.py",
        "tl.store(kept_ptr + in_cache, value, ",
        "tl.store(kept_ptr + in_cache, past, ",
    ),
    Mutation(
        "step: it may not know of its write",
        "ops torch.library.opcheck",
        "ops/shift_step.py",
        "shift_step_into(Tensor x, Tensor cache, Tensor(a!) kept, int channel_dim)",
        "shift_step_into(Tensor x, Tensor cache, Tensor kept, int channel_dim)",
    ),
    Mutation(
        "activations: hardswish bends too late",
        "residual matches the reference",
        "activations.py",
        "tl.where(z > 3, 6.0, z + 3)",
        "tl.where(z > 4, 6.0, z + 3)",
    ),
    Mutation(
        "activations: a derivative of relu6 without its upper end",
        "residual gradients match",
        "activations.py",
        "(value <= 0) | (value >= 6)",
        "(value <= 0) | (value > 6)",
    ),
    Mutation(
        "conv1x1: the gradient is shifted the wrong way",
        "conv1x1 gradients match",
        "ops/shift_conv1x1.py",
        "adjoint = (*counts[:3], not counts[3], 1)",
        "adjoint = (*counts, 1)",
    ),
    Mutation(
        "step conv1x1: the cache keeps the past",
        "conv1x1 of a step",
        "kernels/shift_conv1x1.py",
        "tl.store(kept_ptr + in_cache, now, mask=in_fold)",
        "tl.store(kept_ptr + in_cache, past, mask=in_fold)",
    ),
    Mutation(
        "step conv1x1: columns of other programs read x",
        "conv1x1 of a step",
        "kernels/shift_conv1x1.py",
        "x = tl.where(in_fold, past, now)",
        "x = tl.where(in_fold & (tile_n == 0), past, now)",
    ),
    Mutation(
        "copy engine: shifted the wrong way",
        "conv1x1 on the copy engine",
        "kernels/shift_conv1x1_tma.py",
        "first_dt: tl.constexpr = -1 if REVERSE else 1",
        "first_dt: tl.constexpr = 1 if REVERSE else -1",
    ),
    Mutation(
        "copy engine: the residual of another clip",
        "conv1x1 on the copy engine",
        "kernels/shift_conv1x1_tma.py",
        "at = (clip.to(tl.int64) * clip_rows + row)",
        "at = (0 * clip.to(tl.int64) * clip_rows + row)",
    ),
    Mutation(
        "depthwise: the middle row of the kernel is passed over",
        "convolve each channel",
        "kernels/depthwise.py",
        "here += x * tl.load(w_ptr + (3 + kw) * C",
        "here += x * tl.load(w_ptr + (6 + kw) * C",
    ),
    Mutation(
        "depthwise: the bias is forgotten",
        "convolve each channel",
        "kernels/depthwise.py",
        "activate(z + bias[None, :], ACTIVATION)",
        "activate(z, ACTIVATION)",
    ),
    Mutation(
        "stem: rows above the image are read",
        "convolve the stem",
        "kernels/stem.py",
        "mask = (ih >= 0) & (ih < H)",
        "mask = (ih < H)",
    ),
    Mutation(
        "stem: missing mask of the store",
        "convolve the stem",
        "kernels/stem.py",
        "mask = (row < total)[:, None] & (channel < C_OUT)[None, :] & (ow < OW)",
        "mask = (row < total)[:, None] & (channel < C_OUT)[None, :]",
    ),
    Mutation(
        "convolution: the identity is forgotten",
        "convolve 3x3",
        "ops/convolution.py",
        "        out += identity\n    return activate_",
        "        pass\n    return activate_",
    ),
    Mutation(
        "fuse: the residual sum is forgotten",
        "fuse a fused copy",
        "fusion/patterns/shift_conv1x1.py",
        "ops.shift_conv1x1, self.x, weight, bias, identity, *counts, self.activation",
        "ops.shift_conv1x1, self.x, weight, bias, None, *counts, self.activation",
    ),
    Mutation(
        "fuse: a stream forgets the activation",
        "fuse a fused stream",
        "fusion/patterns/shift_conv1x1.py",
        "convolved_step(self.graph.graph, self.shift, weight, bias, identity, self.activation)",
        'convolved_step(self.graph.graph, self.shift, weight, bias, identity, "none")',
    ),
    Mutation(
        "patch: the identity is shifted too",
        "model each branch is shifted",
        "integrations/residual.py",
        'yield ShiftSite(f"{name}.conv1", conv1, channels)',
        "yield ShiftSite(name, block, channels)",
    ),
    Mutation(
        "video: frames in decoding order",
        "frames come in the order",
        "video/decoding.py",
        "        if not packets or _doubtful(stream, first, shown, packets, keeps_pts):\n",
        "        if not packets:\n",
    ),
    Mutation(
        "patch: a stale graph runs",
        "model a compiled model runs",
        "patching/hook_guards.py",
        "    config = sys.modules.get(DYNAMO_CONFIG)\n",
        "    return\n",
    ),
    Mutation(
        "patch: a hook is lost on replacement",
        "model a module that is replaced",
        "patching/keeping.py",
        "        place.register_forward_pre_hook(hook, with_kwargs=True)\n",
        "",
    ),
    Mutation(
        "frames: wrong normalisation of a model that is wrapped",
        "frames are prepared",
        "preparation.py",
        "for name, module in model.named_modules():",
        'for name, module in [("", model)]:',
    ),
    Mutation(
        "training: the backward reads unshifted maps",
        "model gradients are those",
        "patching/unshifted.py",
        "            return self.shift(self.x)",
        "            return self.x",
    ),
    Mutation(
        "training: the backward shifts by a later length",
        "model gradients are those",
        "patching/shift_hook.py",
        "                x,\n                length,\n",
        "                x,\n                self.num_segments,\n",
    ),
)


def verified(mutation: Mutation | None) -> subprocess.CompletedProcess[str]:
    """Run `verify` on a copy of the package, with the mutation if there is one.

    Raises:
        AssertionError: the source has changed, or the mutation was not found in `LIMIT`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # with its bytecode, which is that of a file's time and size
        shutil.copytree(PACKAGE, Path(folder, "tsm_triton"))
        if mutation is not None:
            path = Path(folder, "tsm_triton", mutation.path)
            path.write_text(mutated(mutation, path.read_text()))
        try:
            return subprocess.run(
                [sys.executable, *VERIFY, *([] if mutation is None else ["--only", mutation.check])],
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
