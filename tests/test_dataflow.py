"""The dataflow finder: which modules begin a residual branch in every family, and what gets no shift."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from networks import Block, T, on_meta, reached
from torch import nn

from tsm_triton import ShiftSite, find_sites, is_patched, patch, skipped_sites
from tsm_triton.dataflow.branches import analyse
from tsm_triton.dataflow.meta import run_on_meta, tensors_in
from tsm_triton.dataflow.tracing import BATCH, input_shape, trace
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.patching.shift_hook import ShiftHook
from tsm_triton.torch_private import storage_key

aten = torch.ops.aten

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
    "cpubone_b0_bfrobust": 21,
    "crossvit_tiny_240": 36,
    "cs3darknet_s": 9,
    "cspnext_tiny": 3,
    "davit_tiny": 24,
    "deepseek_vit_412m": 64,
    "deit3_small_patch16_224": 24,
    "densenet121": 58,
    "dla34": 12,
    "dpn48b": 12,
    "edgenext_xx_small": 15,
    "efficientformer_l1": 30,
    "efficientformerv2_s0": 19,
    "efficientnet_b0": 9,
    "efficientvim_m1": 12,
    "efficientvit_b0": 11,
    "efficientvit_m0": 22,
    "ese_vovnet39b": 6,
    "eva02_tiny_patch14_224": 24,
    "fasternet_t0": 13,
    "fastvit_t8": 10,
    "focalnet_tiny_srf": 24,
    "gcvit_xxtiny": 35,
    "gemma4_vit_167m": 32,
    "ghostnet_100": 11,
    "hardcorenas_a": 5,
    "hgnet_tiny": 5,
    "hiera_tiny_224": 21,
    "hrnet_w18_small": 23,
    "iformer_t": 21,
    "inception_next_atto": 12,
    "inception_resnet_v2": 90,
    "legacy_seresnet18": 8,
    "legacy_xception": 12,
    "levit_128s": 20,
    "lowformer_b0": 21,
    "mambaout_femto": 18,
    "maxvit_rmlp_pico_rw_256": 55,
    "mixer_s32_224": 16,
    "mobilenetv4_conv_small": 10,
    "mobilenetv5_300m": 80,
    "mobilevit_xxs": 21,
    "mobilevitv2_050": 19,
    "mvitv2_tiny": 20,
    "naflexvit_base_patch16_gap": 24,
    "nest_tiny": 24,
    "nextvit_small": 20,
    "nfnet_f0": 12,
    "pit_ti_224": 24,
    "poolformer_s12": 24,
    "pvt_v2_b0": 16,
    "qwen3_vit_88m": 24,
    "rdnet_tiny": 21,
    "regnetv_040": 22,
    "regnety_002": 13,
    "repghostnet_050": 11,
    "repvit_m0_9": 26,
    "res2net50d": 16,
    "resmlp_12_224": 24,
    "resnest14d": 4,
    "resnetv2_50": 16,
    "rexnet_100": 11,
    "sam2_hiera_tiny": 24,
    "samvit_base_patch16_224": 24,
    "selecsls42": 6,
    "sequencer2d_s": 36,
    "shvit_s1": 24,
    "skresnet18": 8,
    "starnet_s050": 6,
    "swiftformer_xs": 24,
    "swin_tiny_patch4_window7_224": 24,
    "swinv2_cr_tiny_224": 24,
    "swinv2_tiny_window8_256": 24,
    "test_vit_relpos": 18,
    "tiny_vit_5m_224": 20,
    "tnt_s_patch16_224": 48,
    "tresnet_m": 21,
    "twins_svt_small": 36,
    "visformer_tiny": 23,
    "vit_base_mci_224": 24,
    "vit_tiny_patch16_224": 24,
    "vitamin_small_224": 34,
    "volo_d1_224": 40,
    "xception41p": 12,
    "xcit_nano_12_p16_224": 38,
}
# recurrent layers are traced step by step
SMALLER = {"sequencer2d_s": torch.empty(1, 3, 56, 56)}
# their block classes hold modules that are listed for other configurations, or are of a class added since
NOT_LISTED = {
    "densenet121",
    "ese_vovnet39b",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "rdnet_tiny",
    "res2net50d",
    "resnest14d",
    "selecsls42",
    "skresnet18",
}


@pytest.mark.parametrize("name", TIMM)
def test_every_family_is_shifted_where_its_branches_begin(name):
    model = patch(on_meta(name), T, example_input=SMALLER.get(name))  # which checks itself
    sites = [
        ShiftSite(name, module, 0, hook.channel_dim)
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, ShiftHook)
    ]
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


@pytest.mark.parametrize(
    "name",
    ["vgg11", "inception_v3", "inception_v4", "mobileone_s0", "repvgg_a0", "lcnet_035", "mobilenetv1_100"],
)
def test_without_residual_branches_blocks_are_shifted_on_request(name):
    with pytest.raises(
        ValueError, match='expected a model with residual branches, .* place="block", which shifts the input'
    ):
        patch(on_meta(name))
    model = patch(on_meta(name), T, place="block")
    assert len(shift_hooks(model)) >= 5


LCNET = {0: 1, 1: 2, 2: 2, 3: 2, 4: 4, 5: 2}
MOBILEONE = {0: 4, 1: 16, 2: 20, 3: 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg11", [f"features.{i}" for i in (3, 6, 8, 11, 13, 16, 18)]),
        ("vgg11_bn", [f"features.{i}" for i in (4, 8, 11, 15, 18, 22, 25)]),
        ("lcnet_035", [f"blocks.{i}.{j}" for i, count in LCNET.items() for j in range(count)]),
        ("mobileone_s0", [f"stages.{i}.{j}" for i, count in MOBILEONE.items() for j in range(count)]),
        ("test_efficientnet", [f"blocks.{i}.0" for i in range(5)]),
    ],
)
def test_blocks_are_neither_the_stem_nor_norms_nor_the_head(name, expected):
    found = [site.name for site in find_sites(on_meta(name), place="block")]
    assert found == expected


def test_squeezenets_classifier_is_no_block():
    found = [site.name for site in find_sites(torchvision.models.squeezenet1_1(), place="block")]
    assert found == [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)]


def test_a_model_beside_others_is_not_left_unshifted_silently():
    model = nn.ModuleDict({"rgb": on_meta("resnet18"), "flow": on_meta("vgg11")})
    with pytest.raises(ValueError, match="every model inside ModuleDict, got none in 'flow', which would"):
        patch(model, T)
    assert not is_patched(model)
    patch(model, T, filter_fn=lambda module, name: True)
    assert len(shift_hooks(model)) == len(shift_hooks(model["rgb"])) == 8


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
    assert any("its branch is linear" in skip.reason for skip in skipped)
    wrapped = skipped_sites(nn.ModuleDict({"frames": on_meta("coat_tiny")}))
    assert [(skip.name, skip.reason) for skip in wrapped] == list(
        dict.fromkeys((f"frames.{skip.name}", skip.reason) for skip in skipped)
    )
    with pytest.raises(ValueError, match="place must be one of"):
        skipped_sites(on_meta("test_vit"), place="stage")


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


def test_a_patched_model_can_be_looked_at_again():
    model = on_meta("vit_tiny_patch16_224")
    sites = find_sites(model)
    assert find_sites(patch(model, T)) == sites


def test_a_vit_base_is_patched_within_two_seconds():
    model = timm.create_model("vit_base_patch16_224")
    start = time.process_time()
    patch(model, T)
    seconds = time.process_time() - start
    print(f"ViT-B patched and checked in {seconds:.2f} s of processor time")
    assert seconds < 2


def test_a_users_own_model_is_shifted():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Block(1), Block(2))
    assert [site.name for site in find_sites(model)] == ["1.first", "2.first"]
    patch(model, T)
    assert reached(model, torch.randn(2 * T, 3, 16, 16), 1) == [True] * T + [False] * T


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


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (aten.native_batch_norm, lambda x: (x, None, None, None, None, True, 0.1, 1e-5)),
        (aten.native_layer_norm, lambda x: (x, [4], None, None, 1e-5)),
        (aten.hardtanh_, lambda x: (x, 0, 6)),
        (aten.add_.Tensor, lambda x: (x, torch.empty(4, device="meta"))),
        (aten.transpose_, lambda x: (x, 1, 2)),
        (aten.squeeze_, lambda x: (x,)),
        (aten.split_with_sizes, lambda x: (x, [1, 2], 2)),
        (aten.max.dim, lambda x: (x, 1)),
        (aten.clone, lambda x: (x,)),
        (aten.detach, lambda x: (x,)),
    ],
)
def test_what_is_remembered_of_an_op_is_what_it_does(op, arguments):
    op = getattr(op, "default", op)

    def said(run):
        x = torch.empty(2, 1, 3, 4, device="meta")
        outputs = list(tensors_in(run(op, arguments(x), {})))
        memories = [storage_key(tensor) for tensor in (x, *outputs)]
        shared = [memories.index(memory) for memory in memories]
        return shared, [(y is x, y.shape, y.stride(), y.dtype) for y in (x, *outputs)]

    for _ in range(3):
        assert said(run_on_meta) == said(lambda op, args, kwargs: op(*args, **kwargs))


def test_the_first_convolution_says_how_many_channels_the_input_has():
    assert input_shape(on_meta("resnet18", in_chans=10)) == (BATCH, 10, 224, 224)
    assert input_shape(on_meta("tresnet_m")) == (BATCH, 3, 224, 224)  # its first one stands behind a reshape
    assert is_patched(patch(on_meta("resnet18", in_chans=10), T))


def test_a_getter_of_features_is_built_for_its_models_own_size():
    model = on_meta("vit_tiny_patch16_224", img_size=64, features_only=True)
    assert input_shape(model) == (BATCH, 3, 64, 64)
    assert is_patched(patch(model, T))


@pytest.mark.parametrize("out_indices", [(1, 2), (4,)])
def test_a_getter_of_features_is_shifted_by_the_authors_rule(out_indices):
    model = on_meta("resnet101", features_only=True, feature_cls="getter", out_indices=out_indices)
    names = [site.name.removeprefix("model.") for site in find_sites(model)]
    listed = on_meta("resnet101", features_only=True, feature_cls="list", out_indices=out_indices)
    assert names == [site.name for site in find_sites(listed)]
    assert is_patched(patch(model, T))


def test_a_model_is_traced_whatever_the_default_dtype_is():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = timm.create_model("test_vit")
        assert len(find_sites(model)) == len(find_sites(patch(model, T)))
    finally:
        torch.set_default_dtype(torch.float32)
