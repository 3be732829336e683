"""docs/migration.md, row by row: each is run, and gives what the call on its left does, written out here by slices."""

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch
from published_networks import (
    FRAMES,
    MobileNet,
    PaddleResNet,
    Recurrent,
    RegNet,
    ResNet,
    Shifted,
    shift_resnet,
    shifted,
    trained,
)
from safetensors.torch import save_file
from test_published import OPENSPORTS, keys, logits, paddle_keys
from torch import nn

from tsm_triton import VideoClassifier, unpatch
from tsm_triton.cli import main
from tsm_triton.modules import NonLocal, TemporalPool
from tsm_triton.patching.hooks import shift_hooks

from .video_files import write_video

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"
T, CLASSES, CLIPS = 8, 5, FRAMES[None]
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
ROWS = [
    pytest.param(there, here, id=f"{section.split()[0]} {number}")
    for section in SECTIONS
    for number, (there, here) in enumerate(re.findall(r"^\| (.*`.*) \| `(.*)` \|$", section, re.MULTILINE), 1)
]
AUTHORS = "TSM_kinetics_RGB_resnet18_shift8_blockres_avg_segment8_e50.pth"
ONLINE = "mobilenetv2_jester_online.pth.tar"
MMACTION2 = "tsm_imagenet-pretrained-r18_8xb16-1x1x8-50e_kinetics400-rgb.pth"


def published(folder):
    """Files under the page's names, of networks written from the layouts' tables: name -> their logits."""
    net, fc = trained(shift_resnet(ResNet(18), T, "blockres"), nn.Linear(512, CLASSES))
    made = {AUTHORS: (keys({"module.base_model.": net, "module.new_fc.": fc}), net, fc)}
    net, fc = trained(MobileNet(T, wrap=False, causal=True), nn.Linear(1280, 27))
    made[ONLINE] = keys({"": net, "classifier.": fc}), net, fc
    net, fc = trained(shift_resnet(ResNet(18, mm=True), T, "blockres", mm=True), nn.Linear(512, CLASSES))
    made[MMACTION2] = keys({"backbone.": net, "cls_head.fc_cls.": fc}), net, fc
    for name, tweaked in (("TSM_k400.safetensors", False), ("ppTSM_k400_uniform.safetensors", True)):
        net, fc = trained(PaddleResNet(50, T, tweaked), nn.Linear(2048, CLASSES))
        made[name] = paddle_keys(keys({"backbone.": net, "head.fc.": fc})), net, fc
    for name, (features, head) in (
        ("checkpoint_049.pt", ("_features.", "_pred_fine.")),
        ("best.pt", OPENSPORTS),
    ):
        net, fc = trained(RegNet(T), Recurrent(368, CLASSES, frames=T))
        made[name] = keys({features: net, head: fc}), net, fc
    for name, (state, *_) in made.items():
        if name.endswith(".safetensors"):
            save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
        else:
            torch.save({"state_dict": state}, folder / name)
    return {name: logits(*parts) for name, (_, *parts) in made.items()}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page's words stand for, its imports, and where its files lie."""
    folder = tmp_path_factory.mktemp("migration")
    (folder / "videos" / "one").mkdir(parents=True)
    for video in ("video.mp4", "videos/one/video.mp4"):
        write_video(folder / video, 16)
    (folder / "list.txt").write_text("video.mp4 0\n")
    (folder / "classes.txt").write_text("zero\none\ntwo\nthree\nfour\n")
    torch.manual_seed(0)
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = {"folder": folder, "published": published(folder)}
    exec(block[1], found)
    found["x"], found["layer"] = torch.randn(2 * T, 16, 5, 5), nn.Conv2d(16, 4, 1)
    found["video"] = torch.randint(0, 256, (1, T, 3, 300, 400), dtype=torch.uint8)
    found["clips"], found["frame"] = CLIPS, FRAMES[:1]
    return found


@pytest.fixture
def fresh(names, here, monkeypatch):
    """The names, with networks that no row has changed yet."""
    monkeypatch.chdir(names["folder"])
    words = re.findall(r"\w+", here)
    if "net" in words:
        names["net"] = names["torchvision"].models.resnet18()
    if "model" in words:
        (names["model"],) = trained(names["create_model"]("torchvision/resnet18", T, CLASSES))
    return names


def by_hand(net, place, order):
    """torchvision's ResNet or timm's RegNet, with a layer that slices before each block, or its first convolution."""
    for name in ("layer1", "layer2", "layer3", "layer4", "s1", "s2", "s3", "s4"):
        for number, block in getattr(net, name, nn.Sequential()).named_children():
            if place == "block":
                setattr(getattr(net, name), number, Shifted(block, T))
            else:
                block.conv1 = Shifted(block.conv1, T, order=order)
    return net


def is_shifted(place="blockres", order="future_first"):
    """That a patched network computes what one shifted by hand does, and not what the plain one does."""

    def check(result, names):
        (net,) = trained(result)
        plain = unpatch(copy.deepcopy(net))
        with torch.no_grad():
            rows, unshifted = net(FRAMES), plain(FRAMES)
            torch.testing.assert_close(rows, by_hand(plain, place, order)(FRAMES), rtol=1e-3, atol=1e-3)
        assert (rows - unshifted).abs().max() > 0.01

    return check


def holds(shifts, rows, kind=None, **attributes):
    """How many shifts a model has, of T frames, which rows it gives, and the layers that stand beside the shifts."""

    def check(result, names):
        inputs = CLIPS if isinstance(result, VideoClassifier) else FRAMES
        assert len(shift_hooks(getattr(result, "model", result))) == shifts
        with torch.no_grad():
            assert result.eval()(inputs).shape == rows
        found = [module for module in result.modules() if kind is not None and isinstance(module, kind)]
        assert len(found) == (0 if kind is None else 5 if kind is NonLocal else 1)
        assert all(getattr(layer, name) == value for layer in found for name, value in attributes.items())

    return check


def gives(name):
    def check(result, names):
        with torch.no_grad():
            torch.testing.assert_close(result(FRAMES), names["published"][name], rtol=1e-4, atol=1e-4)

    return check


def is_exactly(values):
    def check(result, names):
        assert torch.equal(result, torch.as_tensor(values(names)))

    return check


def has_shape(*shape):
    def check(result, names):
        assert result.shape == shape
        assert result.is_floating_point()

    return check


def first_frame(result, names):  # of a stream: what it gives for the first frame of a clip
    torch.testing.assert_close(result, names["published"][ONLINE][:1], rtol=1e-4, atol=1e-4)


def rates(result, names):  # the head's weights learn 5 times as fast, its bias 10 times
    learnt = {id(value): group for group in result for value in group["params"]}
    head = [module for module in names["model"].modules() if isinstance(module, nn.Linear)][-1]
    first = learnt[id(next(names["model"].parameters()))]
    assert [learnt[id(value)]["lr"] for value in (head.weight, head.bias)] == pytest.approx([0.05, 0.1])
    assert (first["lr"], first["weight_decay"]) == (0.01, 5e-4)
    assert learnt[id(head.bias)]["weight_decay"] == 0


def only_the_first_norm_learns(result, names):
    norms = [module for module in result.train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [True] + [False] * (len(norms) - 1)


def of_the_list(result, names):
    clip, label = result[0]
    assert (len(result), label, clip.shape) == (1, 0, (T, 3, 64, 160))


def is_rows_of_model(combined):
    def check(result, names):
        with torch.no_grad():
            rows = names["model"].eval()(FRAMES)
        torch.testing.assert_close(result, combined(rows), rtol=1e-4, atol=1e-5)

    return check


def mean_of_probabilities(result, names):  # over two views, of which one is mirrored
    with torch.no_grad():
        views = [
            names["model"](frames).mean(0, keepdim=True).softmax(-1) for frames in (FRAMES, FRAMES.flip(-1))
        ]
    torch.testing.assert_close(result, (views[0] + views[1]) / 2, rtol=1e-4, atol=1e-5)


def spots(result, names):
    assert {hook.num_segments for hook in shift_hooks(result[0])} == {T}
    with torch.no_grad():
        rows = result.eval()(FRAMES)
        assert rows.shape == (T, CLASSES)
        torch.testing.assert_close(rows, result[1](result[0](FRAMES)))


def of_probabilities(result, names):
    assert result.min() >= 0
    torch.testing.assert_close(result.sum(-1), torch.ones(1))


def scored(result, names):
    assert result == 0
    assert (names["folder"] / "eval" / "results.json").exists()


def uniform(_=None):
    return [[int(300 / T / 2 + 300 / T * i) for i in range(T)]]


def dense(_):
    starts = [int(236 * k / 9) for k in range(10)]
    return [[(i * 8 + start) % 300 for i in range(T)] for start in starts]


SHIFT = is_exactly(lambda names: shifted(names["x"], T))
BLOCK = is_shifted("block")
CHECKS = {
    "temporal_shift(x, 8, shift_div=8)": SHIFT,
    "temporal_shift(x, 8, shift_div=8, fold_order=": is_exactly(
        lambda names: shifted(names["x"], T, order="past_first")
    ),
    "temporal_shift(x, 8, shift_div=4, fold_order=": is_exactly(
        lambda names: shifted(names["x"], T, 4, order="past_first")
    ),
    "temporal_shift(x.permute": is_exactly(
        lambda names: shifted(names["x"], T, order="past_first").permute(0, 2, 3, 1)
    ),
    "nn.Sequential(modules.TemporalShift": lambda result, names: torch.testing.assert_close(
        result(names["x"]), names["layer"](shifted(names["x"], T))
    ),
    "patch(net, 8, shift_div=8)": is_shifted(),
    'patch(net, 8, shift_div=8, place="block")': BLOCK,
    'patch(torchvision.models.resnet18(), 8, shift_div=8, place="blockres")': is_shifted(),
    'patch(torchvision.models.resnet18(), 8, place="block")': BLOCK,
    "patch(torchvision.models.resnet50(), 8, shift_div=8, fold_order=": is_shifted(order="past_first"),
    "patch(torchvision.models.mobilenet_v2(), 8)": holds(10, (T, 1000)),
    'patch(timm.create_model("regnety_002"': BLOCK,
    'VideoClassifier(create_model("torchvision/resnet18"': holds(8, (1, 174)),
    'VideoClassifier(create_model("torchvision/mobilenet_v2"': holds(10, (1, 174)),
    'create_model("torchvision/resnet50", 8, 174, non_local=': holds(
        16, (T, 174), NonLocal, mode="embedded_gaussian"
    ),
    'create_model("torchvision/resnet50", 8, 400, non_local=': holds(
        16, (T, 400), NonLocal, mode="dot_product"
    ),
    'create_model("torchvision/resnet18", 8, 174, temporal_pool=': holds(8, (T // 2, 174), TemporalPool),
    'create_model("torchvision/resnet18", 8, 400, temporal_pool=': holds(8, (T // 2, 400), TemporalPool),
    **{
        f'load_checkpoint("{name}"': gives(name)
        for name in (
            AUTHORS,
            MMACTION2,
            "TSM_k400.safetensors",
            "ppTSM_k400_uniform.safetensors",
            "checkpoint_049.pt",
            "best.pt",
        )
    },
    "Streaming(load_checkpoint(": first_frame,
    "training.optimizer_groups(": rates,
    "training.freeze_batch_norm(": only_the_first_norm_learns,
    "VideoDataset(read_listing(": of_the_list,
    "sample_frames(300, 8)": is_exactly(uniform),
    'sample_frames(300, 8, "dense")': is_exactly(dense),
    'sample_frames(300, 8, "twice")': is_exactly(
        lambda _: [*uniform(), [int(300 / T * i) for i in range(T)]]
    ),
    "train_transform(224)(video)": has_shape(1, T, 3, 224, 224),
    "train_transform(224, flip=False)(video)": has_shape(1, T, 3, 224, 224),
    "eval_transform(224, short_side=256)(video)": has_shape(1, T, 3, 224, 224),
    "eval_transform(256, short_side=256, views=3)(video)": has_shape(1, 3, T, 3, 256, 256),
    "eval_transform(224, short_side=256, views=10)(video)": has_shape(1, 10, T, 3, 224, 224),
    'VideoClassifier(model, 8, consensus="avg")(clips)': is_rows_of_model(lambda rows: rows.mean(0)[None]),
    'VideoClassifier(model, 8, view_average="softmax")(torch.stack(': mean_of_probabilities,
    'VideoClassifier(model, 8, consensus="identity")(clips).softmax(-1)': is_rows_of_model(
        lambda rows: rows.softmax(-1)[None]
    ),
    'VideoClassifier(model, 8, view_average="softmax")(transform_for(': of_probabilities,
    'nn.Sequential(patch(timm.create_model("regnety_002", num_classes=0': spots,
    "tsm-triton eval videos": scored,
}


@pytest.mark.parametrize(("there", "here"), ROWS)
def test_a_row_gives_what_the_call_on_its_left_does(there, here, fresh):
    fitting = [key for key in CHECKS if here == key or (here.startswith(key) and not key.endswith(")"))]
    assert len(fitting) == 1, f"expected one check of {here}, got {fitting}: write it"
    if here.startswith("tsm-triton"):
        result = main([*shlex.split(here)[1:], "--device", "cpu", "--workers", "0"])
    else:
        with torch.set_grad_enabled("patch" in here or "training" in here):
            result = eval(here, fresh)
    CHECKS[fitting[0]](result, fresh)


def test_every_line_of_a_table_is_a_row():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and "---" not in line]
    assert len(lines) - len(SECTIONS) == len(ROWS) > 40
