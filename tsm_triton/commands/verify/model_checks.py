"""What `tsm-triton verify` checks of models: compile, export, patch, fuse and stream."""

import copy
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ... import reference
from ...functional import fold_counts, temporal_shift
from ...fusion.fuse import fuse
from ...fusion.report import FusionReport
from ...patching.finding import find_sites
from ...patching.hooks import is_patched, packed_clips, set_num_segments, shift_disabled
from ...patching.patch import patch, unpatch
from ...streaming.fused_step import FusedStep
from ...streaming.stream import Streaming
from ...testing import assert_same_bits
from ...torch_private import autograd_config, pre_hooks
from ...video.classifier import VideoClassifier
from ...video.transforms import transform_for

__all__ = [
    "compiles",
    "exports",
    "fused_model",
    "fused_stream",
    "patched_and_compiled",
    "patched_model",
    "prepared",
    "replaced_modules",
    "streams",
]


def compiles(device: str) -> str:
    """Inductor, one graph, two batch sizes, forward and backward."""
    conv = nn.Conv2d(16, 16, 1).to(device)

    def loss(x: Tensor) -> Tensor:
        return conv(temporal_shift(torch.relu(x), 4)).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    # a graph kept on disk holds the backward of the package that compiled it, which may be an older one
    with autograd_config.patch(enable_autograd_cache=False):
        for clips in (1, 2):
            x = torch.randn(4 * clips, 16, 3, 3, device=device, requires_grad=True)
            (expected,) = torch.autograd.grad(loss(x), x)
            (actual,) = torch.autograd.grad(compiled(x), x)
            torch.testing.assert_close(actual, expected)
    return "2 batch sizes"


def exports(device: str) -> str:
    """`torch.export` with a dynamic number of clips."""
    model = patch(_small_model().to(device), num_segments=2)
    clips = torch.export.Dim("clips", min=1, max=8)
    frames = torch.randn(4, 3, 32, 32, device=device)
    program = torch.export.export(model, (frames,), dynamic_shapes=({0: 2 * clips},))
    frames = torch.randn(6, 3, 32, 32, device=device)
    torch.testing.assert_close(program.module()(frames), model(frames))
    return "2 batch sizes"


def patched_model(device: str) -> str:
    """Each residual branch is shifted, no identity is, by any length it is told; the patch comes off to the bit."""
    # in fp32 a GPU's products are those of TF32, in another order for another number of frames
    model = _small_model().to(device).double()
    frames = torch.randn(8, 3, 32, 32, device=device, dtype=torch.float64)
    by_hand = {length: _shifted_by_hand(model, length) for length in (1, 2, 3, 4)}
    branches = [name for name, _ in model.named_modules() if name.endswith(".conv1")]
    before = model(frames)
    assert not torch.equal(before, by_hand[4](frames)), "expected a shift to change the output"

    found = [site.name for site in find_sites(model)]
    assert found == branches, f"expected sites {branches}, got {found}"
    patch(model, num_segments=4)
    lengths = (3, 1, 4)
    for tracked in (True, False):  # without gradients a hook remembers how it shifts maps of each layout
        with torch.set_grad_enabled(tracked):
            for num_segments in (4, 2, 4):
                set_num_segments(model, num_segments)
                assert_same_bits(model(frames), by_hand[num_segments](frames))
                with shift_disabled(model):
                    assert_same_bits(model(frames), before)
                with packed_clips(model, lengths):
                    packed = model(frames).split(lengths)
                for clip, rows in zip(frames.split(lengths), packed, strict=True):
                    torch.testing.assert_close(rows, by_hand[len(clip)](clip))
    assert not is_patched(unpatch(model)), "expected no hook after unpatch"
    assert_same_bits(model(frames), before)
    return f"{len(branches)} sites"


def trained_model(device: str) -> str:
    """Gradients are those of shifted copies, whatever is kept for the backward and whatever is called before it."""
    model = _small_model().to(device).train().requires_grad_()
    frames = torch.randn(8, 3, 32, 32, device=device)
    by_hand, patched = _shifted_by_hand(model, 4), patch(copy.deepcopy(model), num_segments=4)
    by_hand(frames).square().sum().backward()
    loss = patched(frames).square().sum()
    set_num_segments(patched, 2)  # a backward is of its own forward
    loss.backward()
    count = 0
    for (name, ours), theirs in zip(patched.named_parameters(), by_hand.parameters(), strict=True):
        assert ours.grad is not None, f"expected a gradient of {name}, got none"
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda said, name=name: f"{name}: {said}")
        count += 1
    return f"{count} gradients"


def patched_and_compiled(device: str) -> str:
    """A compiled model runs its own shifts, whatever was compiled of its class before."""
    torch.compiler.reset()
    model = _small_model().to(device)
    frames = torch.randn(4, 3, 32, 32, device=device)
    shifted = patch(copy.deepcopy(model), num_segments=4)
    part = patch(copy.deepcopy(model), num_segments=4, stages=[3])
    for each in (model, part, shifted, copy.deepcopy(part), model):
        torch.testing.assert_close(torch.compile(each, backend="eager")(frames), each(frames))
    return "3 models"


def replaced_modules(device: str) -> str:
    """A module that takes a shifted one's place is shifted; a model that lost a shift refuses to run."""
    model = patch(_small_model().to(device), num_segments=4)
    frames = torch.randn(4, 3, 32, 32, device=device)
    expected = model(frames)
    for name in [site.name for site in find_sites(unpatch(copy.deepcopy(model)))]:
        conv: Any = model.get_submodule(name)
        twin: Any = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
        )
        twin.weight, twin.bias = conv.weight, conv.bias
        model.set_submodule(name, twin)
    assert_same_bits(model(frames), expected)
    pre_hooks(model.get_submodule("layer1.0.conv1")).clear()
    try:
        model(frames)
    except RuntimeError:
        return "4 sites"
    raise AssertionError("expected a model without one of its shifts to refuse to run, got an output")


def prepared(device: str) -> str:
    """Frames are normalised and sized as the model says, in whatever it is wrapped."""
    model: Any = timm.create_model("test_vit", img_size=96).to(device)
    mean, std = (model.pretrained_cfg[key] for key in ("mean", "std"))
    assert mean != (0.485, 0.456, 0.406), "expected a model whose frames are not ImageNet's"
    wrapped = (model, VideoClassifier(model), nn.DataParallel(nn.Sequential(VideoClassifier(model))))
    for value in (0, 51, 255):
        clip = torch.full((2, 3, 120, 160), value, dtype=torch.uint8, device=device)
        expected = (torch.tensor(value / 255) - torch.tensor(mean)) / torch.tensor(std)
        expected = expected.to(device).view(3, 1, 1).expand(2, 3, 96, 96)
        for holder in wrapped:
            torch.testing.assert_close(transform_for(holder)(clip), expected)
    return f"{len(wrapped)} wrappers"


def streams(device: str) -> str:
    """Frame by frame equals the whole clip, with one of two streams reset in the middle."""
    model = patch(_small_model().to(device).double(), num_segments=3, direction="causal")
    first, second, other = torch.randn(3, 3, 3, 32, 32, device=device, dtype=torch.float64)
    stream = Streaming(model)
    long = torch.cat([other, torch.randn_like(other)])
    logits = [stream(torch.stack([a, b])) for a, b in zip(first, long, strict=False)]
    stream.reset([0])
    logits += [stream(torch.stack([a, b])) for a, b in zip(second, long[3:], strict=True)]
    streamed = torch.stack(logits)
    torch.testing.assert_close(streamed[:3, 0], model(first))
    torch.testing.assert_close(streamed[3:, 0], model(second))
    patch(unpatch(model), num_segments=6, direction="causal")
    torch.testing.assert_close(streamed[:, 1], model(long))
    _check_every_second(model, torch.randn(4, 3, 3, 32, 32, device=device, dtype=torch.float64))
    return "5 streams"


def _check_every_second(model: nn.Module, frames: Tensor) -> None:
    """Every second frame of three streams, two of them due together; and a step leaves the state it is given."""
    stream = Streaming(model, every=2)
    outputs = [stream(frames[0])]
    stream.reset([0, 2])
    outputs = torch.stack(outputs + [stream(frame) for frame in frames[1:]])
    set_num_segments(model, 2)
    for number, due in ((0, [1, 3]), (1, [0, 2]), (2, [1, 3])):
        torch.testing.assert_close(outputs[due, number], model(frames[due, number]))
    state = stream.init_state(frames[0])
    before = [cache.clone() for cache in state]
    stream.step(frames[0], state)
    for cache, old in zip(state, before, strict=True):
        assert_same_bits(cache, old)


def fused_model(device: str) -> str:
    """`fuse` computes what the patched model does, on fused ops of each kind."""
    model = patch(_small_model().to(device).double(), num_segments=4)
    frames = torch.randn(8, 3, 32, 32, device=device, dtype=torch.float64)
    fast = fuse(model, example_input=frames[:4])
    torch.testing.assert_close(fast(frames), model(frames))
    return _places(fast.report, {"shift + conv1x1", "conv1x1 + residual", "residual + shift"})


def fused_stream(device: str) -> str:
    """`Streaming(model, fused=True)` computes what the stream does, with a reset in the middle."""
    model = patch(_small_model().to(device).double(), num_segments=3, direction="causal")
    plain, fast = Streaming(model), Streaming(model, fused=True)
    for t, frame in enumerate(torch.randn(4, 2, 3, 32, 32, device=device, dtype=torch.float64)):
        if t == 2:
            plain.reset([1])
            fast.reset([1])
        torch.testing.assert_close(fast(frame), plain(frame))
    assert isinstance(fast.step, FusedStep)
    assert fast.step.report is not None
    return _places(fast.step.report, {"shift + conv1x1", "conv1x1 + residual"})


def _places(report: FusionReport, wanted: set[str]) -> str:
    kinds = {entry.kind for entry in report.fused}
    assert wanted <= kinds, f"expected fused places of the kinds {sorted(wanted)}, got {sorted(kinds)}"
    return f"{len(report.fused)} places"


def _small_model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)
    for norm in model.modules():
        # as built, a branch is zero and the statistics are none: here both must be seen
        if isinstance(norm, nn.BatchNorm2d):
            for name, values in norm.state_dict().items():
                if name in ("weight", "running_var"):
                    nn.init.uniform_(values, 0.5, 1.5)
                elif name in ("bias", "running_mean"):
                    nn.init.normal_(values, std=0.2)
    return model


def _shifted_by_hand(model: nn.Module, num_segments: int) -> nn.Module:
    """A copy with the reference in front of the first convolution of each branch."""

    def shift(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        counts = fold_counts(x.shape[1], 8, "bidirectional")
        return reference.temporal_shift(x, num_segments, *counts), *rest

    by_hand = copy.deepcopy(model)
    for name, module in by_hand.named_modules():
        if name.endswith(".conv1"):
            module.register_forward_pre_hook(shift)
    return by_hand
