"""The shift as a layer."""

import copy
import pickle

import pytest
import torch

import tsm_triton
from tsm_triton import VideoClassifier, set_num_segments, temporal_shift
from tsm_triton.modules import ClipLayer, TemporalShift
from tsm_triton.testing import assert_same_bits


@pytest.mark.parametrize(
    "options",
    [{}, dict(shift_div=4, direction="causal"), dict(channel_dim=-1)],
    ids=["plain", "causal", "last"],
)
def test_the_layer_is_the_function_and_survives_copies(options):
    layer = TemporalShift(4, **options)
    x = torch.randn(8, 16, 5, 8)
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits(copied(x), temporal_shift(x, 4, **options))
    assert not layer.state_dict()


def test_bad_settings_are_refused_when_it_is_built():
    with pytest.raises(ValueError, match="direction must be one of 'bidirectional', 'causal', got 'left'"):
        TemporalShift(4, direction="left")


class Written(torch.nn.Module):
    """A network of one's own that was written with the layer."""

    def __init__(self, layer):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, 2, 1)
        self.branch = torch.nn.Sequential(layer, torch.nn.Conv2d(16, 16, 3, 1, 1))
        self.other = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, 1, 1))
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x)
        return self.head((x + self.other(x)).mean((2, 3)))


class Shuffled(ClipLayer):
    """A layer of one's own that shifts."""

    def forward(self, x):
        return temporal_shift(x, self.clip_length(), direction="causal")


LAYERS = [lambda: TemporalShift(8), lambda: TemporalShift(8, direction="causal"), lambda: Shuffled(8)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager")])
def test_a_written_network_is_told_its_clips(layer, wrap):
    torch.manual_seed(0)
    network, video = Written(layer()).eval(), torch.randn(2, 4, 3, 16, 16)
    classifier = VideoClassifier(wrap(network), 8).eval()
    with torch.no_grad():
        alone = torch.cat([classifier(clip[None]) for clip in video])
        torch.testing.assert_close(classifier(video), alone)
        assert network.branch[0].num_segments == 8
        set_num_segments(classifier, 4)
        frames = wrap(network)(video.flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(frames.mean(1), alone)
    with pytest.raises(
        RuntimeError, match="clip_lengths: expected a model whose frames meet in patched shifts alone"
    ):
        classifier(video.flatten(0, 1), [3, 5])


def test_a_patched_network_tells_the_layers_that_are_written_into_it():
    torch.manual_seed(0)
    network, x = Written(TemporalShift(4, direction="causal")).eval(), torch.randn(8, 3, 16, 16)
    tsm_triton.patch(
        network, 4, direction="causal", example_input=x, filter_fn=lambda _, name: "other" in name
    )
    set_num_segments(network, 2)
    with torch.no_grad():
        each = torch.cat([network(clip) for clip in x.split(2)])
        torch.testing.assert_close(network(x), each)
    packs = lambda model: tsm_triton.packed_clips(model, [3, 5]).__enter__()  # noqa: E731
    for refuse in (tsm_triton.Streaming, tsm_triton.fuse, packs):
        with pytest.raises(RuntimeError, match="TemporalShift at 'branch.0'"):
            refuse(network)
