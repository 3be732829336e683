"""One compiled graph for clips of any length, given by shape or packed."""

import copy
import pickle

import pytest
import timm
import torch

import tsm_triton
from tsm_triton import VideoClassifier, packed_clips
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.patching.shift_hook import _boundaries

LENGTHS = (4, 6, 3, 5, 2, 7)
PACKINGS = (
    [3, 5],
    [2, 2],
    [1, 4, 3],
    [7],
    [2, 2, 2],
    [1, 1, 1, 1, 1],
    [9, 2],
    [4, 4, 4],
    [1, 2, 3, 4],
    [5, 6],
)


@pytest.fixture(params=["test_resnet"])
def model(request):
    torch.compiler.reset()
    return tsm_triton.patch(timm.create_model(request.param, num_classes=5).eval(), 4)


class Counting:
    """A backend that counts its graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


def test_one_dynamic_graph_serves_every_clip_length(model):
    classifier, backend = VideoClassifier(model, 4), Counting()
    compiled = torch.compile(classifier, fullgraph=True, backend=backend)
    with torch.no_grad():
        for length in LENGTHS:
            video = torch.randn(2, length, 3, 32, 32)
            torch.testing.assert_close(compiled(video), classifier(video))
    assert backend.graphs <= 2
    assert all(hook.length is None for hook in shift_hooks(model))


def test_one_dynamic_graph_serves_every_packing(model):
    backend = Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for lengths in PACKINGS:
            frames = torch.randn(sum(lengths), 3, 32, 32)
            with packed_clips(model, lengths):
                torch.testing.assert_close(compiled(frames), model(frames))
    assert backend.graphs <= 3


def test_one_dynamic_graph_serves_lengths_that_come_as_a_tensor(model):
    classifier, backend = VideoClassifier(model, 4), Counting()
    compiled = torch.compile(classifier, fullgraph=True, backend=backend)
    with torch.no_grad():
        for lengths in PACKINGS:
            frames = torch.randn(sum(lengths), 3, 32, 32)
            torch.testing.assert_close(compiled(frames, torch.tensor(lengths)), classifier(frames, lengths))
        assert backend.graphs <= 4
        with pytest.raises(RuntimeError, match="clip_lengths must"):
            compiled(torch.randn(8, 3, 32, 32), torch.tensor([3, 4]))


def test_an_exported_classifier_takes_any_number_of_frames(model):
    classifier = VideoClassifier(model, 4)
    shapes = {"video": {0: torch.export.Dim("clips", max=64), 1: torch.export.Dim("frames", max=64)}}
    program = torch.export.export(classifier, (torch.randn(2, 4, 3, 32, 32),), dynamic_shapes=shapes)
    with torch.no_grad():
        for clips, length in ((2, 4), (3, 6), (2, 3), (1, 8), (2, 1)):
            video = torch.randn(clips, length, 3, 32, 32)
            torch.testing.assert_close(program.module()(video), classifier(video))


def test_the_boundaries_of_a_hook_are_its_own_and_go_with_it(model):
    with packed_clips(model, [3, 5]):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(hook.boundaries is None for hook in shift_hooks(other))
        assert all(hook.boundaries is not None for hook in shift_hooks(model))
    before = len(vars(_boundaries))
    hook = copy.deepcopy(shift_hooks(model)[0])
    assert len(vars(_boundaries)) == before + 1
    del hook
    assert len(vars(_boundaries)) == before
