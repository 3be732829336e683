"""`fuse`: the copy computes what the patched model does, on the fused ops, wherever the graph allows."""

import copy
import functools
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import tsm_triton
from tsm_triton import VideoClassifier, fuse, packed_clips, patch, shift_disabled
from tsm_triton.fusion.fuse import FusedModel
from tsm_triton.ops import residual_shift, shift_conv1x1
from tsm_triton.patching.shift_hook import ShiftHook

from .networks import T, with_statistics

SIZE = (3, 64, 64)
EXAMPLE = torch.empty(T, *SIZE)

# largest difference over the largest value of the patched model's logits; half precision is compared with
# fp32, and may be as wrong as the patched model in that dtype, or half as much again
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}

# how many places of each kind are fused, and how many shifts and sums are left
ABSORBED, SUMMED, BOTH, ALONE = "shift + conv1x1", "conv1x1 + residual", "residual + shift", "conv1x1"
MODELS = {
    "timm resnet18": ({BOTH: 7}, 2),
    "timm resnet50": ({ABSORBED: 16, SUMMED: 16}, 0),
    "timm resnet101": ({ABSORBED: 18, SUMMED: 33, ALONE: 15}, 0),  # every second block is shifted
    "timm resnet50d": ({ABSORBED: 16, SUMMED: 16}, 0),
    # the branches end in squeeze-and-excitation; the first shortcut in a 1x1 convolution
    "timm seresnet50": ({ABSORBED: 16, SUMMED: 1}, 15),
    "timm resnext50_32x4d": ({ABSORBED: 16, SUMMED: 16}, 0),
    "timm regnety_002": ({ABSORBED: 13, SUMMED: 13}, 0),
    "timm mobilenetv2_100": ({ABSORBED: 10, SUMMED: 10, ALONE: 7}, 0),
    "timm mobilenetv3_small_050": ({ABSORBED: 7, SUMMED: 7, ALONE: 4}, 0),
    "timm efficientnet_b0": ({ABSORBED: 9, SUMMED: 9, ALONE: 7}, 0),
    "torchvision resnet18": ({BOTH: 7}, 2),
    "torchvision resnet50": ({ABSORBED: 16, SUMMED: 16}, 0),
    "torchvision mobilenet_v2": ({ABSORBED: 10, SUMMED: 10, ALONE: 7}, 0),
    "torchvision mobilenet_v3_small": ({ABSORBED: 6, SUMMED: 6, ALONE: 5}, 0),
    "torchvision efficientnet_b0": ({ABSORBED: 9, SUMMED: 9, ALONE: 7}, 0),
}

# of the same blocks as others that are smaller
LARGE = ("resnet101", "resnet50d", "seresnet50", "resnext50_32x4d", "efficientnet_b0", "torchvision resnet50")


def marked(names: Iterable[str], slow: tuple[str, ...] = LARGE) -> list[Any]:
    return [pytest.param(n, marks=[pytest.mark.slow] if n.endswith(slow) else []) for n in names]


def create(name: str) -> nn.Module:
    library, name = name.split()
    torch.manual_seed(0)
    if library == "torchvision":
        return with_statistics(getattr(torchvision.models, name)(num_classes=5))
    return with_statistics(timm.create_model(name, num_classes=5))


@functools.cache
def patched_and_fused(name: str, direction: str = "bidirectional") -> tuple[nn.Module, FusedModel]:
    """Shared by the tests, which change neither."""
    model = patch(create(name), T, direction=direction, verify=False)
    return model, fuse(model, example_input=EXAMPLE)


def small(**options) -> nn.Module:
    return patch(create("timm test_resnet"), T, verify=False, **options)


def clips(number: int) -> torch.Tensor:
    return torch.randn(number * T, *SIZE, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def difference(model: nn.Module, expected: nn.Module, frames: torch.Tensor) -> float:
    wanted = expected(frames)
    return ((model(frames) - wanted).abs().max() / wanted.abs().max()).item()


def fused_nodes(model: FusedModel) -> list[torch.fx.Node]:
    return [n for n in model.network.graph.nodes if n.target in (shift_conv1x1, residual_shift)]


@pytest.mark.parametrize("name", marked(MODELS))
def test_computes_what_the_patched_model_does_on_the_fused_ops(name):
    model, fused = patched_and_fused(name)
    frames = clips(2)
    tolerance = TOLERANCES[torch.float32]
    assert difference(fused, model, frames) < tolerance
    with shift_disabled(model):  # a forgotten shift would show
        assert difference(fused, model, frames) > 10 * tolerance

    kinds, left = MODELS[name]
    report = fused.report
    assert {kind: sum(entry.kind == kind for entry in report.fused) for kind in kinds} == kinds
    assert (len(report.fused), len(report.left)) == (sum(kinds.values()), left), report
    assert len(fused_nodes(fused)) == len(report.fused)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert report.batch_norms == len(norms)
    # each shift of the model is either fused or left, under the name of its site
    shifts = [entry.site for entry in report.fused + report.left if "shift" in entry.kind]
    assert sorted(shifts) == sorted(name for name, module in model.named_modules() if is_shifted(module))


def is_shifted(module: nn.Module) -> bool:
    return any(isinstance(hook, ShiftHook) for hook in module._forward_pre_hooks.values())


@pytest.mark.parametrize("name", marked(n for n in MODELS if "resne" in n and "18" not in n))
def test_the_first_convolution_of_every_bottleneck_is_fused(name):
    model, fused = patched_and_fused(name)
    convs = [
        f"{name}.conv1" for name, module in model.named_modules() if type(module).__name__ == "Bottleneck"
    ]
    assert len(convs) >= 16
    assert set(convs) <= {entry.site for entry in fused.report.fused if entry.reason == "relu"}


@pytest.mark.parametrize("name", ["timm test_resnet", "timm mobilenetv3_small_050"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_worse_than_the_patched_model(name, dtype):
    model, fused = patched_and_fused(name)
    frames = clips(2)
    exact = model(frames)

    def error(module: nn.Module) -> float:
        with torch.no_grad():
            out = copy.deepcopy(module).to(dtype)(frames.to(dtype))
        assert out.dtype == dtype
        return ((out.float() - exact).abs().max() / exact.abs().max()).item()

    assert error(fused) < min(TOLERANCES[dtype], 1.5 * error(model) + TOLERANCES[dtype] / 10)


@pytest.mark.parametrize(
    "name",
    marked(
        ["timm test_resnet", "timm resnet18", "timm mobilenetv3_small_050", "timm regnety_002"],
        slow=("resnet18", "050", "002"),
    ),
)
def test_what_only_a_gpu_fuses_computes_the_same(name, monkeypatch):
    model, plain = patched_and_fused(name)
    monkeypatch.setattr("tsm_triton.fusion.choice.rewrites_convolutions", lambda x: True)
    monkeypatch.setattr("tsm_triton.fusion.choice.is_faster", lambda kind, x: True)
    fused = fuse(model, example_input=EXAMPLE)
    assert {entry.kind for entry in fused.report.fused} > {"stem"}
    assert len(fused.report.fused) > len(plain.report.fused)
    assert difference(fused, model, clips(2)) < TOLERANCES[torch.float32]
    assert fused.report.batch_norms == plain.report.batch_norms


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_dtype_is_fused_in_it(dtype):
    model = small().to(dtype)
    fused = fuse(model, example_input=EXAMPLE)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert difference(fused, model, clips(2).to(dtype)) < TOLERANCES[dtype]


@pytest.mark.parametrize("options", [dict(direction="causal"), dict(shift_div=3), dict(place="block")])
def test_every_patch_can_be_fused(options):
    model = small(**options)
    fused = fuse(model, example_input=EXAMPLE)
    assert difference(fused, model, clips(2)) < TOLERANCES[torch.float32]


@pytest.mark.filterwarnings(
    "ignore:The tensor attributes? .* assigned during export"
)  # of the old weight_norm
@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        pytest.param(torch.nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
    ],
)
def test_a_computed_weight_stays_computed(norm):
    model = create("timm test_resnet")
    for name, module in list(model.named_modules()):
        if name in ("conv1.0", "layer1.0.conv1", "layer2.0.conv2"):
            norm(module)
    model = patch(model.eval(), T, verify=False)
    model(clips(1))  # with gradients: the old weight_norm keeps what it computed
    fused = fuse(model, example_input=EXAMPLE)
    assert difference(fused, model, clips(2)) < TOLERANCES[torch.float32]


def test_a_causal_copy_never_sees_the_future():
    _, fused = patched_and_fused("timm test_resnet", "causal")
    frames = clips(2)
    changed = frames.clone()
    changed[1] += 1
    assert (fused(frames) != fused(changed)).any(1).tolist() == [False, True, True, True] + [False] * T


# a mutated node of each op, and the argument that is wrong in it
MUTATIONS = {
    "the future for the past": (shift_conv1x1, 7, lambda value: not value),
    "no activation": (shift_conv1x1, 8, lambda value: "none"),
    "no bias": (shift_conv1x1, 2, lambda value: None),
    "no identity": (shift_conv1x1, 3, lambda value: None),
    "longer clips": (shift_conv1x1, 4, lambda value: 2 * value),
    "more channels": (shift_conv1x1, 5, lambda value: value + 8),
    "the residual's future for the past": (residual_shift, 7, lambda value: not value),
    "the residual without activation": (residual_shift, 8, lambda value: "none"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_one_wrong_argument_of_one_node_is_seen(mutation):
    op, position, change = MUTATIONS[mutation]
    model, fused = patched_and_fused("timm test_resnet")
    mutant = copy.deepcopy(fused)
    nodes = [n for n in fused_nodes(mutant) if n.target is op and n.args[position] is not None]
    # those whose shift moves something, where the shift is what changes
    nodes = [n for n in nodes if position < 4 or position == 8 or n.args[5]]
    node = nodes[len(nodes) // 2]
    node.args = (*node.args[:position], change(node.args[position]), *node.args[position + 1 :])
    mutant.network.recompile()
    assert difference(mutant, model, clips(2)) > 3 * TOLERANCES[torch.float32]


def test_exchanged_counts_of_a_causal_node_are_seen():
    model, fused = patched_and_fused("timm test_resnet", "causal")
    mutant = copy.deepcopy(fused)
    node = next(n for n in fused_nodes(mutant) if n.args[5])
    node.args = (*node.args[:5], node.args[6], node.args[5], *node.args[7:])
    mutant.network.recompile()
    assert difference(mutant, model, clips(2)) > 3 * TOLERANCES[torch.float32]


def test_the_original_is_untouched():
    model = small()
    before = {key: (value.clone(), value.stride()) for key, value in model.state_dict().items()}
    frames = clips(1)
    expected = model(frames)
    fused = fuse(model, example_input=EXAMPLE)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert tsm_triton.is_patched(model)
    assert torch.equal(model(frames), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key][0])
        assert value.stride() == before[key][1]


def test_takes_any_number_of_clips():
    model, fused = patched_and_fused("timm test_resnet")
    for number in (1, 3, 5):
        assert difference(fused, model, clips(number)) < TOLERANCES[torch.float32]
    assert fused(clips(0)).shape == (0, 5)


@pytest.mark.parametrize("name", ["timm test_resnet", "timm mobilenetv3_small_050"])
def test_takes_frames_of_any_size_with_its_own_weights(name):
    model, fused = patched_and_fused(name)
    model, fused = copy.deepcopy(model), copy.deepcopy(fused)
    for size in ((96, 64), (65, 97)):
        frames = torch.randn(2 * T, 3, *size)
        assert difference(fused, model, frames) < TOLERANCES[torch.float32]
    assert len(fused.forwards) == 2
    for module in (fused, model):  # of the sizes that it already knows too
        for name, parameter in module.named_parameters():
            if name.endswith(("fc.weight", "classifier.weight")):
                torch.nn.init.zeros_(parameter)
    assert torch.equal(fused(frames), model(frames))
    twin = pickle.loads(pickle.dumps(fused))
    assert torch.equal(twin(frames), fused(frames))


def test_frames_that_the_model_itself_does_not_take_are_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.columns = small(), nn.Parameter(torch.ones(SIZE[2]))

        def forward(self, x):
            return self.backbone(x * self.columns)

    fused = fuse(Scaled().eval(), example_input=EXAMPLE)
    with pytest.raises(RuntimeError, match=r"captures for any number of clips of 4 frames of \[3, 96, 96\]"):
        fused(torch.zeros(T, 3, 96, 96))
    hooked = small()
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    fused_with_hook = fuse(hooked, example_input=EXAMPLE)
    assert difference(fused_with_hook, hooked, clips(1)) < TOLERANCES[torch.float32]
    with pytest.raises(RuntimeError, match="has hooks of your own"):
        fused_with_hook(torch.zeros(T, 3, 96, 96))
    with pytest.raises(RuntimeError, match="could not be pickled, was not kept"):  # a class in a function
        pickle.loads(pickle.dumps(fused))(torch.zeros(T, 3, 96, 96))


def test_takes_nchw_and_channels_last():
    _, fused = patched_and_fused("timm test_resnet")
    frames = clips(2)
    assert torch.equal(fused(frames), fused(frames.contiguous(memory_format=torch.channels_last)))


def test_clips_of_one_frame_are_fused():
    model = patch(create("timm test_resnet"), 1)
    assert difference(fuse(model, example_input=EXAMPLE), model, clips(1)) < TOLERANCES[torch.float32]


def test_compiles_in_one_graph_for_two_batch_sizes():
    _, fused = patched_and_fused("timm test_resnet")
    compiled = torch.compile(fused, fullgraph=True, dynamic=True)
    for number in (2, 3):
        with torch.no_grad():
            assert difference(compiled, fused, clips(number)) < TOLERANCES[torch.float32]  # type: ignore[arg-type]


@pytest.mark.timeout(600)
def test_what_only_a_gpu_fuses_compiles_for_two_batch_sizes(monkeypatch):
    monkeypatch.setattr("tsm_triton.fusion.choice.rewrites_convolutions", lambda x: True)
    monkeypatch.setattr("tsm_triton.fusion.choice.is_faster", lambda kind, x: True)
    fused = fuse(small(), example_input=EXAMPLE)
    assert any(node.target is torch.ops.tsm_triton.convolution.default for node in fused.network.graph.nodes)
    compiled = torch.compile(fused, fullgraph=True, dynamic=True)
    for number in (2, 3):
        with torch.no_grad():
            assert difference(compiled, fused, clips(number)) < TOLERANCES[torch.float32]  # type: ignore[arg-type]


def test_holds_only_what_it_reads():
    model, fused = patched_and_fused("timm test_resnet")
    read = {n.target for n in fused.network.graph.nodes if n.op == "get_attr"}
    assert set(fused.network.state_dict()) == read
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not fused.training
    weights = sum(p.numel() for p in fused.parameters())
    assert weights < sum(p.numel() for p in model.parameters())


def test_survives_deepcopy_and_a_checkpoint():
    _, fused = patched_and_fused("timm test_resnet")
    twin = copy.deepcopy(fused)
    for parameter in twin.parameters():
        parameter.zero_()
    twin.load_state_dict(fused.state_dict(), strict=True)
    assert torch.equal(twin(clips(1)), fused(clips(1)))


def test_survives_pickle():
    _, fused = patched_and_fused("timm test_resnet")
    twin = pickle.loads(pickle.dumps(fused))
    assert torch.equal(twin(clips(1)), fused(clips(1)))
    assert str(twin.report) == str(fused.report)


def test_a_classifier_of_clips_takes_it_at_its_own_length():
    model, fused = patched_and_fused("timm test_resnet")
    video = clips(2).unflatten(0, (2, T))
    torch.testing.assert_close(VideoClassifier(fused, T)(video), VideoClassifier(model, T)(video))
    with pytest.raises(ValueError, match="expected clips of 4 frames, .* got 8"):
        VideoClassifier(fused)(clips(2)[None])
    with pytest.raises(ValueError, match="expected clips of 4 frames, .* got \\[3, 5\\]"):
        VideoClassifier(fused)(clips(2), [3, 5])


def test_default_size_is_the_model_s_own():
    model = small()
    assert fuse(model).input_size == tuple(model.pretrained_cfg["input_size"])  # type: ignore[index]


def test_several_outputs_come_back_as_they_were():
    model = patch(timm.create_model("test_resnet", features_only=True).eval(), T)
    fused = fuse(model, example_input=EXAMPLE)
    frames = clips(1)
    outputs = fused(frames)
    assert isinstance(outputs, list)
    torch.testing.assert_close(outputs, model(frames), rtol=1e-4, atol=1e-4)


def test_a_sum_takes_the_batch_norm_of_its_branch_where_that_is_faster(monkeypatch):
    monkeypatch.setattr("tsm_triton.fusion.choice.takes_norm", lambda x: True)
    fused = fuse(patched_and_fused("timm resnet18")[0], example_input=EXAMPLE)
    sums = [n for n in fused_nodes(fused) if n.target is residual_shift]
    assert len(sums) == 7
    assert all(scale is not None and bias is not None for _, scale, bias, *_ in (n.args for n in sums))
    assert fused.report.batch_norms == 20
    assert difference(fused, patched_and_fused("timm resnet18")[0], clips(2)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: "resnet50", TypeError, "model must be a torch.nn.Module, got str"),
        (
            lambda: timm.create_model("test_resnet").eval(),
            RuntimeError,
            "expected a patched model, got ResNet without",
        ),
        (lambda: small().train(), RuntimeError, "expected a model in eval mode, got ResNet in training mode"),
        (lambda: partly_training(), RuntimeError, "expected a model in eval mode"),
        (lambda: torch.compile(small()), RuntimeError, "expected a model that is not compiled"),
        (lambda: with_compiled_forward(), RuntimeError, "expected a model that is not compiled"),
    ],
)
def test_what_cannot_be_fused_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        fuse(model())


def with_compiled_forward() -> nn.Module:
    model = small()
    block = model.get_submodule("layer2.0")
    block.forward = torch.compile(block.forward)
    return model


def partly_training() -> nn.Module:
    model = small()
    model.get_submodule("layer2").train()
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_is_refused():
    with pytest.raises(TypeError, match="expected an eager module, got the scripted"):
        fuse(torch.jit.script(torchvision.models.resnet18()))  # type: ignore[arg-type]


def test_a_model_without_its_shift_is_refused():
    model = small()
    with shift_disabled(model), pytest.raises(RuntimeError, match="expected a model whose shift is on"):
        fuse(model)
    with packed_clips(model, [3, 5]), pytest.raises(RuntimeError, match="expected clips of one length"):
        fuse(model)


def test_what_export_cannot_capture_is_refused():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = small()

        def forward(self, x):
            return self.backbone(x).view(2 * T, 5)

    with pytest.raises(
        RuntimeError, match="expected a model that torch.export captures for any number of clips"
    ):
        fuse(Fixed().eval(), example_input=EXAMPLE)


def test_a_model_that_counts_in_strides_is_refused():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = small()

        def forward(self, x):
            scores = self.backbone(x)
            n, c, h, w = x.shape
            rows = x.as_strided((n, c * h * w), (c * h * w, 1))  # other pixels in channels_last
            return scores + rows[:, :5]

    with pytest.raises(
        RuntimeError, match="does not depend on how its maps lie in memory, got Strided, which"
    ):
        fuse(Strided().eval(), example_input=EXAMPLE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((T + 1, *SIZE), "divisible by num_segments=4, got 5 frames"),
        ((T, 1, 64, 64), r"x must have shape \[N\*T, 3, H, W\], got \(4, 1, 64, 64\)"),
        ((2, T, *SIZE), r"x must have shape \[N\*T, 3, H, W\], got"),
    ],
)
def test_a_wrong_input_is_refused(shape, message):
    _, fused = patched_and_fused("timm test_resnet")
    with pytest.raises(ValueError, match=message):
        fused(torch.zeros(shape))


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (SIZE, TypeError, "example_input must be a tensor of frames .* got tuple"),
        (torch.empty(2, T, *SIZE), ValueError, r"example_input must have shape .* got \(2, 4, 3, 64, 64\)"),
    ],
)
def test_a_wrong_example_is_refused(example, error, message):
    with pytest.raises(error, match=message):
        fuse(small(), example_input=example)


def test_what_is_no_tensor_is_refused():
    _, fused = patched_and_fused("timm test_resnet")
    with pytest.raises(TypeError, match="x must be a tensor of frames .* got list"):
        fused([1])


def test_autocast_is_refused():
    _, fused = patched_and_fused("timm test_resnet")
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="expected no autocast"):
            fused(clips(1))
        with pytest.raises(RuntimeError, match="expected no autocast"):
            fuse(small(), example_input=EXAMPLE)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["timm resnet18", "timm resnet50", "timm mobilenetv2_100"])
def test_runs_on_the_gpu_and_in_a_cuda_graph(name):
    model, fused = (copy.deepcopy(m).cuda() for m in patched_and_fused(name))
    frames = clips(2).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert difference(fused, model, frames) < TOLERANCES[torch.float32]
        expected = fused(frames)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fused(frames)
        graph.replay()
    torch.testing.assert_close(out, expected)


class Narrowing(nn.Module):
    """Blocks of one shape, the last of which sees maps of one pixel at some sizes, where less can be fused."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
            self.conv2, self.bn2 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
            self.scale = nn.Parameter(torch.ones(16, 1, 1))

        def forward(self, x):
            return x + self.scale * self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))

    def __init__(self) -> None:
        super().__init__()
        blocks = [self.Block(), nn.MaxPool2d(2), self.Block(), nn.MaxPool2d(2), self.Block()]
        self.body = nn.Sequential(nn.Conv2d(3, 16, 4, 4), *blocks)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("made_for", [32, 16])
def test_layers_of_one_shape_keep_their_own_weights_at_any_size(made_for):
    model = patch(with_statistics(Narrowing()).eval(), T, example_input=torch.zeros(1, 3, 32, 32))
    fused = fuse(model, example_input=torch.zeros(1, 3, made_for, made_for))
    for size in (16, 32, 48):
        x = torch.randn(2 * T, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)


def test_what_a_forward_makes_of_the_size_is_not_taken_for_another_size():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return super().forward(x * torch.tensor([x.shape[-1] / self.by]))

    for by, fits in ((64, False), (1e-38, True)):  # an infinity both times
        model = Scaled(timm.create_model("test_resnet", num_classes=7, zero_init_last=False)).eval()
        model.by = by
        patch(model, T, example_input=torch.zeros(1, 3, 64, 64))
        fused = fuse(model, example_input=torch.zeros(1, 3, 64, 64))
        x = torch.randn(T, 3, 96, 96)
        with torch.no_grad():
            if fits:
                assert fused(x).shape == (T, 7)
                continue
            torch.testing.assert_close(fused(x[..., :64, :64]), model(x[..., :64, :64]), atol=1e-4, rtol=1e-4)
            with pytest.raises(RuntimeError, match="Call tsm_triton.fuse"):
                fused(x)
