import functools
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_sections as tiny
import torch
from conftest import HAS_CUDA

import tsm_triton
from benchmarks import (
    charts,
    convolutions,
    goals,
    lease,
    loading,
    models,
    pointwise,
    report,
    sections,
    shift,
    streaming,
    traffic,
    training,
)
from benchmarks.baselines import flat
from benchmarks.run import Run
from tsm_triton.functional import shift_conv1x1
from tsm_triton.video import read_frames

TINY = "test_resnet"
DEVICE = "cuda" if HAS_CUDA else "cpu"
CONVOLUTION = pointwise.Convolution("c1", 16, 8, 4)


@pytest.fixture
def run() -> Run:
    return Run(DEVICE)


def drive(tiny_sections, seconds=60.0, save=lambda _: None, planned=None) -> dict[str, Any]:
    planned = planned or dict.fromkeys(tiny_sections, 1.0)
    return lease.drive(tiny_sections, planned, Run("cpu", quick=True), lease.STARTING + seconds, save)


def test_sections_are_timed_alone_in_their_order():
    slow = functools.partial(tiny.last, 0.3)
    results = drive({name: tiny.section((name, "timing", slow), ("b", "timing", slow)) for name in "acd"})
    rows = [row for name in "acd" for row in results[name]]
    assert [row["case"] for row in rows] == ["a", "b", "c", "b", "d", "b"]
    assert all(row["ended"] <= later["started"] for row, later in itertools.pairwise(rows))
    assert results["failures"] == results["left_out"] == []


@pytest.mark.parametrize("when", ["building", "timing"])
def test_a_case_that_fails_and_a_process_that_dies_lose_no_other(when):
    good = ("good", "timing", tiny.nothing)
    results = drive(
        {
            "wrong": tiny.section(("bad", when, tiny.fail), good),
            "dead": tiny.section(good, ("dies", when, tiny.die)),
            "right": tiny.section(good),
        }
    )
    assert [row["case"] for row in results["wrong"]] == ["good"]
    assert [row["case"] for row in results["right"]] == ["good"]
    assert len(results["dead"]) == (when == "timing")
    # in the order in which they came, of processes side by side
    assert sorted((f["section"], f["case"], f["error"]) for f in results["failures"]) == [
        ("dead", "dead", "the process ended with exit code 3"),
        ("wrong", "bad", "RuntimeError: it is wrong: no time is reported\nValueError: for this reason"),
    ]
    page = report.markdown({"environment": {"device": "a CPU", "gpu": False}, **results})
    assert "- wrong, bad: RuntimeError: it is wrong: no time is reported <- ValueError: for this" in page


def test_what_hangs_leaves_the_others_their_time_and_is_named():
    started = time.monotonic()
    results = drive(
        {
            "hangs": tiny.section(("one", "timing", tiny.nothing), ("two", "timing", FOR_EVER), LAST_CASE),
            "right": tiny.section(LAST_CASE),
        },
        seconds=12,
        planned={"hangs": 1.0, "right": 4.0},
    )
    assert time.monotonic() - started < 14
    assert [row["case"] for row in results["hangs"]] == ["one"]
    assert [row["case"] for row in results["right"]] == ["three"]
    assert results["left_out"] == [{"section": "hangs", "case": case} for case in ("two", "three")]


FOR_EVER, LAST_CASE = functools.partial(tiny.last, 1000), ("three", "timing", tiny.nothing)


def test_what_is_not_built_in_time_stands_still_while_others_are_timed(tmp_path):
    builds = functools.partial(tiny.note, str(tmp_path / "log"))
    second = functools.partial(tiny.last, 1)
    results = drive(
        {"late": tiny.section(("a", "building", builds)), "right": tiny.section(("b", "timing", second))},
        seconds=12,
        planned={"late": 1.0, "right": 3.0},
    )
    (row,) = results["right"]
    built = [float(line) for line in (tmp_path / "log").read_text().split()]
    assert built[0] < row["started"]
    assert not any(row["started"] + 0.1 < at < row["ended"] for at in built)
    assert built[-1] > row["ended"]  # it went on when the other was done
    assert results["left_out"] == [{"section": "late", "case": "all of it: not built in time"}]


def test_results_of_an_interrupted_run_are_whole_and_nothing_of_it_runs_on(tmp_path):
    script = f"""
import sys, functools
import tiny_sections as tiny
from benchmarks import __main__ as program
from benchmarks.sections import Cost
notes = functools.partial(tiny.note, {str(tmp_path / "log")!r})
program.SECTIONS = {{
    "done": tiny.section(("a", "timing", tiny.nothing)),
    "on its way": tiny.section(("b", "timing", tiny.nothing), ("c", "timing", notes)),
}}
program.plan = lambda *_: (list(program.SECTIONS), [])
program.cost = lambda *_: Cost(1.0, 1.0)
sys.argv = ["benchmarks", "--device=cpu", "--out={tmp_path}"]
program.main()
"""
    paths = os.pathsep.join(str(Path(__file__).parents[i]) for i in (0, 1))
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
    path, log = tmp_path / "results.json", tmp_path / "log"
    saved = ""
    while not (log.exists() and '"b"' in saved) and process.poll() is None:
        time.sleep(0.02)
        if path.exists():
            saved = path.read_text()
            json.loads(saved)  # whole whenever it is read
    assert process.poll() is None
    process.terminate()
    assert process.wait() == 143
    results = json.loads(path.read_text())
    assert [row["case"] for row in results["done"] + results["on its way"]] == ["a", "b"]
    length = len(log.read_text())
    time.sleep(0.5)
    assert len(log.read_text()) == length


def test_what_does_not_fit_is_left_out_the_most_important_last():
    for device, quick, minutes in (
        ("cuda", False, 8),
        ("cuda", True, 4),
        ("cpu", False, 8),
        ("cpu", True, 4),
    ):
        taken, left_out = sections.plan(None, device, quick, 60 * minutes)
        assert not left_out
        assert taken == [name for name in sections.SECTIONS if name in taken]
    assert "tuned" not in taken
    taken, left_out = sections.plan(None, "cuda", False, 270)
    assert taken[0] == "resnet50"
    assert "training" in left_out
    assert sections.plan(["shift", "resnet50"], "cuda", False, 480) == (["resnet50", "shift"], [])
    with pytest.raises(ValueError, match="expected sections of cpu, resnet50, .* got training, x: give"):
        sections.plan(["training", "x", "shift"], "cpu", False, 480)


def test_every_section_of_a_device_has_cases_and_costs():
    for device, costs in (("cuda", sections.COSTS["gpu"]), ("cpu", sections.COSTS["cpu"])):
        assert costs.keys() <= sections.SECTIONS.keys()
        for quick in (False, True):
            assert all(sections.SECTIONS[name].cases(Run(device, quick)) for name in costs)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Results of the shape that a GPU run gives, with made-up times."""
    over_copy = {"copy": 1.0, "ours": 1.02, "slicing": 3.0, "residual_shift": 1.04}
    of_shift = {
        "shape": [256, 256, 56, 56],
        "num_segments": 8,
        "dtype": "bfloat16",
        "layout": "channels_last",
        "megabytes": 411.0,
        "spread": 0.01,
        "over_copy": over_copy,
    }
    return {
        "environment": {"device": "a GPU", "gpu": True, "cuda": "13"},
        "failures": [],
        "left_out": [{"section": "loading", "case": "all of it: not begun"}],
        "shift": [of_shift],
        "pointwise": pointwise.build(Run("cpu"), CONVOLUTION, 1, torch.float32)(),
    }


def of_forms(**seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "model": "resnet50",
            "shape": [256, 3, 224, 224],
            "dtype": "bfloat16",
            "layout": "channels_last",
            "form": form.replace("_", ", "),
            "seconds": value,
            "spread": 0.01,
            "over_unshifted": value,
            "wall_seconds": 1.5,
        }
        for form, value in seconds.items()
    ]


def test_goals_are_judged_or_said_not_to_be_measured(results):
    def measured(results) -> dict[str, str]:
        return {metric: measured for metric, _, measured in goals.table(results)}

    rows = measured(results)
    assert rows["shift bandwidth / copy_, every shape over 50 MB"] == "0.9804 met"
    assert rows["residual_shift bandwidth / copy_, every shape over 50 MB"] == "0.9615 met"
    assert rows["eager training step, authors' / ours"] == goals.MISSING
    assert rows["eager resnet50, patched / unshifted"] == "not measured, no CPU"
    on_cpu = {**results, "environment": {"device": "a CPU", "gpu": False}}
    assert measured(on_cpu)["stem 7x7 with bias and ReLU, N=32, us"] == "not measured, no GPU"
    steps = [
        {"model": "resnet50", "form": form, "seconds": value, "peak_bytes": peak, "kernel_seconds": None}
        for form, value, peak in (("slicing", 3, 7), ("patched", 2, 5), ("unshifted", 2, 4))
    ]
    stem = {"kind": "stem", "kernel": 7, "seconds": {"ours": 2.5e-4}}
    networks = of_forms(unshifted_compiled=2.0, fused_compiled=1.0, fused=3.0)
    filled = {**results, "resnet50": networks, "training": steps, "convolutions": [stem]}
    rows = measured(filled)
    assert rows["fused / compiled unshifted ResNet-50, both graphs: throughput"] == "2 met"
    assert rows["wall time of the fused, compiled resnet50 / its kernels"] == "1.5 missed"
    assert rows["eager training step, authors' / ours"] == "1.5 met"
    assert rows["peak training memory, patched / unshifted, eager"] == "1.25 missed"
    assert rows["compiled training step, backend / unshifted: kernels"] == goals.MISSING
    assert rows["stem 7x7 with bias and ReLU, N=32, us"] == "250 met"


def test_the_worst_row_is_judged(results):
    slower = {**results["shift"][0], "over_copy": {"copy": 1.0, "ours": 2.0}}
    small = {**results["shift"][0], "over_copy": {"copy": 1.0, "ours": 9.0}, "megabytes": 12.0}
    rows = goals.table({**results, "shift": [slower, *results["shift"], small]})
    assert ("shift bandwidth / copy_, every shape over 50 MB", ">= 0.95", "0.5 missed") in rows


def test_results_become_a_page_and_charts(results, tmp_path):
    results = {**results, "resnet50": of_forms(unshifted_compiled=2.0, fused_compiled=1.0)}
    report.save(tmp_path, results)
    page = (tmp_path / "results.md").read_text()
    assert "## Left out: no time was left\n\n- loading: all of it: not begun" in page
    assert "| c1 | 16 -> 8 @ 4 |" in page
    assert "| resnet50 | 256x3x224x224 | bfloat16, channels_last | fused, compiled | 1000.00 |" in page
    assert charts.save(tmp_path, results) == "Wrote models.png, shift.png, roofline.png"
    for name in ("models", "shift", "roofline"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text())["left_out"] == results["left_out"]


def test_a_chart_of_many_shapes_has_a_bar_a_form(results):
    figure = charts._shift(results["shift"] * 45)
    (axes,) = figure.axes
    assert len(axes.patches) == len(results["shift"][0]["over_copy"])


def test_a_gpu_of_amd_is_a_gpu(results, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU of AMD")
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda: 2100)
    results = {**results, "environment": report.environment("cuda")}
    assert "0.9804 met" in {measured for *_, measured in goals.table(results)}
    described = report.markdown(results).splitlines()[2]
    assert "rocm 7.1" in described
    assert "gpu" not in described


def test_without_matplotlib_there_is_a_note(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib is not installed" in charts.save(tmp_path, results)
    assert not list(tmp_path.iterdir())


def test_a_wrong_shift_gives_no_time(run, monkeypatch):
    case = shift.Case(1, 8, 16, 4, "float32", "nchw", whole=not HAS_CUDA)
    (row,) = shift.build(run, case)()
    assert row["over_copy"]["ours"] > 0
    monkeypatch.setattr(shift, "temporal_shift", lambda x, num_segments: x.clone())
    with pytest.raises(RuntimeError, match="ours of .* is wrong: no time is reported"):
        shift.build(run, case)


def without_shift(op, *arguments, **options):
    return op(*arguments, **{**options, "shift_div": 16})


def with_nan(op, *arguments, **options):
    out = op(*arguments, **options)
    out[-1].fill_(torch.nan)  # the second output, or the last frame of one
    return out


@pytest.mark.parametrize("wrong", [without_shift, with_nan])
def test_a_wrong_residual_shift_gives_no_time(run, monkeypatch, wrong):
    monkeypatch.setattr(shift, "residual_shift", functools.partial(wrong, shift.residual_shift))
    with pytest.raises(RuntimeError, match="residual_shift's shift of .* no time is reported"):
        shift.prepared(run, shift.Case(1, 8, 16, 4, "float32", "nchw", whole=True))


@pytest.mark.parametrize("kind", ["c1", "c3"])
def test_a_wrong_pointwise_convolution_gives_no_time(run, monkeypatch, kind):
    convolution = CONVOLUTION._replace(kind=kind)
    (row,) = pointwise.build(run, convolution, 1, torch.float32)()
    assert row["seconds"].keys() == {"ours", "bare", "convolution and pass"}
    monkeypatch.setattr(pointwise.ops, "shift_conv1x1", functools.partial(with_nan, shift_conv1x1_op))
    with pytest.raises(RuntimeError, match=f"{kind} 16 -> 8 @ 4 is off by nan .* no time is reported"):
        pointwise.build(run, convolution, 1, torch.float32)


shift_conv1x1_op = tsm_triton.ops.shift_conv1x1


@pytest.mark.parametrize(
    "convolution",
    [
        convolutions.Convolution("stem", 3, 8, 7, 16, 2),
        convolutions.Convolution("3x3", 8, 8, 3, 8),
        convolutions.Convolution("depthwise", 8, 8, 3, 8, 2, "relu6"),
    ],
    ids=lambda convolution: convolution.kind,
)
def test_a_wrong_convolution_gives_no_time(run, monkeypatch, convolution):
    (row,) = convolutions.build(run, convolution, 1, torch.float32)()
    assert row["over_two"] > 0
    assert "| 8 @ " not in "".join(convolutions.lines([row]))
    for name in ("stem_convolution", "convolution", "depthwise_convolution"):
        monkeypatch.setattr(
            convolutions.ops, name, functools.partial(with_nan, getattr(convolutions.ops, name))
        )
    with pytest.raises(RuntimeError, match="is off by nan .* no time is reported"):
        convolutions.build(run, convolution, 1, torch.float32)


def test_a_form_that_is_wrong_or_fails_gives_no_time_and_loses_no_other(monkeypatch):
    run, forms = Run("cpu"), models.forms

    def damaged(model, x):
        made = forms(model, x)
        return {
            **{name: made[name] for name in ("unshifted", "patched")},
            "fused": made["unshifted"],
            "slicing": tiny.fail,
        }

    monkeypatch.setattr(models, "forms", damaged)
    monkeypatch.setattr(models, "TIMED", {})  # every form
    rows = models.build(run, TINY, 1, 32, torch.float32, "nchw")()
    assert [row["form"] for row in rows] == ["unshifted", "patched"]
    told = dict(run.failures)
    assert "no time is reported" in told[f"{TINY}, nchw, fused"]
    assert "it is wrong" in told[f"{TINY}, nchw, slicing"]


@pytest.mark.parametrize(
    ("on_gpu", "quick", "compiled"),
    [
        (True, False, ["unshifted", "patched", "fused", "slicing"]),
        (False, True, []),
    ],
)
def test_every_form_of_a_network_that_a_run_needs_is_made(monkeypatch, on_gpu, quick, compiled):
    backends = []

    def compile_nothing(module, **options):
        backends.append(options.get("backend", "inductor"))
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(Run, "on_gpu", on_gpu)
    run = Run(DEVICE, quick)
    rows = models.build(run, TINY, 1, 32, torch.float32, "channels_last")()
    assert not run.failures
    backend = [models.BACKEND] * (not quick)
    forms = [*models.EAGER, *(f"{form}, compiled" for form in compiled), *backend]
    assert {row["form"] for row in rows} == set(forms)
    assert sorted(backends) == ["inductor"] * len(compiled) + ["tsm_triton"] * len(backend)


def test_a_stream_that_is_wrong_gives_no_time(monkeypatch):
    run, forms = Run("cpu"), streaming.forms

    def damaged(model, shifted, frame):
        made = forms(model, shifted, frame)
        return {
            "unshifted": made["unshifted"],
            "stream": made["stream"],
            "fused step": made["fused step"],
            "wrong": lambda: Stateless(model),
        }

    monkeypatch.setattr(streaming, "forms", damaged)
    rows = streaming.build(run, TINY, 32, torch.float32)()
    assert [row["form"] for row in rows] == ["unshifted", "stream", "fused step"]
    ((case, error),) = run.failures
    assert case == f"{TINY}, wrong"
    assert "no time is reported" in error


class Stateless:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, frame: torch.Tensor) -> torch.Tensor:
        return self.model(frame)

    def reset(self) -> None:
        pass


def test_loading_counts_what_is_decoded_and_refuses_wrong_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "NUM_FRAMES", 40)
    monkeypatch.setattr(loading, "SOURCES", {"small": (64, 48, 250)})
    path = loading.write(tmp_path, "small")
    row = loading.row(path, 3)
    assert row["videos_per_second"] > 0
    assert 1 < row["decoded_per_used"] <= 41 / 8
    assert loading.row(loading.write(tmp_path, loading.PICTURES), 2)["decoded_per_used"] == 1
    packed = loading.shard_row(path, 3)
    assert packed["videos_per_second"] > 0
    assert 1 < packed["decoded_per_used"] <= 41 / 8
    monkeypatch.setattr(loading, "read_frames", lambda path, wanted: read_frames(path, [0] * len(wanted)))
    with pytest.raises(RuntimeError, match="frames of video.mp4 .* no time is reported"):
        loading.row(path, 2)


def test_a_training_step_runs_and_refuses_wrong_gradients(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    rows = training.build(run, TINY, 1, 32, torch.float32)()
    assert [row["form"] for row in rows][:3] == ["unshifted", "slicing", "patched"]
    assert not run.failures
    monkeypatch.setattr(tsm_triton, "patch", lambda model, num_segments: model)
    rows = training.build(run, TINY, 1, 32, torch.float32)()
    assert not any(row["form"].startswith("patched") for row in rows)
    assert all("no time is reported" in error for _, error in run.failures)
    assert run.failures


@pytest.mark.skipif(HAS_CUDA, reason="the kernels of this process are compiled, not interpreted")
def test_counted_bytes_are_those_of_the_equations(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    rows = traffic._kernels()
    unit = 2 * torch.Size(traffic.SHAPE).numel()
    # one frame of a clip reads nothing in each of the two folds
    skipped = 2 / (traffic.SHIFT_DIV * traffic.NUM_SEGMENTS)
    assert rows["temporal_shift, Triton"]["bytes"] == unit * (2 - skipped)
    per_channel = 2 * 2 * traffic.SHAPE[1]
    assert rows["residual_shift, Triton"]["bytes"] == 4 * unit + per_channel
    unshifted = rows["the same without a shift, Triton"]["bytes"]
    assert rows["shift_conv1x1, Triton"]["bytes"] == unshifted - unit * skipped


def test_inductor_counts_the_flat_form_as_one_read_and_one_write():
    x = torch.randn(traffic.SHAPE).contiguous(memory_format=torch.channels_last)
    counts = traffic.inductor_bytes(lambda x: flat(x, traffic.NUM_SEGMENTS, traffic.SHIFT_DIV), x)
    assert counts == {"bytes": 2 * x.nbytes, "kernels": 1}


def test_inductor_counts_a_fused_op_as_one_kernel():
    x = torch.randn(traffic.SHAPE).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, x.shape[1])
    counts = traffic.inductor_bytes(
        lambda x, weight: shift_conv1x1(x, weight, 8, activation="relu"), x, weight
    )
    out = x.nbytes * 8 // x.shape[1]
    assert counts == {"bytes": x.nbytes + weight.nbytes + out, "kernels": 1}
