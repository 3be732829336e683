"""Backwards that run parts of a call again, as the call was."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tsm_triton
from tsm_triton import VideoClassifier, set_num_segments, shift_disabled
from tsm_triton.backwards import CALLS
from tsm_triton.modules import TemporalPool
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.video.features import VideoFeatures

T = 4
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
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
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(
                module.weight, 0.5, 1.5
            )  # timm begins with branches of zero, whose shift nothing shows
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
    assert_close(gradient_of(model, [scores]), right)
    assert [hook.num_segments for hook in shift_hooks(model)] == told
    check_at_rest(model)


def check_at_rest(model):
    """Whether compiled blocks, too, go by what the model is told."""
    frames = torch.randn(2 * shift_hooks(model)[0].num_segments, 3, 32, 32)
    with torch.no_grad():
        assert_close(torch.compile(model, backend="eager")(frames), model(frames))


def test_a_gradient_shows_its_length():
    model = recomputed(False)
    classifier, video = VideoClassifier(model, T), torch.randn(6, 3, 32, 32)
    gradients = [expected(model, lambda: [classifier(video[None])])]
    gradients.append(expected(model, lambda: [classifier(video, [4, 2])]))
    with shift_disabled(model):
        gradients.append(expected(model, lambda: [classifier(video[None])]))
    for number, one in enumerate(gradients):
        assert all(not torch.allclose(one, other, rtol=0.1) for other in gradients[:number])


@REENTRANT
@pytest.mark.parametrize("order", [1, -1])
def test_calls_of_several_lengths_share_a_backward(reentrant, order):
    model = recomputed(reentrant)
    model.layer3 = nn.Sequential(TemporalPool(T // 2), model.layer3)
    classifier = VideoClassifier(model, T)
    videos = [torch.randn(2, length, 3, 32, 32) for length in (4, 8, 2)]
    right = expected(model, lambda: map(classifier, videos))
    assert_close(gradient_of(model, [classifier(video) for video in videos][::order]), right)


@REENTRANT
def test_maps_have_the_length_of_their_call(reentrant):
    model = recomputed(reentrant, features_only=True)
    features, video = VideoFeatures(model, T), torch.randn(1, 6, 3, 64, 64)
    right = expected(model, lambda: features(video))
    maps = features(video)
    features(video[:, :2])
    assert_close(gradient_of(model, maps), right)


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
    assert_close(gradient_of(model, scores), right)
    frames = torch.randn(T, 3, 32, 32)
    with torch.no_grad():
        compiled = model(frames)
        for layer, block in zip(layers, plain, strict=True):
            layer.block = block
        assert_close(compiled, model(frames))


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
    check_at_rest(model)
    right = expected(model, lambda: [model(frames[:T])])
    assert_close(gradient_of(model, [model(frames[:T])]), right)


@REENTRANT
@pytest.mark.parametrize("kept", [True, False])
def test_a_backward_through_maps_has_it_too(reentrant, kept):
    model, maps = recomputed(reentrant), []
    model.layer3.register_forward_hook(lambda module, args, out: maps.append(out))
    classifier, video, frames = (
        VideoClassifier(model, T),
        torch.randn(1, 6, 3, 32, 32),
        torch.randn(2 * T, 3, 32, 32),
    )

    def calls():
        maps.clear()
        held = [classifier(video), model(frames), classifier(video[:, :2])]
        return held[: 3 * kept]

    for used in ([0], [1], [2], [0, 1, 2]):
        right = expected(model, lambda used=used: (calls(), [maps[at] for at in used])[1])
        held = calls()
        assert_close(gradient_of(model, [maps[at] for at in used]), right)
        del held


def test_a_second_derivative_has_it():
    model = recomputed(False)
    classifier, video = VideoClassifier(model, T), torch.randn(1, 6, 3, 32, 32, requires_grad=True)

    def calls():
        scores = classifier(video)
        (gradient,) = torch.autograd.grad(scores.square().sum(), video, create_graph=True)
        return [gradient, scores]

    right = expected(model, calls)
    assert_close(gradient_of(model, calls()), right)


@REENTRANT
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_blocks_inside_of_blocks_have_it(reentrant):
    model = recomputed(reentrant)
    model.layer3.block[0] = Again(model.layer3.block[0], reentrant)
    classifier, videos = VideoClassifier(model, T), [torch.randn(1, length, 3, 32, 32) for length in (6, 2)]
    right = expected(model, lambda: map(classifier, videos))
    assert_close(gradient_of(model, [classifier(video) for video in videos]), right)


def in_threads(*functions):
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(60) for future in [pool.submit(function) for function in functions]]


def test_threads_go_back_side_by_side():
    model, both = recomputed(False), threading.Barrier(2)
    classifier, video = VideoClassifier(model, T), torch.randn(1, 6, 3, 32, 32)
    weight = model.conv1[0].weight

    def train(_=None):
        scores = classifier(video)
        scores.register_hook(
            lambda gradient: (both.wait(30), None)[1] if threading.active_count() > 1 else None
        )
        return torch.autograd.grad(scores.square().sum(), weight)[0]

    right = expected(model, lambda: [classifier(video)])
    for gradient in in_threads(train, train):
        assert_close(gradient, right)
    check_at_rest(model)


def test_threads_with_other_clips_are_right_or_refused():
    model, both = recomputed(False), threading.Barrier(2)
    classifier = VideoClassifier(model, T)
    weight, videos = model.conv1[0].weight, [torch.randn(1, length, 3, 32, 32) for length in (6, 2)]
    rights = [expected(model, lambda video=video: [classifier(video)]) for video in videos]

    def train(video):
        both.wait(30)
        scores = classifier(video)
        both.wait(30)
        try:
            return torch.autograd.grad(scores.square().sum(), weight)[0]
        except RuntimeError as error:
            return str(error)

    gradients = in_threads(*(functools.partial(train, video) for video in videos))
    for gradient, right in zip(gradients, rights, strict=True):
        if isinstance(gradient, str):
            assert gradient.startswith("expected a backward whose call is known")
        else:
            assert_close(gradient, right)
    check_at_rest(model)


@pytest.mark.parametrize("kept", [True, False])
def test_a_plain_call_is_not_taken_for_another_threads(kept):
    # each thread counts its nodes from 0
    model = recomputed(False)
    classifier, video, frames = (
        VideoClassifier(model, T),
        torch.randn(1, 6, 3, 32, 32),
        torch.randn(T, 3, 32, 32),
    )
    right = []

    def plain():
        right.append(expected(model, lambda: [model(frames)]))
        return gradient_of(model, [model(frames)])

    (scores,) = in_threads(lambda: [classifier(video) for _ in range(8)])
    if not kept:
        del scores
        assert_close(in_threads(plain)[0], right[0])
    else:
        with pytest.raises(RuntimeError, match="while threads have calls of other clips"):
            in_threads(plain)


def test_what_happens_during_a_backward_stays():
    model = recomputed(False)
    classifier, video, frames = (
        VideoClassifier(model, T),
        torch.randn(1, 6, 3, 32, 32),
        torch.randn(T, 3, 32, 32),
    )
    with torch.no_grad():
        plain = model(frames)
        with shift_disabled(model):
            flat = model(frames)

    def during(act):
        scores = classifier(video)
        scores.register_hook(lambda gradient: (in_threads(act), None)[1])
        scores.sum().backward()

    with torch.no_grad():
        inside = ExitStack()
        inside.enter_context(shift_disabled(model))
    during(inside.close)
    assert_close(model(frames), plain)
    during(lambda: inside.enter_context(shift_disabled(model)))
    assert_close(model(frames), flat)
    inside.close()
    check_at_rest(model)
    during(lambda: set_num_segments(model, 2))
    assert {hook.num_segments for hook in shift_hooks(model)} == {2}
    check_at_rest(model)

    def call():
        with torch.no_grad():
            return classifier(video[:, :3])

    during(call)
    check_at_rest(model)


def test_more_calls_than_are_remembered_are_refused(monkeypatch):
    model = recomputed(False)
    classifier, video = VideoClassifier(model, T), torch.randn(1, 2, 3, 32, 32)
    first = classifier(video)
    for _ in range(CALLS):
        for hook in shift_hooks(model):
            hook.calls.append(hook.calls[-1]._replace(first=2**40, end=2**40))
    with pytest.raises(RuntimeError, match=f"of before the last {CALLS} calls"):
        first.sum().backward()
