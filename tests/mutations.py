"""Break the kernels and the patching in named ways: `tsm-triton verify` must find each, and nothing else.

python -m tests.mutations            # all of them
python -m tests.mutations leak       # those whose name holds a word
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "tsm_triton"
# What a process with a copy of the package runs; {only} are the words of a mutation's check. Few drawn cases: the known
# ones find most.
VERIFY = """
import torch
from tsm_triton.cli import main
torch.set_num_threads(1)
raise SystemExit(main(["verify", "--device", "cpu", "--fail-fast", "--examples", "20", *{only}]))
"""
# Wall seconds in which each must be found, two at a time on two idle cores. A busy or slower machine, as CI's may be,
# takes longer for no fault of the package: it says how long.
LIMIT = float(os.environ.get("MUTATION_SECONDS", "60"))
SERVER = multiprocessing.get_context("forkserver")
# What processes fork from has imported these, which takes longer than most checks.
PRELOADED = [
    "torch",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torchvision",
    "timm",
    "triton",
    "hypothesis",
    "av",
]


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
        "ops gradients of both orders",
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
    Mutation(
        "conv1x1: later groups of rows are the first",
        "ops many small tiles",
        "kernels/shift_conv1x1.py",
        "tile_m = group * GROUP_M + in_group % group_m",
        "tile_m = in_group % group_m",
    ),
    Mutation(
        "depthwise: dilated columns lie side by side",
        "ops many small tiles",
        "kernels/depthwise.py",
        "iw = iw0 + kw * DILATION",
        "iw = iw0 + kw",
    ),
    Mutation(
        "stem: a program's last tile is left out",
        "ops many small tiles",
        "kernels/stem.py",
        "range(tl.program_id(0), tiles, tl.num_programs(0))",
        "range(tl.program_id(0), tiles - 1, tl.num_programs(0))",
    ),
    Mutation(
        "copies: of a large map a channel is left out",
        "shift large maps",
        "ops/copies.py",
        "still = 0 if read[dim] <= 1 else n_first + n_second",
        "still = 0 if read[dim] <= 1 else min(n_first + n_second + 1, shape[dim])",
    ),
    Mutation(
        "packed: the backward is not the adjoint",
        "ops gradients of both orders copies",
        "ops/temporal_shift_packed.py",
        "*counts, not reverse, channel_dim)",
        "*counts, reverse, channel_dim)",
    ),
    Mutation(
        "residual: the second derivative is cut off",
        "ops gradients of both orders interpreter",
        "ops/residual_shift.py",
        "backward = _differentiable_backward if torch.is_grad_enabled() else residual_shift_backward",
        "backward = residual_shift_backward",
    ),
    Mutation(
        "residual: a tangent is not shifted",
        "ops gradients of both orders copies",
        "ops/residual_shift.py",
        "return along_y, temporal_shift(along_y, *counts, 1)",
        "return along_y, along_y.clone()",
    ),
    Mutation(
        "activations: a slope of hardswish at its ends",
        "ops activations are torch's",
        "activations.py",
        'derivative="tl.where(value <= -3, 0.0, tl.where(value < 3, grad',
        'derivative="tl.where(value < -3, 0.0, tl.where(value <= 3, grad',
    ),
    Mutation(
        "activations: relu drops NaN",
        "residual matches the reference",
        "activations.py",
        'formula="tl.where(z < 0, 0.0, z)"',
        'formula="tl.where(z > 0, z, 0.0)"',
    ),
    Mutation(
        "kernel: frames with other strides in vectors that do not divide them",
        "shift matches the reference",
        "kernels/layout.py",
        "vector = math.gcd(row_size, stride_x[0], stride_x_row, max_vector)",
        "vector = math.gcd(row_size, stride_x_row, max_vector)",
    ),
    Mutation(
        "kernel: volumes as maps",
        "shift matches the reference",
        "kernels/layout.py",
        "inner = sorted((d for d in range(1, len(shape)) if",
        "inner = sorted((d for d in range(1, min(len(shape), 4)) if",
    ),
    Mutation(
        "kernel: offsets of frames in 32 bits",
        "shift frames beyond",
        "kernels/temporal_shift.py",
        "own = frame.to(tl.int64) * stride_x_frame",
        "own = frame * stride_x_frame",
    ),
    Mutation(
        "copies: values through float32",
        "shift matches the reference",
        "ops/copies.py",
        ".copy_(x.as_strided(size, read_strides, read_offset))",
        ".copy_(x.as_strided(size, read_strides, read_offset).to(torch.float32 if not x.is_complex() else x.dtype))",
    ),
    Mutation(
        "conv1x1: the bias of later columns",
        "conv1x1 matches the reference",
        "kernels/shift_conv1x1.py",
        "tl.load(bias_ptr + column, mask=in_columns",
        "tl.load(bias_ptr + column % BLOCK_N, mask=in_columns",
    ),
    Mutation(
        "conv1x1: the weight's strides are not seen",
        "conv1x1 matches the reference",
        "kernels/shift_conv1x1.py",
        "weight.reshape(c_out, c_in).contiguous()",
        "weight.reshape(c_out, c_in)",
    ),
    Mutation(
        "convolutions: the fake knows no dilation",
        "ops torch.library.opcheck copies",
        "ops/convolution.py",
        "- dilation[i] * (weight.shape[2 + i] - 1) - 1",
        "- (weight.shape[2 + i] - 1) - 1",
    ),
    Mutation(
        "files: zeros at the other end",
        "ops forms for files",
        "ops/temporal_shift.py",
        "[*inner, 1, 0])[:, :-1]",
        "[*inner, 0, 1])[:, 1:]",
    ),
    Mutation(
        "patch: a hook shifts as before a change",
        "model each branch is shifted",
        "patching/shift_hook.py",
        '        vars(self)["_plans"] = {}\n',
        '        vars(self).setdefault("_plans", {})\n',
    ),
    Mutation(
        "patch: packed clips are not told apart",
        "model each branch is shifted",
        "patching/shift_hook.py",
        "if self.boundaries is None and self.counter is None:",
        "if self.counter is None:",
    ),
    Mutation(
        "stream: those that are due together change places",
        "stream frame by frame",
        "streaming/stream.py",
        "behind.put(streams, caches)",
        "behind.put(streams.flip(0), caches)",
    ),
    Mutation(
        "stream: a step writes into the state it is given",
        "stream frame by frame",
        "streaming/step.py",
        "        self.check(frame, state)\n        return self.run(frame, state)",
        "        self.check(frame, state)\n        return self.run(frame, state, state)",
    ),
    Mutation(
        "kernel: offsets of rows in 32 bits",
        "shift frames beyond",
        "kernels/temporal_shift.py",
        "(vec // row_size).to(tl.int64) * stride_x_row",
        "(vec // row_size) * stride_x_row",
    ),
    Mutation(
        "depthwise: rows below the image are written",
        "ops many small tiles",
        "kernels/depthwise.py",
        "mask = ((oh + 0 * ow < OH) & (ow < OW))[:, None]",
        "mask = ((oh + 0 * ow >= 0) & (ow < OW))[:, None]",
    ),
    Mutation(
        "files: a shift the other way round is not",
        "ops forms for files",
        "ops/temporal_shift.py",
        "shifted = [read(parts[0], not reverse), read(parts[1], reverse), parts[2]]",
        "shifted = [read(parts[0], True), read(parts[1], False), parts[2]]",
    ),
)


class Run(NamedTuple):
    """How a process ended, and what it printed."""

    status: int | None
    report: str


def verified(mutation: Mutation | None) -> Run:
    """Run `verify` on a copy of the package, with the mutation if there is one.

    Raises:
        AssertionError: the source has changed, or the mutation was not found in `LIMIT`.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # with its bytecode, which is that of a file's time and size
        shutil.copytree(PACKAGE, Path(folder, "tsm_triton"))
        if mutation is not None:
            path = Path(folder, "tsm_triton", mutation.path)
            path.write_text(mutated(mutation, path.read_text()))
        code = VERIFY.format(only=[] if mutation is None else ["--only", mutation.check])
        report, status = Path(folder, "report"), Path(folder, "status")
        report.touch()
        process = SERVER.Process(target=_run, args=(folder, code))
        process.start()
        process.join(None if mutation is None else LIMIT)
        # of a process of which another thread may have read the exit code
        if status.exists() or not process.is_alive():
            process.join()
            return Run(int(status.read_text()) if status.exists() else process.exitcode, report.read_text())
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()  # before it had a group
        process.join()
        raise AssertionError(
            f"expected a failure within {LIMIT:g} s, got none (load {os.getloadavg()[0]:.1f}; the limit is "
            "of two idle cores)"
        )


def _run(folder: str, code: str) -> None:
    """In a process of its own: run code where the package is that of a folder, and note its status there."""
    os.setsid()  # what a check starts ends with it, and it with whoever runs the mutations
    threading.Thread(target=_end_with_parent, daemon=True).start()
    report = os.open(Path(folder, "report"), os.O_WRONLY | os.O_APPEND)
    os.dup2(report, 1)
    os.dup2(report, 2)
    # what a broken package compiles must not be left where others look for compiled code
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
    sys.path.insert(0, folder)
    status = 1
    try:
        exec(code, {})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        Path(folder, "status").write_text(str(status))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


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
    failures = [line for line in run.report.splitlines() if line.startswith("FAIL")]
    assert run.status == 1, f"expected verify to fail, got status {run.status}:\n{run.report}"
    assert failures, f"expected a failure in the report, got:\n{run.report}"
    return "found by: " + " ".join(failures[0].split()[1:])


def nothing_found() -> str:
    """Without a mutation all holds, or what the others find would show nothing.

    Raises:
        AssertionError: something failed.
    """
    run = verified(None)
    assert run.status == 0, f"expected no failure without a mutation, got status {run.status}:\n{run.report}"
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
    SERVER.set_forkserver_preload(PRELOADED)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # at once: the processes end with this one
    sys.exit(main(sys.argv[1:]))
