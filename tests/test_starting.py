"""`tsm-triton train --weights`: from files of ours and of others, as they were trained, or not at all."""

import csv

import pytest
import timm
import torch

import tsm_triton
from tsm_triton.checkpoints import read_checkpoint
from tsm_triton.cli import main
from tsm_triton.commands.demo.motion_clips import CLASSES
from tsm_triton.commands.train.recipe import recipe_options
from tsm_triton.preparation import Preparation, set_preparation
from tsm_triton.training.recipes import RECIPES, read_recipe

from .motion_videos import write_motions
from .servers import http_server, send
from .trainings import small

LABELS = sorted(name.replace(" ", "-") for name in CLASSES[:4])
# so slowly that the weights stay what they were
STILL = ["--lr", "1e-30", "--opt", "sgd", "--weight-decay", "0", "--freeze-bn", "all", "--epochs", "1"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("videos"), 8, size=32, frames=4)


def command(videos, out, weights, *more):
    fixed = ["--size", "32", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
    return ["train", str(videos), "--out", str(out), "--weights", str(weights), *fixed, *STILL, *more]


def authors(path, classes=7, **options):
    """A ResNet-18 under the authors' keys."""
    torch.manual_seed(5)
    model = timm.create_model("resnet18", num_classes=classes)
    sites = {site.name for site in tsm_triton.find_sites(model)}
    state = {}
    for key, value in model.state_dict().items():
        name, _, last = key.rpartition(".")
        key = f"{name}.net.{last}" if name in sites else key
        state[f"module.{key.replace('fc.', 'new_fc.')}" if name == "fc" else f"module.base_model.{key}"] = (
            value
        )
    torch.save({"state_dict": state}, path)
    return model.state_dict()


def same(first, second, but=()):
    assert first.keys() == second.keys()
    different = {key for key in first if not torch.equal(first[key], second[key])}
    assert different == set(but)


def test_published_weights_start_a_training_of_other_classes(videos, tmp_path, capsys):
    given = authors(tmp_path / "TSM_kinetics_shift8_segment16.pth")
    arguments = command(videos, tmp_path / "out", tmp_path / "TSM_kinetics_shift8_segment16.pth")
    assert main([*arguments, "--num-segments", "2"]) == 0
    said = capsys.readouterr().out
    assert "with a new head" in said
    assert "trained on clips of 16 frames, here they have 2" in said
    trained = read_checkpoint(tmp_path / "out" / "last.pt")
    state = {key: value for key, value in trained.state.items() if not key.startswith("fc.")}
    same(state, {key: value for key, value in given.items() if not key.startswith("fc.")})
    assert trained.state["fc.weight"].shape[0] == 4
    assert trained.labels == LABELS
    assert trained.origin is not None
    assert trained.origin.name == "resnet18"
    # and says its own in the end
    evaluation = ["eval", str(videos), "--checkpoint", str(tmp_path / "out" / "best.pt"), "--workers", "0"]
    assert main([*evaluation, "--out", str(tmp_path / "eval"), "--device", "cpu"]) == 0
    # what it was begun with is what it goes on with
    authors(tmp_path / "other_segment16.pth")
    again = command(videos, tmp_path / "out", tmp_path / "other_segment16.pth", "--num-segments", "2")
    assert main([*again, "--resume"]) == 2
    assert "weights 'other_segment16.pth' for 'TSM_kinetics_shift8_segment16.pth'" in capsys.readouterr().err


def test_frames_are_sampled_as_the_weights_were_trained(videos, tmp_path):
    model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=4), 2)
    set_preparation(model, Preparation(32, 36), "dense")
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt", LABELS)
    for more, sampling in (([], "dense"), (["--sampling", "uniform"], "uniform")):
        out = tmp_path / sampling
        assert main(command(videos, out, tmp_path / "a.pt", *more)) == 0
        besides = read_checkpoint(out / "last.pt").besides
        assert besides is not None
        assert besides["sampling"] == sampling


def test_videos_without_labels_are_not_tested_on(videos, tmp_path, capsys):
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(videos.rglob("*.mp4"))[:2]):
        (tmp_path / "flat" / f"{number}.mp4").write_bytes(path.read_bytes())
    arguments = ["train", str(videos), "--val", str(tmp_path / "flat"), "--out", str(tmp_path / "out")]
    assert main([*arguments, *small()]) == 2
    assert "expected a label for each video of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_seed_out_of_range_is_refused(videos, capsys):
    with pytest.raises(SystemExit):
        main(["train", str(videos), *small(), "--seed", str(2**64)])
    assert "choose one in between" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--direction", "causal"], "expected --direction bidirectional, as"),
        (["--shift-div", "4"], "expected --shift-div 8, as"),
        (["--place", "block"], "expected --place blockres, as"),
        (["--model", "test_resnet"], "expected --model resnet18 or torchvision/resnet18"),
        (["--pretrained"], "expected one of --pretrained and --weights"),
        (["--recipe", "causal"], "expected --model resnet18"),
    ],
)
def test_a_training_that_the_weights_contradict_is_refused(more, words, videos, tmp_path, capsys):
    authors(tmp_path / "weights.pth")
    assert main(command(videos, tmp_path / "out", tmp_path / "weights.pth", *more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [LABELS, ["a", "b", "c", "d"]])
def test_our_weights_say_model_shift_and_frames_and_keep_the_head_of_their_own_classes(
    labels, videos, tmp_path, capsys
):
    torch.manual_seed(7)  # another than the training's, whose new head would be the same
    options = dict(direction="causal", place="block", shift_div=4)
    model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=4), 2, **options)
    set_preparation(model, Preparation(32, 36, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    tsm_triton.save_checkpoint(model, tmp_path / "weights.pt", labels)
    assert main(command(videos, tmp_path / "out", tmp_path / "weights.pt")) == 0
    trained = read_checkpoint(tmp_path / "out" / "last.pt")
    assert trained.patch is not None
    assert {key: trained.patch[key] for key in options} == options
    assert trained.patch["num_segments"] == 2
    assert trained.preparation == Preparation(32, 36, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    same(trained.state, model.state_dict(), () if labels == LABELS else ("fc.weight", "fc.bias"))
    said = capsys.readouterr().out
    assert f"with {'its' if labels == LABELS else 'a new'} head" in said
    assert "normalised as it was trained: mean (0.1, 0.2, 0.3)" in said


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_unshifted_weights_are_taken_and_it_is_said(kind, videos, tmp_path, capsys):
    model, path = timm.create_model("test_resnet", num_classes=9), tmp_path / "weights.pt"
    if kind == "bare":
        torch.save(torch.nn.DataParallel(model).state_dict(), path)
    else:
        tsm_triton.save_checkpoint(model, path)
    arguments = command(videos, tmp_path / "out", path, "--num-segments", "2")
    assert main([*arguments, "--model", "test_resnet"]) == 0
    assert "says of no shift" in capsys.readouterr().out
    trained = read_checkpoint(tmp_path / "out" / "last.pt").state
    for key, value in model.state_dict().items():
        assert key.startswith("fc.") or torch.equal(trained[key], value)
    (tmp_path / "out").rename(tmp_path / "before")
    assert main([*arguments, "--model", "resnet18"]) == 2
    assert "pass the --model that they are of" in capsys.readouterr().err or kind == "ours"


@pytest.mark.parametrize("more", [["--recipe", "ucf101"], ["--recipe", "hmdb51", "--freeze-bn", "none"]])
def test_fine_tuning_without_weights_is_refused(more, videos, tmp_path, capsys):
    fixed = ["--out", str(tmp_path / "out"), "--device", "cpu", "--model", "test_resnet"]
    assert main(["train", str(videos), *fixed, *more]) == 2
    error = capsys.readouterr().err
    assert "expected weights to start from" in error
    assert "pass --weights FILE" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('flip = "false"', "expected flip in {} to be true or false, got 'false'"),
        ("flip = 0", "to be true or false, got 0"),
        ('pretrained = "no"', "expected pretrained in {} to be true or false"),
        ("num_segments = 2.0", "to be a whole number, got 2.0"),
        ("num_segments = true", "to be a whole number, got True"),
        ("num_segments = 0", "to be from 1 to 1024, got 0"),
        ('size = "32"', "expected size in {} to be a whole number"),
        ("shift_div = 5000", "to be from 1 to 4096"),
        ('dropout = "0.5"', "expected dropout in {} to be a number"),
        ("dropout = nan", "to be a finite number"),
        ("model = 5", "to be a string"),
        ("flip_pairs = true", "to be a string"),
        ('direction = "sideways"', "to be one of 'bidirectional', 'causal'"),
        ('place = ["block"]', "to be a string"),
        ('sampling = "twice"', "to be one of 'uniform', 'dense'"),
        ("milestones = 10", "to be a list of whole numbers"),
        ("milestones = [1.5]", "to be a list of whole numbers"),
        ('epochs = "3"', "expected epochs in {} to be a whole number"),
        ("lr = true", "to be a number"),
        ('compile = "yes"', "to be true or false"),
        ("[train]\nepochs = 3", "expected a recipe of train's options, got train"),
    ],
)
def test_a_recipe_of_other_values_than_the_options_is_refused(line, words, videos, tmp_path, capsys):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(line)
    fixed = ["--out", str(tmp_path / "out"), "--device", "cpu", "--recipe", str(recipe)]
    assert main(["train", str(videos), *fixed]) == 2
    assert words.format(repr(str(recipe))) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_one(name):
    assert recipe_options(name) == read_recipe(name)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--flip-pairs", "names"],
            "expected --flip or --flip-pairs, got both, --flip-pairs names: pass --no-flip",
        ),
        ([], "pass --no-flip, and --flip-pairs names"),
        (["--flip-pairs", "names", "--no-flip"], None),
    ],
)
def test_a_recipe_that_mirrors_says_how_labels_are_exchanged(more, words, videos, tmp_path, capsys):
    torch.save(timm.create_model("test_resnet", num_classes=9).state_dict(), tmp_path / "weights.pt")
    arguments = command(videos, tmp_path / "out", tmp_path / "weights.pt", "--recipe", "ucf101", *more)
    status = main([*arguments, "--model", "test_resnet", "--num-segments", "2"])
    assert status == (2 if words else 0)
    assert words is None or words in capsys.readouterr().err
    assert words is None or not (tmp_path / "out").exists()


def test_batch_norms_that_are_frozen_from_scratch_are_told_of(videos, tmp_path, capsys):
    assert main(["train", str(videos), "--out", str(tmp_path / "out"), *small(32), *STILL]) == 0
    assert "tsm-triton: warning: --freeze-bn all keeps batch-norms as they were" in capsys.readouterr().err


def test_fine_tuning_starts_from_weights(videos, tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=9).state_dict(), tmp_path / "weights.pt")
    arguments = command(videos, tmp_path / "out", tmp_path / "weights.pt", "--recipe", "ucf101")
    arguments += ["--model", "test_resnet", "--num-segments", "2", "--no-flip"]
    assert main(arguments) == 0


def test_published_weights_are_classified_with_behind_an_address_too(videos, tmp_path, monkeypatch, capsys):
    authors(tmp_path / "weights_segment2.pth", classes=4)
    data = (tmp_path / "weights_segment2.pth").read_bytes()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    path, found = str(next(videos.rglob("*.mp4"))), []
    fixed = ["--device", "cpu", "--workers", "0", "--csv", str(tmp_path / "a.csv")]
    with http_server(lambda request, _: send(request, data, len(data))) as address:
        for source, more in (
            (str(tmp_path / "weights_segment2.pth"), []),
            (f"{address}/weights_segment2.pth", ["--model", "torchvision/resnet18"]),
        ):
            assert main(["classify", path, "--checkpoint", source, *fixed, *more]) == 0
            found.append((tmp_path / "a.csv").read_text())
    assert found[0] == found[1]
    source = ["--checkpoint", str(tmp_path / "weights_segment2.pth")]
    for more, words in (
        (
            ["--model", "resnet50"],
            "expected weights of 'resnet50', got weights of resnet18 or torchvision/resnet18",
        ),
        (["--place", "block"], "expected --place blockres"),
    ):
        assert main(["classify", path, *source, *fixed, *more]) == 2
        assert words in capsys.readouterr().err


def test_networks_that_a_name_does_not_tell_are_refused(videos, tmp_path, capsys):
    for number, options in enumerate(({"temporal_pool": True}, {"non_local": "gaussian"})):
        model = tsm_triton.create_model("resnet50", num_segments=2, num_classes=4, **options)
        tsm_triton.save_checkpoint(model, tmp_path / f"{number}.pt")
        assert main(command(videos, tmp_path / "out", tmp_path / f"{number}.pt")) == 2
        assert "its name alone tells, got one of ResNet differs from resnet50 at" in capsys.readouterr().err
    model = tsm_triton.patch(timm.create_model("test_resnet"), 2, fold_order="past_first")
    tsm_triton.save_checkpoint(model, tmp_path / "paddle.pt")
    assert main(command(videos, tmp_path / "out", tmp_path / "paddle.pt")) == 2
    assert "got one of fold_order=past_first" in capsys.readouterr().err


def test_a_schedule_of_the_command_line_drops_the_recipes_milestones_and_the_default_split_is_tested(
    tmp_path,
):
    for split, seed in (("train", 0), ("Val", 1)):
        write_motions(tmp_path / "data" / split, 4, num_classes=2, size=32, frames=4, seed=seed)
    recipe = tmp_path / "mine.toml"
    recipe.write_text('sched = "multistep"\nmilestones = [1, 2]\nepochs = 3\n')
    fixed = ["--size", "32", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--num-segments", "2"]
    asked = ["--recipe", str(recipe), "--model", "test_resnet", "--sched", "constant", "--split", "train"]
    assert main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *fixed, *asked]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["lr"] for row in rows[1:]}) == 1  # behind the warm-up
    assert all(row["val_top1"] for row in rows)


def test_a_list_that_names_both_splits_is_tested_on_its_own(tmp_path):
    data = write_motions(tmp_path / "data", 6, num_classes=2, size=32, frames=4)
    videos = sorted(path.relative_to(data) for path in data.rglob("*.mp4"))
    rows = [f"{path},{path.parent},{'val' if i % 3 == 2 else 'train'}" for i, path in enumerate(videos)]
    table = data / "list.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    fixed = ["--size", "32", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--num-segments", "2"]
    run = ["train", str(table), "--out", str(tmp_path / "run"), "--model", "test_resnet", "--epochs", "1"]
    assert main([*run, *fixed]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["val_top1"]
