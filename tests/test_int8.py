"""Exported files that compute in int8: close to the floats, and their shifts move values as ours do."""

import re

import numpy
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import tsm_triton
from tsm_triton import Streaming, VideoClassifier
from tsm_triton.cli import main
from tsm_triton.exporting import load_exported
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.preparation import Preparation, preparation_of, set_preparation
from tsm_triton.video import read_clip
from tsm_triton.video.datasets import VideoDataset, read_listing
from tsm_triton.video.transforms import eval_transform, transform_for

from .networks import with_statistics
from .video_files import write_video

T, SIZE = 4, 64
CLOSE = 0.1  # of the largest logit, for random weights of which each layer's ranges are wide
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # torch 2.11's load
]


def small(direction="bidirectional") -> nn.Module:
    torch.manual_seed(0)
    model = with_statistics(timm.create_model("test_resnet", num_classes=5)).requires_grad_(False)
    return tsm_triton.patch(model.eval(), T, direction=direction)


def clips(count=16) -> torch.Tensor:
    return torch.randn(count, T, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def assert_near(found, expected) -> None:
    error = (found - expected).abs().max().item() / expected.abs().max().item()
    assert 1e-4 < error < CLOSE  # near, and not the floats themselves


def shifts_in(graph) -> list[tuple[str, str]]:
    """What goes into each shift of a graph, and what comes out of it: from the reshape before to the one behind."""
    maker = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        source = maker.get(node.input[0])
        if node.op_type == "Reshape" and source is not None and source.op_type == "Concat":
            while source.op_type != "Reshape":
                assert source.op_type in ("Concat", "Pad", "Slice", "Split")
                source = maker[source.input[0]]
            found.append((source.input[0], node.output[0]))
    return found


@torch.no_grad()
def test_onnx_computes_in_int8_and_its_shifts_are_ours(tmp_path):
    model, path = small(), tmp_path / "int8.onnx"
    said = tsm_triton.export(model, "onnx", path, clips(1)[0], int8=clips())
    assert said["int8"]
    held = onnx.load(path)
    onnx.checker.check_model(held, full_check=True)
    count = sum(node.op_type == "QuantizeLinear" for node in held.graph.node)
    assert count >= sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) - 2
    initial = {value.name: onnx.numpy_helper.to_array(value) for value in held.graph.initializer}
    zeros = [node.input[2] for node in held.graph.node if node.op_type == "QuantizeLinear"]
    assert not any(initial[name].any() for name in zeros)
    # or two products overflow 16 bits on a CPU without VNNI
    assert (
        max(abs(x.astype(int)).max() for x in initial.values() if x.dtype == numpy.int8 and x.ndim > 1) <= 64
    )
    shifts = shifts_in(held.graph)
    assert len(shifts) == len(shift_hooks(model))
    for name in {name for pair in shifts for name in pair}:
        held.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(held.SerializeToString(), providers=["CPUExecutionProvider"])
    frames = torch.randn(3 * T, 3, SIZE, SIZE)
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(names, {"frames": frames.numpy()}), strict=True))
    assert_near(torch.from_numpy(values["logits"]), model(frames))
    for before, behind in shifts:
        moved = tsm_triton.temporal_shift(torch.from_numpy(values[before]), T)
        numpy.testing.assert_array_equal(values[behind], moved.numpy())
    assert path.stat().st_size < sum(x.nbytes for x in model.state_dict().values()) / 2


@torch.no_grad()
def test_pt2_computes_in_int8_and_loads_without_this_package(tmp_path):
    model, path = VideoClassifier(small(), T).eval(), tmp_path / "int8.pt2"
    said = tsm_triton.export(model, "pt2", path, clips(1), int8=[clips(8), clips(4)])
    __import__(said["needs"], fromlist=["it"])
    program = torch.export.load(path)
    called = [str(node.target) for node in program.graph.nodes]
    assert not [name for name in called if name.startswith("tsm_triton")]
    assert sum("quantize_per_tensor" in name for name in called) > 10
    assert path.stat().st_size < sum(x.nbytes for x in model.state_dict().values())
    exported = load_exported(path)
    for video in (torch.randn(3, T, 3, SIZE, SIZE), torch.randn(2, 6, 3, SIZE, SIZE)):
        assert_near(exported(video), model(video))


@torch.no_grad()
def test_frames_out_of_reach_change_nothing_in_int8(tmp_path):
    # a causal shift at one site: the last frame of a clip reaches no other
    torch.manual_seed(0)
    model = with_statistics(timm.create_model("test_resnet", num_classes=5)).requires_grad_(False).eval()
    tsm_triton.patch(model, T, direction="causal", filter_fn=lambda module, name: name == "layer2.0.conv1")
    tsm_triton.export(model, "pt2", tmp_path / "int8.pt2", clips(1)[0], int8=clips())
    run = load_exported(tmp_path / "int8.pt2").runtime.run
    frames = torch.randn(T, 3, SIZE, SIZE)
    changed = frames.clone()
    changed[1] += 1
    same = [torch.equal(a, b) for a, b in zip(run([frames])[0], run([changed])[0], strict=True)]
    assert same == [True, False, False, True]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["stream.onnx", "stream.pt2"])
def test_a_stream_in_int8(name, tmp_path):
    model, path = small("causal"), tmp_path / name
    said = tsm_triton.export(Streaming(model), name[7:], path, clips(1)[:, 0], int8=clips())
    assert list(said["inputs"])[1].startswith("cache.")
    exported, stream, video = (
        Streaming(load_exported(path)),
        Streaming(model),
        torch.randn(2, T, 3, SIZE, SIZE),
    )
    found, expected = (torch.stack([each(frame) for frame in video.unbind(1)]) for each in (exported, stream))
    assert_near(found, expected)


@torch.no_grad()
@pytest.mark.slow
def test_a_fused_model_in_int8(tmp_path):
    model = small()
    fused = tsm_triton.fuse(model, example_input=clips(1)[0])
    tsm_triton.export(fused, "onnx", tmp_path / "int8.onnx", int8=clips())
    video = torch.randn(2, T, 3, SIZE, SIZE)
    assert_near(load_exported(tmp_path / "int8.onnx")(video), VideoClassifier(model, T)(video))


def test_what_cannot_be_int8_is_refused(tmp_path):
    model, path = small(), tmp_path / "model.pt2"
    for int8, error, message in (
        ("videos", TypeError, "int8 must be normalised clips"),
        (torch.zeros(2, T, 3, SIZE, SIZE, dtype=torch.uint8), TypeError, "int8 must be normalised clips"),
        (torch.zeros(T, 3, SIZE, SIZE), ValueError, "int8 must be clips of shape"),
        (torch.full((1, T, 3, SIZE, SIZE), torch.nan), ValueError, "int8 must be finite clips"),
        ([], ValueError, "int8 must be at least one clip"),
        (torch.zeros(1, T + 1, 3, SIZE, SIZE), ValueError, "as the file's own"),
        (torch.zeros(1, T, 3, 32, 32), ValueError, "as the file's own"),
    ):
        with pytest.raises(error, match=message):
            tsm_triton.export(model, "pt2", path, clips(1)[0], int8=int8)
    with pytest.raises(ValueError, match="without native, with int8"):
        tsm_triton.export(model, "aoti", path, clips(1)[0], int8=clips(1))
    with pytest.raises(ValueError, match="expected a float32 model with int8"):
        tsm_triton.export(small().half(), "pt2", path, clips(1)[0], int8=clips(1))
    fused = tsm_triton.fuse(model, example_input=clips(1)[0])
    with pytest.raises(ValueError, match="pass the patched model"):
        tsm_triton.export(fused, "pt2", path, int8=clips(1))
    assert not path.exists()


def test_ranges_are_measured_on_the_frames_that_eval_gives_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos" / "a").mkdir(parents=True)
    write_video(tmp_path / "videos" / "a" / "0.mp4", 16)
    model = small("causal")
    set_preparation(model, Preparation(SIZE, SIZE), "dense")
    tsm_triton.save_checkpoint(model, "best.pt")
    seen = []

    def record(model, *args, int8, **options):
        seen.extend(int8)
        return {"inputs": {}, "outputs": [], "num_segments": None, "int8": True}

    monkeypatch.setattr("tsm_triton.commands.export.command.export", record)
    argv = ["export", "best.pt", "--to", "onnx", "--streaming", "--int8", "videos"]
    for size in (SIZE, 48):
        assert main([*argv, "--size", str(size)]) == 0
        dataset = VideoDataset(
            read_listing("videos"),
            T,
            transform=eval_transform(size, short_side=size),
            sampling="dense",
            size=size,
        )
        assert torch.equal(seen.pop(), dataset[0][0])


def test_the_command_measures_ranges_on_videos(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("left", "right"):
        (tmp_path / "videos" / kind).mkdir(parents=True)
        write_video(tmp_path / "videos" / kind / "0.mp4", 10)
    tsm_triton.save_checkpoint(small(), "best.pt", labels=list("abcde"))
    argv = [
        "export",
        "best.pt",
        "--to",
        "onnx",
        "--path",
        "int8.onnx",
        "--size",
        str(SIZE),
        "--int8",
        "videos",
    ]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    kept, move = re.search(
        r"computes in int8: of the 2 clips .*, (\d) \(.*%\) keep the float .* at most (\d\.\d+)", printed
    ).groups()
    assert "tsm-triton eval TEST --model int8.onnx" in printed
    exported, plain = load_exported("int8.onnx"), tsm_triton.load_checkpoint("best.pt").eval()
    said = preparation_of(plain, size=SIZE)
    clip = transform_for(plain, size=SIZE)(read_clip("videos/left/0.mp4", T, size=said.short_side))
    with torch.no_grad():
        before, after = VideoClassifier(plain, T)(clip).softmax(-1), exported(clip).softmax(-1)
    # both videos are one
    assert int(kept) == 2 * int(before.argmax() == after.argmax())
    assert float(move) == pytest.approx((before - after).abs().max().item(), abs=6e-4)
    assert float(move) > 0
    assert main(["classify", "videos", "--model", "int8.onnx", "--workers", "0"]) == 0
    assert main([*argv[:-1], "missing"]) == 2
