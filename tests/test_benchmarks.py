import copy
import functools
import sys
from typing import Any

import pytest
import timm
import torch
from conftest import HAS_CUDA

import tsm_triton
from benchmarks import (
    charts,
    forms,
    fused,
    goals,
    loading,
    models,
    report,
    shift,
    streaming,
    traffic,
    training,
)
from benchmarks.baselines import flat, with_open_branches
from tsm_triton.functional import shift_conv1x1
from tsm_triton.video import read_frames

TINY = "test_resnet"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Results of the shape that a GPU run gives, with made-up times."""
    seconds = {"copy": 1e-4, "ours": 1.02e-4, "slicing": 3e-4}
    row = {
        "shape": [256, 256, 56, 56],
        "num_segments": 8,
        "dtype": "bfloat16",
        "layout": "channels_last",
        "megabytes": 411.0,
        "seconds": seconds,
        "spread": dict.fromkeys(seconds, 0.01),
        "over_copy": {name: value / seconds["copy"] for name, value in seconds.items()},
    }
    return {
        "environment": {"device": "a GPU", "gpu": True, "cuda": "13"},
        "shift": [row],
        "fused": [fused.row(16, 8, 4, 1, "cpu", torch.float32, repeats=2)],
        "overhead": [],
        "models": [],
        "streaming": [],
        "training": [],
        "loading": {"loader": [], "model": []},
        "traffic": {"how": "", "layers": [], "networks": []},
    }


def test_a_wrong_shift_gives_no_time(monkeypatch):
    case = (1, 8, 16, 4, "float32", "nchw")
    assert len(shift.measured([case], "cpu", True)) == 1
    monkeypatch.setattr(shift, "temporal_shift", lambda x, num_segments: x.clone())
    with pytest.raises(RuntimeError, match="ours of .* is wrong: no time is reported"):
        shift.measured([case], "cpu", True)


def without_shift(op, *arguments, **options):
    return op(*arguments, **{**options, "shift_div": 16})


def with_nan(op, *arguments, **options):
    out = op(*arguments, **options)
    out[-1].fill_(torch.nan)  # the second output, or the last frame of one
    return out


@pytest.mark.parametrize("op", ["residual_shift", "shift_conv1x1"])
@pytest.mark.parametrize("wrong", [without_shift, with_nan])
def test_a_wrong_fused_kernel_gives_no_time(monkeypatch, op, wrong):
    monkeypatch.setattr(fused, op, functools.partial(wrong, getattr(fused, op)))
    with pytest.raises(RuntimeError, match="no time is reported"):
        fused.row(16, 8, 4, 1, "cpu", torch.float32, repeats=2)


def test_a_wrong_network_gives_no_time():
    model = with_open_branches(timm.create_model(TINY).eval())
    patched = tsm_triton.patch(copy.deepcopy(model), models.NUM_SEGMENTS)
    x = torch.randn(models.NUM_SEGMENTS, 3, 32, 32)
    with torch.no_grad():
        expected = patched(x)
        models._check(TINY, {"unshifted": model, "patched": patched}, expected, x)
        with pytest.raises(RuntimeError, match="fused test_resnet is off .* no time is reported"):
            models._check(TINY, {"fused": model}, expected, x)
        with pytest.raises(RuntimeError, match="no time is reported"):
            streaming._check("eager", _Stateless(model), list(x.split(1)), expected)


class _Stateless:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, frame: torch.Tensor) -> torch.Tensor:
        return self.model(frame)

    def reset(self) -> None:
        pass


def test_loading_counts_what_is_decoded_and_refuses_wrong_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "NUM_FRAMES", 40)
    path = loading._write(tmp_path / "a.mp4", 64, 48, 250)
    row = loading.row(path, 3)
    assert row["videos_per_second"] > 0
    assert 1 < row["decoded_per_used"] <= 41 / 8
    assert loading.row(loading._as_pictures(path), 2)["decoded_per_used"] == 1
    packed = loading.shard_row(path, 3)
    assert packed["videos_per_second"] > 0
    assert 1 < packed["decoded_per_used"] <= 41 / 8
    text = report.save_loading(
        tmp_path / "out", {"device": "a CPU"}, {"loader": [{"source": "a", **row}], "model": []}
    )
    assert f"| a | {row['videos_per_second']:.1f} |" in text == (tmp_path / "out" / "loading.md").read_text()
    monkeypatch.setattr(loading, "read_frames", lambda path, wanted: read_frames(path, [0] * len(wanted)))
    with pytest.raises(RuntimeError, match="frames of a.mp4 .* no time is reported"):
        loading.row(path, 2)


def test_a_training_step_runs_and_refuses_wrong_gradients(monkeypatch):
    def rows():
        return training.rows(TINY, 1, 32, "cpu", torch.float32, repeats=2)

    assert [row["form"] for row in rows()] == ["unshifted", "slicing", "patched"]
    monkeypatch.setattr(tsm_triton, "patch", lambda model, num_segments: model)
    with pytest.raises(RuntimeError, match="gradient of patched .* no time is reported"):
        rows()


def test_a_gpu_run_has_every_baseline(monkeypatch):
    modes = []

    def compile_eagerly(call, mode="default", **_):
        modes.append(mode)
        return call

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    monkeypatch.setattr(forms, "Captured", lambda call, x: call)
    networks = {name: lambda x: x + 1 for name in ("unshifted", "slicing", "patched", "fused")}
    calls = models.gpu_calls(networks, torch.zeros(1))
    built = {f"{name}{form}" for name in networks for form in ("", ", compiled", ", max-autotune")}
    built.add("patched, tsm_triton backend")
    assert set(calls) == built | {f"{name}, CUDA graph" for name in built}
    assert all(call(torch.zeros(1)) == 1 for call in calls.values())
    assert set(modes) == {"default", "max-autotune-no-cudagraphs"}
    assert set(modes) <= {"default", *torch._inductor.list_mode_options()}


def test_goals_are_judged_or_said_not_to_be_measured(results):
    rows = {metric: measured for metric, _, measured in goals.table(results)}
    assert rows["shift bandwidth / copy_, tensors >= 256 MB"] == "0.98 met"
    assert rows["eager train step, authors' / ours"] == "not measured in this run"
    on_cpu = {**results, "environment": {"device": "a CPU", "gpu": False}}
    assert {measured for *_, measured in goals.table(on_cpu)} == {goals.NOT_MEASURED}
    times = {"unshifted, compiled": 2.0, "slicing, compiled": 3.0, "fused": 4.0, "fused, compiled": 2.0}
    times["fused, compiled, CUDA graph"] = 0.5
    steps = [
        {"form": form, "seconds": value, "peak_bytes": 1} for form, value in (("slicing", 3), ("patched", 2))
    ]
    filled = {**results, "models": [{"model": "resnet50", "seconds": times}], "training": steps}
    rows = {metric: measured for metric, _, measured in goals.table(filled)}
    assert rows["fused / compiled unshifted, throughput"] == "1.00 missed"
    assert rows["fused / compiled authors' TSM"] == "1.50 missed"
    assert rows["eager train step, authors' / ours"] == "1.50 met"


def test_results_become_a_page_and_charts(results, tmp_path):
    report.save(tmp_path, results)
    assert "counted, not measured" in (tmp_path / "results.md").read_text()
    assert charts.save(tmp_path, results) == "Wrote shift.png, roofline.png"
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpu_of_amd_is_a_gpu(results, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU of AMD")
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda: 2100)
    results = {**results, "environment": report.environment("cuda")}
    assert goals.NOT_MEASURED not in {measured for *_, measured in goals.table(results)}
    assert charts.save(tmp_path, results) == "Wrote shift.png, roofline.png"
    described = report.markdown(results).splitlines()[2]
    assert "rocm 7.1" in described
    assert "gpu" not in described


def test_without_matplotlib_there_is_a_note(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib is not installed" in charts.save(tmp_path, results)
    assert not list(tmp_path.iterdir())


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
