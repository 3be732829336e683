"""One patched model on several threads, and patched models and videos in several processes."""

import copy
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from tsm_triton import Streaming, VideoClassifier, packed_clips, patch
from tsm_triton.modules import TemporalPool
from tsm_triton.testing import assert_same_bits
from tsm_triton.video import read_clip

from .video_files import write_video


def small(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):  # no branch may hide its shift
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return patch(model, num_segments=2, **options)


def outputs_of_threads(functions, times=5):
    """What each function returns each time, started at the same moment on a thread of its own."""
    start = threading.Barrier(len(functions))

    def call(function):
        start.wait()
        return [function() for _ in range(times)]

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(call, function) for function in functions]]


@pytest.mark.parametrize("name", ["test_resnet", "swinv2_cr_tiny_ns_224"])
def test_threads_share_a_model(name):
    # the second shifts windows, of which a frame has several: each thread has its own number of frames
    size = {} if name == "test_resnet" else dict(img_size=64, window_size=2, depths=(1, 1), num_heads=(2, 2))
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **size).eval().requires_grad_(False)
    model = patch(model, num_segments=2)
    batches = [torch.randn(2 * clips, 3, 64, 64) for clips in (1, 2, 3, 4)]
    expected = [model(batch) for batch in batches]
    results = outputs_of_threads([lambda batch=batch: model(batch) for batch in batches])
    for outputs, alone in zip(results, expected, strict=True):
        for output in outputs:
            assert_same_bits(output, alone)


@pytest.mark.parametrize("pooled", [False, True], ids=["shifts", "and a layer of clips"])
def test_threads_share_a_model_with_clips_of_other_lengths(pooled):
    model = small()
    if pooled:
        model.layer2 = torch.nn.Sequential(TemporalPool(2), model.layer2)
    classifier = VideoClassifier(model)
    videos = [torch.randn(2, length, 3, 64, 64) for length in (2, 4, 8)]
    expected = [classifier(video) for video in videos]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        results = outputs_of_threads([lambda video=video: classifier(video) for video in videos], times=10)
    finally:
        sys.setswitchinterval(interval)
    for outputs, alone in zip(results, expected, strict=True):
        for output in outputs:
            assert_same_bits(output, alone)


def test_a_packing_is_of_its_thread():
    model = small()
    frames = torch.randn(8, 3, 32, 32)
    expected = model(frames)
    with packed_clips(model, [3, 5]):
        packed = model(frames)
        with ThreadPoolExecutor(1) as pool:
            assert_same_bits(pool.submit(model, frames).result(), expected)
            with pytest.raises(RuntimeError, match="expected no other thread inside packed_clips"):
                pool.submit(VideoClassifier(model), frames, clip_lengths=[3, 5]).result()
        assert_same_bits(model(frames), packed)
    assert not torch.equal(packed, expected)


def test_a_model_is_copied_while_it_runs():
    model = small()
    frames = torch.randn(4, 3, 64, 64)
    expected = model(frames)
    runs, copies = outputs_of_threads([lambda: model(frames), lambda: copy.deepcopy(model)])
    for output in (*runs, *(copied(frames) for copied in copies)):
        assert_same_bits(output, expected)


def streamed(model, video, **options):
    stream = Streaming(model, **options)
    return torch.cat([stream(frame) for frame in video])


@pytest.mark.parametrize("kind", ["eager", "compiled", "fused"])
def test_threads_stream_a_model_beside_clips_of_it(kind):
    torch.compiler.reset()  # threads may compile the same for themselves, up to the limit of graphs
    model, options = small(direction="causal"), dict(fused=kind == "fused")
    run = torch.compile(model, backend="eager", fullgraph=True) if kind == "compiled" else model
    clip = torch.randn(2, 3, 32, 32)
    videos = torch.randn(2, 10, 1, 3, 32, 32)
    expected = [model(clip), *(streamed(model, video, **options) for video in videos)]
    jobs = [lambda: run(clip), *(lambda video=video: streamed(run, video, **options) for video in videos)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        results = outputs_of_threads(jobs, times=1 if options["fused"] else 5)
    finally:
        sys.setswitchinterval(interval)
    for outputs, alone in zip(results, expected, strict=True):
        for output in outputs:
            assert_same_bits(output, alone)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_inside_a_call_is_a_plain_model(copied, monkeypatch):
    model, copies = small(direction="causal"), []
    frames = torch.randn(2, 3, 32, 32)
    expected = model(frames)
    stream, head = Streaming(model), torch.nn.Linear.forward
    stream(frames[:1])

    def copying(self, x):
        copies.append(copied(model))
        return head(self, x)

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Linear, "forward", copying)
        stream(frames[1:])
        with packed_clips(model, [1, 1]):
            model(frames)
    assert len(copies) == 2
    for twin in copies:
        assert_same_bits(twin(frames), expected)


@pytest.mark.cuda
def test_cuda_streams_share_a_model():
    model = small().cuda()
    batches = [torch.randn(2 * clips, 3, 64, 64, device="cuda") for clips in (1, 2, 3)]
    expected = [model(batch) for batch in batches]
    torch.cuda.synchronize()
    streams, outputs = [torch.cuda.Stream() for _ in batches], []
    for stream, batch in zip(streams, batches, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(500_000_000)  # cycles: a quarter of a second, until all are under way
            outputs.append(model(batch))
    assert not any(stream.query() for stream in streams)
    torch.cuda.synchronize()
    for output, alone in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, alone)


class Clips(Dataset):
    """The shifted features of a video's clips: decoding and a patched model, inside a loader's worker."""

    def __init__(self, path):
        self.path, self.model = path, small()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        clip = read_clip(self.path, num_segments=2)[0, :, :, :64, :64].float() / 255
        return self.model(clip + index)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_data_loaders_decode_and_shift_in_their_workers(tmp_path, method):
    clips = Clips(write_video(tmp_path / "video.mp4", 8))
    expected = torch.stack([clips[index] for index in range(len(clips))])
    loader = DataLoader(clips, batch_size=2, num_workers=2, multiprocessing_context=method)
    torch.testing.assert_close(torch.cat(list(loader)), expected)


def _answer(model, frames, answers):
    torch.set_num_threads(1)
    answers.put(model(frames).numpy())


def test_torch_multiprocessing_hands_a_patched_model_on():
    context = torch.multiprocessing.get_context("spawn")
    model, frames, answers = small(), torch.randn(4, 3, 64, 64), context.Queue()
    process = context.Process(target=_answer, args=(model, frames, answers))
    process.start()
    actual = torch.from_numpy(answers.get(timeout=120))
    process.join()
    torch.testing.assert_close(actual, model(frames))
