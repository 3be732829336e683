"""`tsm-triton eval` and `classify`: the numbers of the model itself, in files and pictures, and what is refused."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from pyarrow import parquet

import tsm_triton
from tsm_triton.backbones import create_backbone
from tsm_triton.cli import main
from tsm_triton.commands.demo.motion_clips import CLASSES
from tsm_triton.commands.stream.seen import Seen
from tsm_triton.commands.tables import save_parquet
from tsm_triton.preparation import Preparation, set_preparation
from tsm_triton.progress import Bar
from tsm_triton.video.decoding import read_clip
from tsm_triton.video.transforms import transform_for

from .motion_videos import write_motions
from .trainings import small

T, NAMES = 4, sorted(CLASSES[:4], reverse=True)  # in another order than folders are read


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_motions(tmp_path_factory.mktemp("videos"), 12, size=32, frames=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(3)
    model = tsm_triton.patch(create_backbone("test_resnet", num_classes=4), T)
    torch.nn.init.normal_(model.fc.weight)  # so that videos are told apart
    set_preparation(model, Preparation(32, 36))
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    tsm_triton.save_checkpoint(model, path, NAMES)
    return path


def expected(checkpoint, path, average="logits", views=1):
    """Probabilities of one video, without any of the commands' parts."""
    model = tsm_triton.load_checkpoint(checkpoint)
    classifier = tsm_triton.VideoClassifier(
        model, T, view_average="softmax" if average == "probabilities" else "logits"
    )
    clip = transform_for(model, views=views)(read_clip(path, T, size=36)[0])[None]
    with torch.inference_mode():
        scores = classifier(clip)[0]
    return scores if average == "probabilities" and views > 1 else scores.softmax(-1)


def options(checkpoint, *more):
    return ["--checkpoint", str(checkpoint), "--device", "cpu", "--workers", "0", "--batch-size", "5", *more]


def test_the_table_of_an_evaluation_is_what_the_model_says(videos, checkpoint, tmp_path, capsys):
    assert main(["eval", str(videos), *options(checkpoint), "--out", str(tmp_path)]) == 0
    printed, said = capsys.readouterr()
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    right = 0
    for row in rows:
        probabilities = expected(checkpoint, row["video"])
        assert row["predicted"] == NAMES[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(probabilities.max().item(), abs=1e-5)
        assert row["class"] == row["video"].split("/")[-2]
        assert row["correct"] == str(row["class"] == row["predicted"])
        right += row["class"] == row["predicted"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["top1"] == pytest.approx(100 * right / 12)
    assert results["top5"] == 100
    for number, name in enumerate(NAMES):
        counts = [sum(r["class"] == name and r["predicted"] == other for r in rows) for other in NAMES]
        assert results["confusion"][number] == counts
    with (tmp_path / "classes.csv").open() as file:
        classes = {row["class"]: float(row["top1"]) for row in csv.DictReader(file)}
    assert classes.keys() == set(NAMES)
    assert sum(classes.values()) / 4 == pytest.approx(results["top1"], abs=0.01)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert f"Top-1 {results['top1']:.1f} %" in printed
    assert "Testing 12 videos" in said


@pytest.mark.parametrize("strategy", ["uniform", "dense"])
def test_a_training_and_an_evaluation_find_the_same(strategy, tmp_path):
    """Of frames that are larger than the model's: both scale them in the same way."""
    data = write_motions(tmp_path / "videos", 8, size=100, frames=6)
    fixed = ["--device", "cpu", "--workers", "0", "--sampling", strategy]
    small = ["--model", "test_resnet", "--num-segments", "4", "--size", "32", "--epochs", "1"]
    said = ["--val", str(data), "--out", str(tmp_path / "run"), "--batch-size", "8"]
    assert main(["train", str(data), *said, *small, *fixed]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    best = ["--checkpoint", str(tmp_path / "run" / "best.pt"), "--out", str(tmp_path / "eval")]
    assert main(["eval", str(data), *best, *fixed[:4]]) == 0  # the checkpoint says which frames
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["top1"] == float(row["val_top1"])
    assert results["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)


def test_the_loss_of_a_sure_model_is_not_cut_off(videos, checkpoint, tmp_path):
    model = tsm_triton.load_checkpoint(checkpoint)
    with torch.no_grad():
        model.fc.weight.mul_(1e3)
    tsm_triton.save_checkpoint(model, tmp_path / "sure.pt")
    assert main(["eval", str(videos), *options(tmp_path / "sure.pt"), "--out", str(tmp_path)]) == 0
    classifier, losses = tsm_triton.VideoClassifier(model, T), []
    for path in videos.rglob("*.mp4"):
        with torch.inference_mode():
            logits = classifier(transform_for(model)(read_clip(path, T, size=36)[0])[None])
        label = torch.tensor([NAMES.index(path.parent.name)])
        losses.append(torch.nn.functional.cross_entropy(logits[:, 0] if logits.dim() == 3 else logits, label))
    assert sum(losses) / len(losses) > 100
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["loss"] == pytest.approx((sum(losses) / len(losses)).item(), rel=1e-4)
    # probabilities that are 0 are still in the order of their logits
    ranks = ["--json", str(tmp_path / "ranks.json"), "--top", "4"]
    assert main(["classify", str(videos), *options(tmp_path / "sure.pt"), *ranks]) == 0
    for record in json.loads((tmp_path / "ranks.json").read_text()):
        with torch.inference_mode():
            logits = classifier(transform_for(model)(read_clip(record["video"], T, size=36)[0])[None])
        by_logit = [NAMES[i] for i in logits.flatten().argsort(descending=True).tolist()]
        assert [entry["label"] for entry in record["top"]] == by_logit


def test_the_ranks_of_a_sure_stream_are_those_of_its_logits():
    seen = Seen(list("abcdefg"), "labels", "weights")
    logits = torch.tensor([0.0, -400.0, -350.0, -300.0, -250.0, -200.0, -150.0])
    assert seen.add(0, 0.0, logits.log_softmax(-1)) == ("a", 1.0)
    assert [label for label, _ in seen.predictions(5)[0].top] == ["a", "g", "f", "e", "d"]
    assert seen.probabilities[0].tolist() == [1.0, *[0.0] * 6]


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_views_are_averaged_as_asked(average, videos, checkpoint, tmp_path):
    path = next(videos.rglob("*.mp4"))
    wanted = ["--views", "10", "--average", average, "--json", str(tmp_path / "a.json"), "--top", "4"]
    assert main(["classify", str(path), *options(checkpoint, *wanted)]) == 0
    (record,) = json.loads((tmp_path / "a.json").read_text())
    probabilities = expected(checkpoint, path, average, views=10)
    for entry in record["top"]:
        wanted = probabilities[NAMES.index(entry["label"])].item()
        assert entry["probability"] == pytest.approx(wanted, abs=1e-5)


def test_videos_are_classified_into_a_table_files_and_pictures(videos, checkpoint, tmp_path, capsys):
    folder = videos / "left"
    paths = sorted(folder.iterdir())
    files = [
        word for kind in ("json", "csv", "parquet") for word in (f"--{kind}", str(tmp_path / f"a.{kind}"))
    ]
    more = ["--top", "2", "--pictures", str(tmp_path / "pictures"), *files]
    assert main(["classify", str(folder), *options(checkpoint, *more)]) == 0
    records = json.loads((tmp_path / "a.json").read_text())
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    printed = capsys.readouterr().out
    assert [record["video"] for record in records] == [str(path) for path in paths]
    for path, record, row, line in zip(paths, records, rows, table, strict=True):
        probabilities = expected(checkpoint, path)
        best = [NAMES[index] for index in probabilities.topk(2).indices]
        assert [entry["label"] for entry in record["top"]] == best
        assert [row["label_1"], row["label_2"]] == [line["label_1"], line["label_2"]] == best
        assert line["probability_2"] == float(row["probability_2"]) == record["top"][1]["probability"]
        assert f"{best[0]} {probabilities.max().item():.1%}" in printed
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [picture.suffix for picture in pictures] == [".png"] * len(paths)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_a_direction_that_the_file_contradicts_is_refused(videos, checkpoint, capsys):
    path = str(next(videos.rglob("*.mp4")))
    own = tsm_triton.patching.hooks.shift_hooks(tsm_triton.load_checkpoint(checkpoint))[0].direction
    other = {"causal": "bidirectional", "bidirectional": "causal"}[own]
    assert main(["classify", path, *options(checkpoint, "--direction", other)]) == 2
    assert f"expected --direction {own}" in capsys.readouterr().err


def test_a_batch_that_cannot_be_read_does_not_end_the_others(videos, checkpoint, tmp_path):
    damaged, out = tmp_path / "damaged.mp4", tmp_path / "a.csv"
    damaged.write_bytes(b"no video")
    given = [str(damaged), str(next(videos.rglob("*.mp4")))]
    skipping = ["--on-error", "skip", "--batch-size", "1", "--csv", str(out)]
    with pytest.warns(UserWarning, match="damaged"):
        assert main(["classify", *given, *options(checkpoint), *skipping]) == 1  # one was left out
    assert len(out.read_text().splitlines()) == 2


def test_an_evaluation_invents_no_order_of_classes(videos, checkpoint, tmp_path, capsys):
    unlabelled, labels = tmp_path / "unlabelled.pt", tmp_path / "labels.txt"
    model = tsm_triton.load_checkpoint(checkpoint)
    model.pretrained_cfg.pop("label_names")
    tsm_triton.save_checkpoint(model, unlabelled)
    assert main(["eval", str(videos), *options(unlabelled), "--out", str(tmp_path / "a")]) == 2
    assert "expected a model that says which class is which" in capsys.readouterr().err
    labels.write_text("\n".join(NAMES))
    said = [*options(unlabelled, "--labels", str(labels)), "--out", str(tmp_path / "b")]
    assert main(["eval", str(videos), *said]) == 0
    assert main(["eval", str(videos), *options(checkpoint), "--out", str(tmp_path / "c")]) == 0
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in "bc"]
    assert tables[0] == tables[1]


ODD = ["می\u200cدود", "میدود", "👨\u200d👩", "左\u3000手\xa0a"]


@pytest.mark.filterwarnings("ignore:Glyph")  # that the font of the charts has not
@pytest.mark.parametrize("said", ["by the weights", "by a file"])
def test_joiners_and_spaces_of_names_are_kept(said, videos, checkpoint, tmp_path):
    data, labels, out = tmp_path / "data", tmp_path / "labels.txt", tmp_path / "eval"
    for name, path in zip(ODD, sorted(videos.rglob("*.mp4"))[:4], strict=True):
        (data / name).mkdir(parents=True)
        shutil.copy(path, data / name)
    model = tsm_triton.load_checkpoint(checkpoint)
    tsm_triton.save_checkpoint(model, tmp_path / "a.pt", ODD if said == "by the weights" else list("abcd"))
    labels.write_text("\n".join(ODD), "utf-8")
    more = [] if said == "by the weights" else ["--labels", str(labels)]
    argv = ["eval", str(data), *options(tmp_path / "a.pt", *more), "--out", str(out)]
    assert main([*argv, "--table", "parquet"]) == main(argv) == 0
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["class"] for row in rows) == sorted(ODD)
    assert {row["predicted"] for row in rows} <= set(ODD)


def test_a_table_keeps_text_and_escapes_what_is_none(tmp_path):
    save_parquet(tmp_path / "a.parquet", [{"class": ODD[0], "video": "a\udce9.mp4", "top1": 1.0}])
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert row == {"class": ODD[0], "video": "a\\udce9.mp4", "top1": 1.0}


def test_an_evaluation_leaves_no_table_of_the_one_before(videos, checkpoint, tmp_path):
    argv = ["eval", str(videos), *options(checkpoint), "--out", str(tmp_path)]
    for table, other in (("csv", "parquet"), ("parquet", "csv"), ("csv", "parquet")):
        assert main([*argv, "--table", table]) == 0
        assert (tmp_path / f"predictions.{table}").is_file()
        assert not (tmp_path / f"predictions.{other}").exists()


def test_a_name_of_two_classes_is_refused_where_names_are_numbers(videos, checkpoint, tmp_path, capsys):
    twice, labels = [NAMES[0], *NAMES[:3]], tmp_path / "labels.txt"
    model = tsm_triton.load_checkpoint(checkpoint)
    del model.pretrained_cfg["label_names"]
    tsm_triton.save_checkpoint(model, tmp_path / "plain.pt")
    tsm_triton.save_checkpoint(model, tmp_path / "twice.pt", twice)
    labels.write_text("\n".join(twice))
    given = (
        (tmp_path / "twice.pt", ["--checkpoint", str(tmp_path / "twice.pt")]),
        (labels, ["--checkpoint", str(tmp_path / "plain.pt"), "--labels", str(labels)]),
    )
    for source, words in given:
        assert main(["eval", str(videos), *words, "--device", "cpu", "--out", str(tmp_path / "eval")]) == 2
        error = capsys.readouterr().err
        assert f"a name of its own for each class, got {NAMES[0]!r} for 0 and 1 in {str(source)!r}" in error
    assert not (tmp_path / "eval").exists()


def test_labels_may_rename_classes_but_not_exchange_them(videos, checkpoint, tmp_path, capsys):
    labels, path = tmp_path / "labels.txt", str(next(videos.rglob("*.mp4")))
    given = options(checkpoint, "--labels", str(labels))
    for names in (NAMES[::-1], [NAMES[1], "b", "c", "d"]):
        labels.write_text("\n".join(names))
        for command in (["eval", str(videos), "--out", str(tmp_path / "eval")], ["classify", path]):
            assert main([*command, *given]) == 2
            assert f"class 0 is {NAMES[0]!r}, got {names[0]!r}" in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()
    labels.write_text("\n".join([NAMES[0].upper(), *NAMES[1:]]))
    assert main(["classify", path, *given]) == 0
    assert "renames" not in capsys.readouterr().err
    labels.write_text("eins\nzwei\ndrei\nvier\n")
    assert main(["classify", path, *given]) == 0
    printed, said = capsys.readouterr()
    assert f"renames 4 of the 4 classes of the weights: {NAMES[0]!r} to 'eins'" in said
    assert "zwei" in printed


SHIFT = {"direction": "causal", "place": "block", "shift-div": "4"}


def test_a_bare_state_dict_is_shifted_as_it_is_said(videos, tmp_path, capsys):
    torch.manual_seed(1)
    model = tsm_triton.patch(
        create_backbone("test_resnet", num_classes=4), T, direction="causal", place="block", shift_div=4
    )
    model.eval()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    tsm_triton.save_checkpoint(model, tmp_path / "ours.pt")
    path, found = str(next(videos.rglob("*.mp4"))), []
    said = [word for name, value in SHIFT.items() for word in (f"--{name}", value)]
    bare = ["--model", "test_resnet", "--num-segments", str(T)]
    for name, more in (("bare.pth", [*bare, *said]), ("ours.pt", []), ("ours.pt", said)):
        out = tmp_path / "a.json"
        assert main(["classify", path, *options(tmp_path / name, *more), "--json", str(out)]) == 0
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] == found[2]
    assert "says nothing of its frames" in capsys.readouterr().err
    for name, other in (("direction", "bidirectional"), ("place", "blockres"), ("shift-div", "8")):
        assert main(["classify", path, *options(tmp_path / "ours.pt", f"--{name}", other)]) == 2
        assert f"expected --{name} {SHIFT[name]}, as " in capsys.readouterr().err


def test_a_bare_state_dict_needs_its_name_and_its_shift(videos, checkpoint, tmp_path, capsys):
    bare = tmp_path / "bare.pth"
    torch.save(tsm_triton.load_checkpoint(checkpoint).state_dict(), bare)
    path = str(next(videos.rglob("*.mp4")))
    assert main(["classify", path, "--checkpoint", str(bare)]) == 2
    assert "state dict" in capsys.readouterr().err
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(NAMES))
    more = ["--labels", str(labels)]
    assert main(["classify", path, *options(bare, *more)]) == 2
    asked = "pass --model, --direction, --place, --shift-div, --num-segments as it was trained"
    assert asked in capsys.readouterr().err
    more += ["--model", "test_resnet", "--num-segments", str(T)]
    for shift in ({"direction": "causal"}, {"shift-div": "8"}, {"place": "block", "shift-div": "4"}):
        some = [*more, *(word for name, value in shift.items() for word in (f"--{name}", value))]
        assert main(["classify", path, *options(bare, *some)]) == 2
        error = capsys.readouterr().err
        assert all((f"--{name}" in error.split("pass ")[1]) != (name in shift) for name in SHIFT)
    more += [word for name, value in SHIFT.items() for word in (f"--{name}", value)]
    labels.write_text("one\ntwo\n")
    assert main(["classify", path, *options(bare, *more)]) == 2
    assert "expected 4 labels, one a class, got 2" in capsys.readouterr().err


def test_what_cannot_be_read_is_an_error_or_left_out_and_said(videos, checkpoint, tmp_path, capsys):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video")
    given = [str(damaged), str(next(videos.rglob("*.mp4")))]
    out = tmp_path / "a.csv"
    assert main(["classify", *given, *options(checkpoint, "--csv", str(out))]) == 2
    assert "damaged.mp4" in capsys.readouterr().err
    assert not out.exists()
    with pytest.warns(UserWarning, match="damaged.mp4"):
        assert main(["classify", *given, *options(checkpoint, "--csv", str(out), "--on-error", "skip")]) == 1
    assert "Left out 1" in capsys.readouterr().out
    with out.open() as file:
        assert [row["video"] for row in csv.DictReader(file)] == given[1:]


def test_what_a_worker_cannot_read_ends_the_command_in_its_own_words(videos, checkpoint, tmp_path):
    (tmp_path / "sound.mp4").write_bytes(b"no video at all" * 100)
    clip = next(videos.rglob("*.mp4"))
    command = [sys.executable, "-m", "tsm_triton.cli", "classify", clip, tmp_path / "sound.mp4"]
    # a process: what an error keeps alive is waited for at its exit
    run = subprocess.run(
        [*command, "--checkpoint", checkpoint, "--workers", "1", "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 2
    assert re.search(r"^tsm-triton: error: expected a video file, got .*sound.mp4", run.stderr, re.MULTILINE)
    assert "Traceback" not in run.stderr


def test_what_is_not_there_is_left_out_too_where_errors_are(videos, checkpoint, tmp_path, capsys):
    table = tmp_path / "list.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(videos.rglob("*.mp4"))]
    table.write_text("\n".join([*rows, f"gone/away.mp4,{NAMES[0]}"]))
    absent = str(tmp_path / "absent.mp4")
    assert main(["eval", str(table), *options(checkpoint)]) == 2
    assert "--on-error skip" in capsys.readouterr().err
    skip, out = ["--on-error", "skip"], tmp_path / "eval"
    with pytest.warns(UserWarning, match="left out 1 of the 13 videos .*'gone/away.mp4'"):
        assert main(["eval", str(table), *options(checkpoint, *skip, "--out", str(out))]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["videos"], results["left_out"]) == (12, 1)
    assert "12 videos, 1 left out" in capsys.readouterr().out
    with pytest.warns(UserWarning) as seen:  # noqa: PT030 - both
        assert main(["classify", str(table), absent, *options(checkpoint, *skip)]) == 1
    assert all(any(name in str(one.message) for one in seen) for name in ("gone/away.mp4", absent))
    assert "Left out 2 videos" in capsys.readouterr().out
    run = ["train", str(table), "--out", str(tmp_path / "run"), *small(32), "--epochs", "1", *skip]
    with pytest.warns(UserWarning, match="'gone/away.mp4'"):
        assert main(run) == 0
    assert "Left out 1 videos that cannot be read: gone/away.mp4" in capsys.readouterr().out
    assert main(["classify", absent, *options(checkpoint)]) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_evaluation_writes_no_accuracy_and_a_classification_what_it_has(
    videos, checkpoint, tmp_path, monkeypatch, capsys, signals_heard, number, status
):
    update = Bar.update

    def interrupted(self, what="", count=1):
        update(self, what, count)
        if self.done <= 5:
            signal.raise_signal(number)

    monkeypatch.setattr(Bar, "update", interrupted)
    assert main(["eval", str(videos), *options(checkpoint), "--out", str(tmp_path / "eval")]) == status
    assert not list((tmp_path / "eval").iterdir())
    out = tmp_path / "a.csv"
    assert main(["classify", str(videos), *options(checkpoint, "--csv", str(out))]) == status
    assert "Stopped after 5 of 12 videos" in capsys.readouterr().out
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == 5


def test_an_evaluation_replaces_its_own_results_and_nobody_elses(videos, checkpoint, tmp_path, capsys):
    out = tmp_path / "eval"
    argv = ["eval", str(videos), *options(checkpoint), "--out", str(out)]
    assert main(argv) == main(argv) == 0
    for name in ("confusion.png", "results.json", "predictions.csv"):
        other = tmp_path / f"run of {name}"
        other.mkdir()
        (other / name).write_text("{}")
        assert main([*argv[:-1], str(other)]) == 2
        assert (
            f"expected --out to be a new folder, or an evaluation's, got {str(other)!r}"
            in capsys.readouterr().err
        )
        assert [path.read_text() for path in other.iterdir()] == ["{}"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["classify", "nothing.mp4", "--checkpoint", "{checkpoint}"], "which is not there"),
        (["classify", "{videos}"], "expected a model, got none: pass --checkpoint"),
        (["classify", "{videos}", "--checkpoint", "nothing.pt"], "does not exist"),
        (["classify", "{videos}", "--checkpoint", "{checkpoint}", "--model", "resnet18"], "drop --model"),
        (
            ["classify", "{videos}", "--checkpoint", "{checkpoint}", "--csv", "no/a.csv"],
            "a folder that exists",
        ),
        (["eval", "{videos}/left", "--checkpoint", "{checkpoint}"], "expected a label for each video"),
        (["train", "{videos}", "--recipe", "sv2"], "expected recipe to be one of causal"),
        (["train", "{videos}", "--model", "resnt18"], "Did you mean"),
        (["train", "{videos}", "--model", "test_resnet", "--flip", "--size", "32"], "RandomHorizontalFlip"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    argv, words, videos, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    argv = [word.format(videos=videos, checkpoint=checkpoint) for word in argv]
    assert main([*argv, "--device", "cpu"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_split_of_a_folder_is_classified(checkpoint, tmp_path, capsys):
    for split, count in (("train", 3), ("val", 2)):
        write_motions(tmp_path / "videos" / split, count)
    rows = [
        f"{split}/{path.relative_to(tmp_path / 'videos' / split)},{split}"
        for split in ("train", "val")
        for path in sorted((tmp_path / "videos" / split).rglob("*.mp4"))
    ]
    (tmp_path / "videos.csv").write_text("\n".join(["path,split", *rows]))
    fixed = ["--checkpoint", str(checkpoint), "--device", "cpu", "--workers", "0"]
    table = ["--csv", str(tmp_path / "a.csv")]
    assert main(["classify", str(tmp_path / "videos"), *fixed, *table]) == 2
    assert "pass --split train or --split val" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()
    for split, count in (("train", 3), ("val", 2)):
        for data in (["videos"], ["videos.csv", "--root", str(tmp_path / "videos")]):
            argv = ["classify", str(tmp_path / data[0]), *data[1:], *fixed, *table, "--split", split]
            assert main(argv) == 0
            with (tmp_path / "a.csv").open() as file:
                assert [f"/{split}/" in row["video"] for row in csv.DictReader(file)] == [True] * count
