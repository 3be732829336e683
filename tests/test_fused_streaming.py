"""`Streaming(model, fused=True)`: the same stream, on a copy whose shifts are inside the 1x1 convolutions."""

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from tsm_triton import Streaming, fuse, ops, patch, shift_disabled, temporal_shift, unpatch
from tsm_triton.fusion.rewriting import rewrite
from tsm_triton.streaming.fused_step import FusedStep
from tsm_triton.streaming.step import StreamStep

from .networks import with_statistics
from .streams import MODELS, frames_of

# those of fuse: largest difference over the largest value; half precision may round on the way
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 8e-2}

# places fused, and shifts left
FUSED = {
    "timm resnet18": ({}, 8),  # 3x3 convolutions
    "timm resnet50": ({"shift + conv1x1": 16, "conv1x1 + residual": 16}, 0),
    "timm mobilenetv2_100": ({"shift + conv1x1": 10, "conv1x1 + residual": 10, "conv1x1": 7}, 0),
    "timm regnety_002": ({"shift + conv1x1": 13, "conv1x1 + residual": 13}, 0),
    # the sum has the strides of the windows, not those that the op writes
    "windows": ({"shift + conv1x1": 1}, 0),
}


class Windows(nn.Module):
    """Four rows a stream at its site."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.branch = nn.Sequential(
            nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        frames, channels, height, width = x.shape
        x = x.view(frames, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(-1, channels, height // 2, width // 2)
        x = x + self.branch(x)
        return self.head(x.view(frames, 4, channels, -1).mean((1, 3)))


def create(name: str = "test_resnet", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    if name == "windows":
        model = Windows()
    else:
        model = MODELS[name]() if name in MODELS else timm.create_model(name, num_classes=5)
    return patch(with_statistics(model), 4, direction="causal", verify=False).to(dtype)


@pytest.fixture
def small() -> nn.Module:
    return create()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def nodes(step: StreamStep, target: object) -> int:
    assert isinstance(step, FusedStep)
    assert step.network is not None
    return sum(node.target is target for node in step.network.graph.nodes)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export")
def test_a_copy_may_be_made_behind_a_pass_with_gradients():
    """The old weight_norm then holds a weight that is no leaf."""
    model = unpatch(create())
    torch.nn.utils.weight_norm(model.get_submodule("layer1.0.conv1"))
    patch(model, 4, direction="causal", verify=False)
    frame = frames_of(2, 1, 64, torch.float32)[:, 0]
    plain, fused = Streaming(model), Streaming(model, fused=True)
    plain(frame)
    fused.load_state_dict(plain.state_dict())
    with torch.enable_grad():
        model(torch.randn(4, 3, 64, 64))
    assert difference(fused(frame), plain(frame)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("name", FUSED)
def test_is_the_unfused_stream_with_a_reset_in_the_middle(name):
    model = create(name)
    plain, fused = Streaming(model), Streaming(model, fused=True)
    for t, frame in enumerate(frames_of(2, 4, 64, torch.float32).unbind(1)):
        if t == 2:
            plain.reset([1])
            fused.reset([1])
        logits = fused(frame)
        assert difference(logits, plain(frame)) < TOLERANCES[torch.float32]
    with shift_disabled(model):  # a forgotten cache would show
        assert difference(logits, model(frame)) > 10 * TOLERANCES[torch.float32]
    for mine, theirs in zip(fused.state, plain.state, strict=True):
        assert difference(mine, theirs) < TOLERANCES[torch.float32]

    kinds, left = FUSED[name]
    report = fused.step.report
    assert {kind: sum(entry.kind == kind for entry in report.fused) for kind in kinds} == kinds
    assert len(report.fused) == sum(kinds.values()), report
    assert sum(entry.kind == "shift" for entry in report.left) == left
    # each shift is either fused or left, under the name of its site
    shifts = [entry.site for entry in report.fused + report.left if "shift" in entry.kind]
    assert sorted(shifts) == sorted(fused.step.names)
    # one launch a site
    assert nodes(fused.step, ops.shift_step_conv1x1) == kinds.get("shift + conv1x1", 0)
    assert nodes(fused.step, ops.shift_step) == left
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert report.batch_norms == len(norms)


def test_each_cache_is_read_and_written_at_its_own_site():
    model = create("timm mobilenetv3_small_050")
    plain, fused = StreamStep(model), FusedStep(model)
    frame = frames_of(3, 1, 32, torch.float32)[:, 0]
    state = [torch.randn_like(cache) for cache in plain.init_state(frame)]
    before = [cache.clone() for cache in state]
    fused.init_state((2, 3, 32, 32))  # another number of streams
    (expected, kept), (logits, mine) = plain(frame, state), fused(frame, state)
    assert difference(logits, expected) < TOLERANCES[torch.float32]
    for actual, wanted in zip(mine, kept, strict=True):
        assert difference(actual, wanted) < TOLERANCES[torch.float32]
    assert all(map(torch.equal, state, before))
    for i in range(len(state)):  # and each of them counts
        changed = [*state[:i], torch.zeros_like(state[i]), *state[i + 1 :]]
        assert difference(fused(frame, changed)[0], expected) > 10 * TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_any_dtype_is_streamed_in_it(dtype):
    model = create(dtype=dtype)
    plain, fused = Streaming(model), Streaming(model, fused=True)
    for frame in frames_of(2, 3, 32, dtype).unbind(1):
        assert difference(fused(frame), plain(frame)) < TOLERANCES[dtype]
    assert all(cache.dtype == dtype for cache in fused.state)


@pytest.mark.parametrize("device", ["triton"], indirect=True)
def test_the_kernels_stream_the_same(small, device):
    frames = frames_of(2, 2, 32, torch.float32)
    plain = Streaming(small)
    expected = [plain(frame) for frame in frames.unbind(1)]
    fused = Streaming(small.to(device), fused=True)
    for frame, wanted in zip(frames.to(device).unbind(1), expected, strict=True):
        assert difference(fused(frame).cpu(), wanted) < TOLERANCES[torch.float32]
    assert nodes(fused.step, ops.shift_step_conv1x1) == 1


def test_the_model_is_untouched(small):
    before = copy.deepcopy(small.state_dict())
    strides = [p.stride() for p in small.parameters()]
    frames = frames_of(2, 2, 32, torch.float32)
    stream = Streaming(small)
    expected = [stream(frame) for frame in frames.unbind(1)]
    fused = Streaming(small, fused=True)
    fused(frames[:, 0])
    assert fused.model is small
    after = small.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [p.stride() for p in small.parameters()] == strides
    assert all(p.requires_grad for p in small.parameters())
    stream.reset()
    assert all(torch.equal(stream(f), e) for f, e in zip(frames.unbind(1), expected, strict=True))


def test_takes_the_options_of_a_stream(small):
    options = {"consensus": 2, "every": 2, "features": True}
    plain, fused = Streaming(small, **options), Streaming(small, **options, fused=True)
    for t, frame in enumerate(frames_of(2, 5, 32, torch.float32).unbind(1)):
        if t == 3:  # one stream is due, the other is not
            plain.reset([0])
            fused.reset([0])
        for actual, wanted in zip(fused(frame), plain(frame), strict=True):
            assert difference(actual, wanted) < TOLERANCES[torch.float32]


def test_holds_its_caches_once(small):
    frame = torch.randn(2, 3, 32, 32)
    fused = Streaming(small, fused=True)
    fused(frame)
    memory = [cache.data_ptr() for cache in fused.state]
    assert fused.state.staged is None
    fused(frame)
    fused.load_state_dict(fused.state_dict())
    assert [cache.data_ptr() for cache in fused.state] == memory


def test_goes_on_from_an_unfused_state_and_back(small):
    frames = frames_of(2, 3, 32, torch.float32)
    plain = Streaming(small)
    expected = [plain(frame) for frame in frames.unbind(1)]
    first, second, third = Streaming(small), Streaming(small, fused=True), Streaming(small)
    first(frames[:, 0])
    second.load_state_dict(first.state_dict())
    assert difference(second(frames[:, 1]), expected[1]) < TOLERANCES[torch.float32]
    third.load_state_dict(second.state_dict())
    assert difference(third(frames[:, 2]), expected[2]) < TOLERANCES[torch.float32]


def test_a_frame_of_another_size_after_a_reset_makes_another_copy(small):
    fused = Streaming(small, fused=True)
    fused(torch.randn(2, 3, 32, 32))
    network = fused.step.network
    fused.reset()
    fused(torch.randn(2, 3, 32, 32))
    assert fused.step.network is network
    with pytest.raises(ValueError, match=r"shape of the frames before it, \(2, 3, 32, 32\)"):
        fused(torch.randn(2, 3, 64, 64))
    fused.reset()
    frame = torch.randn(1, 3, 64, 64)
    assert difference(fused(frame), Streaming(small)(frame)) < TOLERANCES[torch.float32]
    assert fused.step.network is not network


def test_starts_in_inference_mode_and_goes_on_outside(small):
    frames = frames_of(2, 2, 32, torch.float32)
    plain, fused = Streaming(small), Streaming(small, fused=True)
    with torch.inference_mode():
        fused(frames[:, 0])
    plain(frames[:, 0])
    assert difference(fused(frames[:, 1]), plain(frames[:, 1])) < TOLERANCES[torch.float32]


def test_a_copy_goes_on_alone(small):
    frames = frames_of(2, 2, 32, torch.float32)
    fused = Streaming(small, fused=True)
    fused(frames[:, 0])
    twins = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    expected = fused(frames[:, 1])
    assert all(torch.equal(twin(frames[:, 1]), expected) for twin in twins)


def test_the_step_compiles_and_exports_once_it_has_its_copy(small):
    frame = torch.randn(2, 3, 32, 32)
    step = Streaming(small, fused=True).step
    state = step.init_state(frame)
    expected, kept = step(frame, state)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    exported = torch.export.export(step, (frame, state)).module()
    for run in (compiled, exported):
        logits, new = run(frame, state)
        assert difference(logits, expected) < TOLERANCES[torch.float32]
        assert all(map(torch.equal, new, kept))
    fresh = FusedStep(small)
    with pytest.raises(RuntimeError, match=r"Call init_state\(frame\) before"):
        torch.export.export(fresh, (frame, state))


class Reads(nn.Module):
    """A step whose cache is also read by the model."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 1)
        self.reads = reads

    def forward(self, x, cache):
        y, kept = ops.shift_step(x, cache, 1)
        y = self.conv(y)
        return y, kept * 2 if self.reads else kept


def test_a_convolution_alone_is_fused_with_its_step_unless_the_cache_is_read_on_the_way():
    inputs = (torch.randn(2, 3, 3, 16).movedim(-1, 1), torch.randn(2, 2, 3, 3))
    for reads in (False, True):
        module = torch.export.export(Reads(reads), inputs).module()
        expected = module(*inputs)
        report = rewrite(module.graph)
        module.recompile()
        actual = module(*inputs)
        assert all(difference(*pair) < 1e-5 for pair in zip(actual, expected, strict=True))
        kinds = [(entry.kind, entry.reason) for entry in report.fused + report.left]
        assert kinds == [("shift", "cache goes to mul") if reads else ("shift + conv1x1", "none")]


def test_steps_and_clips_in_one_graph_are_both_fused():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x, cache):
            y, kept = ops.shift_step(x, cache, 1)
            return self.b(temporal_shift(self.a(y).relu(), 2)), kept

    inputs = (torch.randn(2, 3, 3, 16).movedim(-1, 1), torch.randn(2, 2, 3, 3))
    module = torch.export.export(Both(), inputs).module()
    expected = module(*inputs)
    report = rewrite(module.graph)
    module.recompile()
    assert all(difference(*pair) < 1e-5 for pair in zip(module(*inputs), expected, strict=True))
    assert [(entry.site, entry.kind) for entry in report.fused] == [(s, "shift + conv1x1") for s in "ab"]
    assert not report.left


def test_what_cannot_be_streamed_fused_is_refused(small):
    with pytest.raises(RuntimeError, match="expected a model that is not compiled"):
        Streaming(torch.compile(small), fused=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got a fused copy.*Streaming\(model, fused=True\)"):
        Streaming(fuse(small, example_input=torch.empty(1, 3, 32, 32)), fused=True)
    with pytest.raises(RuntimeError, match="in training mode"):
        Streaming(copy.deepcopy(small).train(), fused=True)
    both_ways = patch(timm.create_model("test_resnet").eval(), 4, verify=False)
    with pytest.raises(RuntimeError, match="direction='causal'"):
        Streaming(both_ways, fused=True)


def test_a_refused_frame_changes_nothing(small):
    frames = frames_of(2, 2, 32, torch.float32)
    plain, fused = Streaming(small), Streaming(small, fused=True)
    for stream in (plain, fused):
        stream(frames[:, 0])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="expected no autocast"):
        fused(frames[:, 1])
    with shift_disabled(small), pytest.raises(RuntimeError, match="does not reach a fused copy"):
        fused(frames[:, 1])
    assert difference(fused(frames[:, 1]), plain(frames[:, 1])) < TOLERANCES[torch.float32]


class Branching(nn.Module):
    """Runs, but by the values of its frame: no graph holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=5)

    def forward(self, x):
        return self.model(x) if x.sum() > -1e9 else x


def test_what_export_cannot_capture_is_refused():
    model = Branching().eval()
    patch(model.model, 4, direction="causal", verify=False)
    with pytest.raises(
        RuntimeError, match=r"captures for one frame of \[3, 32, 32\] of any number of streams"
    ):
        Streaming(model, fused=True)(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_frame_or_state_of_another_dtype_is_told_as_it_is(dtype):
    model = patch(timm.create_model("test_resnet", num_classes=5).eval(), direction="causal")
    stream = Streaming(model, fused=True)
    frame = torch.randn(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="type") as raised:
        stream(frame.to(dtype))
    assert "torch.export" not in str(raised.value)
    state = [cache.to(dtype) for cache in stream.step.init_state(frame)]
    with pytest.raises(ValueError, match=r"^cache must be torch.float32"):
        stream.step(torch.randn(1, 3, 64, 64), state)
