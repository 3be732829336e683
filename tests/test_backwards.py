"""Backwards that run parts of a call again, as the call was."""

import functools

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tsm_triton
from tsm_triton import VideoClassifier, set_num_segments, shift_disabled
from tsm_triton.modules import TemporalPool
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.video.features import VideoFeatures

T = 4
REENTRANT = pytest.mark.parametrize("reentrant", [False, True], ids=["kept", "reentrant"])


class Again(nn.Module):
    """A block that a backward runs again."""

    def __init__(self, block, reentrant):
        super().__init__()
        self.block, self.reentrant, self.on = block, reentrant, True

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.reentrant) if self.on else self.block(x)


def recomputed(reentrant, **options):
    torch.manual_seed(0)
    model = tsm_triton.patch(timm.create_model("test_resnet", **options).eval(), T)
    for name in ("layer2", "layer3", "layer4"):
        setattr(model, name, Again(getattr(model, name), reentrant))
    return model


def gradient_of(model, scores):
    """Of the first weights, which all others stand behind."""
    model.zero_grad()
    sum(one.square().sum() for one in scores).backward()
    return model.conv1[0].weight.grad.clone()


def expected(model, calls):
    """The same without running anything again."""
    blocks = [module for module in model.modules() if isinstance(module, Again)]
    for block in blocks:
        block.on = False
    gradient = gradient_of(model, calls())
    for block in blocks:
        block.on = True
    return gradient


@REENTRANT
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "between",
    [
        lambda model, classifier: None,
        lambda model, classifier: classifier(torch.randn(1, 2, 3, 32, 32)),
        lambda model, classifier: classifier(torch.randn(5, 3, 32, 32), [2, 3]),
        lambda model, classifier: set_num_segments(model, 3),
        lambda model, classifier: model(torch.randn(T, 3, 32, 32)),
    ],
    ids=["nothing", "another length", "a packing", "another length for good", "the model itself"],
)
@pytest.mark.parametrize("lengths", [None, [4, 2]], ids=["clips", "packed"])
def test_it_has_the_length_of_its_call(reentrant, between, lengths):
    model = recomputed(reentrant)
    classifier, video = VideoClassifier(model, T), torch.randn(6, 3, 32, 32)
    call = functools.partial(classifier, video, lengths) if lengths else lambda: classifier(video[None])
    right = expected(model, lambda: [call()])
    scores = call()
    with torch.no_grad():
        between(model, classifier)
        told = [hook.num_segments for hook in shift_hooks(model)]
    torch.testing.assert_close(gradient_of(model, [scores]), right)
    assert [hook.num_segments for hook in shift_hooks(model)] == told
    assert {hook.again for hook in shift_hooks(model)} == {None}


@REENTRANT
@pytest.mark.parametrize("order", [1, -1])
def test_calls_of_several_lengths_share_a_backward(reentrant, order):
    model = recomputed(reentrant)
    model.layer3 = nn.Sequential(TemporalPool(T // 2), model.layer3)
    classifier = VideoClassifier(model, T)
    videos = [torch.randn(2, length, 3, 32, 32) for length in (4, 8, 2)]
    right = expected(model, lambda: map(classifier, videos))
    torch.testing.assert_close(gradient_of(model, [classifier(video) for video in videos][::order]), right)


@REENTRANT
def test_maps_have_the_length_of_their_call(reentrant):
    model = recomputed(reentrant, features_only=True)
    features, video = VideoFeatures(model, T), torch.randn(1, 6, 3, 64, 64)
    right = expected(model, lambda: features(video))
    maps = features(video)
    features(video[:, :2])
    torch.testing.assert_close(gradient_of(model, maps), right)


@REENTRANT
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_compiled_blocks_have_it_too(reentrant):
    model = recomputed(reentrant)
    classifier, videos = VideoClassifier(model, T), [torch.randn(1, length, 3, 32, 32) for length in (6, 2)]
    right = expected(model, lambda: map(classifier, videos))
    layers = model.layer2, model.layer3, model.layer4
    plain = [layer.block for layer in layers]
    for layer in layers:
        layer.block = torch.compile(layer.block, backend="eager")
    scores = [classifier(video) for video in videos]
    torch.testing.assert_close(gradient_of(model, scores), right)
    frames = torch.randn(T, 3, 32, 32)
    with torch.no_grad():
        compiled = model(frames)
        for layer, block in zip(layers, plain, strict=True):
            layer.block = block
        torch.testing.assert_close(compiled, model(frames))


def test_a_shift_is_as_on_or_off_as_in_the_call():
    model = recomputed(False)
    classifier, video = VideoClassifier(model, T), torch.randn(1, 6, 3, 32, 32)
    with shift_disabled(model):
        right = expected(model, lambda: [classifier(video)])
        scores = classifier(video)
    torch.testing.assert_close(gradient_of(model, [scores]), right)
    assert all(hook.enabled for hook in shift_hooks(model))


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ZeroDivisionError


def test_a_backward_that_fails_leaves_nothing_behind():
    model = recomputed(False)
    classifier, frames = VideoClassifier(model, T), torch.randn(6, 3, 32, 32)
    broken = model.layer3.register_forward_hook(lambda module, args, out: Fails.apply(out))
    with pytest.raises(ZeroDivisionError):
        classifier(frames[None]).sum().backward()
    with pytest.raises(ZeroDivisionError):
        classifier(frames, [2, 4]).sum().backward()
    broken.remove()
    assert {hook.again for hook in shift_hooks(model)} == {None}
    right = expected(model, lambda: [model(frames[:T])])
    torch.testing.assert_close(gradient_of(model, [model(frames[:T])]), right)


@REENTRANT
def test_a_block_of_no_known_call_is_not_run_again(reentrant):
    model, maps = recomputed(reentrant), []
    classifier, video = VideoClassifier(model, T), torch.randn(1, 6, 3, 32, 32)
    model.layer3.register_forward_hook(lambda module, args, out: maps.append(out))
    scores = classifier(video)
    with pytest.raises(RuntimeError, match="backward of clips of 6 frames is to come"):
        maps[-1].sum().backward()
    del scores
    frames = torch.randn(T, 3, 32, 32)
    right = expected(model, lambda: [model(frames)])
    torch.testing.assert_close(gradient_of(model, [model(frames)]), right)
