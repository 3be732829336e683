"""What is checked: the patched graph on the meta device, then numbers, then compilers; one record a check."""

import gc
import inspect
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import tsm_triton
from tsm_triton.dataflow.tracing import input_shape
from tsm_triton.patching.hooks import shift_hooks

from . import zoo

T, CLIPS = 4, 2
# Seconds of a processor, and weights, above which a group is recorded as "structure only".
TIME_LIMIT = 180
WEIGHT_LIMIT = 330_000_000
# Models of more weights are made narrower where their constructor lets them: same classes, same sites.
NARROW_ABOVE = 80_000_000
WIDTHS = (192, 96, 256, 320, 384)
SIZES = (64, 96, 128, 160, 192, 224, 256)
NO_BRANCHES = "expected a model with residual branches"
DUBIOUS = "expected a model whose residual branches can be shifted"

Record = dict[str, Any]
# kind of check, library, name, number of sites, side of the model's own images
Task = tuple[str, str, str, int, int]


def structure(library: str, name: str) -> Record:
    """Patch on the meta device; `patch` itself compares the graphs."""
    model = zoo.build_on_meta(library, name)
    record: Record = {
        "family": zoo.family(library, name),
        "classes": zoo.classes(model),
        "weights": zoo.weights(model),
        "input": list(input_shape(model)[1:]),
    }
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                tsm_triton.patch(model, T)
            except ValueError as error:
                if not str(error).startswith(DUBIOUS):
                    raise
                record["only_chosen"] = str(error)
                tsm_triton.patch(model, T, filter_fn=_any)
            hooks = shift_hooks(model)
    except ValueError as error:
        status = "refused" if str(error).startswith(NO_BRANCHES) else "failed"
        return {**record, "status": status, "error": str(error)}
    narrow = [re.search(r"got fewer at (\d+) of", str(warning.message)) for warning in caught]
    record |= {
        "status": "passed",
        "sites": len(hooks),
        "channel_dims": dict(sorted(Counter(str(hook.channel_dim) for hook in hooks).items())),
        "windows": sum(hook.counter is not None for hook in hooks),
        "narrow": sum(int(match[1]) for match in narrow if match),
    }
    return {**record, "signature": zoo.signature(record)}


def numbers(library: str, name: str, sites: int, native: int) -> Record:
    """Random weights, small frames: who reaches whom."""
    torch.manual_seed(0)
    options = _narrowing(library, name)
    size, model, found = _small(library, name, sites, native, options)
    record = _numbers(model, found, size)
    if record["status"] == "failed" and size < native:
        # a map of a few pixels whose units are all dead hides a shift
        size, model, found = _small(library, name, sites, native, options, sizes=())
        record = _numbers(model, found, size)
    return {**record, **options}


def _numbers(model: nn.Module, found: list[tsm_triton.ShiftSite], size: int) -> Record:
    frames = torch.randn(CLIPS * T, input_shape(model)[1], size, size)
    for low, high in ((0.5, 1.5), (0.05, 0.3)):
        zoo.make_visible(model, low, high)
        before = _run(model, frames)
        if before.isfinite().all():
            break
    keys = list(model.state_dict())
    tsm_triton.patch(model, T, sites=found, verify=False)
    shifted = _run(model, frames)
    from_second, from_next_clip = (_reached(model, frames, frame, shifted) for frame in (1, T))
    with tsm_triton.shift_disabled(model):
        same = torch.equal(_run(model, frames), before)
    same_keys = list(model.state_dict()) == keys
    tsm_triton.unpatch(model)
    one = _one_site(model, frames, found)
    results = {
        "finite": bool(before.isfinite().all()),
        "reaches_both_neighbours": from_second[:3] == [True] * 3 and from_next_clip[T : T + 2] == [True] * 2,
        "clips_stay_apart": not any(from_second[T:]) and not any(from_next_clip[:T]),
        "one_site_reaches_one_frame": one == [False, True, True, True] + [False] * T,
        "disabled_is_bit_exact": same,
        "keys_unchanged": same_keys,
    }
    status = "passed" if all(results.values()) else "failed"
    return {"status": status, "size": size, "checks": results}


def _one_site(model: nn.Module, frames: Tensor, sites: list[tsm_triton.ShiftSite]) -> list[bool]:
    """What the third frame reaches through one shift; some sites lead nowhere (an auxiliary head)."""
    reached: list[bool] = []
    for site in (sites[len(sites) // 2], sites[0], sites[-1]):
        tsm_triton.patch(model, T, sites=[site], verify=False)
        reached = _reached(model, frames, 2, _run(model, frames))
        tsm_triton.unpatch(model)
        if sum(reached) > 1:
            break
    return reached


def _small(
    library: str,
    name: str,
    sites: int,
    native: int,
    options: dict[str, int],
    sizes: Sequence[int] = SIZES,
) -> tuple[int, nn.Module, list[tsm_triton.ShiftSite]]:
    """The model for the smallest frames that it takes with all its sites, and these sites."""
    options = {"num_classes": 16, **options}
    for size in (size for size in sizes if size < native):
        try:
            found = _wide_sites(library, name, size, options)
        except (ValueError, RuntimeError, AssertionError, NotImplementedError, TypeError, KeyError):
            continue
        if len(found) >= sites:
            break
    else:
        size, found = native, _wide_sites(library, name, native, options)
        if len(found) < sites:
            raise ValueError(f"expected the {sites} sites of {name}, got {len(found)} of {options}")
    model = zoo.build(library, name, size, **options)
    return size, model, [tsm_triton.ShiftSite.from_dict(site.to_dict(), model) for site in found]


def _narrowing(library: str, name: str) -> dict[str, int]:
    """What makes a large model of tokens narrower, if anything does."""
    model = zoo.build_on_meta(library, name)
    if zoo.weights(model) <= NARROW_ABOVE:
        return {}
    for width in WIDTHS if library == "timm" else ():
        try:
            narrow = zoo.build_on_meta(library, name, embed_dim=width)
            narrow(torch.empty(input_shape(narrow), device="meta"))
        except (TypeError, ValueError, AssertionError, RuntimeError):
            continue
        if zoo.classes(narrow) == zoo.classes(model) and zoo.weights(narrow) < zoo.weights(model) / 2:
            return {"embed_dim": width}
    if zoo.weights(model) > WEIGHT_LIMIT:
        raise _TooLarge(f"{zoo.weights(model):,} weights")
    return {}


def _wide_sites(library: str, name: str, size: int, options: dict[str, int]) -> list[tsm_triton.ShiftSite]:
    """Sites of a model on the meta device, where it takes frames of this size."""
    model = zoo.build_on_meta(library, name, size, **options)
    frames = torch.empty(1, input_shape(model)[1], size, size, device="meta")
    found = tsm_triton.find_sites(model, example_input=frames, filter_fn=_any)
    return [site for site in found if site.channels >= 8]


def _any(module: nn.Module, name: str) -> bool:
    """Chooses each site, which dubious families ask for."""
    return True


def _run(model: Callable[[Tensor], Any], frames: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(frames)
    while not isinstance(out, Tensor):
        out = list(out.values() if isinstance(out, dict) else out)[-1]
    return out.flatten(1) if out.dim() > 1 else out[:, None]


def _reached(model: nn.Module, frames: Tensor, frame: int, before: Tensor) -> list[bool]:
    """Which rows of the output change with one frame."""
    changed = frames.clone()
    changed[frame] = torch.randn(frames.shape[1:])
    return (before != _run(model, changed)).any(1).tolist()


def compilers(library: str, name: str, sites: int, native: int) -> Record:
    """Fullgraph compile with two batch sizes and export, or the same failure of the model without shifts."""
    torch.manual_seed(0)
    options = _narrowing(library, name)
    size, model, found = _small(library, name, sites, native, options)
    zoo.make_visible(model)
    frames = torch.randn(3 * T, input_shape(model)[1], size, size)
    outcomes: dict[str, str] = {}
    for check in (_compiles, _exports):
        tsm_triton.patch(model, T, sites=found, verify=False)
        outcome = _outcome(check, model, frames)
        tsm_triton.unpatch(model)
        if outcome != "passed" and _outcome(check, model, frames) != "passed":
            outcome = "the unpatched model fails, too"
        outcomes[check.__name__.strip("_")] = outcome
    failed = any(outcome not in ("passed", "the unpatched model fails, too") for outcome in outcomes.values())
    return {"status": "failed" if failed else "passed", "size": size, **options, "checks": outcomes}


def _outcome(check: Callable[[nn.Module, Tensor], None], model: nn.Module, frames: Tensor) -> str:
    torch.compiler.reset()
    try:
        check(model, frames)
    except _TooLarge:
        raise
    except Exception as error:  # compilers raise anything
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "passed"


def _compiles(model: nn.Module, frames: Tensor) -> None:
    from tsm_triton.torch_private import maybe_mark_dynamic

    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for clips in (2, 3):
        batch = frames[: clips * T]
        # and no other size: with dynamic=True the symbols of HaloNet's windows alone take minutes
        maybe_mark_dynamic(batch, 0)
        torch.testing.assert_close(_run(compiled, batch), _run(model, batch))


def _exports(model: nn.Module, frames: Tensor) -> None:
    name = next(iter(inspect.signature(model.forward).parameters))
    batch = T * torch.export.Dim("clips", min=1, max=64)
    program = torch.export.export(model, (frames[: 2 * T],), dynamic_shapes={name: {0: batch}}, strict=False)
    torch.testing.assert_close(_run(program.module(), frames), _run(model, frames), rtol=1e-3, atol=1e-4)


class _TooLarge(Exception):
    pass


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLarge(f"more than {seconds} s")

    # the process's own time: others on the machine do not count
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def run(task: Task) -> Record:
    """One check of one model, as a record that says everything; never raises."""
    kind, library, name, sites, native = task
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(), _at_most(TIME_LIMIT):
            warnings.simplefilter("ignore")
            if kind == "structure":
                record = structure(library, name)
            else:
                record = (numbers if kind == "numbers" else compilers)(library, name, sites, native)
    except _TooLarge as error:
        record = {"status": "too large", "error": str(error)}
    except Exception as error:  # the sweep goes on; the table says what happened
        record = {"status": "failed", "error": f"{type(error).__name__}: {str(error)[:500]}"}
    seconds = round(time.perf_counter() - start, 2)
    if not gc.get_freeze_count():
        # what the libraries hold stays: looking through it again and again took half of the time
        gc.collect()
        gc.freeze()
    return {"kind": kind, "library": library, "name": name, "seconds": seconds, **record}
