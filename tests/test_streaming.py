"""Streaming frame by frame is the causal model on the whole clip, and no stream sees another."""

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tsm_triton
from tsm_triton import Streaming, ops, patch, shift_disabled, unpatch
from tsm_triton.streaming.averaging import mean_of_last
from tsm_triton.streaming.step import StreamStep
from tsm_triton.testing import assert_same_bits

from .networks import Block
from .streams import MODELS, TOLERANCES, assert_close, causal, frames_of, offline

IN_EVERY_DTYPE = ("timm resnet18", "timm mobilenetv2_100", "timm vit_tiny", "timm swinv2")
CASES = [
    (name, dtype) for name in MODELS for dtype in (TOLERANCES if name in IN_EVERY_DTYPE else [torch.float64])
]


@pytest.fixture
def small() -> nn.Module:
    return causal(timm.create_model("test_resnet", num_classes=5))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_streaming_is_the_offline_model_with_a_reset_in_the_middle(name, dtype):
    model = causal(MODELS[name](), dtype)
    frames = frames_of(2, 4, 64, dtype)
    stream, logits = Streaming(model), []
    for t in range(4):
        if t == 2:
            stream.reset([1])
        logits.append(stream(frames[:, t]))
    logits = torch.stack(logits, 1)
    assert_close(logits[0], offline(model, frames[0]))
    assert_close(logits[1], torch.cat([offline(model, frames[1, :2]), offline(model, frames[1, 2:])]))
    with shift_disabled(model):  # the check above can fail: without a past the logits differ
        alone = model(frames[:, 3])
    assert (alone - logits[:, 3]).abs().max() > 2 * TOLERANCES[dtype] * alone.abs().max()
    assert all(cache.dtype == dtype for cache in stream.state)


@settings(max_examples=15)
@given(data=st.data(), num_streams=st.integers(1, 3), events=st.lists(st.sets(st.integers(0, 2)), max_size=6))
def test_resets_at_any_time_begin_a_clip(data, num_streams, events):
    model = causal(timm.create_model("test_resnet", num_classes=5))
    frames = frames_of(num_streams, len(events) + 1)
    stream = Streaming(model)
    logits, starts = [stream(frames[:, 0])], [[0] for _ in range(num_streams)]
    for t, event in enumerate(events, 1):
        chosen = sorted(i for i in event if i < num_streams)
        if len(chosen) == num_streams and data.draw(st.booleans()):
            stream.reset()
        else:
            stream.reset(data.draw(st.sampled_from([chosen, torch.tensor(chosen, dtype=torch.long)])))
        for i in chosen:
            starts[i].append(t)
        logits.append(stream(frames[:, t]))
    for i, at in enumerate(starts):
        clips = [frames[i, a:b] for a, b in zip(at, [*at[1:], len(events) + 1], strict=True)]
        expected = torch.cat([offline(model, clip) for clip in clips])
        assert_close(torch.stack(logits, 1)[i], expected)


def test_the_cache_holds_the_first_channels_of_what_entered_the_site(small):
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, x: seen.update({name: x[0]})

    for site in tsm_triton.find_sites(unpatch(small)):
        site.module.register_forward_pre_hook(record(site.name))
    stream = Streaming(patch(small, 4, direction="causal"))
    for frame in frames_of(2, 3).unbind(1):
        stream(frame)
        for key, cache in stream.state_dict().items():
            if key.startswith("cache."):
                assert_same_bits(cache, seen[key.removeprefix("cache.")][:, : cache.shape[1]])


def test_a_stream_does_not_see_another(small):
    frames = frames_of(3, 4)
    changed = frames.clone()
    changed[1] = torch.nan
    logits, poisoned = [], []
    for inputs, outputs in ((frames, logits), (changed, poisoned)):
        stream = Streaming(small)
        outputs += [stream(frame) for frame in inputs.unbind(1)]
    for one, other in zip(logits, poisoned, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert other[1].isnan().all()


def test_the_mobilenet_of_the_authors_remembers_108192_bytes_a_stream():
    for model in (timm.create_model("mobilenetv2_100"), torchvision.models.mobilenet_v2()):
        stream = Streaming(patch(model.eval(), direction="causal"))
        assert stream.cache_bytes == 0
        stream(torch.zeros(2, 3, 224, 224))
        assert stream.cache_bytes == 108_192


def bytes_allocated(call: Callable[[], object]) -> int:
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        call()
    results: Any = profile.profiler and profile.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    assert events
    return sum(max(0, event.nbytes()) for event in events)


def test_the_steady_state_allocates_one_output_a_site_and_keeps_nothing(small):
    entered = []
    for site in tsm_triton.find_sites(unpatch(small)):
        site.module.register_forward_pre_hook(lambda _, x: entered.append(x[0].nbytes))
    stream, frame = Streaming(patch(small, 4, direction="causal")), frames_of(2, 1)[:, 0]
    stream(frame)
    memory = [cache.data_ptr() for cache in [*stream.state, *stream.state.staged]]
    with shift_disabled(small):
        unshifted = bytes_allocated(lambda: stream(frame))
    entered.clear()
    shifted = bytes_allocated(lambda: stream(frame))
    assert shifted - unshifted == sum(entered) > 0

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    before = tensors()
    for _ in range(3):
        stream(frame)
    assert tensors() == before
    assert [cache.data_ptr() for cache in [*stream.state, *stream.state.staged]] == memory


def test_caches_follow_the_layout_of_the_features(small):
    small.to(memory_format=torch.channels_last)
    stream = Streaming(small)
    frames = frames_of(2, 3).flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 3))
    logits = torch.stack([stream(frame) for frame in frames.unbind(1)], 1)
    assert all(cache.is_contiguous(memory_format=torch.channels_last) for cache in stream.state)
    assert_close(logits[0], offline(small, frames[0]))


@pytest.mark.parametrize("inference_first", [True, False])
def test_streams_go_on_in_and_out_of_inference_mode(small, inference_first):
    frames = frames_of(1, 4)
    stream, logits = Streaming(small, consensus=1), []
    for t in range(4):
        with torch.inference_mode(t % 2 == (not inference_first)):
            logits.append(stream(frames[:, t]).clone())
    assert_close(torch.cat(logits), offline(small, frames[0]))


def test_a_failed_frame_leaves_the_caches_as_they_were(small):
    frames = frames_of(2, 3)
    stream = Streaming(small, consensus=1)
    logits = [stream(frames[:, 0])]
    before = stream.state_dict()

    def fail(*_):
        raise KeyError("camera")

    handle = list(small.modules())[-1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        stream(frames[:, 1])
    with pytest.raises(KeyError):
        stream.step(frames[:, 1], stream.state)
    handle.remove()
    after = stream.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(hook.step is None for hook in stream.step.hooks)
    logits += [stream(frame) for frame in frames[:, 1:].unbind(1)]
    assert_close(torch.stack(logits, 1)[1], offline(small, frames[1]))


def test_the_functional_step_is_the_stream_and_writes_nothing(small):
    frames = frames_of(2, 4)
    stream = Streaming(small)
    state = stream.init_state(frames[:, 0])
    for made in (state, stream.init_state((2, 3, 32, 32))):
        assert all(not cache.any() for cache in made)
    for frame in frames.unbind(1):
        before = [cache.clone() for cache in state]
        logits, new = stream.step(frame, state)
        assert_same_bits(logits, stream(frame))
        assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(new, stream.state, strict=True))
        state = new


def test_steps_are_not_run_again_by_a_backward_as_clips():
    model = causal(timm.create_model("test_resnet", num_classes=5))
    step, frames = StreamStep(model), frames_of(4, 2)
    model.set_grad_checkpointing()
    state = step.init_state(frames[:, 0])
    with torch.enable_grad():
        first, state = step(frames[:, 0], state)
        second, state = step(frames[:, 1], state)
        with pytest.raises(RuntimeError, match="no frame of a stream again, got 4 rows"):
            (first + second).sum().backward()
        # clips of other numbers of frames are, and copies of the model
        model(frames.flatten(0, 1)).sum().backward()
        copy.deepcopy(model)(frames[:, 0]).sum().backward()


def test_gradients_flow_through_the_state():
    model = causal(timm.create_model("test_resnet", num_classes=5))
    step = StreamStep(model)
    frames = frames_of(1, 2)
    with torch.enable_grad():
        first = frames[:, 0].requires_grad_()
        _, state = step(first, step.init_state(first))
        logits, _ = step(frames[:, 1].detach(), state)
        (streamed,) = torch.autograd.grad(logits.sum(), first)
        clip = frames[0].detach().requires_grad_()
        (whole,) = torch.autograd.grad(offline(model, clip)[1].sum(), clip)
    assert streamed.any()
    assert_close(streamed[0], whole[0])


@pytest.mark.parametrize("name", ["timm resnet18", "timm mobilenetv2_100", "timm vit_tiny", "timm swinv2"])
def test_the_step_compiles_in_one_graph(name):
    model = causal(MODELS[name]())
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    step = StreamStep(model)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    frames = frames_of(2, 3, 64)
    state = step.init_state(frames[:, 0])
    logits = []
    for frame in frames.unbind(1):
        out, state = compiled(frame, state)
        logits.append(out)
    assert_close(torch.stack(logits, 1)[1], offline(model, frames[1]))
    assert len(graphs) == 1
    steps = [node for node in graphs[0].graph.nodes if node.target is ops.shift_step]
    assert len(steps) == len(step.hooks)


def test_a_stream_drives_a_compiled_model(small):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(small, fullgraph=True, backend=backend)
    stream = Streaming(compiled)
    plain = Streaming(small)
    for frame in frames_of(2, 4).unbind(1):
        assert_close(stream(frame), plain(frame))
    assert len(graphs) == 2  # one to see what enters the sites
    plain.load_state_dict(stream.state_dict())  # the same names
    called = [node.target for node in graphs[1].graph.nodes]
    assert ops.shift_step in called
    assert ops.shift_step_into not in called
    few = causal(nn.Sequential(nn.Conv2d(3, 16, 3), Block(1), Block(2)))  # for Inductor, a while each
    stream, plain = Streaming(torch.compile(few, fullgraph=True)), Streaming(few)
    for frame in frames_of(2, 4).unbind(1):
        assert_close(stream(frame), plain(frame))


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # undone by the end
@pytest.mark.parametrize("strict", [True, False])
def test_the_step_exports_with_a_dynamic_batch(small, strict):
    step = StreamStep(small)
    state = step.init_state((2, 3, 32, 32))
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(
        step,
        (frames_of(2, 1)[:, 0], state),
        dynamic_shapes={"frame": {0: batch}, "state": [{0: batch}] * len(state)},
        strict=strict,
    )
    state = step.init_state((3, 3, 32, 32))
    frames, logits = frames_of(3, 3), []
    for frame in frames.unbind(1):
        out, state = program.module()(frame, state)
        logits.append(out)
    assert_close(torch.stack(logits, 1)[2], offline(small, frames[2]))


@pytest.mark.cuda
def test_a_frame_is_captured_by_a_cuda_graph():
    model = causal(timm.create_model("test_resnet", num_classes=5), torch.float32).cuda()
    frames = frames_of(2, 4, dtype=torch.float32).cuda()
    stream, static = Streaming(model), frames[:, 0].clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        stream(static)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = stream(static)
    stream.reset()
    logits = []
    for frame in frames.unbind(1):
        static.copy_(frame)
        graph.replay()
        logits.append(captured.clone())
    assert_close(torch.stack(logits, 1)[1], offline(model, frames[1]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copied_stream_is_a_stream_of_its_own(small, copied):
    frames = frames_of(1, 3)
    stream = Streaming(small)
    stream(frames[:, 0])
    twin = copied(stream)
    assert twin.model is not small
    assert torch.equal(twin(frames[:, 1]), stream(frames[:, 1]))
    stream.reset()
    assert_close(twin(frames[:, 2]), offline(small, frames[0])[2:])


def test_two_streams_share_a_model(small):
    frames = frames_of(2, 3)
    streams = Streaming(small), Streaming(small)
    logits = []
    for t in range(3):
        logits = [stream(frames[i : i + 1, t]) for i, stream in enumerate(streams)]
    for i in range(2):
        assert_close(logits[i], offline(small, frames[i])[2:])
    assert_close(offline(small, frames[0])[:1], offline(small, frames[0, :1]))  # and works offline still


@pytest.mark.parametrize("options", [{}, {"consensus": 3}])
@pytest.mark.parametrize("consensus", ["avg", "identity"])
def test_a_model_that_takes_the_streams_for_a_clip_is_refused(small, options, consensus):
    classifier = tsm_triton.VideoClassifier(small, num_segments=4, consensus=consensus).eval()
    with pytest.raises(ValueError, match="a row for each of 4 streams"):
        Streaming(classifier, **options)(frames_of(4, 1)[:, 0])


@pytest.mark.parametrize("fused", [False, True])
def test_a_state_of_another_shift_div_is_refused(small, fused):
    other = patch(unpatch(copy.deepcopy(small)), direction="causal", shift_div=4)
    frames = frames_of(2, 2)
    stream, another = Streaming(small), Streaming(other, fused=fused)
    stream(frames[:, 0])
    another.load_state_dict(stream.state_dict())
    for call in (another, lambda frame: another.step(frame, stream.step.init_state(frame))):
        with pytest.raises((ValueError, RuntimeError)) as refused:
            call(frames[:, 1])
        assert "another shift_div" in f"{refused.value} {refused.value.__cause__}"
    another.reset()
    another(frames[:, 1])


def test_batch_norms_of_the_batch_are_refused(small):
    frames = frames_of(2, 1)[:, 0]
    norms = [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[-1].train()
    for streams in (1, 2):
        with pytest.raises(RuntimeError, match="got a .*BatchNorm.* in training mode, which mixes"):
            Streaming(small)(frames[:streams])
    norms[-1].eval()
    norms[0].running_mean = norms[0].running_var = None
    with pytest.raises(RuntimeError, match="that has none, which mixes"):
        Streaming(small)(frames)
    assert Streaming(small)(frames[:1]).isfinite().all()


def test_a_batch_norm_that_is_replaced_in_a_stream_is_refused_too(small):
    stream, frames = Streaming(small), frames_of(2, 1)[:, 0]
    stream(frames)
    kept = small.layer1[0].bn1
    small.layer1[0].bn1 = type(kept)(kept.num_features)
    with pytest.raises(RuntimeError, match="in training mode, which mixes"):
        stream(frames)
    small.layer1[0].bn1 = kept
    stream(frames)


def test_the_mean_of_large_half_logits_is_no_infinity():
    logits = torch.full((2, 3), 900.0, dtype=torch.float16)
    window: list[Tensor] = []
    for _ in range(80):
        mean, window = mean_of_last(logits, 80, window, None, num_streams=2)
    assert torch.equal(mean, logits)
