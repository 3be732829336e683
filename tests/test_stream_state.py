"""What a stream remembers beside its caches, how it is saved and reset, and what it refuses."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import tsm_triton
from tsm_triton import Streaming, find_sites, patch, set_num_segments, shift_disabled, unpatch
from tsm_triton.streaming.fused_step import FusedStep
from tsm_triton.streaming.state import StreamState
from tsm_triton.streaming.step import StreamStep

from .streams import MODELS, assert_close, causal, frames_of, offline


@pytest.fixture
def small() -> nn.Module:
    return causal(timm.create_model("test_resnet", num_classes=5))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_consensus_is_the_mean_of_the_last_logits_of_each_stream(small):
    frames = frames_of(2, 6)
    plain, averaged = Streaming(small), Streaming(small, consensus=3)
    seen: list[list[Tensor]] = [[], []]
    for t, frame in enumerate(frames.unbind(1)):
        if t == 4:
            for stream in (plain, averaged):
                stream.reset([1])
            seen[1].clear()
        for past, logits in zip(seen, plain(frame), strict=True):
            past.append(logits)
        assert_close(averaged(frame), torch.stack([torch.stack(past[-3:]).mean(0) for past in seen]))
    averaged.reset()
    plain.reset()
    assert_close(averaged(frames[:, 0]), plain(frames[:, 0]))


@pytest.mark.parametrize("consensus", [None, 2])
def test_every_nth_frame_is_computed_from_each_streams_own_reset(small, consensus):
    frames = frames_of(2, 8)
    skipping = Streaming(small, every=3, consensus=consensus)
    single = [Streaming(small, consensus=consensus) for _ in range(2)]
    starts, last = [0, 0], [torch.empty(0)] * 2
    runs = []
    small.register_forward_hook(lambda _, x, y: runs.append(len(y)))
    for t, frame in enumerate(frames.unbind(1)):
        if t == 5:
            skipping.reset([1])
            single[1].reset()
            starts[1] = t
        before = len(runs)
        actual = skipping(frame)
        due = [i for i in range(2) if (t - starts[i]) % 3 == 0]
        assert runs[before:] == (
            [2, 2] if t == 0 else [len(due)] if due else []
        )  # the first call looks first
        for i in due:
            last[i] = single[i](frame[i : i + 1])[0]
        assert_close(actual, torch.stack(last))
    skipping.reset()
    single[0].reset()
    assert_close(skipping(frames[:, 0])[:1], single[0](frames[:1, 0]))


def test_rows_of_windows_belong_to_their_stream():
    model = causal(MODELS["timm swinv2"]())
    frames = frames_of(2, 3, 64)
    stream = Streaming(model, every=2)
    stream(frames[:, 0])
    assert {cache.shape[0] for cache in stream.state} > {2}
    stream.reset([1])  # stream 1 is due alone
    logits = stream(frames[:, 1])
    assert_close(logits[1:], offline(model, frames[1, 1:2]))
    assert_close(stream(frames[:, 2])[0], offline(model, frames[0, ::2])[1])


@pytest.mark.parametrize("name", ["timm resnet18", "timm vit_tiny", "timm swin"])
def test_features_come_beside_the_logits(name):
    model = causal(MODELS[name]())
    frames = frames_of(2, 3, 64)
    stream = Streaming(model, features=True)
    logits, features = zip(*map(stream, frames.unbind(1)), strict=True)
    expected = set_num_segments(model, 3).forward_features(frames[1])
    assert_close(torch.stack(features, 1)[1], expected)
    assert_close(torch.stack(logits, 1)[1], model.forward_head(expected))
    (first, maps), state = stream.step(frames[:, 0], stream.init_state(frames[:, 0]))
    assert torch.equal(first, logits[0])
    assert torch.equal(maps, features[0])
    assert len(state) == len(stream.step.names)


def test_a_state_is_the_sequence_of_its_caches(small):
    frames = frames_of(2, 2)
    stream = Streaming(small)
    assert len(stream.state) == stream.num_streams == 0
    stream(frames[:, 0])
    state, caches = stream.state, list(stream.state)
    assert len(state) == len(caches) == len(stream.step.names)
    assert state[0] is caches[0]
    assert state[-1:] == caches[-1:]
    logits, new = stream.step(frames[:, 1], state)
    assert torch.equal(logits, stream.step(frames[:, 1], caches)[0])
    assert torch.equal(logits, stream(frames[:, 1]))
    assert all(map(torch.equal, new, state))
    with pytest.raises(ValueError, match=rf"each of the {len(caches)} sites, got 0"):
        StreamState(state.names, [], frames[:, 0].shape)
    with pytest.raises(ValueError, match="as many streams as the frame, 3, got 2 rows"):
        StreamState(state.names, caches, (3, 3, 32, 32))


def test_streams_are_taken_put_and_reset_alone():
    model = causal(MODELS["timm swinv2"]())  # with several rows a stream at some sites
    step, frames = StreamStep(model), frames_of(3, 2, 64)
    state = StreamState(step.names, step(frames[:, 0], step.init_state(frames[:, 0]))[1], frames[:, 0].shape)
    memory = [cache.data_ptr() for cache in state]
    taken = state.take(torch.tensor([2, 0]))
    logits, new = step(frames[[2, 0], 1], taken)
    for i, row in zip((2, 0), logits, strict=True):
        assert_close(row, offline(model, frames[i])[1])
    state.put(torch.tensor([2, 0]), new)
    state.reset([1])
    assert all(map(torch.equal, state.take(torch.tensor([2, 0])), new))
    assert not any(cache.any() for cache in state.take(torch.tensor([1])))
    assert [cache.data_ptr() for cache in state] == memory


@pytest.mark.parametrize("kind", [StreamStep, FusedStep])
def test_new_caches_are_fresh_unless_the_caller_gives_memory_for_them(small, kind):
    step, frame = kind(small.float()), frames_of(2, 1, dtype=torch.float32)[:, 0]
    state = [torch.randn_like(cache) for cache in step.init_state(frame)]
    before = [cache.clone() for cache in state]
    logits, fresh = step(frame, state)
    assert {cache.data_ptr() for cache in fresh}.isdisjoint(cache.data_ptr() for cache in state)
    into = [torch.full_like(cache, torch.nan) for cache in state]
    output, kept = step.run(frame, state, into)
    assert torch.equal(output, logits)
    assert all(new is given for new, given in zip(kept, into, strict=True))
    assert all(map(torch.equal, kept, fresh))
    assert all(map(torch.equal, state, before))


def test_features_are_skipped_with_their_frames_and_not_averaged(small):
    frames = frames_of(2, 4)
    stream, plain = Streaming(small, features=True, every=2, consensus=2), Streaming(small, features=True)
    first = stream(frames[:, 0])
    assert_close(first[1], plain(frames[:, 0])[1])
    stream.reset([1])  # computed alone
    second = stream(frames[:, 1])
    assert torch.equal(second[1][0], first[1][0])
    assert_close(second[1][1:], Streaming(small, features=True)(frames[1:, 1])[1])
    twin = Streaming(small, features=True, every=2, consensus=2)
    twin.load_state_dict(stream.state_dict())
    for t in (2, 3):
        for one, other in zip(stream(frames[:, t]), twin(frames[:, t]), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(TypeError, match="features=True: expected a timm model.* got Sequential"):
        Streaming(nn.Sequential(small), features=True)


@pytest.mark.parametrize("options", [{}, {"consensus": 2}, {"every": 2, "consensus": 3}])
def test_a_saved_stream_goes_on_in_another(small, options, tmp_path):
    frames = frames_of(2, 5)
    stream = Streaming(small, **options)
    assert stream.state_dict() == {}
    for frame in frames[:, :3].unbind(1):
        stream(frame)
    torch.save(stream.state_dict(), tmp_path / "stream.pt")
    saved = torch.load(tmp_path / "stream.pt", weights_only=True)
    fresh, used = Streaming(small, **options), Streaming(small, **options)
    used(frames[:, 4])
    memory = [cache.data_ptr() for cache in used.state]
    for other in (fresh, used):
        other.load_state_dict(saved)
    assert [cache.data_ptr() for cache in used.state] == memory
    for frame in frames[:, 3:].unbind(1):
        expected = stream(frame)
        assert torch.equal(fresh(frame), expected)
        assert torch.equal(used(frame), expected)
    with pytest.raises(ValueError, match="Call reset"):
        fresh(frames[:1, 0])
    fresh.load_state_dict({})
    assert fresh.num_streams == 0


@pytest.mark.parametrize("options", [{"consensus": 2}, {"every": 2}])
def test_a_stream_whose_first_frame_failed_has_nothing_to_save(small, options):
    frames = frames_of(1, 1)
    stream = Streaming(small, **options)

    def fail(module, x, logits):
        if stream.num_streams:  # not when it looks what enters the sites
            raise KeyError("camera")

    handle = small.register_forward_hook(fail)
    with pytest.raises(KeyError):
        stream(frames[:, 0])
    handle.remove()
    fresh = Streaming(small, **options)
    fresh.load_state_dict(stream.state_dict())
    assert torch.equal(fresh(frames[:, 0]), stream(frames[:, 0]))


def test_a_state_that_does_not_belong_names_what_is_wrong_and_changes_nothing(small):
    stream, other = Streaming(small, consensus=2), Streaming(small, consensus=3)
    for each in (stream, other):
        each(frames_of(1, 1)[:, 0])
    before = stream.state_dict()
    wrong = {key: value for key, value in before.items() if key != "ages"} | {"cache.nowhere": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"where ages is missing and cache.nowhere is unexpected"):
        stream.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"expected the state of a stream with consensus=2, got 3"):
        stream.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in stream.state_dict().items())


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("frame_shape", ones(3), r"'frame_shape' four positive integers .* got torch.int64 \[3\]"),
        (
            "frame_shape",
            torch.tensor([2.0, 3, 32, 32]),
            "'frame_shape' four positive integers .* torch.float32",
        ),
        ("frame_shape", torch.tensor([3, 3, 32, 32]), "'ages' an integer for each of 3 streams"),
        ("ages", ones(3), r"'ages' an integer for each of 2 streams, got torch.int64 \[3\]"),
        ("consensus.seen", ones(1), "'consensus.seen' an integer for each of 2 streams"),
        ("consensus.logits", torch.ones(3, 2, 5), "'consensus.logits' the last logits of 2 streams"),
        ("last.logits", torch.ones(3, 5), "'last.logits' a row for each of 2 streams"),
        ("cache", torch.ones(3, 2, 8, 8), "rows for each of 2 streams, got .* made as that one was"),
        ("cache", torch.ones(2, 2, 8, 9), "the shape of the frames before it"),
        ("ages", [1, 1], "expected the state of a stream, a tensor at 'ages', got list. Pass"),
    ],
)
def test_a_damaged_state_changes_nothing(small, key, value, message):
    frames = frames_of(2, 2)
    stream, twin = (Streaming(small, consensus=2, every=2) for _ in range(2))
    for each in (stream, twin):
        each(frames[:, 0])
    state = stream.state_dict()
    key = next(iter(state)) if key == "cache" else key
    with pytest.raises(TypeError if isinstance(value, list) else ValueError, match=message):
        stream.load_state_dict(state | {key: value})
    after = stream.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(stream(frames[:, 1]), twin(frames[:, 1]))


def test_a_stream_keeps_no_size_of_before_it_was_loaded():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=2, dynamic_img_size=True)
    model = causal(model)
    wide, high = (torch.randn(1, 3, *size).double() for size in ((64, 96), (96, 64)))  # as many tokens
    saved, stream = Streaming(model), Streaming(model)
    saved(high)
    stream(wide)
    stream.load_state_dict(saved.state_dict())
    assert torch.equal(stream(high), saved(high))
    stream.reset()
    expected = Streaming(model)
    for _ in range(2):
        assert_close(stream(wide), expected(wide))


def test_a_loaded_window_keeps_its_memory(small):
    frames = frames_of(1, 2)
    stream = Streaming(small, consensus=2)
    stream(frames[:, 0])
    state = stream.state_dict()
    expected = stream(frames[:, 1])
    memory = [x.data_ptr() for x in stream.state.window]
    stream.load_state_dict(state)
    assert torch.equal(stream(frames[:, 1]), expected)
    assert [x.data_ptr() for x in stream.state.window] == memory


def test_a_stream_moves_to_another_device(small):
    frames = frames_of(1, 3)
    stream = Streaming(small, consensus=1)
    logits = [stream(frames[:, 0])]
    assert stream.to("meta") is stream
    assert all(cache.is_meta for cache in [*stream.state, *stream.state.staging(), *stream.state.window])
    twin = Streaming(small, consensus=1)
    logits += [twin(frames[:, t]) for t in range(3)]
    twin.to("cpu")
    assert twin.cache_bytes == stream.cache_bytes


def test_feature_maps_stream_too():
    model = timm.create_model("resnet18", features_only=True, out_indices=(2, 4))
    model, frames = causal(model), frames_of(2, 3)
    stream = Streaming(model)
    maps = [stream(frame) for frame in frames.unbind(1)]
    expected = set_num_segments(model, 3)(frames[0])
    for level in (0, 1):
        assert_close(torch.stack([each[level][0] for each in maps]), expected[level])
    for options in ({"consensus": 2}, {"every": 2}):
        with pytest.raises(
            TypeError, match="expected a model that returns logits, got list from FeatureListNet"
        ):
            Streaming(model, **options)(frames[:, 0])


def test_a_model_without_shift_is_what_streams_where_it_is_disabled(small):
    frames = frames_of(2, 2)
    stream = Streaming(small)
    stream(frames[:, 0])
    before = stream.state_dict()
    with shift_disabled(small):
        assert torch.equal(stream(frames[:, 1]), small(frames[:, 1]))
        with pytest.raises(RuntimeError, match="expected the model to run a shifted module, got none"):
            Streaming(small)(frames[:, 0])
    assert all(torch.equal(value, before[key]) for key, value in stream.state_dict().items())


def test_bidirectional_weights_cannot_be_streamed(small):
    patch(unpatch(small), 4)
    with pytest.raises(
        RuntimeError, match=r"direction='causal', got 'bidirectional' at .* reads the next frame"
    ):
        Streaming(small)
    with pytest.raises(RuntimeError, match="expected a patched model"):
        Streaming(unpatch(small))


def test_a_model_that_lost_its_shift_on_the_way_is_refused(small):
    frames = frames_of(1, 2)
    stream = Streaming(small)
    stream(frames[:, 0])
    before = stream.state_dict()
    unpatch(small)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"with its shift, got a frame without it.*Make a new stream"):
            stream(frames[:, 1])
        if not tsm_triton.is_patched(small):
            patch(small, 1, direction="causal")  # other hooks than the stream's
    assert all(torch.equal(value, before[key]) for key, value in stream.state_dict().items())


def test_a_training_model_is_refused_and_eval_is_enough(small):
    stream = Streaming(small.train())
    for call in (stream, stream.init_state):
        with pytest.raises(RuntimeError, match=r"evaluation mode, got one in training mode.*model.eval\(\)"):
            call(frames_of(1, 1)[:, 0])
    small.eval()
    assert stream(frames_of(1, 1)[:, 0]).shape == (1, 5)


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 3, 40, 32), (1, 3, 32, 32)])
def test_another_batch_or_size_needs_a_reset(small, shape):
    stream = Streaming(small)
    stream(frames_of(2, 1)[:, 0])
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\), got \(.*Call reset\(\)"):
        stream(torch.zeros(shape).double())
    stream.reset()
    assert stream(torch.zeros(shape).double()).shape == (shape[0], 5)
    assert stream.num_streams == shape[0]


def test_a_reset_keeps_the_memory(small):
    stream = Streaming(small)
    stream.reset()
    frames = frames_of(2, 2)
    first = stream(frames[:, 0])
    memory = [cache.data_ptr() for cache in stream.state]
    stream.reset()
    assert torch.equal(stream(frames[:, 0]), first)
    assert [cache.data_ptr() for cache in stream.state] == memory


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        ([1.0], TypeError, "frame must be a torch.Tensor .B, 3, H, W., got list"),
        (torch.zeros(3, 32, 32), ValueError, r"frame must have shape \[B, 3, H, W\].*got \(3, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), ValueError, r"got \(0, 3, 32, 32\)"),
    ],
)
def test_what_is_not_a_frame_is_refused(small, frame, error, message):
    with pytest.raises(error, match=message):
        Streaming(small)(frame)


def test_bad_arguments_say_what_was_expected(small):
    with pytest.raises(ValueError, match="consensus must be at least 1, got 0"):
        Streaming(small, consensus=0)
    with pytest.raises(TypeError, match=r"every must be an int, got 1\.5 of type float"):
        Streaming(small, every=1.5)  # type: ignore[arg-type]
    assert Streaming(small, consensus=np.int64(2), every=np.int64(3)).consensus == 2
    stream = Streaming(small)
    frame = frames_of(2, 1)[:, 0]
    stream.reset([])
    with pytest.raises(ValueError, match="a stream that has seen a frame, got reset of 0 before the first"):
        stream.reset([0])
    stream(frame)
    before = stream.state_dict()
    with pytest.raises(ValueError, match="expected streams from 0 to 1, got 2. Pass numbers"):
        stream.reset([0, 2])
    for wrong in (1, torch.tensor([True, False]), np.array([True]), [0.5]):
        with pytest.raises(TypeError, match=r"indices must be .*, got"):
            stream.reset(wrong)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[key]) for key, value in stream.state_dict().items())
    state = stream.init_state(frame)
    with pytest.raises(ValueError, match=r"one tensor for each of the .* sites, got 0"):
        stream.step(frame, [])
    with pytest.raises(ValueError, match="as many streams as the frame, 3, got 2 rows"):
        stream.step(torch.cat([frame, frame[:1]]), state)
    with pytest.raises(ValueError, match=r"got torch.float64 .* reset it"):
        stream.step(torch.zeros(2, 3, 64, 64).double(), state)


def test_a_shifted_module_that_runs_twice_is_refused(small):
    site = find_sites(unpatch(small))[0]
    patch(small, 4, direction="causal")
    stream, conv = Streaming(small), site.module
    extra = torch.zeros(1, site.channels, 4, 4).double()
    state = stream.init_state((1, 3, 32, 32))
    twice = small.register_forward_hook(lambda _, x, y: (conv(extra), y)[1])
    with pytest.raises(RuntimeError, match=rf"once a frame, got {site.name!r} twice"):
        stream.step(frames_of(1, 1)[:, 0], state)
    twice.remove()
    stream(frames_of(1, 1)[:, 0])
