"""One patched model on several threads, and patched models and videos in several processes."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from tsm_triton import patch
from tsm_triton.testing import assert_same_bits
from tsm_triton.video import read_clip

from .video_files import write_video


def small(name: str = "test_resnet") -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval().requires_grad_(False)
    return patch(model, num_segments=2)


def outputs_of_threads(functions):
    """What each function returns, started at the same moment on a thread of its own."""
    start = threading.Barrier(len(functions))

    def call(function):
        start.wait()
        return [function() for _ in range(5)]

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


def test_a_model_is_copied_while_it_runs():
    model = small()
    frames = torch.randn(4, 3, 64, 64)
    expected = model(frames)
    runs, copies = outputs_of_threads([lambda: model(frames), lambda: copy.deepcopy(model)])
    for output in (*runs, *(copied(frames) for copied in copies)):
        assert_same_bits(output, expected)


@pytest.mark.cuda
def test_streams_share_a_model():
    model = small().cuda()
    batches = [torch.randn(2 * clips, 3, 64, 64, device="cuda") for clips in (1, 2, 3)]
    expected = [model(batch) for batch in batches]
    torch.cuda.synchronize()
    for batch, alone in zip(batches, expected, strict=True):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.testing.assert_close(model(batch), alone)


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
