"""Exported files against torch: what reads them is none of ours."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
import torchvision
from timm.layers import Conv2dSame, padding
from torch import nn

import tsm_triton
from tsm_triton import Streaming, VideoClassifier, ops
from tsm_triton.cli import main
from tsm_triton.exporting import load_exported
from tsm_triton.exporting.capture import captured, of_kernels, ops_of_ours
from tsm_triton.exporting.interface import interface_of
from tsm_triton.exporting.onnx import OPSET
from tsm_triton.exporting.padding import whole_number_padding
from tsm_triton.patching.hooks import shift_hooks

from .networks import with_statistics
from .video_files import write_video

T = 4
CLIPS = (1, 2, 3)
CLIENT = Path(__file__).parent.parent / "examples" / "onnx_client.py"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch 2.11's load
]
# what the shift itself becomes
OF_THE_SHIFT = {"Concat", "Pad", "Reshape", "Slice", "Split"}
# of the operators that the parser of TensorRT 10.15 takes (onnx-tensorrt, docs/operators.md), those that networks
# of frames use
NAMES = """
    Add AveragePool BatchNormalization Cast Clip Constant ConstantOfShape Conv Div Equal Erf Expand Flatten Gather Gelu
    Gemm GlobalAveragePool HardSigmoid HardSwish Identity LayerNormalization MatMul MaxPool Mod Mul Not Pow Range
    Reciprocal ReduceMean Relu Shape Sigmoid Softmax Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
"""
OF_TENSORRT = OF_THE_SHIFT | set(NAMES.split())
WHOLE = {
    "ResNet-50": lambda: timm.create_model("resnet50", num_classes=5),
    "MobileNetV2": lambda: torchvision.models.mobilenet_v2(num_classes=5),
    "MobileNetV3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "EfficientNet-B0": lambda: timm.create_model("efficientnet_b0", num_classes=5),
    "RegNetY": lambda: timm.create_model("regnety_002", num_classes=5),
    "ConvNeXt": lambda: timm.create_model("convnext_atto", num_classes=5),
    "ViT": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64),
    "Swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, img_size=64, window_size=4
    ),
}


def small(direction="bidirectional") -> nn.Module:
    model = with_statistics(timm.create_model("test_resnet", num_classes=5))
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": list("abcde")}
    return tsm_triton.patch(model.eval(), T, direction=direction)


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def said_in(session):
    return json.loads(session.get_modelmeta().custom_metadata_map["tsm_triton"])


def operators(path) -> set[str]:
    graph = onnx.load(path, load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""}
    return {node.op_type for node in graph.node}


def assert_close(actual, expected):
    tolerance = 1e-4 * expected.abs().max().item()
    numpy.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=tolerance)


@torch.no_grad()
def check_onnx(model, path, size=64):
    """The file of a model of frames, in onnxruntime and OpenVINO, at three batch sizes."""
    said = tsm_triton.export(model, "onnx", path, torch.zeros(T, 3, size, size))
    assert said["inputs"] == {"frames": [f"{T}*clips", 3, size, size]}
    session = session_of(path)
    # fp32, where OpenVINO takes bf16 by itself on a CPU that has it
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for clips in CLIPS:
        frames = torch.randn(clips * T, 3, size, size)
        expected = model(frames)
        assert_close(session.run(["logits"], {"frames": frames.numpy()})[0], expected)
        assert_close(compiled({"frames": frames.numpy()})["logits"], expected)
    assert operators(path) <= OF_TENSORRT
    return session


def test_onnx_of_frames_says_all_its_user_needs(tmp_path):
    path = tmp_path / "model.onnx"
    session = check_onnx(small(), path)
    held = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in held.opset_import] == [("", OPSET)]
    assert b"site-packages" not in path.read_bytes()
    onnx.checker.check_model(held, full_check=True)
    said = said_in(session)
    assert said["labels"] == list("abcde")
    assert (said["num_segments"], said["direction"], said["size"]) == (T, "bidirectional", 64)
    assert (said["mean"], said["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert said["versions"] == {"tsm_triton": tsm_triton.__version__, "torch": torch.__version__}


# what exporters of other code bases are known to fail at
FAMOUS = ("ResNet-50", "MobileNetV2")


@pytest.mark.parametrize(
    "name", [name if name in FAMOUS else pytest.param(name, marks=pytest.mark.slow) for name in WHOLE]
)
def test_onnx_of_whole_networks(name, tmp_path):
    check_onnx(tsm_triton.patch(WHOLE[name]().eval(), T), tmp_path / "model.onnx")


@torch.no_grad()
def test_onnx_of_a_classifier_takes_any_number_of_clips_of_any_length(tmp_path):
    model, path = VideoClassifier(small(), T).eval(), tmp_path / "model.onnx"
    said = tsm_triton.export(model, "onnx", path, torch.zeros(1, T, 3, 64, 64))
    assert said["inputs"] == {"video": ["clips", "frames", 3, 64, 64]}
    session = session_of(path)
    for clips, frames in ((1, T), (3, 5), (2, 1)):
        video = torch.randn(clips, frames, 3, 64, 64)
        assert_close(session.run(["logits"], {"video": video.numpy()})[0], model(video))


@pytest.mark.slow
@torch.no_grad()
def test_height_and_width_are_free_on_request(tmp_path):
    model, path = small(), tmp_path / "model.onnx"
    said = tsm_triton.export(model, "onnx", path, torch.zeros(T, 3, 64, 64), dynamic_size=True)
    assert said["inputs"] == {"frames": [f"{T}*clips", 3, "32*height", "32*width"]}
    session = session_of(path)
    for clips, height, width in ((1, 64, 64), (3, 96, 128)):
        frames = torch.randn(clips * T, 3, height, width)
        assert_close(session.run(None, {"frames": frames.numpy()})[0], model(frames))


def test_padding_of_tensorflow_is_the_same_in_whole_numbers():
    numbers = list(itertools.product(range(1, 40), (1, 2, 3, 5, 7), (1, 2, 3, 4), (1, 2, 3)))
    expected = [padding.get_same_padding(*each) for each in numbers]
    with whole_number_padding():
        assert [padding.get_same_padding(*each) for each in numbers] == expected
    assert padding.get_same_padding.__module__ == "timm.layers.padding"


@torch.no_grad()
def test_free_sizes_of_padding_of_tensorflow_leave_no_symbol_in_it(tmp_path):
    convolutions = (
        Conv2dSame(3, 8, 3, stride=2),
        nn.ReLU(),
        Conv2dSame(8, 8, 5, stride=2),
        Conv2dSame(8, 5, 3, stride=2),
    )
    model = VideoClassifier(nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()), T).eval()
    tsm_triton.export(model, "pt2", tmp_path / "model.pt2", torch.zeros(1, T, 3, 64, 64), dynamic_size=True)
    program = torch.export.load(tmp_path / "model.pt2")
    pads = [
        node.args[1]
        for node in program.graph.nodes
        if "pad" in str(node.target) and node.op == "call_function"
    ]
    assert pads == [[0, 1, 0, 1], [1, 2, 1, 2], [0, 1, 0, 1]]
    video = torch.randn(2, 3, 3, 96, 160)
    torch.testing.assert_close(program.module()(video), model(video))


@torch.no_grad()
def test_onnx_of_a_fused_model(tmp_path):
    model, path = small(), tmp_path / "model.onnx"
    fused = tsm_triton.fuse(model, example_input=torch.zeros(T, 3, 64, 64))
    said = tsm_triton.export(fused, "onnx", path)
    assert said["labels"] == list("abcde")
    assert operators(path) <= OF_TENSORRT
    frames = torch.randn(3 * T, 3, 64, 64)
    assert_close(session_of(path).run(None, {"frames": frames.numpy()})[0], model(frames))


@torch.no_grad()
def test_a_stream_in_onnx_is_the_stream(tmp_path):
    model, path = small("causal"), tmp_path / "stream.onnx"
    stream = Streaming(model)
    said = tsm_triton.export(stream, "onnx", path, torch.zeros(1, 3, 64, 64))
    session = session_of(path)
    shapes = {value.name: [3, *value.shape[1:]] for value in session.get_inputs()}
    assert list(shapes) == list(said["inputs"]) == ["frame", *(f"cache.{name}" for name in stream.step.names)]
    caches = {name: numpy.zeros(shape, numpy.float32) for name, shape in shapes.items() if name != "frame"}
    for frame in torch.randn(T, 3, 3, 64, 64):
        logits, *new = session.run(said["outputs"], {"frame": frame.numpy(), **caches})
        caches = dict(zip(caches, new, strict=True))
        assert_close(logits, stream(frame))


def run_without_this_package(code, folder):
    code = f"import sys; sys.modules['tsm_triton'] = None\n{code}"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@torch.no_grad()
def test_a_pt2_runs_where_this_package_is_not(tmp_path):
    model, frames = small(), torch.randn(3 * T, 3, 64, 64)
    tsm_triton.export(model, "pt2", tmp_path / "model.pt2", frames)
    torch.save((frames, model(frames)), tmp_path / "expected.pt")
    code = (
        "import json, torch\n"
        "said = {'tsm_triton.json': ''}; model = torch.export.load('model.pt2', extra_files=said).module()\n"
        "frames, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(model(frames), expected)\n"
        "assert json.loads(said['tsm_triton.json'])['num_segments'] == 4\n"
    )
    run_without_this_package(code, tmp_path)


@torch.no_grad()
def test_a_native_pt2_keeps_the_registered_ops(tmp_path):
    model, path, frames = small(), tmp_path / "model.pt2", torch.randn(2 * T, 3, 64, 64)
    assert tsm_triton.export(model, "pt2", path, frames, native=True)["needs"] == "tsm_triton"
    program = torch.export.load(path)
    called = [str(node.target) for node in program.graph.nodes]
    assert called.count("tsm_triton.temporal_shift.default") == len(shift_hooks(model))
    torch.testing.assert_close(program.module()(frames), model(frames))


def test_a_package_of_kernels_keeps_the_ops_that_have_one():
    model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5).eval(), T)
    with pytest.raises(ValueError, match="expected a fused model with native=True"):
        of_kernels(captured(interface_of(model, None, False)))
    fused = tsm_triton.fuse(model, example_input=torch.zeros(T, 3, 64, 64))
    program = of_kernels(captured(interface_of(fused, None, False)))
    assert ops_of_ours(program) == {f"tsm_triton.{name}.default" for name in KEPT}


# of a fused residual network; its other convolutions are torch's own
KEPT = ("residual_shift", "shift_conv1x1")


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_package_runs_where_this_package_is_not(tmp_path):
    model, frames = small(), torch.randn(3 * T, 3, 64, 64)
    tsm_triton.export(model, "aoti", tmp_path / "model.pt2", frames)
    torch.save((frames, model(frames)), tmp_path / "expected.pt")
    code = (
        "import json, torch, torch._inductor\n"
        "model = torch._inductor.aoti_load_package('model.pt2')\n"
        "frames, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(model(frames), expected, rtol=0, atol=1e-4)\n"
        "assert json.loads(model.get_metadata()['tsm_triton'])['num_segments'] == 4\n"
    )
    run_without_this_package(code, tmp_path)


@torch.no_grad()
def test_one_clip_alone_runs_behind_a_temporal_pool(tmp_path):
    model = tsm_triton.create_model("resnet18", num_segments=T, num_classes=5, temporal_pool=True).eval()
    tsm_triton.export(model, "pt2", tmp_path / "model.pt2", torch.zeros(T, 3, 32, 32))
    exported = load_exported(tmp_path / "model.pt2")
    for clips in (1, 2):
        video = torch.randn(clips, T, 3, 32, 32)
        torch.testing.assert_close(exported(video), VideoClassifier(model, T)(video))


class OneShift(nn.Module):
    def forward(self, x):
        return tsm_triton.temporal_shift(x, T)


def test_who_calls_torchs_own_exporter_gets_the_same_operators(tmp_path):
    x, path = torch.randn(2 * T, 8, 3, 3), tmp_path / "shift.onnx"
    clips = torch.export.Dim("clips", min=1, max=64)
    program = torch.onnx.export(OneShift().eval(), (x,), dynamic_shapes=({0: T * clips},), verbose=False)
    program.save(path)
    assert operators(path) == OF_THE_SHIFT
    session = session_of(path)
    for clips in CLIPS:
        x = torch.randn(clips * T, 8, 3, 3)
        shifted = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        numpy.testing.assert_array_equal(shifted, tsm_triton.temporal_shift(x, T).numpy())


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize(
    "shift", [(2, 1, True, 1), (2, 2, False, -1), (3, 0, True, 2), (0, 0, False, 1), (4, 4, False, 1)]
)
def test_the_form_for_files_is_the_op(length, shift):
    x = torch.randn(2 * length, 8, 8)
    expected = ops.temporal_shift(x, length, *shift)
    assert torch.equal(ops.ATEN_FORMS[ops.temporal_shift](x, length, *shift), expected)


def test_the_client_needs_onnxruntime_pyav_and_numpy_alone(tmp_path):
    tsm_triton.export(small(), "onnx", tmp_path / "model.onnx", torch.zeros(T, 3, 64, 64))
    write_video(tmp_path / "video.mp4", 10)
    code = (
        "import runpy, sys\n"
        "for name in ('tsm_triton', 'torch', 'timm'): sys.modules[name] = None\n"
        f"sys.argv = ['client', 'model.onnx', 'video.mp4']; runpy.run_path({str(CLIENT)!r}, run_name='__main__')\n"
    )
    rows = [line.split() for line in run_without_this_package(code, tmp_path).splitlines()]
    assert sorted(label for _, label in rows) == list("abcde")
    assert sum(float(probability) for probability, _ in rows) == pytest.approx(1, abs=0.01)
    assert len(CLIENT.read_text().splitlines()) <= 60


def test_the_command_writes_a_checkpoints_file(tmp_path, capsys):
    checkpoint, path = tmp_path / "best.pt", tmp_path / "best.onnx"
    tsm_triton.save_checkpoint(small("causal"), checkpoint)
    argv = ["export", str(checkpoint), "--to", "onnx", "--path", str(path), "--size", "64"]
    assert main([*argv, "--streaming"]) == 0
    assert "frames of a clip: one frame at a time" in capsys.readouterr().out
    assert said_in(session_of(path))["labels"] == list("abcde")
    assert main([*argv, "--direction", "causal"]) == 2
    assert "drop it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tflite"}, "to must be one of"),
        ({"path": "model.pt"}, "path must be of a file that ends in .onnx"),
        ({"path": "missing/model.onnx"}, "expected a path in a folder that is there"),
        ({"native": True}, "expected to='pt2' or to='aoti' with native=True"),
        ({"native": True, "to": "aoti", "path": "model.pt2"}, "expected a model on a CUDA device"),
        ({"example_input": torch.zeros(1, T, 3, 64, 64)}, "example_input must have shape frames"),
        ({"example_input": torch.zeros(T, 3, 50, 50), "dynamic_size": True}, "multiples of 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_written_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tsm_triton.patch(timm.create_model("test_resnet").eval(), T)
    with pytest.raises(ValueError, match=message):
        tsm_triton.export(model, **{"to": "onnx", "path": "model.onnx", **options})
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_ready_are_refused(tmp_path):
    model, path = timm.create_model("test_resnet").eval(), tmp_path / "model.onnx"
    with pytest.raises(RuntimeError, match="expected a patched model"):
        tsm_triton.export(model, "onnx", path)
    with pytest.raises(TypeError, match="model must be a patched or fused model"):
        tsm_triton.export("resnet50", "onnx", path)
    tsm_triton.patch(model, T, direction="causal")
    with pytest.raises(ValueError, match="expected a stream that computes each frame by itself"):
        tsm_triton.export(Streaming(model, consensus=3), "onnx", path)
    with tsm_triton.shift_disabled(model), pytest.raises(RuntimeError, match="whose shift is on"):
        tsm_triton.export(model, "onnx", path)
    with pytest.raises(RuntimeError, match="expected a model in eval mode"):
        tsm_triton.export(model.train(), "onnx", path)
    assert not path.exists()
