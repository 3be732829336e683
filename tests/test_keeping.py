"""A patch stays whole when modules are replaced, wrapped or unwrapped after it, or the next call refuses."""

import copy
import pickle
import sys
from collections import OrderedDict, UserDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from networks import T, visible
from timm.layers import convert_sync_batchnorm
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch._dynamo.testing import CompileCounter

from tsm_triton import (
    ShiftSite,
    VideoClassifier,
    find_sites,
    is_patched,
    patch,
    save_checkpoint,
    shift_disabled,
    unpatch,
)
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.patching.keeping import PatchRecord


def built(name: str = "test_resnet", **options) -> nn.Module:
    return visible(timm.create_model(name, num_classes=5, **options))


def frames(size: int = 64) -> torch.Tensor:
    return torch.randn(2 * T, 3, size, size)


def computes_the_same(changed: nn.Module, expected: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(changed(x), expected(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.compile(changed, backend="eager")(x), expected(x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("fastvit_t8", convert_sync_batchnorm),
        ("coatnet_nano_cc_224", convert_sync_batchnorm),
        ("test_resnet", convert_sync_batchnorm),
        ("fastvit_t8", nn.SyncBatchNorm.convert_sync_batchnorm),  # torch's drops timm's activations of others
    ],
)
def test_a_batch_norm_that_is_replaced_hands_its_shift_on(name, convert):
    model = patch(built(name), T)
    expected = copy.deepcopy(model)
    changed = convert(model)
    assert len(shift_hooks(changed)) == len(shift_hooks(expected))
    x = torch.randn(T, 3, 224, 224) if name.startswith("coatnet") else frames(64)
    with torch.no_grad():
        torch.testing.assert_close(changed(x), expected(x), rtol=1e-3, atol=1e-3)


def test_freezing_batch_norms_hands_their_shifts_on():
    model = patch(built("fastvit_t8"), T)
    expected = copy.deepcopy(model)
    freeze_batch_norm_2d(model)
    computes_the_same(model, expected, frames())


class Adapter(nn.Module):
    """What adapters do: a second path that reads what the wrapped layer reads."""

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.side = nn.Conv2d(base_layer.in_channels, base_layer.out_channels, 1, base_layer.stride)

    def forward(self, x):
        return self.base_layer(x) + self.side(x)


@pytest.mark.parametrize("order", ["patched first", "adapted first"])
def test_an_adapter_around_a_site_reads_the_shifted_input(order):
    model = built()
    adapted = copy.deepcopy(model)
    block = adapted.layer2[0]
    if order == "patched first":
        patch(adapted, T)
        block.conv1 = Adapter(block.conv1)
    else:
        block.conv1 = Adapter(block.conv1)
        patch(adapted, T)
    by_hand = patch(copy.deepcopy(model), T)
    inner = by_hand.layer2[0].conv1
    hook = next(h for h in shift_hooks(by_hand) if h in inner._forward_pre_hooks.values())
    inner._forward_pre_hooks.clear()
    inner._forward_pre_hooks_with_kwargs.clear()
    wrapper = Adapter(inner)
    wrapper.side = block.conv1.side
    dict.__setitem__(by_hand.layer2[0]._modules, "conv1", wrapper)
    wrapper.register_forward_pre_hook(hook, with_kwargs=True)
    assert len(shift_hooks(adapted)) == len(find_sites(model))
    computes_the_same(adapted, by_hand, frames())
    # and taken out again
    block.conv1 = block.conv1.base_layer
    computes_the_same(adapted, patch(copy.deepcopy(model), T), frames())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["patched first", "adapted first"])
def test_lora_merged_equals_lora_unmerged(order, monkeypatch):
    # transformers would take the link `kernels` at the root of the checkout for Hugging Face's package
    root = Path(__file__).parents[1]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != root])
    peft = pytest.importorskip("peft")
    model, x = built(), frames()
    config = peft.LoraConfig(target_modules=r".*layer\d.\d.conv1", init_lora_weights=False)
    if order == "patched first":
        adapted = peft.get_peft_model(patch(model, T), config).eval()
    else:
        adapted = peft.get_peft_model(model, config).eval()
        patch(adapted, T)
    assert len(shift_hooks(adapted)) == 4
    with torch.no_grad():
        unmerged = adapted(x)
        merged = adapted.merge_and_unload()
        assert len(shift_hooks(merged)) == 4
        torch.testing.assert_close(merged(x), unmerged, rtol=1e-3, atol=1e-3)
        with shift_disabled(merged):
            assert not torch.allclose(merged(x), unmerged, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("place", ["blockres", "block"])
def test_wrappers_of_blocks_leave_the_shift_inside(place):
    class Wrapper(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x)

    model = patch(built(), T, place=place)
    expected = copy.deepcopy(model)
    model.layer2[0] = Wrapper(model.layer2[0])
    model.layer3 = nn.Sequential(model.layer3)
    computes_the_same(model, expected, frames())
    model.layer2[0] = model.layer2[0].block
    computes_the_same(model, expected, frames())


def test_a_new_module_takes_the_place_and_its_shift():
    model = patch(built(), T)
    fresh = nn.Conv2d(model.layer1[0].conv1.in_channels, model.layer1[0].conv1.out_channels, 3, padding=1)
    model.layer1[0].conv1 = fresh
    assert len(shift_hooks(model)) == 4
    # a block of the same shape, too: its sites have the same names
    model.layer4[0] = copy.deepcopy(unpatch(copy.deepcopy(model)).layer4[0])
    assert len(shift_hooks(model)) == 4
    expected = patch(unpatch(copy.deepcopy(model)), T)
    computes_the_same(model, expected, frames())
    unpatch(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_module_in_two_places_is_replaced_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.BatchNorm2d(16)

        def forward(self, x):
            x = x + self.one(x)
            return x + self.two(x)

    model = Twice().eval()
    patch(model, T, sites=[ShiftSite("one", model.one, 16)], verify=False)
    expected = copy.deepcopy(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert model.one is not model.two
    x = torch.randn(2 * T, 16, 4, 4)
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))


def test_another_model_in_the_place_of_a_patched_one_is_as_it_came():
    holder = nn.ModuleDict({"backbone": patch(built(), T)})
    holder["backbone"] = built()
    assert not is_patched(holder)


LOSSES = {
    "deleted behind the back": lambda m: m.layer2[0]._modules.update(conv1=nn.Conv2d(32, 48, 3, 2, 1)),
    "hooks cleared": lambda m: m.layer3[0].conv1._forward_pre_hooks.clear(),
    "a stage taken out": lambda m: setattr(m, "layer4", nn.Identity()),
    "another block": lambda m: m.layer1.__setitem__(0, nn.Identity()),
}


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("called", [True, False])
def test_a_lost_shift_is_named_by_the_next_call(copied, loss, called):
    model = patch(built(), T)
    if called:
        model(frames())
    LOSSES[loss](model)
    model = copied(model)
    with pytest.raises(RuntimeError, match=r"'layer\d.0.conv1' is gone, .* Call tsm_triton.unpatch"):
        model(frames())
    unpatch(model)


def in_a_wrapper(model: nn.Module) -> None:
    """A block that stands one level deeper than the patch knows, and is not shifted."""
    model.layer1[0] = nn.Sequential(OrderedDict(block=built().layer1[0]))


LOST_CALLS = {
    "compile": lambda m, x: torch.compile(m, backend="eager")(x),
    "compile, fullgraph": lambda m, x: torch.compile(m, backend="eager", fullgraph=True)(x),
    "export": lambda m, x: torch.export.export(m, (x,)),
    "fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "features": lambda m, x: m.forward_features(x),
    "a part": lambda m, x: m.layer1(m.conv1(x)),
}


@pytest.mark.parametrize("called", LOST_CALLS)
def test_a_lost_shift_is_missed_by_whoever_comes_to_its_place(called):
    model = patch(built(), T).eval()
    in_a_wrapper(model)
    # a graph has escaped quotes; the model's record, where it is asked first, knows the whole name
    with pytest.raises(Exception, match=r"what stood at \\?'(layer1\.0\.)?conv1\\?' is gone"):
        LOST_CALLS[called](model, frames())
    unpatch(model)
    torch.compiler.reset()  # Dynamo tries no frame again that raised
    LOST_CALLS[called](model, frames())


def test_a_lost_shift_is_not_saved(tmp_path):
    for loss in (in_a_wrapper, LOSSES["deleted behind the back"]):
        model = patch(built(), T)
        loss(model)
        with pytest.raises(RuntimeError, match="is gone, and the shift with it"):
            save_checkpoint(model, tmp_path / "weights.pt")


def test_a_shift_that_was_lost_comes_back_with_its_place():
    model = patch(built(), T)
    expected, block = copy.deepcopy(model), copy.deepcopy(unpatch(copy.deepcopy(model)).layer1[0])
    in_a_wrapper(model)
    model.layer1[0] = block
    computes_the_same(model, expected, frames())


@pytest.mark.parametrize("change", [dict(num_segments=2 * T), dict(direction="causal"), dict(shift_div=4)])
def test_a_block_that_is_shifted_in_another_way_is_refused(change):
    model, other = patch(built(), T), patch(built(), **{"num_segments": T, **change})
    expected, block = copy.deepcopy(model), model.layer1[0]
    with pytest.raises(
        RuntimeError, match="expected a module that is shifted as the one whose place it takes"
    ):
        model.layer1[0] = other.layer1[0]
    assert model.layer1[0] is block
    computes_the_same(model, expected, frames())
    model.layer1[0] = copy.deepcopy(expected.layer1[0])
    computes_the_same(model, expected, frames())


def test_a_part_put_back_as_a_copy_counts_the_frames_of_the_model():
    model = timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4)
    )
    model = patch(visible(model), T).eval()
    expected = copy.deepcopy(model)
    x = torch.randn(4 * T, 3, 64, 64)
    with torch.no_grad():
        model(x[: 2 * T])
        for block in model.layers[0].blocks:
            block.attn = copy.deepcopy(block.attn)
        for frames_ in (x, x[:T]):
            torch.testing.assert_close(model(frames_), expected(frames_))


@pytest.mark.parametrize("attribute", ["_forward_pre_hooks", "_modules"])
def test_dictionaries_that_are_replaced_are_noticed(attribute):
    model = patch(built(), T)
    model(frames())
    if attribute == "_modules":
        modules = dict(model.layer1[0]._modules)
        modules["conv1"] = built().layer1[0].conv1
        model.layer1[0]._modules = modules
    else:
        model.layer1[0].conv1._forward_pre_hooks = OrderedDict()
    with pytest.raises(RuntimeError, match="'layer1.0.conv1' is gone"):
        model(frames())


def test_a_part_that_was_unpatched_on_purpose_is_not_missed():
    model = patch(built(), T)
    model(frames())
    unpatch(model.layer4)
    expected = patch(built(), T, stages=[0, 1, 2])
    expected.load_state_dict(model.state_dict())
    computes_the_same(model, expected, frames())
    assert len(shift_hooks(copy.deepcopy(model))) == 3


def test_a_lost_frame_counter_is_missed_too():
    model = patch(
        visible(timm.create_model("swinv2_cr_tiny_ns_224", num_classes=5, img_size=64, window_size=2)), T
    )
    counted = [
        m
        for m in model.modules()
        if any("Counter" in type(h).__name__ for h in m._forward_pre_hooks.values())
    ]
    assert counted
    for module in counted:
        for key, hook in list(module._forward_pre_hooks.items()):
            if "Counter" in type(hook).__name__:
                del module._forward_pre_hooks[key]
    with pytest.raises(RuntimeError, match="is gone, and the shift with it"):
        model(torch.randn(T, 3, 64, 64))


def test_a_record_of_stand_ins_goes_on_watching_them(monkeypatch):
    """Children replaced by copies, whose shifts are others that move the same: found once, not at each call."""
    model, x = patch(torchvision.models.resnet18().eval(), num_segments=4), torch.randn(4, 3, 32, 32)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model, name, copy.deepcopy(getattr(model, name)))
    (record,) = (hook for hook in model._forward_pre_hooks.values() if isinstance(hook, PatchRecord))
    searches, find = [], PatchRecord.find
    monkeypatch.setattr(PatchRecord, "find", lambda self, model: searches.append(self) or find(self, model))
    with torch.no_grad():
        for _ in range(3):
            model(x)
        assert searches == [record]
        model.layer2[0]._modules["conv1"] = torch.nn.Conv2d(64, 128, 3, 2, 1)
        with pytest.raises(RuntimeError, match="layer2.0.conv1"):
            model(x)


def test_modules_may_be_in_a_dictionary_of_a_users_own():
    class Noted(dict):
        def get(self, key, default=None):
            return super().get(key, default)

    for kind in (Noted, UserDict):
        model, x = patch(torchvision.models.resnet18().eval(), num_segments=4), torch.randn(4, 3, 32, 32)
        vars(model)["_modules"] = kind(model._modules)
        with torch.no_grad():
            expected = model(x)
            assert torch.equal(model(x), expected)
            model._modules["layer1"] = torch.nn.Identity()
            with pytest.raises(RuntimeError, match="layer1"):
                model(x)


def test_an_eager_call_with_gradients_leaves_compiled_graphs_as_they_are():
    model, x = patch(torchvision.models.resnet18().eval(), num_segments=4), torch.randn(4, 3, 32, 32)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        compiled(x)
    graphs = counter.frame_count
    model(x).sum().backward()
    with torch.no_grad():
        compiled(x)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), torch.fx.symbolic_trace])
def test_a_part_whose_site_copies_itself_stays_shifted(copied, wrap):
    model = patch(visible(timm.create_model("test_resnet")).eval(), T)
    block = model.layer1[0]
    x = torch.randn(2 * T, block.conv1.in_channels, 8, 8)
    block.conv1 = wrap(block.conv1)
    with torch.no_grad():
        expected = block(x)
        assert torch.equal(copied(block)(x), expected)
        assert torch.equal(copied(model)(torch.ones(T, 3, 32, 32)), model(torch.ones(T, 3, 32, 32)))
        with shift_disabled(model):
            assert not torch.equal(block(x), expected)


def delete_first(parent: nn.Module, new: nn.Module) -> None:
    del parent.conv1
    parent.conv1 = new


def write_the_dictionary(parent: nn.Module, new: nn.Module) -> None:
    parent._modules["conv1"] = new


CALLS = {
    "called": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "in one graph": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "in a compiled function": lambda model: torch.compile(
        lambda x: model(x), backend="eager", fullgraph=True
    ),
    "in a compiled classifier": lambda model: torch.compile(
        VideoClassifier(model, T, consensus="identity"), backend="eager"
    ),
    "exported": lambda model: lambda x: torch.export.export(model, (x,)),
    "exported strictly": lambda model: lambda x: torch.export.export(model, (x,), strict=True),
}


# of those that take longest, one way
LOST_UNSEEN = [(call, lose) for call in CALLS for lose in (delete_first, write_the_dictionary)]
LOST_UNSEEN.remove(("in a compiled classifier", write_the_dictionary))
LOST_UNSEEN.remove(("exported strictly", delete_first))


@pytest.mark.parametrize(("call", "lose"), LOST_UNSEEN)
def test_a_shift_that_is_lost_unseen_is_missed_by_calls_and_graphs(call, lose):
    torch.compiler.reset()
    model, x = patch(built(), T), frames(32)
    run = CALLS[call](model)
    copied = CALLS[call](copy.deepcopy(model))
    with torch.no_grad():
        run(x)
        lose(model.layer1[0], nn.Conv2d(32, 32, 3, padding=1, bias=False))
        for each in (run, CALLS[call](model)):
            with pytest.raises(RuntimeError, match="what stood at 'layer1.0.conv1' is gone"):
                each(x)
        copied(x)


def test_a_class_that_is_taken_back_is_copied_as_itself():
    model = built()
    nn.utils.parametrizations.spectral_norm(model.layer1[0].conv1)
    patch(model, T)
    nn.utils.parametrize.remove_parametrizations(model.layer1[0].conv1, "weight")
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(frames(32).fill_(1)), model(frames(32).fill_(1)))
