"""Published checkpoints: each layout's keys give the logits of a network written from its key table alone."""

import hashlib
import pickle
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from published_networks import (
    FRAMES,
    ConvNeXt,
    Linear,
    MobileNet,
    NonLocal3d,
    PaddleResNet,
    PaddleVersion2,
    Recurrent,
    RegNet,
    ResNet,
    shift_resnet,
    trained,
)
from safetensors.torch import save_file
from servers import http_server, send
from timm.layers import BlurPool2d
from torch import nn
from torchvision.models.resnet import BasicBlock

import tsm_triton
from tsm_triton import load_checkpoint
from tsm_triton.checkpoints.download import local_file
from tsm_triton.checkpoints.published import LAYOUTS
from tsm_triton.cli import main
from tsm_triton.commands.models import Said, load_trained_model
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.preparation import preparation_of

T, CLASSES = 4, 5
NL_BLOCKS = {"layer2": (0, 2), "layer3": (0, 2, 4)}


def keys(prefixes):
    """A state dict of several parts, each behind its prefix."""
    return {
        f"{prefix}{key}": value
        for prefix, part in prefixes.items()
        for key, value in part.state_dict().items()
    }


def logits(*parts):
    x = FRAMES.clone()
    with torch.no_grad():
        for part in parts:
            x = part(x)
    return x


def non_local(net, mode="embedded_gaussian", mm=False):
    for stage, numbers in NL_BLOCKS.items():
        blocks = getattr(net, stage)
        for number in numbers:
            channels = 512 if stage == "layer2" else 1024
            blocks[number] = NonLocal3d(blocks[number], channels, T, mode, mm)
    return net


def authors(depth=18, place="blockres", head="module.new_fc.", pooled=False, nl=False):
    net = shift_resnet(ResNet(depth), T, place, pooled=pooled)
    net = non_local(net) if nl else net
    net, fc = trained(net, nn.Linear(net.width, CLASSES))
    return keys({"module.base_model.": net, head: fc}), logits(net, fc)


def authors_mobilenet(head="module.new_fc."):
    net, fc = trained(MobileNet(T), nn.Linear(1280, CLASSES))
    return keys({"module.base_model.": net, head: fc}), logits(net, fc)


def online():
    net, fc = trained(MobileNet(T, wrap=False, causal=True), nn.Linear(1280, 27))
    return keys({"": net, "classifier.": fc}), logits(net, fc)


def mmaction2(depth=18, place="blockres", pooled=False, mode=None):
    net = shift_resnet(ResNet(depth, mm=True), T, place, mm=True, pooled=pooled)
    net = net if mode is None else non_local(net, mode, mm=True)
    net, fc = trained(net, nn.Linear(net.width, CLASSES))
    return keys({"backbone.": net, "cls_head.fc_cls.": fc}), logits(net, fc)


def mmaction2_mobilenet():
    net, fc = trained(MobileNet(T, mm=True), nn.Linear(1280, CLASSES))
    return keys({"backbone.": net, "cls_head.fc_cls.": fc}), logits(net, fc)


def paddle_keys(state):
    """By Paddle's names, without torch's counters, and linear layers the other way round."""
    names = {"running_mean": "_mean", "running_var": "_variance"}
    return {
        f"{key.rpartition('.')[0]}.{names.get(key.rpartition('.')[2], key.rpartition('.')[2])}": value.T
        if value.dim() == 2
        else value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }


def paddle(depth=50, tweaked=False):
    net = PaddleResNet(depth, T, tweaked)
    net, fc = trained(net, nn.Linear(net.width, CLASSES))
    return paddle_keys(keys({"backbone.": net, "head.fc.": fc})), logits(net, fc)


def paddle_version_2():
    (net,) = trained(PaddleVersion2(T, CLASSES))
    return paddle_keys(keys({"backbone.": net})), logits(net)


def spot(network, head=Linear, names=("_features.", "_pred_fine.")):
    net = (
        network(T) if network in (RegNet, ConvNeXt) else shift_resnet(ResNet(18), T, "blockres", inplace=True)
    )
    options = {"frames": T, "layers": 2} if head is Recurrent else {}
    net, fc = trained(net, head(net.width, CLASSES, **options))
    return keys({names[0]: net, names[1]: fc}), logits(net, fc)


OPENSPORTS = ("backbone._features.", "head._pred_fine.")
CASES = {
    "authors blockres": (authors, {}, {}),
    "authors block": (lambda: authors(place="block"), {}, {}),
    "authors R50 non-local": (lambda: authors(50, nl=True), {}, {}),
    "authors pool": (lambda: authors(pooled=True), {}, {}),
    "authors R101, no dropout": (lambda: authors(101, head="module.base_model.fc."), {}, {}),
    "authors MobileNetV2": (authors_mobilenet, {}, {}),
    "online": (online, {}, {}),
    "mmaction2 blockres": (mmaction2, {}, {}),
    "mmaction2 block": (lambda: mmaction2(50, "block"), {}, {}),
    "mmaction2 pool": (lambda: mmaction2(pooled=True), {}, {}),
    "mmaction2 MobileNetV2": (mmaction2_mobilenet, {}, {}),
    "mmaction2 embedded Gaussian": (
        lambda: mmaction2(50, mode="embedded_gaussian"),
        {"non_local": "embedded_gaussian"},
        {},
    ),
    "mmaction2 dot product": (lambda: mmaction2(50, mode="dot_product"), {"non_local": "dot_product"}, {}),
    "mmaction2 Gaussian": (lambda: mmaction2(50, mode="gaussian"), {}, {}),
    "PaddleVideo": (paddle, {}, {}),
    "PaddleVideo R101": (lambda: paddle(101), {}, {}),
    "PP-TSM": (lambda: paddle(tweaked=True), {}, {"torchvision": None}),
    "PP-TSMv2": (paddle_version_2, {}, {"torchvision": None}),
    "spot ResNet": (lambda: spot(ResNet), {}, {}),
    "spot ResNet GRU": (lambda: spot(ResNet, Recurrent), {}, {}),
    "spot RegNet GRU": (lambda: spot(RegNet, Recurrent), {}, {"torchvision": None}),
    "spot ConvNeXt": (lambda: spot(ConvNeXt), {}, {"torchvision": None}),
    "OpenSportsLib RegNet": (lambda: spot(RegNet, Linear, OPENSPORTS), {}, {"torchvision": None}),
    "OpenSportsLib ResNet": (lambda: spot(ResNet, Recurrent, OPENSPORTS), {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layouts_keys_give_its_networks_logits(case):
    make, options, without = CASES[case]
    state, expected = make()
    assert (expected.std(0) > 1e-2).all()  # frames differ, and so what a shift does to them
    for library in ("timm", "torchvision"):
        if library in without:
            with pytest.raises(ValueError, match="into must be one of 'timm'"):
                load_checkpoint(state, num_segments=T, into=library, **options)
            continue
        model = load_checkpoint(state, num_segments=T, into=library, **options)
        assert type(model).__module__.startswith(library)
        with torch.no_grad():
            torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)


def test_the_shift_in_place_is_that_of_blocks_and_no_other():
    state, expected = spot(ResNet)
    with pytest.raises(
        ValueError, match="expected place='block', as every file of E2E-Spot .*got place='blockres'"
    ):
        load_checkpoint(state, num_segments=T, place="blockres")
    model = load_checkpoint(state, num_segments=T, into="torchvision")
    with torch.no_grad():
        assert torch.equal(model(FRAMES), expected)
    tsm_triton.patch(tsm_triton.unpatch(model), T)
    with torch.no_grad():
        assert (model(FRAMES) - expected).abs().max() > 1e-2
    with pytest.raises(ValueError, match="place='block'.*shifted in the file only: layer1.0, layer1.1"):
        load_checkpoint(model, state)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (authors, {"shift_div": 4}),
        (authors, {"direction": "causal"}),
        (paddle_version_2, {"shift_div": 2}),
        (lambda: mmaction2(50, mode="dot_product"), {"non_local": "embedded_gaussian"}),
    ],
)
def test_another_setting_gives_other_logits(make, options):
    state, expected = make()
    with torch.no_grad():
        other = load_checkpoint(state, num_segments=T, **options)(FRAMES)
    assert (other - expected).abs().max() > 1e-3


def save(tmp_path, name, state):
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / name)
    return tmp_path / name


def test_the_files_name_says_what_keys_do_not(tmp_path):
    state, _ = authors()
    path = save(tmp_path, "TSM_kinetics_RGB_resnet18_shift4_blockres_avg_segment16_e50.pth", state)
    hooks = shift_hooks(load_checkpoint(path))
    assert {(hook.num_segments, hook.shift_div) for hook in hooks} == {(16, 4)}
    hooks = shift_hooks(load_checkpoint(path, num_segments=2, shift_div=8))
    assert {(hook.num_segments, hook.shift_div) for hook in hooks} == {(2, 8)}


@pytest.mark.parametrize(
    ("make", "folder", "file"),
    [
        (authors, "TSM_something_RGB_resnet18_shift4_blockres_avg_segment16_e50", "ckpt.best.pth.tar"),
        (
            mmaction2,
            "tsm_imagenet-pretrained-r18_8xb16-1x1x16-50e_sthv2-rgb",
            "best_acc_top1_epoch_45.pth",
        ),
    ],
)
def test_a_runs_folder_says_what_its_files_do_not(make, folder, file, tmp_path):
    (tmp_path / folder).mkdir()
    path = save(tmp_path / folder, file, make()[0])
    hooks = shift_hooks(load_checkpoint(path))
    assert {(hook.num_segments, hook.shift_div) for hook in hooks} == {(16, 4 if make is authors else 8)}


def test_another_folders_name_says_nothing(tmp_path):
    folder = tmp_path / "shift4_segment16"
    folder.mkdir()
    hooks = shift_hooks(load_checkpoint(save(folder, "weights.pth", authors()[0])))
    assert {(hook.num_segments, hook.shift_div) for hook in hooks} == {(8, 8)}


def with_configuration(tmp_path, state, text, name="a.pth"):
    torch.save({"meta": {"mmengine_version": "0.10", "cfg": text}, "state_dict": state}, tmp_path / name)
    return tmp_path / name


def test_a_configuration_in_the_file_says_more_than_its_name(tmp_path):
    state, expected = mmaction2(50, mode="dot_product")
    text = "model = dict(backbone=dict(non_local_cfg=dict(mode='dot_product'), num_segments=4, shift_div=8))"
    name = "tsm_nl-embedded-gaussian-r50_8xb8-1x1x16-50e.pth"
    model = load_checkpoint(with_configuration(tmp_path, state, text, name))
    assert {hook.num_segments for hook in shift_hooks(model)} == {T}
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["use_scale=True, ", ""])
def test_non_local_blocks_with_a_scale_are_refused(scale, tmp_path):
    state, expected = mmaction2(50, mode="embedded_gaussian")
    text = "num_segments=4, non_local_cfg=dict({}mode='embedded_gaussian')"
    with pytest.raises(ValueError, match="whose non_local_cfg does not say use_scale=False"):
        load_checkpoint(with_configuration(tmp_path, state, text.format(scale)))
    model = load_checkpoint(with_configuration(tmp_path, state, text.format("use_scale=False, ")))
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)


def test_averaged_weights_of_mmengine_stand_where_others_have_the_last_ones(tmp_path):
    state, expected = mmaction2()
    raw = {key: torch.zeros_like(value) for key, value in state.items()}
    held = {"meta": {"mmengine_version": "0.10"}, "state_dict": state, "ema_state_dict": raw}
    torch.save(held, tmp_path / "a.pth")
    with torch.no_grad():
        actual = load_checkpoint(tmp_path / "a.pth", num_segments=T)(FRAMES)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_weights_that_torch_averaged_are_recognised():
    state, expected = authors()
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}}
    with torch.no_grad():
        actual = load_checkpoint(averaged, num_segments=T)(FRAMES)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_networks_of_a_layouts_keys_that_are_no_tsm_are_told_by_their_names(tmp_path):
    net, fc = trained(PaddleResNet(50, None, False), nn.Linear(2048, CLASSES))
    state = paddle_keys(keys({"backbone.": net, "head.fc.": fc}))
    model = load_checkpoint(save(tmp_path, "TSN_k400.pth", state))
    assert not tsm_triton.is_patched(model)
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), logits(net, fc), rtol=1e-5, atol=1e-5)
    assert tsm_triton.is_patched(load_checkpoint(save(tmp_path, "TSM_k400.pth", state)))
    state, _ = paddle(tweaked=True)
    with pytest.raises(ValueError, match="got PP-TSN"):
        load_checkpoint(save(tmp_path, "ppTSN_k400.pth", state))
    net, fc = trained(ResNet(18, mm=True), nn.Linear(512, CLASSES))
    state = keys({"backbone.": net, "cls_head.fc_cls.": fc})
    with pytest.raises(ValueError, match="got C2D"):
        load_checkpoint(save(tmp_path, "c2d_r18-in1k-pre_8xb32-8x8x1-100e_kinetics400-rgb.pth", state))
    path = save(tmp_path, "tsn_r18_8xb32-1x1x8-100e_kinetics400-rgb_20220831-1c2d3e4f.pth", state)
    assert not tsm_triton.is_patched(load_checkpoint(path))  # what ends the name is a hash
    with pytest.raises(ValueError, match="got C2D"):
        load_checkpoint(with_configuration(tmp_path, state, "backbone=dict(type='C2D', depth=18)"))


def test_what_decides_the_numbers_and_is_not_said_is_asked_for(tmp_path):
    state, expected = mmaction2(50, mode="dot_product")
    with pytest.raises(ValueError, match="expected non_local, which decides the numbers.*Pass non_local="):
        load_checkpoint(state, num_segments=T)
    path = save(
        tmp_path, "tsm_imagenet-pretrained-r50-nl-dot-product_8xb16-1x1x4-50e_kinetics400-rgb.pth", state
    )
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(path)(FRAMES), expected, rtol=1e-5, atol=1e-5)
    state, _ = paddle_version_2()
    with pytest.raises(ValueError, match="expected num_segments.*its configurations have 8 and 16"):
        load_checkpoint(state)
    for name in ("PPTSMv2_k400_16f.pth", "pptsmv2_a8f0_16f.pth", "pptsm_lcnet_k400_16frames_uniform.pth"):
        hooks = shift_hooks(load_checkpoint(save(tmp_path, name, state)))
        assert [(hook.num_segments, hook.shift_div) for hook in hooks] == [(16, 16)]


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_published_weights_go_into_a_model_that_is_patched_alike(name):
    state, expected = mmaction2(place="block")
    model = tsm_triton.create_model(name, T, num_classes=CLASSES, place="block").eval()
    assert load_checkpoint(model, state) is model
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)


def test_the_number_of_frames_that_is_said_is_the_models():
    state, expected = authors(50, nl=True)
    model = tsm_triton.create_model("resnet50", 8, num_classes=CLASSES, non_local="embedded_gaussian").eval()
    load_checkpoint(model, state, num_segments=T)
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)


def changed(change):
    def build(library):
        model = tsm_triton.create_model(
            "resnet18" if library == "timm" else "torchvision/resnet18", T, num_classes=CLASSES
        )
        change(model)
        return model.eval()

    return build


def built(**options):
    return lambda library: tsm_triton.patch(timm.create_model("resnet18", num_classes=CLASSES, **options), T)


class Own(torchvision.models.ResNet):
    def __init__(self, block, layers, num_classes):
        super().__init__(block, layers, num_classes)
        self.avgpool = nn.AdaptiveMaxPool2d(1)


# what no key shows, each with a word of the error
OTHERS = {
    "pooling": (built(global_pool="max"), "timm", "global_pool"),
    "dilation": (built(output_stride=8), "timm", "stride|dilation|padding"),
    "eps": (built(norm_layer=partial(nn.BatchNorm2d, eps=0.1)), "timm", "of eps 0.1"),
    "anti-aliasing": (built(aa_layer=BlurPool2d), "timm", "maxpool, Sequential"),
    "a pool put in": (
        changed(lambda model: setattr(model, "maxpool", nn.AvgPool2d(3, 2, 1))),
        "timm",
        "maxpool, AvgPool2d for MaxPool2d",
    ),
    "no activation": (
        changed(lambda model: setattr(model.layer1[0], "act1", nn.Identity())),
        "timm",
        "layer1.0.act1, Identity for ReLU",
    ),
    "pooling of a class of one's own": (
        lambda _: tsm_triton.patch(Own(BasicBlock, [2, 2, 2, 2], CLASSES), T),
        "torchvision",
        "avgpool, AdaptiveMaxPool2d for AdaptiveAvgPool2d",
    ),
    "pooling of torchvision's": (
        changed(lambda model: setattr(model, "avgpool", nn.AdaptiveMaxPool2d(1))),
        "torchvision",
        "avgpool, AdaptiveMaxPool2d for AdaptiveAvgPool2d",
    ),
}


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(("build", "library", "word"), OTHERS.values(), ids=OTHERS)
def test_a_model_that_computes_something_else_takes_no_weights(build, library, word, ours, tmp_path):
    state, _ = authors()
    model = build(library)
    source = state
    if ours:
        tsm_triton.save_checkpoint(load_checkpoint(state, num_segments=T, into=library), tmp_path / "a.pt")
        source = tmp_path / "a.pt"
    before = model.conv1.weight.clone()
    with pytest.raises(ValueError, match=f"to compute what .* was trained with, got .*({word})"):
        load_checkpoint(model, source)
    assert torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(model),
        lambda model: setattr(model, "layer1", torch.compile(model.layer1, backend="eager")),
        lambda model: setattr(model, "drop_rate", 0.9),
        lambda model: setattr(model.maxpool, "kernel_size", (3, 3)),
        lambda model: setattr(model, "maxpool", nn.Sequential(model.maxpool, nn.Dropout())),
        lambda model: setattr(model, "act1", type("Own", (nn.ReLU,), {})()),
        lambda model: model.layer1[0].register_forward_hook(lambda *_: None),
    ],
)
def test_a_model_that_was_changed_in_nothing_that_it_computes_takes_them(change):
    state, expected = authors()
    model = tsm_triton.create_model("resnet18", T, num_classes=CLASSES)
    change(model)
    load_checkpoint(model.eval(), state)
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda model: nn.ModuleDict({"inner": model})])
def test_a_model_inside_of_another_is_asked_for(wrap):
    model = tsm_triton.create_model("resnet18", T, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"pass model.get_submodule\('(0|inner)'\)"):
        load_checkpoint(wrap(model), authors()[0])


def test_a_new_head_of_a_gru_keeps_the_gru():
    state, _ = spot(ResNet, Recurrent)
    model = load_checkpoint(state, num_segments=T, new_head=7)
    nn.init.zeros_(model.fc.gru.weight_ih_l0)
    before = model.fc.fc.weight.clone()
    load_checkpoint(model, state, new_head=7)
    assert torch.equal(model.fc.gru.weight_ih_l0, state["_pred_fine._gru.weight_ih_l0"])
    assert torch.equal(model.fc.fc.weight, before)


def test_layers_without_weights_of_their_own_are_compared_too():
    state, _ = mmaction2(50, mode="dot_product")
    model = tsm_triton.create_model("resnet50", T, CLASSES, non_local="embedded_gaussian")
    with pytest.raises(
        ValueError, match="mode 'dot_product' at 'layer2.0.non_local'.*got 'embedded_gaussian'"
    ):
        load_checkpoint(model, state, non_local="dot_product")
    state, _ = paddle(tweaked=True)
    model = tsm_triton.create_model("resnet50d", T, CLASSES)
    tsm_triton.patch(tsm_triton.unpatch(model), T, shift_div=8, fold_order="past_first")
    with pytest.raises(ValueError, match="expected a model of LeakyReLU.*got one of ReLU"):
        load_checkpoint(model, state, num_segments=T, shift_div=8)


def test_another_number_of_classes_is_explained_and_a_new_head_taken():
    state, _ = authors()
    for name in ("resnet18", "torchvision/resnet18"):
        model = tsm_triton.create_model(name, T, num_classes=3)
        before = model.fc.weight.clone()
        with pytest.raises(ValueError, match="Pass new_head=3 to leave the model's own head, of 3"):
            load_checkpoint(model, state)
        load_checkpoint(model, state, new_head=3)
        assert torch.equal(model.fc.weight, before)
        assert torch.equal(model.conv1.weight, state["module.base_model.conv1.weight"])
        again = load_checkpoint(state, into="torchvision" if "/" in name else "timm", new_head=7)
        assert again(FRAMES).shape == (2 * T, 7)
    state, _ = spot(ResNet, Recurrent)
    assert load_checkpoint(state, num_segments=T, new_head=7)(FRAMES).shape == (2 * T, 7)


def test_labels_and_frames_come_along(tmp_path):
    state, _ = online()
    model = load_checkpoint(state)
    assert model.pretrained_cfg["label_names"][17] == "Swiping Right"
    assert preparation_of(model).short_side == 256
    net, fc = trained(shift_resnet(ResNet(18), T, "blockres"), nn.Linear(512, 400))
    state = keys({"module.base_model.": net, "module.new_fc.": fc})
    assert "label_names" not in load_checkpoint(state).pretrained_cfg
    model = load_checkpoint(save(tmp_path, "TSM_kinetics_RGB_resnet18_segment8.pth", state))
    assert model.pretrained_cfg["label_names"][:2] == ["abseiling", "air drumming"]
    tsm_triton.save_checkpoint(model, tmp_path / "ours.pt")
    again = load_checkpoint(tmp_path / "ours.pt")
    assert again.pretrained_cfg["label_names"] == model.pretrained_cfg["label_names"]
    with torch.no_grad():
        assert torch.equal(again(FRAMES), model(FRAMES))


def test_unshifted_weights_give_an_unshifted_network():
    net, fc = trained(ResNet(18), nn.Linear(512, CLASSES))
    model = load_checkpoint(keys({"module.base_model.": net, "module.new_fc.": fc}))
    assert not tsm_triton.is_patched(model)
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), logits(net, fc), rtol=1e-5, atol=1e-5)


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "module.base_model.bn1.bias"), "missing: bn1.bias"),
        (lambda s: {**s, "module.base_model.more.weight": torch.zeros(1)}, "unexpected: more.weight"),
        (
            lambda s: {**s, "module.base_model.conv1.weight": torch.zeros(64, 10, 7, 7)},
            "convolution of 10 channels",
        ),
        (lambda s: without(without(s, "module.new_fc.weight"), "module.new_fc.bias"), "weights of a head"),
        (lambda s: {k: v for k, v in s.items() if ".layer4." not in k}, r"stages of \(2, 2, 2, 0\) blocks"),
        (
            lambda s: {**s, "module.base_model.fc.weight": torch.zeros(CLASSES, 512)},
            "got two for 'fc.weight'",
        ),
        (
            lambda s: {**s, "module.base_model.layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)},
            "got two for 'layer1.0.conv1.weight'",
        ),
        (
            lambda s: {
                **s,
                "module.base_model.conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8),
            },
            "of another kind: conv1.weight torch.int8 for torch.float32",
        ),
        (
            lambda s: {
                **s,
                "module.base_model.conv1.weight": torch.zeros(64, 3, 7, 7).to(torch.float8_e4m3fn),
            },
            "of another kind: conv1.weight torch.float8_e4m3fn for torch.float32",
        ),
        (
            lambda s: (
                {key: value + 0j for key, value in s.items() if value.is_floating_point()}
                | {key: value for key, value in s.items() if not value.is_floating_point()}
            ),
            "of another kind: .*torch.complex64 for torch.float32",
        ),
    ],
)
def test_files_that_differ_from_their_layout_are_refused(change, message):
    state, _ = authors()
    with pytest.raises(ValueError, match=message):
        load_checkpoint(change(state))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_features.s1.b1.conv1.gsm.bn.weight": 1, "_pred_fine._fc_out.weight": 1}, "gated one"),
        ({"_features.conv1.weight": 1, "_pred_fine._fc_out.weight": 1}, "ConvNeXt-T, got another network"),
        ({"_features.layer1.0.conv1.weight": 1, "_pred_fine._tcn.weight": 1}, "expected a ResNet of"),
        (
            {
                "backbone.conv1._batch_norm._mean": 1,
                "backbone.conv2._first_block._expand_conv._conv.weight": 1,
            },
            "MobileNet",
        ),
        ({"backbone.stages.0.0.bn._mean": 1, "backbone.global_attention.fc.weight": 1}, "temporal attention"),
    ],
)
def test_what_no_model_here_computes_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint({key: torch.zeros(value) for key, value in state.items()})


def test_options_are_for_published_weights(tmp_path):
    model = tsm_triton.create_model("test_resnet", T, 3)
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="expected no place with a checkpoint of ours"):
        load_checkpoint(tmp_path / "a.pt", place="block")
    with pytest.raises(TypeError, match="got palce: drop it"):
        load_checkpoint(tmp_path / "a.pt", palce="block")
    with pytest.raises(ValueError, match="whose SHA-256 begins with 0123abcd, got "):
        load_checkpoint(tmp_path / "a.pt", checksum="0123abcd")
    with pytest.raises(TypeError, match="checksum: expected a file or an address"):
        load_checkpoint({}, checksum="0123abcd")
    again = load_checkpoint(tmp_path / "a.pt", num_segments=2, new_head=6)
    assert {hook.num_segments for hook in shift_hooks(again)} == {2}
    assert again(FRAMES).shape == (2 * T, 6)


def inspected(capsys, *argv):
    """The rows that the command prints, by their first words."""
    assert main(["inspect", *map(str, argv)]) == 0
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_inspect_says_what_a_file_is_and_how_it_is_loaded(tmp_path, capsys):
    path = save(tmp_path, "TSM_kinetics_RGB_resnet18_shift8_blockres_avg_segment4_e50.pth", authors()[0])
    rows = inspected(capsys, path)
    assert rows["layout"] == "authors (mit-han-lab/temporal-shift-module)"
    assert rows["network"].startswith("resnet18 or torchvision/resnet18, 5 classes")
    assert rows["num_segments"] == "4, from the file's name"
    assert rows["place"] == "'blockres', from the keys"
    assert rows["direction"] == "'bidirectional', as the released ones"
    assert rows["load"] == f"tsm_triton.load_checkpoint({str(path)!r})"
    load_checkpoint(path)


def test_inspect_says_what_is_to_be_said(tmp_path, capsys):
    path = save(tmp_path, "weights.pth", paddle_version_2()[0])
    rows = inspected(capsys, path)
    assert rows["num_segments"] == "to be said: its configurations have 8 and 16"
    assert rows["load"].endswith(", num_segments=...)")
    rows = inspected(capsys, path, "--num-segments", 8)
    assert (rows["shift_div"], rows["sites"]) == ("8, as many as num_segments", "stages.2")
    assert rows["load"].endswith(", num_segments=8)")


def test_inspect_knows_our_own_files_and_tells_others(tmp_path, capsys):
    tsm_triton.save_checkpoint(
        tsm_triton.create_model("test_resnet", 4, 3), tmp_path / "a.pt", ["a", "b", "c"]
    )
    rows = inspected(capsys, tmp_path / "a.pt")
    assert (rows["layout"], rows["num_segments"], rows["labels"]) == ("tsm_triton", "4", "a, b, c")
    assert rows["network"].startswith("test_resnet, num_classes=3")
    rows = inspected(capsys, save(tmp_path, "b.pt", {"a.weight": torch.zeros(3)}))
    assert rows["layout"].startswith("none that is known: tsm_triton, authors, ")
    assert rows["keys"] == "a.weight"
    assert main(["inspect", str(tmp_path / "nowhere.pt")]) == 2
    assert "which does not exist" in capsys.readouterr().err


class Served:
    """A file over HTTP, and torch.hub's cache in an empty folder."""

    def __init__(self, data, monkeypatch, tmp_path):
        self.data = data
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def __call__(self, request, _):
        send(request, self.data, len(self.data))


def test_weights_behind_an_address_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    state, expected = authors()
    data = save(tmp_path, "a.pth", state).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    served, asked = Served(data, monkeypatch, tmp_path), []
    with http_server(lambda request, number: (asked.append(number), served(request, number))) as address:
        url = f"{address}/TSM_kinetics_RGB_resnet18_shift8_blockres_avg_segment4.pth"
        with pytest.raises(ValueError, match="invalid hash value.*Check the address"):
            load_checkpoint(url, checksum="0" * 64)
        for _ in range(2):
            model = load_checkpoint(url, checksum=digest)
        with pytest.raises(ValueError, match="got RuntimeError .*invalid hash value"):
            load_checkpoint(f"{address}/a-0123456789.pth")
        with pytest.raises(ValueError, match=f"begins with 00000000, got {digest}"):
            load_checkpoint(url, checksum="00000000")
    assert len(asked) == 3
    assert {hook.num_segments for hook in shift_hooks(model)} == {4}
    with torch.no_grad():
        torch.testing.assert_close(model(FRAMES), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected to download 'http://127.0.0.1:1/a.pth', got URLError"):
        load_checkpoint("http://127.0.0.1:1/a.pth")


def test_files_of_one_name_at_two_addresses_are_two(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    contents = [
        save(tmp_path, f"{bias}.pt", {"bias": torch.full((2,), bias)}).read_bytes() for bias in (1.0, 2.0)
    ]

    def serve(request, _):
        data = contents["/b/" in request.path]
        send(request, data, len(data))

    with http_server(serve) as address:
        found = [local_file(f"{address}/{folder}/best.pt").read_bytes() for folder in "ab"]
    assert found == contents


def test_weights_of_the_hub_are_found_by_timms_names(tmp_path, monkeypatch):
    state, _ = authors()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if file != "model.safetensors":
            raise OSError("no such file")
        return tmp_path / file

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    load_checkpoint("hf-hub:somebody/tsm@v1", num_segments=T)
    assert asked == [("somebody/tsm", "model.safetensors", "v1")]
    with pytest.raises(ValueError, match="weights at 'hf-hub:somebody/tsm:b.pth', got OSError"):
        load_checkpoint("hf-hub:somebody/tsm:b.pth")
    with pytest.raises(ValueError, match="expected hf-hub:owner/name"):
        load_checkpoint("hf-hub:somebody")


def test_a_pickle_of_paddles_is_refused_with_the_way_round(tmp_path):
    with (tmp_path / "a.pdparams").open("wb") as file:
        pickle.dump({"backbone.conv1_1._conv.weight": FRAMES.numpy()}, file, protocol=2)
    with pytest.raises(
        ValueError, match="Write Paddle's arrays anew, where Paddle is: safetensors.numpy.save_file"
    ):
        load_checkpoint(tmp_path / "a.pdparams")


def test_the_online_demos_weights_are_streamed_by_the_command_and_no_others(tmp_path):
    state, expected = online()
    path = save(tmp_path, "mobilenetv2_jester_online.pth.tar", state)
    weights = load_trained_model(path, Said(), streamed=True)
    assert weights.labels is not None
    assert (weights.name, weights.labels[0]) == ("torchvision/mobilenet_v2", "Doing other things")
    stream = tsm_triton.Streaming(weights.model)
    rows = torch.cat([stream(FRAMES[number : number + 1]) for number in range(T)])
    # convolutions of one frame round in another way than those of eight
    torch.testing.assert_close(rows, expected[:T], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="got bidirectional ones of authors in .*a stream has no next frame"):
        load_trained_model(save(tmp_path, "a.pth", authors()[0]), Said(), streamed=True)


def test_the_table_of_layouts_names_them_all():
    table = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text()
    for layout in LAYOUTS:
        assert table.count(f"{layout.name}") > 1
        assert f"| {layout.name} | {layout.where}" in table


def test_pp_tsm_is_saved_and_built_again(tmp_path):
    model = load_checkpoint(paddle(tweaked=True)[0], num_segments=T)
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt")
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "a.pt")(FRAMES), model(FRAMES))


def test_a_pooled_networks_weights_go_into_one_that_is_made_alike(tmp_path):
    model = load_checkpoint(authors(pooled=True)[0], num_segments=T, into="torchvision")
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="ResNet differs from torchvision/resnet18 at layer2"):
        load_checkpoint(tmp_path / "a.pt")
    other = tsm_triton.create_model("torchvision/resnet18", T, CLASSES, temporal_pool=True).eval()
    load_checkpoint(other, tmp_path / "a.pt")
    with torch.no_grad():
        assert torch.equal(other(FRAMES), model(FRAMES))
