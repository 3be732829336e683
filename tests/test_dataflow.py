"""The dataflow finder: which modules begin a residual branch in every family, and what the check of a patch sees."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.utils.model import reparameterize_model
from torch import nn

import tsm_triton
from tsm_triton import ShiftSite, find_sites, is_patched, patch, shift_disabled, unpatch
from tsm_triton.hooks import FrameCounter, ShiftHook, shift_hooks
from tsm_triton.integrations.dataflow import analyse
from tsm_triton.integrations.tracing import BATCH, input_shape, trace

T = 4
# "module.BlockClass" -> ["attribute [its class] axis"]: reviewed, see the any_model.md
ORACLE = json.loads((Path(__file__).parent / "timm_sites.json").read_text())

# one small model of each family -> how many sites
TIMM = {
    "beit_base_patch16_224": 24,
    "botnet26t_256": 8,
    "caformer_s18": 36,
    "cait_xxs24_224": 51,
    "coat_tiny": 52,
    "coatnet_pico_rw_224": 19,
    "convit_tiny": 24,
    "convmixer_768_32": 32,
    "convnext_atto": 12,
    "crossvit_tiny_240": 36,
    "cs3darknet_s": 9,
    "csatv2": 50,
    "davit_tiny": 24,
    "densenet121": 58,
    "dla34": None,
    "dpn48b": 12,
    "edgenext_xx_small": None,
    "efficientformer_l1": None,
    "efficientformerv2_s0": None,
    "efficientnet_b0": 9,
    "efficientvit_b0": None,
    "efficientvit_m0": None,
    "ese_vovnet39b": 6,
    "fasternet_t0": 13,
    "fastvit_t8": 10,
    "focalnet_tiny_srf": 24,
    "gcvit_xxtiny": None,
    "ghostnet_100": 11,
    "hgnet_tiny": None,
    "hiera_tiny_224": 21,
    "hrnet_w18_small": None,
    "inception_resnet_v2": None,
    "levit_128s": 20,
    "maxvit_rmlp_pico_rw_256": None,
    "mixer_s32_224": 16,
    "mobilenetv4_conv_small": None,
    "mobileone_s0": 0,
    "mobilevit_xxs": 21,
    "mobilevitv2_050": 19,
    "mvitv2_tiny": 20,
    "nest_tiny": 24,
    "nextvit_small": 44,
    "nfnet_f0": 12,
    "pit_ti_224": 24,
    "poolformer_s12": 24,
    "pvt_v2_b0": 16,
    "rdnet_tiny": 21,
    "regnetv_040": 22,
    "regnety_002": 13,
    "repvit_m0_9": None,
    "res2net50d": 16,
    "resmlp_12_224": 24,
    "resnetv2_50": 16,
    "rexnet_100": 11,
    "sam2_hiera_tiny": 24,
    "selecsls42": 6,
    "sequencer2d_s": None,
    "swiftformer_xs": 24,
    "swin_tiny_patch4_window7_224": 24,
    "swinv2_cr_tiny_224": 24,
    "swinv2_tiny_window8_256": 24,
    "tiny_vit_5m_224": 22,
    "tnt_s_patch16_224": 48,
    "tresnet_m": None,
    "twins_svt_small": None,
    "visformer_tiny": 23,
    "vit_tiny_patch16_224": 24,
    "vitamin_small_224": 34,
    "volo_d1_224": 40,
    "xception41p": 12,
    "xcit_nano_12_p16_224": None,
}
# their block classes hold modules that are listed for other configurations, or are of a class added since
NOT_LISTED = {
    "densenet121",
    "ese_vovnet39b",
    "mobileone_s0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "rdnet_tiny",
    "res2net50d",
    "selecsls42",
}

# what is run with numbers: small, and each a layout of its own -> image size
NUMERIC = {
    "vit_tiny_patch16_224": 32,
    "swin_tiny_patch4_window7_224": 56,
    "swinv2_tiny_window8_256": 64,
    "convnext_atto": 32,
    "regnety_002": 32,
    "densenet121": 32,
    "mobilevit_xxs": 64,
    "mixer_s32_224": 64,
    "edgenext_xx_small": 64,
    "ese_vovnet39b": 32,
}
TORCHVISION = {
    "vit_b_16": (24, 32),
    "swin_t": (24, 64),
    "swin_v2_t": (24, 64),
    "convnext_tiny": (18, 32),
    "regnet_y_400mf": (16, 32),
    "densenet121": (58, 32),
    "shufflenet_v2_x0_5": (13, 64),
    "mnasnet0_5": (10, 32),
    "mobilenet_v3_small": (6, 32),
    "efficientnet_v2_s": (35, 32),
}


def on_meta(name: str, **options) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def small(name: str) -> tuple[Any, torch.Tensor]:
    """A model with weights that hide no branch, and two clips for it."""
    size = NUMERIC[name]
    options: dict = {
        "swinv2": {"depths": (2, 1, 1, 1)},
        "swin": {"depths": (2, 1, 1, 1)},
        "vit": {"depth": 3},
    }.get(name.partition("_")[0], {})
    try:
        model = timm.create_model(name, num_classes=5, img_size=size, **options)
    except TypeError:
        model = timm.create_model(name, num_classes=5)
    return visible(model), torch.randn(2 * T, 3, size, size)


def visible(model: nn.Module) -> Any:
    for name, parameter in model.named_parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
        if (parameter.dim() == 1 and name.endswith("weight")) or "gamma" in name or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def reached(model: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor, frame: int) -> list[bool]:
    changed = frames.clone()
    changed[frame] = torch.randn(frames.shape[1:])
    with torch.no_grad():
        return (model(frames) != model(changed)).flatten(1).any(1).tolist()


@pytest.mark.parametrize("name", TIMM)
def test_every_family_is_shifted_where_its_branches_begin(name):
    model = on_meta(name)
    sites = analyse(model).sites
    if TIMM[name] is None:
        assert len(sites) >= 4
    else:
        assert len(sites) == TIMM[name]
    if name not in NOT_LISTED:
        listed = [site for site in sites if entry(model, site) is not None]
        assert [entry(model, site) for site in listed] == [True] * len(listed)
        assert len(listed) >= len(sites) / 2 > 0


def entry(model: nn.Module, site: ShiftSite) -> bool | None:
    """Whether the oracle lists a site, None where it does not know the block."""
    family = type(model).__module__.rpartition(".")[2]
    parts = site.name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        block = model.get_submodule(".".join(parts[:depth]))
        listed = ORACLE.get(f"{family}.{type(block).__name__}")
        if listed is not None:
            start = f"{'.'.join(parts[depth:])} [{type(site.module).__name__}] ax"
            axes = [line.removeprefix(start)[0] for line in listed if line.startswith(start)]
            return any((axis == "1") == (site.channel_dim == 1) for axis in axes)
    return None


@pytest.mark.parametrize("name", NUMERIC)
def test_shifts_reach_the_neighbouring_frames_and_no_other_clip(name):
    model, frames = small(name)
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model(frames)
    sites = find_sites(model, example_input=frames)
    patch(model, T, sites=sites, example_input=frames)
    assert reached(model, frames, 1) == [True] * T + [False] * T
    assert reached(model, frames, T) == [False] * T + [True] * T
    with torch.no_grad(), shift_disabled(model):
        assert torch.equal(model(frames), before)
    assert list(model.state_dict()) == keys
    patch(unpatch(model), T, sites=[sites[len(sites) // 2]], example_input=frames)
    assert reached(model, frames, 2) == [False, True, True, True] + [False] * T


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_are_shifted(name):
    count, size = TORCHVISION[name]
    options = {"image_size": size} if name == "vit_b_16" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
    frames = torch.randn(2 * T, 3, size, size)
    assert len(find_sites(model, example_input=frames)) == count
    patch(visible(model), T, example_input=frames)
    assert reached(model, frames, 1) == [True] * T + [False] * T


def test_windows_are_shifted_as_whole_frames():
    model, frames = small("swinv2_tiny_window8_256")
    sites = find_sites(model, example_input=frames)
    assert sites[0] == ShiftSite(
        "layers.0.blocks.0.attn", model.layers[0].blocks[0].attn, 96, -1, "layers.0.blocks.0"
    )
    assert "frames_from='layers.0.blocks.0'" in repr(sites[0])
    patch(model, T, sites=sites, example_input=frames)
    attention = model.layers[0].blocks[0].attn
    seen = []
    attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.forward_features(frames)
        with shift_disabled(model):
            model.forward_features(frames)
    shifted, windows = (x.unflatten(0, (2 * T, -1)) for x in seen)
    assert torch.equal(shifted, tsm_triton.temporal_shift(windows, T, channel_dim=-1))


def test_unpatch_takes_the_frame_counters_off_too():
    model = patch(on_meta("swinv2_tiny_window8_256"), T)
    counters = [
        h for m in model.modules() for h in m._forward_pre_hooks.values() if isinstance(h, FrameCounter)
    ]
    assert len(counters) == 10
    unpatch(model)
    assert not any(m._forward_pre_hooks or m._forward_pre_hooks_with_kwargs for m in model.modules())


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "vit_tiny_patch16_224"])
def test_compiles_and_exports_with_a_dynamic_number_of_clips(name):
    model, frames = small(name)
    patch(model, T, example_input=frames)
    batch = T * torch.export.Dim("clips", min=1, max=16)
    program = torch.export.export(model, (frames,), dynamic_shapes={"x": {0: batch}}, strict=False)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for clips in (2, 1):
            expected = model(frames[: clips * T])
            torch.testing.assert_close(compiled(frames[: clips * T]), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(program.module()(frames[: clips * T]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18", "regnety_002", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv2_035"]
)
def test_features_only_wrappers_are_shifted_as_the_model_is(name):
    sites = find_sites(on_meta(name))
    wrapper = on_meta(name, features_only=True)
    found = find_sites(wrapper)
    assert [site.channels for site in found] == [site.channels for site in sites][: len(found)]
    assert len(found) >= 2 / 3 * len(sites)
    assert is_patched(patch(wrapper, T))


def test_features_only_maps_reach_the_neighbouring_frames():
    model = patch(visible(timm.create_model("regnety_002", features_only=True, out_indices=(2, 4))), T)
    frames = torch.randn(2 * T, 3, 32, 32)
    for index in range(2):
        assert reached(lambda x, i=index: model(x)[i], frames, 1) == [True] * T + [False] * T


def test_other_entrances_are_shifted_too():
    model, frames = small("vit_tiny_patch16_224")
    patch(model, T, example_input=frames)
    assert reached(model.forward_features, frames, 1) == [True] * T + [False] * T
    last = lambda x: model.forward_intermediates(x, intermediates_only=True)[-1]  # noqa: E731
    assert reached(last, frames, 1) == [True] * T + [False] * T


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swinv2_tiny_window8_256"])
def test_gradient_checkpointing_changes_no_gradient(name):
    model, frames = small(name)
    patch(model, T, example_input=frames)
    grads = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(frames).square().sum().backward()
        grads.append(next(model.parameters()).grad)
    torch.testing.assert_close(*grads)


def test_a_patch_survives_reparameterisation():
    model = visible(timm.create_model("repvit_m0_9", num_classes=5))
    frames = torch.randn(2 * T, 3, 64, 64)
    patch(model, T)
    count = len(shift_hooks(model))
    with torch.no_grad():
        before = model(frames)
        model = reparameterize_model(model)
        assert len(shift_hooks(model)) == count
        torch.testing.assert_close(model(frames), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["vgg11", "inception_v3", "mobileone_s0", "repvgg_a0", "lcnet_035", "mobilenetv1_100"]
)
def test_without_residual_branches_blocks_are_shifted_on_request(name):
    with pytest.raises(
        ValueError, match='expected a model with residual branches, .* place="block" shifts the input'
    ):
        patch(on_meta(name))
    model = patch(on_meta(name), T, place="block")
    assert len(shift_hooks(model)) >= 5


def test_blocks_of_a_model_without_residuals_see_their_neighbours():
    model = visible(torchvision.models.squeezenet1_1(num_classes=5))
    frames = torch.randn(2 * T, 3, 32, 32)
    patch(model, T, place="block")
    assert reached(model, frames, 1) == [True] * T + [False] * T


def test_place_block_shifts_each_blocks_own_input():
    found = [site.name for site in find_sites(on_meta("vit_tiny_patch16_224"), place="block")]
    assert found == [f"blocks.{i}" for i in range(12)]


@pytest.mark.parametrize("name", ["nasnetalarge", "pnasnet5large", "lcnetv2_base"])
def test_dubious_families_are_refused_unless_sites_are_chosen(name):
    model = on_meta(name)
    with pytest.raises(
        ValueError, match="whose residual branches can be shifted, got .* Choose sites with filter_fn"
    ):
        patch(model)
    assert find_sites(model, filter_fn=lambda module, name: True)


def test_narrow_sites_are_left_out_and_named():
    model = on_meta("csatv2")
    with pytest.warns(UserWarning, match=r"got fewer at 28 of 50, which stay unshifted: stages\.0\.0\.attn"):
        patch(model, T)
    assert len(shift_hooks(model)) == 22


def test_what_is_left_out_has_a_reason():
    skipped = analyse(on_meta("coat_tiny")).skipped
    assert any("the branch is linear" in skip.reason or "linear" in skip.reason for skip in skipped)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x) if x.sum().item() > 0 else x


def test_an_untraceable_model_is_refused_with_the_cause():
    with pytest.raises(
        ValueError, match="runs on a meta tensor of shape .* got Untraceable, which raised"
    ) as caught:
        find_sites(Untraceable())
    assert caught.value.__cause__ is not None


def test_example_input_gives_the_shape():
    model = timm.create_model("convnext_atto", in_chans=5)
    assert input_shape(model) == (BATCH, 5, 224, 224)
    assert input_shape(model, torch.empty(1, 5, 64, 96)) == (BATCH, 5, 64, 96)
    with pytest.raises(ValueError, match="runs on a meta tensor"):
        find_sites(model, example_input=torch.empty(1, 3, 64, 64))


class Block(nn.Module):
    """A residual block of a user's own, with a downsample."""

    def __init__(self, stride: int):
        super().__init__()
        self.down = nn.Conv2d(16, 16, 1, stride)
        self.first = nn.Conv2d(16, 16, 3, stride, 1)
        self.second = nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x):
        return self.down(x) + self.second(self.first(x).relu())


def test_a_users_own_model_is_shifted():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1), Block(2))
    assert [site.name for site in find_sites(model)] == ["1.first", "2.first"]
    patch(model, T)
    assert reached(model, torch.randn(2 * T, 3, 16, 16), 1) == [True] * T + [False] * T


def test_a_shift_on_the_shortcut_is_taken_back():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    wrong = ShiftSite("1.down", model.get_submodule("1.down"), channels=16)
    with pytest.raises(RuntimeError, match=r"the shift at '1\.down' also reaches the shortcut of '1'"):
        patch(model, T, sites=[wrong])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert is_patched(patch(model, T, sites=[wrong], verify=False))


def test_a_shift_that_never_runs_is_taken_back():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1))
    model[1].unused = nn.Conv2d(16, 16, 1)
    site = ShiftSite("1.unused", model.get_submodule("1.unused"), channels=16)
    with pytest.raises(RuntimeError, match=r"expected a shift at each call of \['1\.unused'\]"):
        patch(model, T, sites=[site])
    assert not is_patched(model)


def test_a_shift_that_in_place_ops_undo_is_taken_back():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return x + self.conv(self.act(x)).relu()

    model = nn.Sequential(nn.Conv2d(3, 16, 1), InPlace())
    assert [site.name for site in find_sites(model)] == ["1.conv"]  # the shortcut sees what `act` wrote
    with pytest.raises(RuntimeError, match="expected add in 1, got add in 1"):
        patch(model, T, sites=[ShiftSite("1.act", model.get_submodule("1.act"), channels=16)])


def test_sites_go_to_json_and_back():
    model = on_meta("swinv2_tiny_window8_256")
    sites = find_sites(model)
    text = json.dumps([site.to_dict() for site in sites])
    again = [ShiftSite.from_dict(values, model) for values in json.loads(text)]
    assert again == sites
    assert len(shift_hooks(patch(model, T, sites=again))) == len(sites)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (lambda model: [], "at least one site, got none"),
        (
            lambda model: find_sites(timm.create_model("resnet18")),
            "expected sites of this very model, got ShiftSite",
        ),
    ],
)
def test_foreign_sites_are_refused(sites, message):
    model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match=message):
        patch(model, sites=sites(model))
    with pytest.raises(ValueError, match="either sites, or stages and filter_fn"):
        patch(model, sites=find_sites(model), stages=[0])
    with pytest.raises(ValueError, match="a site as to_dict gives it, got one without channel_dim, channels"):
        ShiftSite.from_dict({"name": "conv1"}, model)
    with pytest.raises(ValueError, match="got 'conv9', which it does not have"):
        ShiftSite.from_dict({"name": "conv9", "channels": 8, "channel_dim": 1}, model)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "repvit_m0_9"])
def test_looking_for_sites_leaves_the_model_alone(name):
    model: Any = timm.create_model(name).train()
    model.set_grad_checkpointing(True)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    state = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    flags = [(m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    rng = torch.get_rng_state()
    find_sites(model)
    assert not seen
    assert torch.equal(torch.get_rng_state(), rng)
    assert flags == [
        (m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()
    ]
    assert attributes == [set(vars(m)) for m in model.modules()]
    for key, value in model.state_dict().items():
        assert value.data_ptr() == state[key][0]
        assert torch.equal(value, state[key][1])


def test_the_trace_knows_what_in_place_ops_write():
    class Writer(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, 0] += 1
            return y * 2

    graph = trace(Writer(), (BATCH, 3, 4, 4))
    product = graph.values[-1]
    seen, pending = set(), [product]
    while pending:
        value = pending.pop()
        seen.add(value.op)
        pending.extend(value.parents)
    assert {"mul", "add", "clone", "input"} <= seen


def test_hooks_with_windows_pickle_with_their_counter():
    model = patch(on_meta("swinv2_tiny_window8_256"), T)
    twin = copy.deepcopy(model)
    block, attention = twin.layers[0].blocks[0], twin.layers[0].blocks[0].attn
    (counter,) = (h for h in block._forward_pre_hooks.values() if isinstance(h, FrameCounter))
    (hook,) = (h for h in attention._forward_pre_hooks.values() if isinstance(h, ShiftHook))
    assert hook.counter is counter
    assert counter not in [h for m in model.modules() for h in m._forward_pre_hooks.values()]


def test_the_sweeps_results_cover_what_is_installed():
    path = Path(__file__).parents[1] / "docs" / "models.json"
    if not path.exists():
        pytest.skip("the sweep's results are not there: make sweep")
    results = json.loads(path.read_text())
    for library, models in results["models"].items():
        total = results["totals"][library]
        passed = [name for name, entry in models.items() if entry["status"] == "passed"]
        assert total["names"] == len(models)
        assert total["structure_passed"] == len(passed)
        assert total["structure_passed"] + total["refused"] + total["structure_failed"] == total["names"]
    installed = set(timm.list_models()) - set(results["models"]["timm"])
    if results["versions"]["timm"] == timm.__version__:
        assert not installed
    elif installed:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(f"not yet verified: {sorted(installed)}", stacklevel=1)
