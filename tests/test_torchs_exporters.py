"""Who calls torch's own exporters gets the same numbers, or is told of ours."""

import numpy
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import tsm_triton
from tsm_triton import Streaming, VideoClassifier, functional, ops
from tsm_triton.modules import TemporalShift
from tsm_triton.video.features import VideoFeatures

from .networks import with_statistics

T = 4
CLIPS = torch.export.Dim("clips", min=1, max=64)
STREAMS = torch.export.Dim("streams", min=1, max=64)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch's older exporter, dynamo=False
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1"),
    pytest.mark.filterwarnings("ignore:# The axis name. streams will not be used"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
]


def small(direction="bidirectional") -> nn.Module:
    model = with_statistics(timm.create_model("test_resnet", num_classes=5)).requires_grad_(False)
    return tsm_triton.patch(model.eval(), T, direction=direction)


def flat(tensors) -> list[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else [x for part in tensors for x in flat(part)]


def check(path, model, *inputs):
    """The file at a path in onnxruntime, with these inputs."""
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {value.name: x.numpy() for value, x in zip(session.get_inputs(), flat(inputs), strict=True)}
    with torch.no_grad():
        expected = flat(model(*inputs))
    for found, wanted in zip(session.run(None, given), expected, strict=True):
        numpy.testing.assert_allclose(
            found, wanted.numpy(), rtol=0, atol=1e-4 * max(1, wanted.abs().max().item())
        )


def test_a_fused_model(tmp_path):
    frames = torch.randn(2 * T, 3, 32, 32)
    fused, path = tsm_triton.fuse(small(), example_input=frames[:T]), tmp_path / "fused.onnx"
    assert {entry.kind for entry in fused.report.fused} >= {"shift + conv1x1", "residual + shift"}
    torch.onnx.export(fused, (frames,), path, dynamic_shapes=({0: T * CLIPS},), verbose=False)
    for clips in (1, 3):
        check(path, fused, torch.randn(clips * T, 3, 32, 32))


@pytest.mark.parametrize("fused", [False, True])
def test_a_streams_step(fused, tmp_path):
    step, path = Streaming(small("causal"), fused=fused).step.eval(), tmp_path / "step.onnx"
    frame = torch.randn(2, 3, 32, 32)
    state = step.init_state(frame)
    shapes = ({0: STREAMS}, [{0: STREAMS} for _ in state])
    torch.onnx.export(step, (frame, state), path, dynamic_shapes=shapes, verbose=False)
    frame = torch.randn(3, 3, 32, 32)
    check(path, step, frame, [torch.randn_like(cache) for cache in step.init_state(frame)])


@pytest.mark.parametrize("fused", [False, True])
def test_the_older_exporter_with_a_free_batch(fused, tmp_path):
    model, path, frames = small(), tmp_path / "model.onnx", torch.randn(2 * T, 3, 32, 32)
    model = tsm_triton.fuse(model, example_input=frames) if fused else model
    torch.onnx.export(
        model, (frames,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "rows"}}
    )
    for clips in (1, 3):
        check(path, model, torch.randn(clips * T, 3, 32, 32))


class Packed(nn.Module):
    def forward(self, x):
        return tsm_triton.temporal_shift(x, None, clip_lengths=[3, 5])


class Residual(nn.Module):
    def forward(self, x):
        return functional.residual_shift(x, x, T)


@pytest.mark.parametrize(
    "module", [Packed().eval(), Residual().eval()], ids=lambda module: type(module).__name__
)
def test_what_has_no_operators_there_is_told_of_export(module):
    with pytest.raises(Exception, match=r"tsm_triton\.export\(model, to='onnx'"):
        torch.onnx.export(module, (torch.randn(8, 8, 4, 4),), verbose=False)


def test_a_program_that_was_captured_before(tmp_path):
    """Is refused with the way out, which leads out."""
    x, path = torch.randn(2 * T, 8, 3, 3), tmp_path / "program.onnx"
    model = TemporalShift(T).eval()
    program = torch.export.export(model, (x,))
    with pytest.raises(Exception, match=r"program\.run_decompositions\(tsm_triton\.ops\.ATEN_FORMS\)"):
        torch.onnx.export(program, (), verbose=False)
    torch.onnx.export(program.run_decompositions(ops.ATEN_FORMS), (), path, verbose=False)
    check(path, model, x)


def test_exporting_leaves_the_ops_as_they_were():
    with pytest.raises(Exception, match="export"):
        torch.onnx.export(Packed().eval(), (torch.randn(8, 8, 4, 4),), verbose=False)
    program = torch.export.export(Packed(), (torch.randn(8, 8, 4, 4),))
    assert "tsm_triton.temporal_shift_packed.default" in [str(node.target) for node in program.graph.nodes]


@pytest.mark.parametrize("fused", [False, True])
def test_the_older_exporter_leaves_a_step_in_its_mode(fused, tmp_path):
    step, frame = Streaming(small("causal"), fused=fused).step, torch.randn(2, 3, 32, 32)
    state = step.init_state(frame)
    torch.onnx.export(step, (frame, state), tmp_path / "step.onnx", dynamo=False)
    assert not any(module.training for module in step.modules())
    step(frame, state)


@pytest.mark.filterwarnings("ignore:the traced graph takes clips of 4 frames")
def test_a_model_over_clips_is_in_the_mode_of_the_model_inside(tmp_path):
    video = torch.randn(1, T, 3, 32, 32)
    for model in (VideoClassifier(small(), T), VideoFeatures(nn.Sequential(small()).eval(), T)):
        assert not model.training
    assert VideoClassifier(small().train(), T).training
    torch.onnx.export(model := VideoClassifier(small(), T), (video,), tmp_path / "m.onnx", dynamo=False)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("fused", [False, True])
def test_what_the_tracer_made_of_clips_fails_for_another_length(fused, tmp_path):
    model, path = small(), tmp_path / "model.onnx"
    model = tsm_triton.fuse(model, example_input=torch.zeros(T, 3, 32, 32)) if fused else model
    model, video = VideoClassifier(model, T).eval(), torch.randn(2, T, 3, 32, 32)
    with pytest.warns(UserWarning, match="clips of 4 frames alone.*tsm_triton.export"):
        torch.onnx.export(
            model,
            (video,),
            path,
            dynamo=False,
            input_names=["video"],
            dynamic_axes={"video": {0: "n", 1: "t"}},
        )
    with pytest.warns(UserWarning, match="clips of 4 frames alone"):
        traced = torch.jit.trace(model, video)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for clips in (1, 3):
        video = torch.randn(clips, T, 3, 32, 32)
        check(path, model, video)
        torch.testing.assert_close(traced(video), model(video), rtol=1e-4, atol=1e-4)
    for clips, frames in ((4, 2), (2, 2), (1, 8), (8, 1)):
        video = torch.randn(clips, frames, 3, 32, 32)
        with pytest.raises(Exception, match="[Rr]eshape"):
            session.run(None, {"video": video.numpy()})
        with pytest.raises(RuntimeError, match=r"shape '\[\d, 4"):
            traced(video)


class Convolution(nn.Module):
    def forward(self, x):
        return functional.shift_conv1x1(x, torch.ones(8, 8), T)


@pytest.mark.parametrize(
    "module", [Packed(), Residual(), Convolution()], ids=lambda module: type(module).__name__
)
def test_what_has_no_operators_for_the_tracer_is_told_of_export(module, tmp_path):
    with pytest.raises(RuntimeError, match=r"tsm_triton\.export\(model, to='onnx'"):
        torch.onnx.export(module.eval(), (torch.randn(8, 8, 4, 4),), tmp_path / "x.onnx", dynamo=False)


@pytest.mark.filterwarnings("ignore:no signature found")
def test_what_was_traced_before_is_told_of_export(tmp_path):
    x = torch.randn(8, 8, 4, 4)
    traced = torch.jit.trace(TemporalShift(T).eval(), x)
    with pytest.raises(RuntimeError, match=r"tsm_triton\.export\(model, to='onnx'"):
        torch.onnx.export(traced, (x,), tmp_path / "x.onnx", dynamo=False)
