"""The client of an exported file against the model: the same frames and pixels, and so the same probabilities."""

import runpy
import weakref
from pathlib import Path

import av
import pytest
import timm
import torch

import tsm_triton
from tsm_triton import VideoClassifier
from tsm_triton.video import read_clip
from tsm_triton.video.transforms import transform_for

from .networks import with_statistics
from .video_files import write_video

T, SIZE = 4, 64
CLIENT = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "onnx_client.py"))
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export"),
]


def small():
    model = with_statistics(timm.create_model("test_resnet", num_classes=5)).eval()
    config = {"label_names": list("abcde"), "input_size": (3, SIZE, SIZE), "short_side": 73}
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    return tsm_triton.patch(model, T)


@torch.no_grad()
@pytest.mark.parametrize("rotation", [None, 90, 180, 270])
@pytest.mark.parametrize("size", [(160, 64), (66, 118), (76, 76)])
def test_the_clients_pixels_are_those_of_the_transform(rotation, size, tmp_path):
    path = write_video(tmp_path / "video.mp4", 10, size=size, rotation=rotation)
    said = {"size": SIZE, "short_side": 73, "mean": [0.5] * 3, "std": [0.5] * 3}
    frames = CLIENT["read_frames"](str(path), T)
    pixels = torch.stack([torch.from_numpy(CLIENT["prepare"](frame, said).copy()) for frame in frames])
    levels = (pixels - transform_for(small())(read_clip(path, T))[0]).abs() * 127.5
    assert levels.max() <= 4  # FFmpeg's resize and torchvision's round otherwise
    assert levels.mean() <= 0.5


@torch.no_grad()
@pytest.mark.parametrize("kind", ["float32", "float16", "identity", "frames"])
def test_the_clients_probabilities_are_the_models(kind, tmp_path):
    path, video = tmp_path / "model.onnx", write_video(tmp_path / "video.mp4", 21, rotation=90)
    model = small().half() if kind == "float16" else small()
    classifier = VideoClassifier(model, T, "identity" if kind == "identity" else "avg")
    if kind == "frames":
        tsm_triton.export(model, "onnx", path, torch.zeros(T, 3, SIZE, SIZE))
    else:
        tsm_triton.export(classifier, "onnx", path, torch.zeros(1, T, 3, SIZE, SIZE))
    clip = transform_for(model)(read_clip(video, T)).to(next(model.parameters()).dtype)
    logits = classifier(clip).float().reshape(-1, 5).mean(0)
    found = dict(CLIENT["classify"](str(path), str(video)))
    assert [found[label] for label in "abcde"] == pytest.approx(logits.softmax(0).tolist(), abs=0.01)


class Frame:
    pass


class Container:
    """Of 100 frames; `most` of any were alive at once."""

    most = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def decode(self, video):
        alive = weakref.WeakSet()
        for _ in range(100):
            frame = Frame()
            alive.add(frame)
            Container.most = max(Container.most, len(alive))
            yield frame


def test_the_client_holds_the_frames_that_it_needs_alone(monkeypatch):
    monkeypatch.setattr(av, "open", lambda path: Container())
    assert len(CLIENT["read_frames"]("a video", T)) == T
    assert Container.most <= T + 2
