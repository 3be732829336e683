"""Patching: which modules are shifted, what the patched model computes, and what it refuses."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import tsm_triton
import tsm_triton.modules
from tsm_triton import ShiftSite, find_sites, is_patched, patch, set_num_segments, shift_disabled, unpatch
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.patching.shift_hook import ShiftHook
from tsm_triton.video.features import VideoFeatures

from .networks import Block

# small members of each family that the rules know, built once a test with random weights
MODELS = {
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=5),
    "timm resnet50": lambda: timm.create_model("resnet50", num_classes=5),
    "timm resnet50d": lambda: timm.create_model("resnet50d", num_classes=5),
    "timm seresnet50": lambda: timm.create_model("seresnet50", num_classes=5),
    "timm skresnet18": lambda: timm.create_model("skresnet18", num_classes=5),
    "timm mobilenetv2_100": lambda: timm.create_model("mobilenetv2_100", num_classes=5),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "timm mobilenetv4_conv_small": lambda: timm.create_model("mobilenetv4_conv_small", num_classes=5),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=5),
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5),
    "torchvision mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "torchvision efficientnet_b0": lambda: torchvision.models.efficientnet_b0(num_classes=5),
}
T = 4


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return visible(MODELS[request.param]())


@pytest.fixture
def resnet() -> nn.Module:
    return visible(MODELS["timm resnet18"]())


def visible(model: nn.Module) -> nn.Module:
    """Draw norms anew: zero-initialised last ones would hide every residual branch, and the shift in it."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def names(model: nn.Module, **options) -> list[str]:
    return [site.name for site in find_sites(model, **options)]


def reach(model: nn.Module, frames: torch.Tensor, frame: int) -> list[bool]:
    """Which rows of the output change when one frame does."""
    changed = frames.clone()
    changed[frame] += torch.randn(frames.shape[1:])
    with torch.no_grad():
        return (model(frames) != model(changed)).any(1).tolist()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in range(2)]),
        ("resnet50", [f"layer{s}.{b}.conv1" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)]),
        (
            "resnet101",
            [f"layer{s}.{b}.conv1" for s, n in enumerate((3, 4, 23, 3), 1) for b in range(0, n, 2)],
        ),
    ],
)
def test_resnets_are_shifted_where_the_authors_shift_them(library, name, expected):
    with torch.device("meta"):
        model = timm.create_model(name) if library == "timm" else getattr(torchvision.models, name)()
    assert names(model) == expected
    blocks = [name.removesuffix(".conv1") for name in expected]
    if name != "resnet101":  # with place="block" the authors wrap every block of every depth
        assert names(model, place="block") == blocks
    else:
        assert len(names(model, place="block")) == 33


def test_mobilenet_v2_is_shifted_where_the_authors_shift_it():
    indices = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
    assert names(torchvision.models.mobilenet_v2()) == [f"features.{i}.conv.0.0" for i in indices]
    blocks = ("1.1", "2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "4.2", "5.1", "5.2")
    assert names(timm.create_model("mobilenetv2_100")) == [f"blocks.{b}.conv_pw" for b in blocks]


def test_sites_carry_the_module_and_its_channels(resnet):
    site = find_sites(resnet)[2]
    assert site == ShiftSite("layer2.0.conv1", resnet.layer2[0].conv1, channels=64, channel_dim=1)
    assert repr(site) == "ShiftSite('layer2.0.conv1', Conv2d, channels=64, channel_dim=1)"
    assert not is_patched(resnet)


def test_reaches_the_neighbouring_frames_and_no_other_clip(model):
    patch(model, T)
    frames = torch.randn(2 * T, 3, 64, 64)
    assert reach(model, frames, 1) == [True] * T + [False] * T
    assert reach(model, frames, T) == [False] * T + [True] * T


def test_a_causal_patch_never_sees_the_future(model):
    patch(model, T, direction="causal")
    assert reach(model, torch.randn(2 * T, 3, 64, 64), 1) == [False, True, True, True] + [False] * T


def test_one_site_reaches_one_frame_each_way(resnet):
    patch(resnet, T, filter_fn=lambda module, name: name == "layer3.0.conv1")
    frames = torch.randn(T, 3, 64, 64)
    assert reach(resnet, frames, 0) == [True, True, False, False]
    assert reach(resnet, frames, 2) == [False, True, True, True]


def test_the_identity_of_a_residual_block_is_not_shifted(resnet):
    block = resnet.layer1[0]
    x = torch.rand(2 * T, 64, 8, 8)
    patch(resnet, T)
    block.conv1.weight.data.zero_()
    block.bn2.bias.data.zero_()
    shifted_branch = torch.randn(2 * T, 64, 8, 8)
    block.bn2.register_forward_hook(lambda *_: torch.zeros_like(shifted_branch))
    assert torch.equal(block(x), x)
    unpatch(resnet)
    patch(resnet, T, place="block")
    assert torch.equal(block(x), tsm_triton.temporal_shift(x, T))


def test_a_patched_model_is_the_shift_written_by_hand():
    class Shifted(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(tsm_triton.temporal_shift(x, T))

    model = torchvision.models.resnet18(num_classes=5).eval()
    by_hand = copy.deepcopy(model)
    for site in find_sites(by_hand):
        block = by_hand.get_submodule(site.name.removesuffix(".conv1"))
        block.conv1 = Shifted(block.conv1)
    frames = torch.randn(T, 3, 64, 64)
    assert torch.equal(patch(model, T)(frames), by_hand(frames))


def test_shift_disabled_is_the_2d_network_bit_for_bit(model):
    frames = torch.randn(3, 3, 64, 64)  # not a whole clip
    with torch.no_grad():
        expected = model(frames)
        patch(model, T)
        with shift_disabled(model), shift_disabled(model):
            assert torch.equal(model(frames), expected)
        with pytest.raises(ValueError, match="divisible by num_segments=4, got 3 frames"):
            model(frames)


def test_shift_disabled_ends_with_an_exception(resnet):
    patch(resnet, T)
    with pytest.raises(KeyError), shift_disabled(resnet):
        raise KeyError
    assert all(hook.enabled for hook in shift_hooks(resnet))


def test_unpatch_restores_bitwise(model):
    frames = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(frames)
        keys = list(model.state_dict())
        assert list(patch(model, T).state_dict()) == keys
        assert not torch.equal(model(frames[:1].repeat(T, 1, 1, 1))[:1], expected[:1])
        assert unpatch(model) is model
        assert torch.equal(model(frames), expected)
    assert not is_patched(model)
    assert not any(m._forward_pre_hooks or m._forward_pre_hooks_with_kwargs for m in model.modules())


def test_unpatch_leaves_other_hooks_alone(resnet):
    seen = []
    resnet.layer1[0].conv1.register_forward_pre_hook(lambda *_: seen.append(1))
    unpatch(patch(resnet, T))(torch.randn(1, 3, 32, 32))
    assert seen == [1]


def test_set_num_segments_changes_the_clip_length(resnet):
    assert set_num_segments(patch(resnet, T), 2) is resnet
    assert reach(resnet, torch.randn(T, 3, 64, 64), 0) == [True, True, False, False]


def test_num_segments_changes_under_compile_too(resnet):
    patch(resnet, T)
    compiled = torch.compile(resnet, fullgraph=True, backend="aot_eager")
    frames = torch.randn(T, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(frames), resnet(frames))
        set_num_segments(resnet, 2)
        torch.testing.assert_close(compiled(frames), resnet(frames))
        with shift_disabled(resnet):
            torch.testing.assert_close(compiled(frames), resnet(frames))


@pytest.mark.parametrize("name", ["timm resnet18", "timm mobilenetv2_100", "torchvision efficientnet_b0"])
def test_compiles_in_one_graph_for_two_batch_sizes(name):
    model = patch(MODELS[name]().eval(), T)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for clips in (2, 3):
            frames = torch.randn(clips * T, 3, 64, 64)
            torch.testing.assert_close(compiled(frames), model(frames))
    assert len(graphs) == 1
    shifts = [n for n in graphs[0].graph.nodes if n.target is torch.ops.tsm_triton.temporal_shift.default]
    assert len(shifts) == len(find_sites(unpatch(model)))


def test_inductor_runs_a_patched_model():
    model = patch(visible(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Block(1), Block(2))), T)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for clips in (1, 2):
            frames = torch.randn(clips * T, 3, 32, 32)
            torch.testing.assert_close(compiled(frames), model(frames), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_a_dynamic_number_of_clips(resnet, strict):
    patch(resnet, T)
    clips = torch.export.Dim("clips", min=1, max=16)
    program = torch.export.export(
        resnet, (torch.randn(2 * T, 3, 32, 32),), dynamic_shapes={"x": {0: T * clips}}, strict=strict
    )
    frames = torch.randn(3 * T, 3, 32, 32)
    torch.testing.assert_close(program.module()(frames), resnet(frames), rtol=1e-4, atol=1e-5)


def ran_before(resnet) -> tuple[nn.Module, torch.Tensor]:
    """A patched model that has shifted maps of these layouts."""
    patched, frames = patch(copy.deepcopy(resnet), T), torch.randn(2 * T, 3, 64, 64)
    with torch.no_grad():
        for _ in range(2):
            patched(frames)
    return patched, frames


@pytest.mark.parametrize(
    "told",
    [
        {"num_segments": 2},
        {"shift_div": 4},
        {"direction": "causal"},
        {"fold_order": "past_first", "shift_div": 5},
        {"channel_dim": 2, "shift_div": 2},
        {"enabled": False},
    ],
    ids=lambda told: next(iter(told)),
)
def test_a_model_that_ran_shifts_as_its_hooks_are_told_anew(resnet, told):
    patched, frames = ran_before(resnet)
    never_ran = patch(copy.deepcopy(resnet), T)
    with torch.no_grad():
        before = patched(frames)
        for model in (patched, never_ran):
            for hook in shift_hooks(model):
                for name, value in told.items():
                    setattr(hook, name, value)
        outputs = [patched(frames), never_ran(frames), patched(frames)]
    assert not torch.equal(outputs[0], before)
    assert all(torch.equal(output, outputs[1]) for output in outputs)


def test_a_model_that_ran_packs_disables_streams_and_trains_as_one_that_did_not(resnet):
    patched, frames = ran_before(resnet)
    never_ran = patch(copy.deepcopy(resnet), T)
    outputs = []
    for model in (patched, never_ran):
        with torch.no_grad():
            with tsm_triton.packed_clips(model, [3, 5]):
                outputs.append(model(frames))
            with shift_disabled(model):
                outputs.append(model(frames))
            classifier = tsm_triton.VideoClassifier(model)
            outputs.append(classifier(frames.unflatten(0, (4, 2))))
            outputs.append(model(frames))
        outputs.append(torch.autograd.grad(model(frames).sum(), model.conv1.weight)[0])
        unpatch(model)
        patch(model, T, direction="causal")
        with torch.no_grad():
            outputs.append(model(frames))
            stream = tsm_triton.Streaming(model)
            outputs.append(torch.cat([stream(frame[None]) for frame in frames]))
            outputs.append(model(frames))
    half = len(outputs) // 2
    for one, other in zip(outputs[:half], outputs[half:], strict=True):
        assert torch.equal(one, other)


def test_a_hook_forgets_layouts_that_never_come_again(resnet):
    patch(resnet, T)
    hook = shift_hooks(resnet)[0]
    with torch.no_grad():
        for clips in range(1, 40):
            resnet(torch.randn(clips * T, 3, 16, 16))
    assert 0 < len(hook._plans) <= 16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_survives_deepcopy_and_pickle(resnet, copied):
    frames = torch.randn(T, 3, 32, 32)
    twin = copied(patch(resnet, T, direction="causal", shift_div=4))
    with torch.no_grad():
        assert torch.equal(twin(frames), resnet(frames))
        unpatch(twin)
        assert is_patched(resnet)
        assert not torch.equal(twin(frames), resnet(frames))


def test_imagenet_checkpoints_load_into_a_patched_model(tmp_path):
    # the keys of the published ResNet-18 weights, timm's and torchvision's alike
    published = torchvision.models.resnet18().state_dict()
    assert {"layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"} <= set(published)
    torch.save(published, tmp_path / "resnet18.pth")
    for model in (timm.create_model("resnet18"), torchvision.models.resnet18()):
        loaded = torch.load(tmp_path / "resnet18.pth", weights_only=True)
        patch(model).load_state_dict(loaded, strict=True)
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


def test_a_wrapped_backbone_is_found_and_shifted(resnet):
    wrapper = nn.ModuleDict({"backbone": resnet, "neck": nn.Linear(2, 2)})
    assert names(wrapper) == [f"backbone.{name}" for name in names(resnet)]
    assert is_patched(patch(wrapper))
    assert is_patched(resnet)


def test_a_keyword_input_is_shifted(resnet):
    patch(resnet, T)
    x = torch.randn(T, 64, 4, 4)
    conv = resnet.layer1[0].conv1
    assert torch.equal(conv(input=x), conv(x))


def test_stages_choose_by_index_and_by_name(resnet):
    assert names(resnet, stages=[0, 3]) == [
        "layer1.0.conv1",
        "layer1.1.conv1",
        "layer4.0.conv1",
        "layer4.1.conv1",
    ]
    assert names(resnet, stages=["layer2"]) == names(resnet, stages=[1]) == names(resnet, stages=1)
    mobilenet = timm.create_model("mobilenetv2_100")
    assert names(mobilenet, stages=[2]) == ["blocks.2.1.conv_pw", "blocks.2.2.conv_pw"]
    assert names(mobilenet, stages="blocks.2") == names(mobilenet, stages=[2])


@pytest.mark.parametrize("stage", [4, -1, "layer5"])
def test_an_unknown_stage_is_named_with_the_known_ones(resnet, stage):
    with pytest.raises(ValueError, match=r"stages among 0 ... 3 or layer1, layer2, layer3, layer4, got"):
        patch(resnet, stages=[stage])


def test_integers_of_other_libraries_are_stored_as_pythons(resnet):
    hook = shift_hooks(patch(resnet, np.int64(T), shift_div=np.int32(4)))[0]
    assert (hook.num_segments, hook.shift_div) == (T, 4)
    assert type(hook.num_segments) is type(hook.shift_div) is int


def test_stages_count_those_of_the_backbone_in_a_list():
    model = nn.ModuleDict({"nets": nn.ModuleList([timm.create_model("test_resnet") for _ in range(2)])})
    assert names(model, stages=[2]) == ["nets.0.layer3.0.conv1", "nets.1.layer3.0.conv1"]
    assert names(model, stages=["nets.1.layer3"]) == ["nets.1.layer3.0.conv1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stages=[1.5]), r"stages must be .*got 1.5 of type float"),
        (dict(stages=[None]), r"stages must be .*got None of type NoneType"),
        (dict(stages=[True]), r"stages must be .*got True of type bool"),
        (dict(stages=1.5), r"stages must be .*got 1.5 of type float"),
        (dict(filter_fn="layer1"), r"filter_fn must be .*got 'layer1' of type str"),
        (dict(example_input=(1, 3, 64, 64)), r"example_input must be a torch.Tensor, got \(1, 3, 64, 64\)"),
    ],
)
def test_choices_of_another_type_are_refused(resnet, options, message):
    for call in (find_sites, patch):
        with pytest.raises(TypeError, match=message):
            call(resnet, **options)
    assert not is_patched(resnet)


def test_filter_fn_sees_modules_and_names(resnet):
    patch(resnet, filter_fn=lambda module, name: module.stride == (2, 2) and name.startswith("layer"))
    assert len(shift_hooks(resnet)) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(num_segments=0), ValueError, "num_segments must be at least 1, got 0"),
        (dict(num_segments="8"), TypeError, "num_segments must be an int, got '8' of type str"),
        (dict(shift_div=1), ValueError, "shift_div must be at least 2, got 1"),
        (
            dict(direction="both"),
            ValueError,
            "direction must be one of 'bidirectional', 'causal', got 'both'",
        ),
        (dict(place="inplace"), ValueError, "place must be one of 'blockres', 'block', got 'inplace'"),
        (
            dict(place="inplace", sites=find_sites),
            ValueError,
            "place must be one of 'blockres', 'block', got 'inplace'",
        ),
        (
            dict(shift_div=65),
            ValueError,
            "at least shift_div=65 channels at every site, got 64 at 'layer1.0.conv1'",
        ),
        (
            dict(filter_fn=lambda module, name: False),
            ValueError,
            "keep at least one of the 8 sites of ResNet",
        ),
    ],
)
def test_a_failed_patch_says_why_and_leaves_the_model_alone(resnet, options, error, message):
    if "sites" in options:
        options = {**options, "sites": options["sites"](resnet)}
    with pytest.raises(error, match=message):
        patch(resnet, **options)
    assert not any(module._forward_pre_hooks for module in resnet.modules())


def test_a_model_with_no_known_site_is_refused():
    with pytest.raises(
        ValueError, match="expected a model with residual branches, .* got Sequential with none"
    ):
        patch(nn.Sequential(nn.Conv2d(3, 8, 1)))


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        patch("resnet50")  # type: ignore[type-var]


def test_patching_twice_is_refused(resnet):
    patch(resnet, T)
    with pytest.raises(RuntimeError, match="expected an unpatched model, got one that is patched already"):
        patch(resnet, T)
    assert len(shift_hooks(resnet)) == 8


@pytest.mark.parametrize(
    "call", [unpatch, shift_hooks, lambda m: set_num_segments(m, 4), lambda m: shift_disabled(m).__enter__()]
)
def test_what_needs_a_patched_model_says_so(resnet, call):
    with pytest.raises(
        RuntimeError, match=r"expected a patched model, got ResNet without a shift. Call tsm_triton.patch"
    ):
        call(resnet)


@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "inside", "forward"])
def test_a_compiled_model_is_refused(resnet, how):
    if how == "torch.compile":
        compiled = torch.compile(resnet)
    elif how == "model.compile":
        resnet.compile()
        compiled = resnet
    elif how == "inside":
        resnet.layer1 = torch.compile(resnet.layer1)
        compiled = resnet
    else:
        resnet.layer1.forward = torch.compile(resnet.layer1.forward)
        compiled = resnet
    with pytest.raises(RuntimeError, match="not compiled, got a compiled one"):
        patch(compiled)  # type: ignore[type-var]
    assert not is_patched(resnet)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_torchscript_says_what_takes_a_patched_model():
    model = patch(timm.create_model("test_resnet").eval(), 2)
    with pytest.raises(
        AttributeError, match="got a patched one, whose hooks are Python. Use torch.jit.trace"
    ):
        torch.jit.script(model)
    traced = torch.jit.trace(model, torch.randn(2, 3, 32, 32))
    frames = torch.randn(6, 3, 32, 32)
    torch.testing.assert_close(traced(frames), model(frames))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_is_refused():
    scripted = torch.jit.script(torchvision.models.resnet18())
    with pytest.raises(TypeError, match="expected an eager module, got the scripted"):
        patch(scripted)


def test_a_graph_compiled_before_the_patch_does_not_survive_it(resnet):
    compiled = torch.compile(resnet, backend="eager")
    frames = torch.randn(T, 3, 32, 32)
    with torch.no_grad():
        before = compiled(frames)
        patch(resnet, T)
        assert torch.equal(compiled(frames), resnet(frames))
        assert not torch.equal(compiled(frames), before)
        unpatch(resnet)
        assert torch.equal(compiled(frames), before)


def paddle_shift(x: torch.Tensor, seg_num: int, shift_ratio: float) -> torch.Tensor:
    """PaddlePaddle's op, by its documentation: the first fold reads t-1, the second t+1."""
    clips = x.unflatten(0, (-1, seg_num))
    padded = nn.functional.pad(clips, (0, 0, 0, 0, 0, 0, 1, 1))
    c1, c2 = int(x.shape[1] * shift_ratio), int(x.shape[1] * 2 * shift_ratio)
    parts = padded[:, :seg_num, :c1], padded[:, 2:, c1:c2], padded[:, 1:-1, c2:]
    return torch.cat(parts, 2).flatten(0, 1)


@pytest.mark.parametrize("channels", [8, 12, 20, 64])
def test_past_first_is_the_shift_of_paddle(channels):
    x = torch.randn(2 * T, channels, 3, 3)
    expected = paddle_shift(x, T, 1 / 8)
    assert torch.equal(tsm_triton.temporal_shift(x, T, fold_order="past_first"), expected)
    layer = tsm_triton.modules.TemporalShift(T, fold_order="past_first")
    assert torch.equal(layer(x), expected)
    packed = tsm_triton.temporal_shift(x, None, clip_lengths=[T, T], fold_order="past_first")
    assert torch.equal(packed, expected)


def test_a_patch_takes_the_order_of_the_folds(resnet):
    by_hand = copy.deepcopy(resnet)
    for site in find_sites(by_hand):
        site.module.register_forward_pre_hook(lambda _, args: (paddle_shift(args[0], T, 1 / 8),))
    patch(resnet, T, fold_order="past_first")
    frames = torch.randn(2 * T, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(resnet(frames), by_hand(frames))
        with tsm_triton.packed_clips(resnet, [T, T]):
            assert torch.equal(resnet(frames), by_hand(frames))
        fused = tsm_triton.fuse(copy.deepcopy(resnet), example_input=frames)
        torch.testing.assert_close(fused(frames), by_hand(frames), rtol=1e-4, atol=1e-4)
    assert "fold_order='past_first'" in repr(shift_hooks(resnet)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fold_order="paddle"), "fold_order must be one of 'future_first', 'past_first', got 'paddle'"),
        (dict(fold_order="past_first", direction="causal"), "of one fold, got 'past_first'"),
    ],
)
def test_an_order_that_cannot_be_is_refused(resnet, options, message):
    with pytest.raises(ValueError, match=message):
        patch(resnet, **options)
    assert not is_patched(resnet)


def test_the_hook_says_what_it_is(resnet):
    hook = shift_hooks(patch(resnet, T))[0]
    assert isinstance(hook, ShiftHook)
    assert repr(hook) == (
        "ShiftHook(num_segments=4, shift_div=8, direction='bidirectional', channel_dim=1, enabled=True)"
    )


class Gated(nn.Module):
    """A site that is called by keywords, its map the second of them."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 1)

        def forward(self, x, scale):
            return self.conv(x) * scale

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 3, 2), self.Branch()

    def forward(self, x):
        x = self.stem(x).relu()
        return x + self.branch(scale=x.mean((2, 3), keepdim=True), x=x)


def test_a_call_by_keywords_shifts_the_first_parameter_wherever_it_stands():
    model, x = Gated().eval(), torch.randn(8, 3, 16, 16)
    expected = copy.deepcopy(model)
    expected.branch.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "x": tsm_triton.temporal_shift(kwargs["x"], 4)}),
        with_kwargs=True,
    )
    patch(model, 4, sites=[ShiftSite("branch", model.branch, 16, 1)], example_input=x)
    assert torch.equal(model(x), expected(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected(x))


def test_a_classifier_around_the_model_is_told_too():
    classifier = tsm_triton.VideoClassifier(
        patch(timm.create_model("test_resnet", num_classes=7), 8), 8
    ).eval()
    assert set_num_segments(classifier, 4).num_segments == 4
    x = torch.randn(8, 3, 32, 32)
    assert torch.equal(classifier(x), classifier(x.unflatten(0, (2, 4))))
    backbone = timm.create_model("resnet18", features_only=True, out_indices=(1, 2))
    features = VideoFeatures(patch(backbone, 8), num_segments=8).eval()
    assert set_num_segments(features, 2).num_segments == 2
    assert all(map(torch.equal, features(x), features(x.unflatten(0, (4, 2)))))
