"""What a training is made of: the order of clips, groups of weights, frozen statistics, mixed clips, settings."""

import copy
import io
import pickle
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset, random_split

import tsm_triton
from tsm_triton import training
from tsm_triton.torch_private import forward_hooks, pre_hooks
from tsm_triton.training import (
    Settings,
    devices,
    fit,
    freeze_batch_norm,
    loop,
    optimisation,
    optimizer_groups,
    read_recipe,
)
from tsm_triton.training.fitting import Stopped
from tsm_triton.training.machine import placed
from tsm_triton.training.memory import checkpoint_activations
from tsm_triton.training.metrics import Scores
from tsm_triton.training.optimisation import make_mixing, make_optimizer, make_scheduler
from tsm_triton.training.order import EpochBatches, EvalBatches

CPU = torch.device("cpu")


def batches(length, size, epoch=1, step=0, **shares):
    order = EpochBatches(length, size, 7, **shares)
    order.start(epoch, step)
    return list(order)


def test_an_epoch_holds_every_clip_in_an_order_of_its_own():
    first, second = batches(10, 4), batches(10, 4, epoch=2)
    assert first == batches(10, 4)
    assert first != second
    for whole in (first, second):
        assert [len(batch) for batch in whole] == [4, 4, 4]
        assert set(chain(*whole)) == set(range(10))
    assert batches(10, 4, step=2) == first[2:]
    # fewer clips than a batch are not shown twice
    assert sorted(chain(*batches(3, 64))) == [0, 1, 2]


@pytest.mark.parametrize(("parts", "world"), [(1, 2), (2, 1), (2, 2)])
def test_processes_and_parts_share_the_batches_of_one(parts, world):
    whole = batches(10, 4)
    shares = [batches(10, 4, parts=parts, world=world, rank=rank) for rank in range(world)]
    for step, batch in enumerate(whole):
        mine = [share[step * parts : (step + 1) * parts] for share in shares]
        assert sorted(chain(*chain(*mine))) == sorted(batch)


def test_every_clip_is_tested_once_however_many_processes_there_are():
    for world in (1, 2, 3):
        seen, counts = [], set()
        for rank in range(world):
            order = EvalBatches(7, 6, rank, world)
            counts.add(len(order))
            seen += [clip for batch, real in zip(order, order.real, strict=True) for clip in batch[:real]]
        assert sorted(seen) == list(range(7))
        assert len(counts) == 1


def test_the_groups_are_those_of_the_authors():
    model = tsm_triton.patch(timm.create_model("resnet18", num_classes=5))
    groups = {group["name"]: group for group in optimizer_groups(model, lr=0.01, weight_decay=1e-4)}
    parameters = dict(model.named_parameters())
    held = [parameter for group in groups.values() for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in parameters.values()}
    assert len(held) == len(parameters)
    assert [id(p) for p in groups["first_conv_weight"]["params"]] == [id(parameters["conv1.weight"])]
    assert [id(p) for p in groups["head_weight"]["params"]] == [id(parameters["fc.weight"])]
    assert [id(p) for p in groups["head_bias"]["params"]] == [id(parameters["fc.bias"])]
    times = {name: (group["lr_mult"], group["decay_mult"]) for name, group in groups.items()}
    assert times == {
        "first_conv_weight": (1, 1),
        "normal_weight": (1, 1),
        "batch_norm": (1, 0),
        "head_weight": (5, 1),
        "head_bias": (10, 0),
    }
    # and a schedule keeps them apart
    settings = Settings(
        opt="sgd", lr=0.01, groups="authors", sched="multistep", milestones=(1,), warmup_epochs=0
    )
    optimizer = make_optimizer(model, settings)
    make_scheduler(optimizer, settings, steps_per_epoch=3).step_update(3)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({name: 0.001 * lr for name, (lr, _) in times.items()})


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_every_parameter_of_any_network_is_in_one_group(name):
    model = timm.create_model(name, num_classes=3)
    held = [parameter for group in optimizer_groups(model) for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    by_name = {group["name"]: group["params"] for group in optimizer_groups(model)}
    assert [p.shape[0] for p in by_name["head_weight"]] == [3]


class Behind(torch.nn.Module):
    """A backbone, and a head that stands before it in the order of modules."""

    def __init__(self, net):
        super().__init__()
        self.head = torch.nn.Linear(net.num_features, 3)
        self.net = net

    def forward(self, x):
        return self.head(self.net(x))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
@pytest.mark.parametrize(
    "wrap", [lambda net: torch.nn.Sequential(net, torch.nn.Linear(net.num_features, 3)), Behind]
)
def test_a_head_behind_a_backbone_is_one(name, wrap):
    backbone = timm.create_model(name, num_classes=0)
    assert "head_weight" not in {group["name"] for group in optimizer_groups(backbone)}
    groups = {group["name"]: group["params"] for group in optimizer_groups(wrap(backbone))}
    assert [p.shape[0] for p in (*groups["head_weight"], *groups["head_bias"])] == [3, 3]


def test_frozen_batch_norms_stay_as_they_are():
    model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=2), 2)
    assert freeze_batch_norm(model) is model
    pickled = pickle.load(io.BytesIO(pickle.dumps(model)))
    for held in (model, copy.deepcopy(model), pickled):
        held.train()
        norms = [module for module in held.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [norm.running_mean.clone() for norm in norms]
        held(torch.randn(4, 3, 32, 32)).sum().backward()
        moved = [not torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True)]
        assert moved == [True] + [False] * (len(norms) - 1)
        assert [norm.weight.grad is not None for norm in norms] == moved
    freeze_batch_norm(model, keep_first=False).train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_clip_is_mixed_with_one_other_alike_in_all_frames():
    mix = make_mixing(Settings(mixup=1.0), num_classes=3)
    assert mix is not None
    labels = torch.tensor([0, 1, 2, 0])
    video = (
        torch.eye(4)[:, :, None, None, None].expand(4, 4, 3, 8, 8).clone()
    )  # frame t of clip n is 1 where t == n
    mixed, targets = mix(video, labels)
    assert mixed.shape == (4, 4, 3, 8, 8)
    share = mixed[0, 0, 0, 0, 0]
    assert torch.allclose(mixed[0, 3], (1 - share).expand(3, 8, 8))
    assert torch.allclose(targets.sum(1), torch.ones(4))
    assert targets[1, 1] == pytest.approx(share.item(), abs=1e-6)
    # the last clip of an odd batch has no partner
    mixed, targets = mix(video[:3].clone(), labels[:3])
    assert torch.equal(mixed[2], video[2])
    assert torch.equal(targets[2], torch.tensor([0.0, 0.0, 1.0]))
    assert not torch.equal(mixed[0], video[0])


def frozen(seed: int = 0) -> nn.Module:
    """Without batch statistics, parts of a batch and the whole of it are the same."""
    torch.manual_seed(seed)
    model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=3), 2)
    return tsm_triton.VideoClassifier(freeze_batch_norm(model, keep_first=False), 2)


def clips(count: int = 8) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 2, 3, 24, 24, generator=generator), torch.arange(count) % 3)


def trained(**settings) -> dict[str, torch.Tensor]:
    model = frozen()
    settings = Settings(**{"epochs": 2, "batch_size": 4, "opt": "sgd", "lr": 0.05, **settings})
    fit(model, clips(), settings=settings, num_classes=3, device=CPU)
    return model.state_dict()


@pytest.mark.parametrize("tested", [False, True])
def test_a_model_around_one_in_eval_mode_is_trained_whole_in_every_epoch(tested):
    class Wrapped(nn.Module):  # its own mode is training, as of any new module
        def __init__(self) -> None:
            super().__init__()
            patched = tsm_triton.patch(timm.create_model("test_resnet", num_classes=3), 2)
            self.inner = tsm_triton.VideoClassifier(patched, 2).eval()

        def forward(self, clips):
            return self.inner(clips)

    model = Wrapped()
    kept = freeze_batch_norm(copy.deepcopy(model))
    seen = next(norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)).num_batches_tracked
    for epochs in (1, 2):
        before = int(seen)
        for each in (model, kept):
            fit(
                each,
                clips(),
                clips() if tested else None,
                Settings(epochs=epochs, batch_size=4),
                num_classes=3,
            )
        assert int(seen) - before == 2 * epochs
    still = [norm for norm in kept.modules() if isinstance(norm, nn.BatchNorm2d)][1:]
    assert not any(norm.num_batches_tracked for norm in still)


def test_parts_and_recomputed_activations_change_nothing():
    whole = trained()
    for other in (trained(accumulate=2), trained(checkpoint_activations=True)):
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, msg=lambda m, key=key: f"{key}: {m}")
    assert any(not torch.equal(value, whole[key]) for key, value in trained(clip_grad=0.01).items())


class Around(nn.Module):
    """A block with a buffer that it moves itself, and one that no memory is behind."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mask", torch.ones(1, 1).expand(4, 4), persistent=False)

    def forward(self, x):
        self.seen = self.seen + 1
        return self.layer(x).relu() * self.mask[0, 0]


class Normed(nn.Module):
    """Blocks of layers that move what they hold, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.BatchNorm2d(6),
            nn.BatchNorm2d(6, momentum=None),
            nn.InstanceNorm2d(6, track_running_stats=True),
        ]
        self.blocks = nn.Sequential(*map(Around, layers))
        self.head = nn.Linear(6, 3)

    def forward(self, video):
        return self.head(self.blocks(video.flatten(1, 2)).mean((2, 3)))


def of_library(name: str):
    return lambda: tsm_triton.VideoClassifier(tsm_triton.create_model(name, 2, 3), 2)


@pytest.mark.parametrize(
    "build",
    [of_library("test_resnet"), of_library("torchvision/resnet18"), Normed],
    ids=["timm", "torchvision", "layers that move what they hold"],
)
def test_what_is_computed_again_counts_a_batch_once(build):
    states = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        model = build()
        hooks = [len(forward_hooks(m)) + len(pre_hooks(m)) for m in model.modules()]
        settings = Settings(
            epochs=2, batch_size=4, opt="sgd", lr=0.01, ema=0.5, checkpoint_activations=recomputed
        )
        fit(model, clips(), clips(), settings, num_classes=3, device=CPU)
        assert hooks == [len(forward_hooks(m)) + len(pre_hooks(m)) for m in model.modules()]
        states.append(model.state_dict())
    moved = build().state_dict()
    assert any("running_mean" in key and not torch.equal(moved[key], states[0][key]) for key in moved)
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_training_that_fails_leaves_no_trace_in_a_model(precision):
    model = tsm_triton.create_model("test_resnet", 2, 3)
    whole = tsm_triton.VideoClassifier(model, 2)
    hooks = [len(pre_hooks(module)) for module in whole.modules()]
    with pytest.raises(ValueError, match="expected a loss"):
        fit(
            whole,
            TensorDataset(torch.full((4, 2, 3, 24, 24), float("nan")), torch.arange(4) % 3),
            settings=Settings(epochs=1, batch_size=4, checkpoint_activations=True, precision=precision),
            num_classes=3,
            device=CPU,
        )
    assert not model.grad_checkpointing
    assert not any(forward_hooks(module) for module in whole.modules())
    assert hooks == [len(pre_hooks(module)) for module in whole.modules()]
    assert not any("forward" in vars(module) for module in whole.modules())


class Drawing(Dataset):
    """Items that draw from torch's generator, as transforms do, and say what."""

    def __init__(self, length: int = 4) -> None:
        self.length, self.epochs = length, []

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __getitem__(self, index: int):
        return torch.cat([torch.rand(1), torch.tensor([float(index), len(self.epochs)])]), 0


class Seen(nn.Module):
    """A network that writes down what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rows = nn.Linear(3, 2), []

    def forward(self, x):
        self.rows += x.tolist() if self.training else []
        return self.layer(x)


def drawn(data, **settings):
    model = Seen()
    settings = {"epochs": 2, "batch_size": 2, **settings}
    fit(model, data, settings=Settings(**settings), num_classes=2, device=CPU)
    return model.rows


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_what_items_draw_follows_from_seed_epoch_and_number():
    rows = drawn(Drawing(), workers=0)
    draws = [draw for draw, *_ in rows]
    assert len(set(draws)) == 8

    def by_item(rows):
        return {(epoch, index): draw for draw, index, epoch in rows}

    assert by_item(drawn(Drawing(), workers=0, batch_size=4)) == by_item(rows)
    for workers in (1, 2):
        assert [draw for draw, *_ in drawn(Drawing(), workers=workers)] == draws
    assert not set(draws) & {draw for draw, *_ in drawn(Drawing(), workers=1, seed=1)}


def test_a_training_that_goes_on_draws_what_an_unbroken_one_does(tmp_path):
    whole, calls = drawn(Drawing(), workers=1), []
    model, again = Seen(), Seen()
    training = partial(
        fit,
        settings=Settings(epochs=2, batch_size=2, workers=1),
        num_classes=2,
        device=CPU,
        out=tmp_path / "run",
    )
    with pytest.raises(Stopped):
        training(model, Drawing(), stop=lambda: calls.append(1) or len(calls) == 1)
    training(again, Drawing(), resume=True)
    assert [draw for draw, *_ in model.rows + again.rows] == [draw for draw, *_ in whole]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: Subset(data, range(4)),
        lambda data: ConcatDataset([Subset(data, [0, 1]), Subset(data, [2, 3])]),
        lambda data: random_split(data, [2, 2])[0],
    ],
)
def test_data_sets_that_others_are_made_of_know_the_epoch(wrap):
    data = Drawing()
    drawn(wrap(data), workers=0)
    assert sorted(set(data.epochs)) == [1, 2]


def test_a_data_set_that_tells_its_parts_itself_does_so():
    class Twice(Subset):
        def set_epoch(self, epoch):
            self.dataset.set_epoch(2 * epoch)

    data = Drawing()
    drawn(Twice(data, range(4)), workers=0)
    assert data.epochs == [2, 4]


def test_a_data_set_that_reads_batches_at_once_does_so():
    class Batches(Dataset):
        datasets = 3

        def __init__(self):
            self.asked = []

        def __len__(self):
            return 4

        def __getitems__(self, indices):
            self.asked.append(sorted(indices))
            return [(torch.rand(3), 0) for _ in indices]

    data, again = Batches(), Batches()
    rows = drawn(data, workers=0)
    assert [len(indices) for indices in data.asked] == [2, 2, 2, 2]
    assert rows == drawn(again, workers=0)
    assert len({tuple(row) for row in rows}) == 8
    part = Batches()
    drawn(Subset(part, range(4)), workers=0)
    assert [len(indices) for indices in part.asked] == [2, 2, 2, 2]


def test_labels_are_as_many_as_classes(tmp_path):
    with pytest.raises(ValueError, match="expected 2 labels, as many as num_classes, got 1"):
        fit(nn.Linear(3, 2), Drawing(), num_classes=2, labels=["a"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stream_of_items_is_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    for data in (Endless(), object()):
        with pytest.raises(TypeError, match="have a length and give items by number, got"):
            drawn(data)


def test_the_environment_does_not_say_in_how_many_parts(monkeypatch):
    expected = trained(accumulate=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert all(torch.equal(value, expected[key]) for key, value in trained(accumulate=2).items())


@pytest.mark.parametrize("name", ["adahessian", "fusedadam", "bnbadam"])
def test_an_optimiser_that_needs_what_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"got opt='{name}'"):
        make_optimizer(nn.Linear(1, 1), Settings(opt=name))


def test_blocks_of_torchvision_are_computed_again_and_left_as_they_were():
    states, calls = [], []
    for recomputed in (False, True):
        torch.manual_seed(0)
        inner = tsm_triton.create_model("torchvision/resnet18", 2, 3, dropout=0.2)
        model = tsm_triton.VideoClassifier(inner, 2)
        handle = inner.layer2[0].conv2.register_forward_hook(lambda *_, now=recomputed: calls.append(now))
        settings = Settings(
            epochs=1, batch_size=4, opt="sgd", checkpoint_activations=recomputed, ema=0.5, freeze_bn="all"
        )
        fit(model, clips(4), settings=settings, num_classes=3, device=CPU)
        handle.remove()
        assert not any("forward" in vars(module) for module in model.modules())
        states.append(model.state_dict())
    assert (calls.count(False), calls.count(True)) == (1, 2)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, msg=lambda m, key=key: f"{key}: {m}")
    with pytest.raises(ValueError, match="expected a model of blocks in an nn.Sequential"):
        checkpoint_activations(nn.Linear(1, 1))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_checkpoints_of_recomputed_blocks_name_what_builds_the_model(ema, tmp_path):
    model = tsm_triton.VideoClassifier(tsm_triton.create_model("torchvision/resnet18", 2, 3), 2)
    settings = Settings(epochs=1, batch_size=4, checkpoint_activations=True, ema=ema)
    fit(model, clips(4), settings=settings, num_classes=3, device=CPU, out=tmp_path)
    built = tsm_triton.load_checkpoint(tmp_path / "last.pt")
    assert not any("forward" in vars(module) for module in built.modules())
    frames = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(built.eval()(frames), model.model.eval()(frames))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s", "coatnet_pico_rw_224"])
def test_what_timm_does_not_decay_is_not_decayed_in_any_wrapper(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=4)
    names = {parameter: name for name, parameter in model.named_parameters()}

    def decayed(optimizer: torch.optim.Optimizer) -> set[str]:
        groups = (group for group in optimizer.param_groups if group["weight_decay"])
        return {names[parameter] for group in groups for parameter in group["params"]}

    expected = decayed(timm.optim.create_optimizer_v2(model, opt="adamw", weight_decay=0.05))
    assert expected < {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    settings = Settings(opt="adamw", weight_decay=0.05)
    classifier = tsm_triton.VideoClassifier(model, 2)
    for wrapped in (model, classifier, nn.Sequential(nn.Identity(), torch.compile(classifier))):
        optimizer = make_optimizer(wrapped, settings)
        assert decayed(optimizer) == expected
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.slow
def test_a_compiled_training_is_the_eager_one():
    eager, compiled = trained(), trained(compile=True)
    for key, value in eager.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)


def test_the_averaged_weights_are_those_that_are_kept(tmp_path):
    model = frozen()
    fit(
        model,
        clips(),
        clips(4),
        Settings(epochs=2, batch_size=4, ema=0.9),
        num_classes=3,
        out=tmp_path,
        device=CPU,
    )
    kept = tsm_triton.load_checkpoint(tmp_path / "last.pt").state_dict()
    assert all(torch.equal(kept[key], value) for key, value in model.model.state_dict().items())
    plain = frozen()
    fit(plain, clips(), clips(4), Settings(epochs=2, batch_size=4), num_classes=3, device=CPU)
    assert any(not torch.equal(kept[key], value) for key, value in plain.model.state_dict().items())


def test_bfloat16_trains_too():
    model = frozen()
    progress = fit(model, clips(), settings=Settings(epochs=1, precision="bf16"), num_classes=3, device=CPU)
    assert progress.rows[0]["train_loss"] < 3
    assert "forward" not in vars(model)  # and hands the model back as it was


def test_synchronised_batch_norms_are_the_same_network(tmp_path, monkeypatch):
    """They need GPUs; of one process they compute what others do, and so here."""
    made = devices.accelerator_for
    monkeypatch.setattr(loop, "accelerator_for", lambda s, device: made(replace(s, sync_bn=False), device))
    found = []
    for sync_bn in (False, True):
        torch.manual_seed(0)
        model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=3), 2)
        settings = Settings(epochs=1, batch_size=4, sync_bn=sync_bn, freeze_bn="all_but_first", lr=0.01)
        out = tmp_path / str(sync_bn)
        fit(
            tsm_triton.VideoClassifier(model, 2),
            clips(),
            settings=settings,
            num_classes=3,
            out=out,
            device=CPU,
        )
        found.append(tsm_triton.load_checkpoint(out / "last.pt").state_dict())
        kinds = {type(module).__name__ for module in model.modules() if hasattr(module, "running_mean")}
        assert all(kind.startswith("SyncBatchNorm") == sync_bn for kind in kinds)
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, msg=lambda m, key=key: f"{key}: {m}")


def test_frames_lie_in_channels_last_on_a_gpu():
    with FakeTensorMode(allow_non_fake_inputs=True):
        for shape in ((2, 4, 3, 8, 8), (2, 5, 4, 3, 8, 8)):
            video = placed(torch.empty(shape), torch.device("cuda"))
            assert video.shape == shape
            assert video.device.type == "cuda"
            assert video.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)
        assert placed(torch.empty(3), torch.device("cuda")).is_contiguous()
    assert placed(torch.zeros(2, 4, 3, 8, 8), CPU).is_contiguous()


def test_a_loss_that_is_no_number_is_an_error_and_leaves_no_checkpoint(tmp_path):
    model = frozen()
    nn.init.constant_(model.model.fc.weight, float("nan"))
    with pytest.raises(ValueError, match="expected a loss, got nan in epoch 1: lower lr"):
        fit(model, clips(), settings=Settings(epochs=1), num_classes=3, out=tmp_path, device=CPU)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0}, "lr must be a positive number"),
        ({"epochs": 1.5}, "epochs must be of type int"),
        ({"lr": "0.1"}, "lr must be of type float"),
        ({"compile": "yes"}, "compile must be of type bool"),
        ({"ema": 1.0}, "ema must be from 0 to less than 1"),
        ({"freeze_bn": "some"}, "freeze_bn must be one of 'none', 'all_but_first', 'all'"),
        ({"ema": 0.9, "fsdp": True}, "averaged weights or sharded ones"),
        ({"mixup": 0.2, "batch_size": 3}, "an even number of clips"),
        ({"milestones": (2,)}, "sched='multistep' with milestones, got sched='cosine'"),
        ({"milestones": (2,), "sched": "constant"}, "drop one of them"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"opt": "sdg"}, "opt must be one of timm.optim.list_optimizers"),
        ({"sched": "cosin"}, "sched must be one of 'constant', 'cosine'"),
        ({"sched": "step"}, "sched must be one of 'constant', 'cosine'"),
        ({"sched": "multistep"}, "must have milestones"),
        ({"batch_size": 3, "accumulate": 2}, "batch_size must be a multiple of 2"),
        ({"sync_bn": True}, "expected GPUs"),
        ({"fsdp": True}, "expected several processes"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_the_loop(settings, words):
    with pytest.raises(ValueError, match=words):
        fit(frozen(), clips(), settings=Settings(**settings), num_classes=3, device=CPU)


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_a_constant_rate_stays_behind_its_warm_up(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = Settings(epochs=40, lr=1.0, sched="constant", warmup_epochs=warmup)
    scheduler, seen = make_scheduler(optimizer, settings, 3), []
    for step in range(1, 121):
        seen.append(optimizer.param_groups[0]["lr"])
        if scheduler is not None:
            scheduler.step_update(step)
    assert seen[3 * warmup :] == [1.0] * (120 - 3 * warmup)
    assert all(rate < 1 for rate in seen[: 3 * warmup])


@pytest.mark.parametrize("sched", ["cosine", "poly", "tanh"])
def test_a_rate_falls_to_nothing(sched):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = Settings(epochs=10, lr=1.0, sched=sched, warmup_epochs=0)
    scheduler, seen = make_scheduler(optimizer, settings, 10), []
    for step in range(1, 101):
        scheduler.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == sorted(seen, reverse=True)
    assert 0.3 < seen[49] < 0.99
    assert seen[98] < 0.02


def test_the_rate_of_an_epoch_is_that_of_its_last_step():
    """Not of the next one, which is zero behind the last; of the weights, not of the head's multiple."""
    rates = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(min(group["lr"] for group in self.param_groups))
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            optimisation,
            "create_optimizer_v2",
            lambda groups, **options: Noting(groups, lr=options["lr"]),
        )
        settings = Settings(epochs=3, batch_size=4, opt="sgd", lr=0.05, groups="authors")
        progress = fit(frozen(), clips(), settings=settings, num_classes=3, device=CPU)
    steps = len(rates) // 3
    assert [row["lr"] for row in progress.rows] == rates[steps - 1 :: steps]
    assert progress.rows[-1]["lr"] > 0


@pytest.mark.parametrize("milestones", [(2, 4), (4, 2), (1,), (2, 2)])
def test_milestones_are_those_of_torch(milestones):
    rates = []
    for ours in (True, False):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        settings = Settings(epochs=6, lr=1.0, sched="multistep", milestones=milestones, warmup_epochs=0)
        scheduler = make_scheduler(optimizer, settings, 3) if ours else None
        theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        seen = []
        for step in range(1, 19):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler is not None:
                scheduler.step_update(step)
            elif step % 3 == 0:
                theirs.step()
        rates.append(seen)
    assert rates[0] == pytest.approx(rates[1])


def test_the_recipes_are_the_authors_values():
    assert set(training.RECIPES) == {"causal", "hmdb51", "jester", "kinetics", "ssv1", "ssv2", "ucf101"}
    recipes = {name: read_recipe(name) for name in training.RECIPES}
    kinetics, ssv2, ucf101 = (recipes[name] for name in ("kinetics", "ssv2", "ucf101"))
    assert (kinetics["lr"], kinetics["batch_size"], kinetics["weight_decay"]) == (0.02, 128, 1e-4)
    assert (ssv2["lr"], ssv2["batch_size"], ssv2["milestones"], ssv2["flip"]) == (0.01, 64, [20, 40], False)
    assert (ucf101["lr"], ucf101["epochs"], ucf101["dropout"]) == (0.001, 25, 0.8)
    assert ucf101["freeze_bn"] == "all_but_first"
    assert recipes["causal"]["direction"] == "causal"
    for recipe in recipes.values():  # the authors' SGD is not Nesterov's
        settings = Settings(opt=recipe["opt"], groups=recipe["groups"], lr=recipe["lr"])
        assert not any(group["nesterov"] for group in make_optimizer(frozen(), settings).param_groups)
    assert all(recipe["clip_grad"] == 20 and recipe["groups"] == "authors" for recipe in recipes.values())
    folder = Path(training.__file__).parent / "recipes"
    assert all("# Source: " in path.read_text() for path in folder.glob("*.toml"))


def test_the_loop_stays_small():
    assert len((Path(training.__file__).parent / "loop.py").read_text().splitlines()) < 200


def test_the_loss_is_the_mean_over_clips_whatever_the_batches():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    scores = Scores(4, "cpu", confusion=True)
    for part in (slice(0, 4), slice(4, 5)):
        scores.update(logits[part], labels[part])
    found = scores.compute()
    right = (logits.argmax(1) == labels).float().mean().item()
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert found["top1"] == pytest.approx(100 * right)
    assert sum(map(sum, scores.confusion())) == 5
    again = Scores(4, "cpu")
    again.load_state_dict(scores.state_dict())
    assert again.compute() == found
