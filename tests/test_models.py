"""create_model, the layers that the authors put beside the shift, and the models that timm lists."""

import json
from urllib.error import URLError

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import tsm_triton
import tsm_triton.models
from tsm_triton import VideoClassifier, create_model
from tsm_triton.backbones import add_non_local, create_backbone
from tsm_triton.cli import main
from tsm_triton.modules import DropoutLinear, NonLocal, RecurrentHead, TemporalPool
from tsm_triton.patching.hooks import shift_hooks

from .video_files import write_video

T = 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", dict(direction="causal", shift_div=4)),
        ("torchvision/resnet18", dict(place="block")),
        ("torchvision/mobilenet_v2", {}),
    ],
)
def test_create_model_gives_a_patched_model_with_its_head(name, options):
    model = create_model(name, T, num_classes=7, **options)
    assert model.eval()(torch.randn(2 * T, 3, 64, 64)).shape == (2 * T, 7)
    for hook in shift_hooks(model):
        assert {key: getattr(hook, key) for key in options} == options
        assert hook.num_segments == T
    assert create_model("test_resnet").num_classes == 174


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18", "torchvision/mobilenet_v2"])
def test_dropout_stands_before_the_head_and_changes_no_key(name):
    model = create_model(name, T, 3, dropout=0.5)
    assert model.state_dict().keys() == create_model(name, T, 3, dropout=0).state_dict().keys()
    frames = torch.randn(T, 3, 64, 64)
    for dropout, drops in ((0.5, True), (0, False)):
        model = create_model(name, T, 3, dropout=dropout)
        assert (
            torch.equal(model(frames), model(frames)) != drops
        )  # batch norms take the statistics of the same frames
        assert torch.equal(model.eval()(frames), model(frames))


def test_a_dropped_head_is_saved_and_built_again(tmp_path):
    model = create_model("torchvision/resnet18", T, 3)
    assert isinstance(model.fc, DropoutLinear)
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt")
    again, frames = tsm_triton.load_checkpoint(tmp_path / "a.pt"), torch.randn(T, 3, 32, 32)
    assert torch.equal(again(frames), model.eval()(frames))


@pytest.mark.parametrize("name", ["test_vit", "torchvision/vit_b_32"])
def test_a_table_of_positions_is_of_the_size_that_is_asked_for(name, tmp_path):
    model = create_model(name, T, 3, size=64).eval()
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt", labels=["a", "b", "c"])
    again, frames = tsm_triton.load_checkpoint(tmp_path / "a.pt"), torch.randn(T, 3, 64, 64)
    assert torch.equal(again(frames), model(frames))


def test_the_pool_is_the_authors():
    x = torch.randn(2 * T, 3, 5, 5)
    clips = x.unflatten(0, (2, T)).transpose(1, 2)
    expected = F.max_pool3d(clips, (3, 1, 1), (2, 1, 1), (1, 0, 0)).transpose(1, 2).flatten(0, 1)
    assert torch.equal(TemporalPool(T)(x), expected)


def test_behind_a_pool_clips_have_half_the_frames():
    model = create_model("test_resnet", 4, 5, temporal_pool=True).eval()
    assert [hook.num_segments for hook in shift_hooks(model)] == [4, 2, 2, 2]
    classifier, clips = VideoClassifier(model), torch.randn(2, 8, 3, 64, 64)
    inside = []
    model.layer4.register_forward_hook(lambda *_: inside.extend(h.num_segments for h in shift_hooks(model)))
    assert classifier(clips).shape == (2, 5)
    assert inside == [8, 4, 4, 4]
    assert [hook.num_segments for hook in shift_hooks(model)] == [4, 2, 2, 2]
    assert VideoClassifier(model, consensus="identity")(clips).shape == (2, 4, 5)
    alone = torch.cat([classifier(clip[None]) for clip in clips])
    torch.testing.assert_close(classifier(clips), alone)
    with pytest.raises(ValueError, match="whose frames TemporalPool can halve, got 3"):
        classifier(clips[:, :3])
    assert model.layer2.pool.num_segments == 4


def test_non_local_blocks_stand_where_the_authors_put_them():
    model = create_model("resnet50", T, 5, non_local="dot_product")
    names = [name for name, module in model.named_modules() if isinstance(module, NonLocal)]
    assert names == [
        f"layer{stage}.{block}.non_local" for stage, block in ((2, 0), (2, 2), (3, 0), (3, 2), (3, 4))
    ]
    assert len(shift_hooks(model)) == 16
    tsm_triton.set_num_segments(model, 2)
    assert model.layer3[4].non_local.num_segments == 2


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product", "gaussian"])
def test_a_non_local_block_mixes_a_clip_and_no_other(mode):
    layer = NonLocal(16, T, mode).eval()
    nn.init.ones_(layer.norm.weight)
    x = torch.randn(2 * T, 16, 4, 4)
    changed = x.clone()
    changed[1] += 1
    reached = (layer(x) != layer(changed)).flatten(1).any(1)
    assert reached.tolist() == [True] * T + [False] * T
    with pytest.raises(ValueError, match="divisible by num_segments=4, got 7 frames"):
        layer(x[:7])


def test_a_recurrent_head_reads_its_clip():
    head = RecurrentHead(8, 3, num_segments=T).eval()
    x = torch.randn(2 * T, 8)
    torch.testing.assert_close(head(x)[:T], head(x[:T]))
    assert head(x).shape == (2 * T, 3)


@pytest.mark.parametrize(
    "use",
    [
        tsm_triton.Streaming,
        tsm_triton.fuse,
        lambda model: tsm_triton.packed_clips(model, [4]).__enter__(),
        lambda model: VideoClassifier(model)(torch.randn(4, 3, 64, 64), clip_lengths=[4]),
    ],
    ids=["Streaming", "fuse", "packed_clips", "clip_lengths"],
)
def test_what_knows_nothing_of_whole_clips_refuses_them(use):
    model = create_model("test_resnet", T, 5, direction="causal").eval()
    model.fc = RecurrentHead(model.fc.in_features, 5, num_segments=T).eval()
    with pytest.raises(RuntimeError, match="frames meet in patched shifts alone, got RecurrentHead at 'fc'"):
        use(model)


def test_one_graph_serves_clips_of_every_length():
    model = create_model("test_resnet", T, 5, temporal_pool=True).eval()
    add_non_local(model, T // 2, "embedded_gaussian", {"layer2": [0]})
    nn.init.ones_(model.layer2.stage[0].non_local.norm.weight)
    classifier = VideoClassifier(model)
    graph = torch.compile(classifier, backend="eager", fullgraph=True)
    with torch.no_grad():
        for frames in (4, 8, 2):
            clips = torch.randn(2, frames, 3, 64, 64)
            torch.testing.assert_close(graph(clips), classifier(clips))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("resnet1"), "Did you mean resnet"),
        (lambda: create_model("torchvision/resnet19"), "Did you mean torchvision/"),
        (lambda: create_model("test_resnet", dropout=1), "dropout must be from 0"),
        (lambda: create_model("test_resnet", place="x"), "place must be one of"),
        (lambda: create_model("test_resnet", non_local="x"), "3 blocks or more in layer2"),
        (lambda: create_model("test_vit", temporal_pool=True), "temporal_pool: expected a ResNet"),
        (lambda: create_model("test_resnet", 3, temporal_pool=True), "num_segments must be even"),
        (lambda: NonLocal(8, T, "x"), "mode must be one of"),
        (lambda: create_model("torchvision/squeezenet1_0"), "ends in a linear layer, got SqueezeNet"),
    ],
)
def test_what_no_model_is_made_of_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_of_images_that_cannot_be_downloaded_are_said(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ValueError, match="expected weights of 'torchvision/resnet18'.*URLError.*no route to host"
    ):
        tsm_triton.create_model("torchvision/resnet18", pretrained=True)
    write_video(tmp_path / "a.mp4", 4)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    for name in ("resnet18", "mobilenetv2_035"):  # which cannot be reached, and of which there are none
        assert main(["classify", str(tmp_path / "a.mp4"), "--model", name]) == 2
        error = capsys.readouterr().err
        assert f"expected weights of '{name}', which its library downloads" in error
        assert "Check the network" in error
    with pytest.raises(TypeError):  # of arguments
        create_backbone("resnet18", pretrained=True, odd=1)


def test_timm_lists_shifted_models_once_they_are_imported():
    assert {"tsm_resnet50", "tsm_mobilenetv2_100", "tsm_regnety_002"} <= set(timm.list_models("tsm*"))
    assert "tsm_resnet50.mit_k400_8f" in timm.list_pretrained("tsm*")
    assert "tsm_resnet18" not in timm.list_pretrained("tsm*")


def test_timm_creates_shifted_models_with_its_own_options():
    model = timm.create_model(
        "tsm_resnet18", num_segments=T, direction="causal", num_classes=5, drop_rate=0.3
    )
    assert (model.num_classes, model.drop_rate) == (5, 0.3)
    assert {(hook.num_segments, hook.direction) for hook in shift_hooks(model)} == {(T, "causal")}
    model = timm.create_model("tsm_resnet50.mit_k400_16f")
    assert (model.num_classes, shift_hooks(model)[0].num_segments) == (400, 16)


def test_timms_pretrained_configurations_take_ones_own_weights(tmp_path):
    model = create_model("resnet18", T, 5, direction="causal")
    tsm_triton.save_checkpoint(model, tmp_path / "model.safetensors", list("abcde"))
    overlay = dict(file=str(tmp_path / "model.safetensors"), num_classes=5)
    options = dict(pretrained=True, num_segments=T, direction="causal")
    again = timm.create_model("tsm_resnet18", pretrained_cfg_overlay=overlay, **options)
    assert torch.equal(again.fc.weight, model.fc.weight)
    assert again.pretrained_cfg["label_names"] == list("abcde")
    said = timm.create_model(
        "tsm_resnet18", pretrained=True, pretrained_cfg_overlay=overlay, direction="causal"
    )
    assert {hook.num_segments for hook in shift_hooks(said)} == {T}
    fewer = timm.create_model("tsm_resnet18", pretrained_cfg_overlay=overlay, num_classes=3, **options)
    assert fewer.fc.weight.shape == (3, 512)
    assert torch.equal(fewer.conv1.weight, model.conv1.weight)
    with pytest.raises(ValueError, match="direction='causal'.*got direction='bidirectional'"):
        timm.create_model("tsm_resnet18", pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(ValueError, match="got pretrained=True and none named"):
        timm.create_model("tsm_resnet18", pretrained=True)
    # what `hf-hub:` does with a repository, of a folder
    config = {"architecture": "tsm_resnet18", "num_classes": 5, "model_args": {"direction": "causal"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {}}))
    hub = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(hub.fc.weight, model.fc.weight)
