"""Checkpoints: what was saved comes back whole, in whatever it was wrapped, and nothing else is loaded."""

import copy
import os
from types import MethodType

import pytest
import timm
import torch
import torchvision
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.utils import ModelEmaV3  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tsm_triton
from tsm_triton import VideoClassifier, load_checkpoint, patch, save_checkpoint
from tsm_triton.checkpoints.patches import patch_of
from tsm_triton.patching.hooks import is_patched, shift_hooks
from tsm_triton.preparation import Preparation, preparation_of, set_preparation

FRAMES = torch.randn(8, 3, 48, 48)


def network(name="test_resnet", num_classes=3, **options):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # a branch that is closed as built
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return patch(model.eval(), 4, **options)


@pytest.fixture(scope="module")
def model():
    return network(direction="causal")


@pytest.fixture
def path(model, tmp_path):
    save_checkpoint(model, tmp_path / "a.pt", ["left", "right", "still"])
    return tmp_path / "a.pt"


def same(model, other):
    with torch.no_grad():
        return torch.equal(model(FRAMES), other(FRAMES))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    "options",
    [
        dict(direction="causal", shift_div=4),
        dict(place="block"),
        dict(stages=[0, "layer3"]),
        dict(filter_fn=lambda _, name: name != "layer2.0.conv1"),
    ],
)
def test_what_was_saved_is_built_again(options, name, tmp_path):
    model = network(**options)
    tsm_triton.set_num_segments(model.layer3, 2)
    set_preparation(model, Preparation(48, 52, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    save_checkpoint(model, tmp_path / name, ["left", "right", "still"])
    assert os.listdir(tmp_path) == [name]
    again = load_checkpoint(tmp_path / name)
    assert not again.training
    assert patch_of(again) == patch_of(model)
    assert preparation_of(again) == preparation_of(model)
    assert again.pretrained_cfg["label_names"] == ["left", "right", "still"]
    assert same(again, model)
    save_checkpoint(again, tmp_path / "twice.pt")
    assert torch.load(tmp_path / "twice.pt", weights_only=True)["labels"] == ["left", "right", "still"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("test_vit", num_classes=2, img_size=96),
        lambda: timm.create_model("test_resnet", features_only=True, out_indices=(1, 3)),
        lambda: timm.create_model("test_resnet", num_classes=2, drop_rate=0.2, drop_path_rate=0.1),
        lambda: torchvision.models.mobilenet_v2(num_classes=2),
        lambda: torchvision.models.resnet18(),
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(torchvision.models.resnet18(num_classes=2)),
    ],
    ids=["vit", "features", "drop", "mobilenet", "torchvision", "sync"],
)
def test_models_of_both_libraries_are_built_by_their_names(build, tmp_path):
    model = patch(build().eval(), 4)
    save_checkpoint(model, tmp_path / "a.pt")
    again = load_checkpoint(tmp_path / "a.pt")
    side = preparation_of(model).size
    assert preparation_of(again) == preparation_of(model)
    frames = torch.randn(4, 3, side, side)
    if not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        torch.testing.assert_close(again(frames), model(frames), rtol=0, atol=0)
    assert again.state_dict().keys() == model.state_dict().keys()


def custom_head():
    model = torchvision.models.resnet18()
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 2))
    return model


def custom_forward():
    model = timm.create_model("test_resnet")
    model.forward_features = MethodType(lambda self, x: type(self).forward_features(self, x.flip(-1)), model)
    return model


def custom_block():
    model = torchvision.models.resnet18()
    model.layer4[1].forward = MethodType(lambda self, x: 2 * type(self).forward(self, x), model.layer4[1])
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (custom_forward, "differs from test_resnet at its replaced methods, .*forward_features"),
        (custom_block, "differs from torchvision/resnet18 at layer4.1 replaced methods"),
        (custom_head, "ResNet differs from torchvision/resnet18 at fc"),
        (lambda: timm.create_model("resnet18", output_stride=16), "differs from resnet18 at layer4"),
        (
            lambda: nn.Sequential(timm.create_model("test_resnet", num_classes=4), nn.Linear(4, 2)),
            "none of timm",
        ),
    ],
)
def test_a_model_that_no_builder_makes_is_loaded_into(build, reason, tmp_path):
    model, other = patch(build().eval(), 4), patch(build().eval(), 4)
    save_checkpoint(model, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=rf"whose model can be built, got .*{reason}.*load_checkpoint\(model, "
    ):
        load_checkpoint(tmp_path / "a.pt")
    assert load_checkpoint(other, tmp_path / "a.pt") is other
    assert same(other, model)


def test_a_forward_that_accelerate_wraps_computes_the_same(tmp_path):
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare(network())
    assert "forward" in vars(model)
    save_checkpoint(model, tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt"), network())


class Holder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


class Lightning(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.classifier = VideoClassifier(model)


def compiled_inside(model):
    model = copy.deepcopy(model)
    model.layer1 = torch.compile(model.layer1)
    return model


WRAPPERS = {
    "plain": lambda m: m,
    "classifier": VideoClassifier,
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "of all": lambda m: nn.DataParallel(torch.compile(VideoClassifier(nn.DataParallel(m)))),
    "model": Holder,
    "twice": lambda m: Holder(Holder(m)),
    "lightning": Lightning,
    "averaged": AveragedModel,
    "ema": ModelEmaV3,
    "inside": compiled_inside,
}
CONTAINERS = {
    "bare": lambda state: state,
    "timm": lambda state: {"epoch": 3, "arch": "x", "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state},
    "nested": lambda state: {"model": {"state_dict": state}},
    "ema": lambda state: {"state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state},
    "model_ema": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "model_ema": state},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_behind_any_wrapper(wrapper, model, tmp_path):
    state = WRAPPERS[wrapper](model).state_dict()
    zeroed = network(direction="causal")
    nn.init.zeros_(zeroed.fc.weight)
    for container in CONTAINERS.values():
        other = copy.deepcopy(zeroed)
        assert load_checkpoint(other, container(state)) is other
        assert same(other, model)
    torch.save(CONTAINERS["timm"](state), tmp_path / "a.pt")
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert same(load_checkpoint(copy.deepcopy(zeroed), tmp_path / name), model)


@pytest.mark.parametrize(
    "wrapper", ["classifier", "data parallel", "compiled", "of all", "averaged", "ema", "inside"]
)
def test_wrapped_models_are_saved_and_loaded_as_what_they_hold(wrapper, model, tmp_path):
    save_checkpoint(WRAPPERS[wrapper](copy.deepcopy(model)), tmp_path / "a.pt")
    if wrapper != "inside":  # a compiled child has another class: nothing proves what it was
        assert same(load_checkpoint(tmp_path / "a.pt"), model)
    other = network(direction="causal")
    nn.init.zeros_(other.fc.weight)
    wrapped = WRAPPERS[wrapper](other)
    assert load_checkpoint(wrapped, tmp_path / "a.pt") is wrapped
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), model.parameters(), strict=True))


def test_a_child_called_model_or_module_keeps_its_name(model, tmp_path):
    holder = Holder(nn.Sequential())
    holder.model = nn.ModuleDict({"module": copy.deepcopy(model)})
    other = copy.deepcopy(holder)
    nn.init.zeros_(other.model["module"].fc.weight)
    for state in (holder.state_dict(), nn.DataParallel(holder).state_dict(), Holder(holder).state_dict()):
        load_checkpoint(other, state)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), holder.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"missing: model\.module\..*unexpected: conv1"):
        load_checkpoint(other, model.state_dict())


def test_num_segments_stays_the_models_own(path):
    other = network(direction="causal")
    tsm_triton.set_num_segments(other, 2)
    load_checkpoint(other, path)
    assert {hook.num_segments for hook in shift_hooks(other)} == {2}
    assert {hook.num_segments for hook in shift_hooks(load_checkpoint(path))} == {4}


@pytest.mark.parametrize(
    ("options", "got"),
    [
        (dict(direction="bidirectional"), "direction='bidirectional'"),
        (dict(direction="causal", shift_div=4), "shift_div=4"),
        (dict(direction="causal", stages=[0]), "shifted in the file only: layer2.0.conv1, layer3"),
        (dict(direction="causal", place="block"), "in the model only: layer1.0, layer2.0"),
    ],
)
def test_a_model_patched_differently_is_refused(options, got, path):
    other = network(**options)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=f"direction='causal', shift_div=8, .*got .*{got}.*tsm_triton.patch"):
        load_checkpoint(other, path)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_unpatched_models_and_weights_do_not_go_with_patched_ones(model, path, tmp_path):
    plain = timm.create_model("test_resnet", num_classes=3)
    with pytest.raises(RuntimeError, match="direction='causal'.*got an unpatched model. Call tsm_triton"):
        load_checkpoint(plain, path)
    with pytest.raises(RuntimeError, match="expected a patched model"):
        load_checkpoint(plain, model.state_dict())
    save_checkpoint(plain, tmp_path / "plain.pt")
    assert not is_patched(load_checkpoint(tmp_path / "plain.pt"))
    with pytest.raises(ValueError, match="the shift of ResNet .*got those of an unshifted network"):
        load_checkpoint(copy.deepcopy(model), tmp_path / "plain.pt")


def test_keys_and_shapes_that_differ_are_named_and_nothing_is_loaded(model):
    state = model.state_dict()
    other = network(num_classes=5, direction="causal")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"another shape: fc.weight \(3, 96\) for \(5, 96\)"):
        load_checkpoint(other, state)
    weight = state.pop("fc.weight")
    with pytest.raises(ValueError, match="missing: fc.weight; unexpected: head.weight"):
        load_checkpoint(other, {**state, "head.weight": weight})
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_a_bare_state_dict_names_no_model(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pt")
    for source in (model.state_dict(), tmp_path / "a.pt"):
        with pytest.raises(ValueError, match="a state dict says nothing of its model"):
            load_checkpoint(source)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("wrap", [lambda classifier: classifier, lambda classifier: classifier.model])
def test_the_length_that_is_saved_is_the_one_that_was_told(recorded, wrap, tmp_path):
    model = network()
    classifier, path = VideoClassifier(model, 4).eval(), tmp_path / "a.pt"

    def saved():
        save_checkpoint(wrap(classifier), path)
        record = torch.load(path, weights_only=True)["patch"]
        return {record["num_segments"], *(site["num_segments"] for site in record["sites"])}

    with torch.set_grad_enabled(recorded):
        classifier(torch.zeros(1, 6, 3, 32, 32))
        assert saved() == {4}
        assert {hook.num_segments for hook in shift_hooks(model)} == {4}
        with torch.no_grad():
            classifier(torch.zeros(1, 2, 3, 32, 32))
        assert saved() == {4}
        tsm_triton.set_num_segments(model, 6)  # told, and no call's
        classifier(torch.zeros(1, 6, 3, 32, 32))
        assert saved() == {6}
        classifier(torch.zeros(1, 4, 3, 32, 32))
        assert saved() == {6}


PERSIAN, JOINED, SPACED = "می\u200cدود", "👨\u200d👩", "左\u3000手\xa0a"


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_labels_come_back_letter_for_letter(name, model, tmp_path):
    labels = [PERSIAN, JOINED, SPACED]
    save_checkpoint(model, tmp_path / name, labels)
    assert load_checkpoint(tmp_path / name).pretrained_cfg["label_names"] == labels


@pytest.mark.parametrize(
    ("key", "said", "other"),
    [("direction", "causal", "bidirectional"), ("shift_div", 8, 4), ("place", "blockres", "block")],
)
def test_what_is_said_of_a_bare_state_dict_is_compared_with_the_model(key, said, other, model):
    into = network(direction="causal")
    nn.init.zeros_(into.fc.weight)
    with pytest.raises(ValueError, match=f"made with {key}={other!r}, .* got {key}={said!r}. Pass what"):
        load_checkpoint(into, model.state_dict(), **{key: other})
    with pytest.raises(ValueError, match="made with non_local='gaussian'.*got non_local=None"):
        load_checkpoint(into, model.state_dict(), non_local="gaussian")
    assert not into.fc.weight.any()
    assert same(load_checkpoint(into, model.state_dict(), **{key: said}), model)


@pytest.mark.parametrize("options", [dict(act_layer="leaky_relu"), dict(global_pool="max")])
def test_weights_of_another_function_are_refused(options, tmp_path):
    odd, plain = (
        patch(timm.create_model("test_resnet", num_classes=3, **given).eval(), 4) for given in (options, {})
    )
    for saved, other in ((odd, plain), (plain, odd)):
        save_checkpoint(saved, tmp_path / "a.pt")
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=f"to compute what .*got test_resnet.*{next(iter(options))}=.*"):
            load_checkpoint(other, tmp_path / "a.pt")
        assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
    again = patch(timm.create_model("test_resnet", num_classes=3, **options).eval(), 4)
    save_checkpoint(odd, tmp_path / "a.pt")
    assert same(load_checkpoint(again, tmp_path / "a.pt"), odd)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("levit_128s", lambda name: nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model(name))),
        ("test_vit", lambda name: timm.create_model(name, patch_drop_rate=0.5)),
        ("test_vit", lambda name: nn.DataParallel(timm.create_model(name, drop_path_rate=0.5)).module),
        ("eva02_tiny_patch14_224", lambda name: timm.create_model(name, dynamic_img_size=True)),
        ("densenet121", lambda _: type("Own", (torchvision.models.DenseNet,), {})()),
    ],
)
def test_a_model_of_other_options_that_computes_the_same_takes_weights(name, make, tmp_path):
    fresh = timm.create_model(name)
    save_checkpoint(fresh, tmp_path / "a.pt")
    model = make(name)
    load_checkpoint(model, tmp_path / "a.pt")
    own = fresh.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def other_eps(model: nn.Module) -> nn.Module:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.5
    return model


@pytest.mark.parametrize(
    ("name", "make", "word"),
    [
        ("test_efficientnet", lambda name: other_eps(timm.create_model(name)), "of eps 0.5"),
        ("test_vit", lambda name: timm.create_model(name, num_heads=4), "of (num_heads|head_dim|scale)"),
        (
            "test_efficientnet",
            lambda name: nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model(name)),
            "BatchNorm2d for BatchNormAct2d",
        ),
    ],
    ids=["eps", "heads", "activations that were lost"],
)
def test_what_no_key_and_no_option_tells_is_compared(name, make, word, tmp_path):
    save_checkpoint(timm.create_model(name), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"to compute what .* was trained with, got .*{word}"):
        load_checkpoint(make(name), tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18", "torchvision/mobilenet_v2"])
def test_labels_of_another_number_than_classes_are_refused(name, tmp_path):
    model = tsm_triton.create_model(name, 4, 5)
    for labels in ("ab", "abcdefg"):
        with pytest.raises(ValueError, match="expected 5 labels"):
            save_checkpoint(model, tmp_path / "a.pt", labels=list(labels))
    assert not (tmp_path / "a.pt").exists()
    save_checkpoint(model, tmp_path / "a.pt", labels=list("abcde"))


def test_a_network_whose_weights_have_a_version_is_built_again(tmp_path):
    model = tsm_triton.create_model("torchvision/mnasnet0_5", 4, 5)
    save_checkpoint(model, tmp_path / "a.pt")
    again = load_checkpoint(tmp_path / "a.pt").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_a_head_of_ones_own_may_pool_otherwise(tmp_path):
    save_checkpoint(network(), tmp_path / "a.pt")
    other = patch(timm.create_model("test_resnet", num_classes=5, global_pool="max"), 4)
    assert load_checkpoint(other, tmp_path / "a.pt", new_head=5) is other


def test_a_network_of_other_layers_without_weights_is_refused(tmp_path):
    """Their keys are the same: one has pools for the strides of the other."""
    save_checkpoint(patch(timm.create_model("resnet50"), 4), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="got resnetblur50 for resnet50"):
        load_checkpoint(patch(timm.create_model("resnetblur50"), 4, verify=False), tmp_path / "a.pt")


@pytest.mark.parametrize("bare", [True, False])
def test_what_earlier_weights_said_goes_with_them(bare, path, tmp_path):
    into, without = load_checkpoint(path), network(direction="causal")
    into.pretrained_cfg["sampling"] = "dense"
    save_checkpoint(without, tmp_path / "b.pt")
    frames = preparation_of(into)
    load_checkpoint(into, without.state_dict() if bare else tmp_path / "b.pt")
    assert preparation_of(into) == frames
    save_checkpoint(into, tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["labels"] is None
    assert "sampling" not in saved["frames"]


def test_the_labels_of_a_head_that_stays_stay(path, tmp_path):
    into = load_checkpoint(path)
    save_checkpoint(network(num_classes=2, direction="causal"), tmp_path / "b.pt")
    load_checkpoint(into, tmp_path / "b.pt", new_head=3)
    assert into.pretrained_cfg["label_names"] == ["left", "right", "still"]


@pytest.mark.parametrize("num_segments", [0, 3])
def test_a_length_that_cannot_be_is_refused_before_anything_is_loaded(num_segments, model, path):
    into = network(direction="causal")
    nn.init.zeros_(into.fc.weight)
    if num_segments:
        into.pool = tsm_triton.modules.TemporalPool(4)
    for source in (path, model.state_dict()):
        with pytest.raises(ValueError, match="num_segments"):
            load_checkpoint(into, source, num_segments=num_segments)
    assert not into.fc.weight.any()


def test_a_length_of_no_clips_is_refused_before_anything_is_loaded(tmp_path):
    save_checkpoint(timm.create_model("test_resnet", num_classes=3), tmp_path / "a.pt")
    into = timm.create_model("test_resnet", num_classes=3)
    nn.init.zeros_(into.fc.weight)
    with pytest.raises(RuntimeError, match="expected a patched model"):
        load_checkpoint(into, tmp_path / "a.pt", num_segments=4)
    assert not into.fc.weight.any()


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_no_code_of_a_file_is_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": model.state_dict(), "hyper": Code()}, "a.pt")
    with pytest.raises(
        ValueError, match=r"that torch.load\(weights_only=True\) reads, got 'a.pt' \(Unpickling"
    ):
        load_checkpoint(copy.deepcopy(model), "a.pt")
    assert os.listdir() == ["a.pt"]


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_save_that_fails_leaves_the_file_of_before(name, model, tmp_path, monkeypatch):
    save_checkpoint(model, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: load_checkpoint(), TypeError, "got nothing"),
        (lambda m: load_checkpoint(m), TypeError, "got ResNet"),
        (lambda m: load_checkpoint(m, 3), TypeError, "a path or a state dict, got int"),
        (lambda m: load_checkpoint(m, {}), ValueError, "expected a state dict of dense tensors"),
        (lambda m: load_checkpoint(m, {"epoch": 3}), ValueError, "got dict with 'epoch'"),
        (lambda m: load_checkpoint("nowhere.pt"), FileNotFoundError, "does not exist"),
        (lambda m: load_checkpoint("nowhere.safetensors"), FileNotFoundError, "does not exist"),
        (lambda m: save_checkpoint("resnet18", "a.pt"), TypeError, "got str"),
        (lambda m: save_checkpoint(m, "a.pt", "abc"), TypeError, "labels must be strings"),
        (lambda m: save_checkpoint(m, "a.pt", ["a"]), ValueError, "expected 3 labels"),
    ],
)
def test_what_cannot_be_saved_or_loaded_is_said(call, error, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call(model)
    assert not os.listdir(tmp_path)


def test_parts_patched_differently_are_not_saved(tmp_path):
    model = timm.create_model("test_resnet")
    patch(model.layer1, direction="causal", verify=False, example_input=torch.empty(4, 32, 8, 8))
    patch(model.layer2, verify=False, example_input=torch.empty(4, 32, 8, 8))
    with pytest.raises(
        ValueError, match="expected one shift for the whole model, got .*causal.*bidirectional"
    ):
        save_checkpoint(model, tmp_path / "a.pt")


def test_fused_copies_are_refused(model, path):
    fused = tsm_triton.fuse(copy.deepcopy(model), example_input=FRAMES[:4])
    with pytest.raises(TypeError, match="got a fused copy, whose weights are folded"):
        save_checkpoint(fused, path)
    with pytest.raises(TypeError, match="got a fused copy, whose weights are folded"):
        load_checkpoint(fused, path)
