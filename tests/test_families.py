"""Patched models of every layout with numbers: who reaches whom, through every entrance and compiler."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
import torchvision
from networks import T, on_meta, reached, visible
from timm.utils.model import reparameterize_model
from torch import nn

import tsm_triton
from tsm_triton import ShiftSite, find_sites, patch, shift_disabled, unpatch
from tsm_triton.patching.hooks import shift_hooks

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


def test_windows_of_frames_that_the_model_was_not_called_with_are_refused():
    model, frames = small("swinv2_tiny_window8_256")
    patch(model, T, example_input=frames)
    attention, windows, outputs = model.layers[0].blocks[0].attn, [], []
    handles = [
        attention.register_forward_pre_hook(lambda _, args: windows.append(args[0]), prepend=True),
        attention.register_forward_hook(lambda _, args, output: outputs.append(output)),
    ]
    with torch.no_grad():
        model(frames)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(attention(windows[0]), outputs[0])
        model(frames[:T])
        with pytest.raises(RuntimeError, match="windows of the 4 frames that the model was last called with"):
            attention(windows[0])


def test_a_shift_of_windows_that_is_compiled_alone_counts_the_frames_of_its_call():
    model, frames = small("swinv2_tiny_window8_256")
    patch(model, T, example_input=frames)
    with torch.no_grad():
        whole, half = model(frames), model(frames[:T])
        torch.compile(model, backend="eager")(frames[:T])
        for layer in model.layers:
            for block in layer.blocks:
                block.attn.compile(backend="eager")
        torch.testing.assert_close(model(frames), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(frames[:T]), half, rtol=1e-4, atol=1e-5)


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


def test_checkpointed_blocks_run_again_on_another_thread():
    # as on a GPU; TNT counts the frames outside of its checkpointed blocks
    model = visible(timm.create_model("tnt_s_legacy_patch16_224", num_classes=5, img_size=32, depth=2))
    frames = torch.randn(2 * T, 3, 32, 32)
    patch(model, T, example_input=frames)
    grads = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        loss = model(frames).square().sum()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(loss.backward).result()
        grads.append(next(model.parameters()).grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", ["repvit_m0_9", "nextvit_small", "tiny_vit_5m_224"])
def test_a_patch_survives_reparameterisation(name):
    model = visible(timm.create_model(name, num_classes=5))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as trained: zeros before a norm are no zeros behind it
            module.running_mean.normal_(std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    frames = torch.randn(2 * T, 3, 64, 64)
    patch(model, T, example_input=frames)
    count = len(shift_hooks(model))
    with torch.no_grad():
        before = model(frames)
        model = reparameterize_model(model)
        assert len(shift_hooks(model)) == count
        torch.testing.assert_close(model(frames), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "sites", "chosen"), [("nextvit_small", 20, 44), ("tiny_vit_5m_224", 20, 22)]
)
def test_what_reparameterisation_would_lose_is_shifted_on_request_only(name, sites, chosen):
    model = on_meta(name)
    assert len(find_sites(model)) == sites
    assert len(find_sites(model, filter_fn=lambda module, name: True)) == chosen


def test_blocks_of_a_model_without_residuals_see_their_neighbours():
    model = visible(torchvision.models.squeezenet1_1(num_classes=5))
    frames = torch.randn(2 * T, 3, 32, 32)
    patch(model, T, place="block")
    assert reached(model, frames, 1) == [True] * T + [False] * T


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0"])
def test_drop_path_changes_no_site(name):
    models = [timm.create_model(name, num_classes=5, drop_path_rate=rate) for rate in (0.0, 0.5)]
    plain, dropping = (patch(model, num_segments=2) for model in models)
    assert [site.name for site in find_sites(plain)] == [site.name for site in find_sites(dropping)]
    dropping.load_state_dict(plain.state_dict())
    frames = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(dropping.eval()(frames), plain.eval()(frames))
        different = dropping.train()(frames)
    assert different.isfinite().all()
    assert different.shape == (2, 5)
