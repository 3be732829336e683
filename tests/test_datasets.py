"""Data sets: which videos a listing holds, which clips come of them, and what becomes of those that cannot be read."""

import functools
import io
import json
import os
import re
import threading
import warnings

import av
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from tsm_triton.commands.data import read_data
from tsm_triton.video import read_clip
from tsm_triton.video.datasets import (
    EmptyBatchError,
    Listing,
    Sample,
    Unreadable,
    VideoDataset,
    collate,
    find_flips,
    read_listing,
)
from tsm_triton.video.datasets.flips import PAIRS
from tsm_triton.video.datasets.randomness import seeded
from tsm_triton.video.pictures import decode_picture, frame_files, read_frame_folder
from tsm_triton.video.transforms import ViewCrops, eval_transform, train_transform

from .video_files import HEIGHT, WIDTH, barcode, numbers, write_video

# of Python 3.12 and 3.13, wherever a DataLoader starts workers beside threads
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", 24, codec="mpeg4", b_frames=0)


def touch(folder, *names):
    """Files whose content does not matter: a listing opens none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def write_frames(folder, count, name="{:05d}.jpg", first=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.fromarray(barcode(number)).save(folder / name.format(number), quality=95)
    return folder


def listed(listing, root):
    return [(os.path.relpath(sample.path, root), sample.label) for sample in listing.samples]


def test_a_folder_for_each_class_in_natural_order(tmp_path):
    touch(tmp_path, "10/b10.mp4", "10/b9.mp4", "9/a.webm", "9/notes.txt", "9/.hidden.mp4", "readme.md")
    write_frames(tmp_path / "9" / "frames", 2)
    listing = read_listing(tmp_path)
    assert listing.classes == ("9", "10")
    assert listed(listing, tmp_path) == [
        ("9/a.webm", 0),
        ("9/frames", 0),
        ("10/b9.mp4", 1),
        ("10/b10.mp4", 1),
    ]


def test_folders_without_videos_are_no_classes_and_unknown_files_are_named(tmp_path):
    touch(tmp_path, "train/up/a.f4v", "train/up/b.DIVX", "train/up/c.mp4v", "train/up/d.rm", "train/up/e.xyz")
    touch(tmp_path, "train/down/a.mp4", "train/__MACOSX/up/._a.mp4", "train/.git/a.mp4", "__MACOSX/._train")
    (tmp_path / "train" / "empty").mkdir()
    with warnings.catch_warnings(record=True, action="always") as seen:
        listing = read_listing(tmp_path, split="train")
        assert listing == read_data(str(tmp_path), None, None, default_split="train")
    assert (listing.classes, len(listing.samples)) == (("down", "up"), 5)
    folders, files, *_ = (str(warning.message) for warning in seen)
    assert re.match("took 2 folders in .* which hold no videos: '__MACOSX', 'empty'$", folders)
    assert re.match("left out 1 files in .* none of videos: 'up/e.xyz'$", files)
    assert [str(warning.filename) for warning in seen][:2] == [__file__] * 2


def test_commands_read_the_split_that_they_are_for(tmp_path):
    for name in "abc":
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").touch()
    table = tmp_path / "all.csv"
    table.write_text("path,label,split\nvideos/a.mp4,x,train\nvideos/b.mp4,y,train\nvideos/c.mp4,x,val\n")
    for split, names in (("train", ["a.mp4", "b.mp4"]), ("val", ["c.mp4"])):
        listing = read_data(str(table), None, None, default_split=split)
        assert [os.path.basename(sample.path) for sample in listing.samples] == names
    (tmp_path / "train.csv").write_text("videos/a.mp4,x\nvideos/b.mp4,y\n")
    (tmp_path / "val.csv").write_text("videos/c.mp4,x\n")
    assert read_data(str(tmp_path), None, None, default_split="train").classes == ("x", "y")
    assert len(read_data(str(tmp_path), None, None, default_split="val").samples) == 1
    other = tmp_path / "other"
    for folder in ("train/x", "train/y", "validation/x", "validation/y", "annotations"):
        (other / folder).mkdir(parents=True)
        (other / folder / "v.mp4").touch()
    (other / "annotations" / "v.mp4").unlink()
    for split in ("train", "val"):
        listing = read_data(str(other), None, None, default_split=split)
        assert listing.classes == ("x", "y")
        assert len(listing.samples) == 2


def test_splits_are_named_and_share_their_classes(tmp_path):
    touch(tmp_path, "train/jump/a.mp4", "train/run/b.mp4", "validation/run/c.mp4")
    train = read_listing(tmp_path, split="train")
    val = read_listing(tmp_path, split="val", classes=train.classes)
    assert (train.classes, listed(val, tmp_path)) == (("jump", "run"), [("validation/run/c.mp4", 1)])
    with pytest.raises(ValueError, match="the name of a split .* got none: pass one of train, val"):
        read_listing(tmp_path)
    with pytest.raises(ValueError, match="a list of the split 'test' .* got neither"):
        read_listing(tmp_path, split="test")
    with pytest.raises(ValueError, match="among the 1 classes 'jump' ..., got 1 others .*'run'"):
        read_listing(tmp_path, split="val", classes=["jump"])


def test_splits_may_be_in_capitals_and_stand_twice_under_no_name(tmp_path):
    touch(tmp_path, "Train/jump/a.mp4", "Train/run/b.mp4", "VAL/run/c.mp4", "Annotations/notes.txt")
    for read in (read_listing, functools.partial(read_data, root=None, default_split="train")):
        listing = read(str(tmp_path), split="train")
        assert (listing.classes, len(listing.samples)) == (("jump", "run"), 2)
    default = read_data(str(tmp_path), None, None, default_split="val", classes=listing.classes)
    assert listed(default, tmp_path) == [("VAL/run/c.mp4", 1)]
    with pytest.raises(ValueError, match="pass one of train, val"):
        read_listing(tmp_path)
    touch(tmp_path, "validation/run/d.mp4")
    with pytest.raises(ValueError, match="one folder of the split 'val' .* got 'VAL', 'validation'"):
        read_listing(tmp_path, split="val")


@pytest.mark.parametrize("other", ["dev", "holdout", "Eval set"])
def test_a_split_beside_others_is_no_class(tmp_path, other):
    touch(tmp_path, "Train/jump/a.mp4", "Train/run/b.mp4", f"{other}/jump/c.mp4", f"{other}/run/d.mp4")
    for split in (None, "train"):
        if split is None:
            with pytest.raises(ValueError, match="got 'Train', which holds classes itself, beside"):
                read_data(str(tmp_path), split, None, default_split="train")
        else:
            assert read_data(str(tmp_path), split, None, default_split="train").classes == ("jump", "run")
    held = read_data(str(tmp_path), other, None, default_split="val", classes=["jump", "run"])
    assert [label for _, label in listed(held, tmp_path)] == [0, 1]
    vehicles = tmp_path / "vehicles"
    touch(vehicles, "car/a.mp4", "train/b.mp4")
    write_frames(vehicles / "train" / "frames", 1)
    assert read_listing(vehicles).classes == ("car", "train")


def test_videos_and_frame_folders_without_classes_have_no_labels(tmp_path):
    touch(tmp_path / "videos", "2.mp4", "10.mp4")
    assert listed(read_listing(tmp_path / "videos"), tmp_path) == [
        ("videos/2.mp4", None),
        ("videos/10.mp4", None),
    ]
    for name in ("10", "9"):
        write_frames(tmp_path / "folders" / name, 1)
    assert listed(read_listing(tmp_path / "folders"), tmp_path) == [("folders/9", None), ("folders/10", None)]
    assert listed(read_listing(tmp_path / "folders" / "9"), tmp_path) == [("folders/9", None)]
    assert listed(read_listing(tmp_path / "videos" / "2.mp4"), tmp_path) == [("videos/2.mp4", None)]
    touch(tmp_path / "both", "a.mp4", "run/b.mp4")
    with pytest.raises(ValueError, match="got both: the folder 'run' and the video 'a.mp4'"):
        read_listing(tmp_path / "both")


def test_a_cover_beside_videos_is_no_video(tmp_path):
    """Nor is the whole data set, of which a picture says what is in it."""
    touch(tmp_path, "films/run/monday/a.mp4", "films/run/monday/b.mp4", "films/jump/c.mp4")
    write_frames(tmp_path / "frames/run/first", 3)
    write_frames(tmp_path / "frames/jump/second", 3)
    for cover in ("films", "films/run", "frames", "frames/run"):
        Image.fromarray(barcode(1)).save(tmp_path / cover / "cover.jpg")
    with pytest.warns(UserWarning, match="left out 2 files .*'cover.jpg', 'run/cover.jpg'"):
        films = read_listing(tmp_path / "films")
    expected = [("films/jump/c.mp4", 0), ("films/run/monday/a.mp4", 1), ("films/run/monday/b.mp4", 1)]
    assert listed(films, tmp_path) == expected
    with pytest.warns(UserWarning, match="left out 2 files"):
        frames = read_listing(tmp_path / "frames")
    assert listed(frames, tmp_path) == [("frames/jump/second", 0), ("frames/run/first", 1)]


LISTS = {
    "a.csv": 'path,label\na.mp4,run\n"b, c.mp4",jump\n',
    "plain.csv": 'a.mp4,run\r\n"b, c.mp4",jump\r\n',
    "a.tsv": "a.mp4\trun\nb, c.mp4\tjump\n",
    "semicolons.csv": "a.mp4;run\nb, c.mp4;jump\n",
    "id.csv": "id;label\na;run\nb, c;jump\n",
    "dict.json": '{"a.mp4": "run", "b, c.mp4": "jump"}',
    "pairs.json": '[["a.mp4", "run"], ["b, c.mp4", "jump"]]',
    "objects.json": '[{"path": "a.mp4", "label": "run"}, {"label": "jump", "file": "b, c.mp4"}]',
    "slowfast.csv": "a.mp4 1\nb, c.mp4 0\n",
    "authors.txt": "a.mp4 24 1\nb, c.mp4 120 0\n",
    "spaced.txt": "a.mp4 run\nb, c.mp4 jump\n",
    "spaced_header.txt": "path label\na.mp4 run\nb, c.mp4 jump\n",
    "numbers.csv": 'a.mp4,1\n"b, c.mp4",0\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_every_form(tmp_path, name):
    touch(tmp_path, "a.mp4", "b, c.mp4")
    (tmp_path / name).write_text(LISTS[name])
    listing = read_listing(tmp_path / name)
    assert listed(listing, tmp_path) == [("a.mp4", 1), ("b, c.mp4", 0)]
    assert listing.classes in (("jump", "run"), ("0", "1"))
    named = read_listing(tmp_path / name, classes=["jump", "run", "swim"])
    assert (named.samples, named.classes) == (listing.samples, ("jump", "run", "swim"))


@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_labels_of_words_and_a_number_stay_whole(tmp_path, suffix):
    touch(tmp_path, f"up/0{suffix}", f"down/1{suffix}")
    (tmp_path / "list.csv").write_text(f"up/0{suffix},class 1\ndown/1{suffix},class 0\n")
    listing = read_listing(tmp_path / "list.csv")
    assert listing.classes == ("class 0", "class 1")
    assert listed(listing, tmp_path) == [(f"up/0{suffix}", 1), (f"down/1{suffix}", 0)]


@pytest.mark.parametrize("column", ["split", "set", "Subset", "fold", "partition"])
def test_a_column_of_splits_is_heard_and_holds_the_split_or_refuses_it(tmp_path, column):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    table = tmp_path / "list.csv"
    table.write_text(f"path,label,{column}\na.mp4,x,Train\nb.mp4,x,validation\nc.mp4,x,2\n")
    for split, name in (("train", "a.mp4"), ("val", "b.mp4"), ("2", "c.mp4")):
        assert listed(read_listing(table, split=split), tmp_path) == [(name, 0)]
    assert len(read_listing(table).samples) == 3
    with pytest.raises(ValueError, match="has, '2', 'train', 'validation', got 'test': pass split"):
        read_listing(table, split="test")


def test_a_list_of_paths_has_no_labels(tmp_path):
    touch(tmp_path / "videos", "a b.mp4", "c.mp4")
    (tmp_path / "list.txt").write_text("a b.mp4\nc.mp4\n")
    listing = read_listing(tmp_path / "list.txt", root=tmp_path / "videos")
    assert listed(listing, tmp_path) == [("videos/a b.mp4", None), ("videos/c.mp4", None)]


def test_kinetics_by_its_csv_and_its_json(tmp_path):
    touch(tmp_path, "videos/x/-abc_000003_000013.mp4", "videos/def_000010_000020.mkv")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "playing guitar,-abc,3,13,train,0\nabseiling,def,10,20,train,0\n"
    )
    other = {"annotations": {"label": "abseiling", "segment": [10.0, 20.0]}, "subset": "validate"}
    (tmp_path / "val.json").write_text(json.dumps({"def": other}))
    train = read_listing(tmp_path, split="train")
    assert train.classes == ("abseiling", "playing guitar")
    expected = [("videos/x/-abc_000003_000013.mp4", 1), ("videos/def_000010_000020.mkv", 0)]
    assert listed(train, tmp_path) == expected
    assert listed(read_listing(tmp_path, split="val", classes=train.classes), tmp_path) == expected[1:]


def test_kinetics_folders_with_underscores_are_the_classes_of_its_list(tmp_path):
    touch(tmp_path, "val/playing_guitar/a.mp4")
    listing = read_listing(tmp_path, split="val", classes=["abseiling", "playing guitar"])
    assert listed(listing, tmp_path) == [("val/playing_guitar/a.mp4", 1)]


def test_something_something_v2_takes_templates_for_classes_in_the_order_of_its_labels(tmp_path):
    touch(tmp_path, "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/2.webm")
    entry = {
        "id": "78687",
        "label": "pushing cup onto box",
        "template": "Pushing [something] onto [something]",
    }
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/train.json").write_text(json.dumps([entry]))
    (tmp_path / "labels/test.json").write_text(json.dumps([{"id": "2"}]))
    names = {"Tearing something": "0", "Pushing something onto something": "1"}
    (tmp_path / "labels/labels.json").write_text(json.dumps(names))
    listing = read_listing(tmp_path, split="train")
    assert listing.classes == ("Tearing something", "Pushing something onto something")
    assert listed(listing, tmp_path) == [("20bn-something-something-v2/78687.webm", 1)]
    test = read_listing(tmp_path, split="test")
    assert listed(test, tmp_path) == [("20bn-something-something-v2/2.webm", None)]


def test_something_something_v1_and_jester_are_frame_folders_by_their_number(tmp_path):
    write_frames(tmp_path / "20bn-jester-v1" / "34870", 2)
    (tmp_path / "jester-v1-validation.csv").write_text("34870;Drumming, with Fingers\n")
    (tmp_path / "jester-v1-labels.csv").write_text("Swiping Left\nDrumming, with Fingers\n")
    listing = read_listing(tmp_path, split="val")
    assert listing.classes == ("Swiping Left", "Drumming, with Fingers")
    assert listed(listing, tmp_path) == [("20bn-jester-v1/34870", 1)]


def test_missing_videos_are_named_or_left_out_with_a_warning(tmp_path):
    touch(tmp_path, "a.mp4", "x/b.mp4")
    (tmp_path / "list.csv").write_text("a.mp4,0\nother/b.mp4,1\nc.mp4,1\n")
    with pytest.raises(ValueError, match=r"got 1 of 3 without 'other/b.mp4', 'c.mp4'"):
        read_listing(tmp_path / "list.csv")
    with pytest.raises(ValueError, match="the folder that .* starts from, got root='absent'"):
        read_listing(tmp_path / "list.csv", root="absent")
    with pytest.warns(UserWarning, match="left out 2 of the 3 videos .*'other/b.mp4', 'c.mp4'") as seen:
        listing = read_listing(tmp_path / "list.csv", missing="skip")
    assert [str(w.filename) for w in seen] == [__file__]
    assert listed(listing, tmp_path) == [("a.mp4", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got none: check the file"),
        ("a.mp4,0,1,2\n", "a line holds 4 columns"),
        ("a.mp4,0\na.mp4,\n", "a label for each video or for none, got none for number 1"),
        (
            "path,label,class_id\na.mp4,run,0\na.mp4,,0\n",
            "a label for each video or for none, got none for number 1",
        ),
        (
            "path,start,end,label\na.mp4,0.0,0.5,run\n",
            "a part of its video, .*'start': '0.0'.*: cut the clips first",
        ),
        ("video_id,Start-Frame,label\na.mp4,3,run\n", "a part of its video, .*: cut the clips first"),
        ("a.mp4 0 3\na.mp4 2 1\n", "a video of 0 frames, or of two labels"),
        ("a.mp4,-1\n", "labels from 0 to 99999, got -1"),
        ("a.mp4,1234567\n", "labels from 0 to 99999, got 1234567"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(tmp_path, text, message):
    touch(tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_listing(tmp_path / "list.csv")


def test_numbers_are_looked_up_by_name_where_the_classes_are_numbers(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text("a.mp4,1\n")
    assert read_listing(tmp_path / "list.csv", classes=["3", "1"]).samples[0].label == 1
    with pytest.raises(ValueError, match="among the 2 classes '3', '5' ..., got 1 others .*'1'"):
        read_listing(tmp_path / "list.csv", classes=["3", "5"])


SIGNS = ["1", "2", "3", "A", "B"]  # some classes are called by numbers


def list_of(folder, *labels):
    touch(folder, *(f"{index}.mp4" for index in range(len(labels))))
    (folder / "list.csv").write_text("".join(f"{index}.mp4,{label}\n" for index, label in enumerate(labels)))
    return folder / "list.csv"


@pytest.mark.parametrize("labels", [(0, 1, 2, 3, 4), (1, 2), (1,), ("2",)])
def test_a_number_that_is_one_class_by_name_and_another_by_place_is_refused(tmp_path, labels):
    with pytest.raises(ValueError, match="which is class [01] by its name and class [12] by its number"):
        read_listing(list_of(tmp_path, *labels), classes=SIGNS)


def test_a_number_is_never_one_class_in_a_list_and_another_in_a_part_of_it(tmp_path):
    for labels, expected in (((0, 4), [0, 4]), ((4,), [4]), (("1", "A"), [0, 3]), (("B",), [4])):
        listing = read_listing(list_of(tmp_path, *labels), classes=SIGNS)
        assert [sample.label for sample in listing.samples] == expected
    # where each number is its own place there is one meaning
    listing = read_listing(list_of(tmp_path, 1, 2), classes=["0", "1", "2", "A"])
    assert [sample.label for sample in listing.samples] == [1, 2]


def test_folders_are_names_whatever_they_are_called(tmp_path):
    touch(tmp_path, "1/a.mp4", "3/b.mp4")
    assert [sample.label for sample in read_listing(tmp_path, classes=SIGNS).samples] == [0, 2]
    touch(tmp_path, "0/c.mp4")  # a class that training never saw, and no number of one
    with pytest.raises(ValueError, match="got 1 others .*: '0'"):
        read_listing(tmp_path, classes=SIGNS)


@pytest.mark.parametrize("folder", ["x", "."])
def test_a_name_that_two_videos_have_is_refused(tmp_path, folder):
    touch(tmp_path / folder, "y/a.mp4", "z/a.mp4")
    (tmp_path / "list.csv").write_text("a.mp4,0\n")
    with pytest.raises(ValueError, match="expected one video 'a.mp4' below"):
        read_listing(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        ("v.mp4", ["a/v.mp4", "b/c/v.mp4"], None),
        ("v", ["a/v.mp4", "b/c/v.mp4"], None),
        ("./v.mp4", ["a/v.mp4", "b/w.mp4"], "a/v.mp4"),
        ("v", ["a/v/1.jpg", "a/v/2.jpg", "b/v.mp4"], None),
        ("v", ["a/v/1.jpg", "a/v/2.jpg", "v.mp4"], None),
        ("v", ["a/v/1.jpg", "a/v/2.jpg", "b/w.mp4"], "a/v"),
        ("v", ["a/v/w.mp4", "b/v.mp4"], "b/v.mp4"),
        ("c/v", ["a/c/v.mp4", "b/c/v.avi"], None),
        ("c/v", ["a/c/v.mp4", "b/v.mp4"], "a/c/v.mp4"),
        ("v.mp4", ["v.mp4", "b/v.mp4"], "v.mp4"),
    ],
)
def test_a_name_is_that_of_one_video_wherever_others_lie(tmp_path, name, files, found):
    touch(tmp_path, *files)
    (tmp_path / "list.csv").write_text(f"path,label\n{name},0\n")
    if found is None:
        with pytest.raises(ValueError, match="expected one video .*: write the whole path"):
            read_listing(tmp_path / "list.csv")
        return
    assert listed(read_listing(tmp_path / "list.csv"), tmp_path) == [(found, 0)]
    if os.path.isfile(tmp_path / found):
        (tmp_path / "links" / "deep").mkdir(parents=True)
        (tmp_path / "links" / "deep" / os.path.basename(found)).symlink_to(tmp_path / found)
        assert listed(read_listing(tmp_path / "list.csv"), tmp_path) == [(found, 0)]


def test_links_in_a_circle_end(tmp_path):
    touch(tmp_path, "run/a.mp4")
    (tmp_path / "run/again").symlink_to(tmp_path)
    assert listed(read_listing(tmp_path), tmp_path) == [("run/a.mp4", 0)]


@pytest.mark.parametrize("nothing", ["absent", "empty"])
def test_nothing_is_no_data_set(tmp_path, nothing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"(got none|or a list of them, got .*): check the path"):
        read_listing(tmp_path / nothing)


@pytest.mark.parametrize("suffix", ["avif", "gif"])
@pytest.mark.parametrize("folder", ["left/v1", "left", "."])
def test_numbered_pictures_in_formats_of_videos_are_no_videos(tmp_path, suffix, folder):
    touch(tmp_path, "right/a.mp4") if folder != "." else None
    try:
        write_frames(tmp_path / folder, 3, f"{{:05d}}.{suffix}")
    except KeyError as error:  # Pillow comes without the encoder
        pytest.skip(str(error))
    with pytest.raises(
        ValueError, match="expected videos, got 3 single pictures .*: save them as JPEG or PNG"
    ):
        read_listing(tmp_path)
    moving = [Image.fromarray(barcode(number)) for number in range(2)]
    moving[0].save(tmp_path / folder / f"00003.{suffix}", save_all=True, append_images=moving[1:])
    assert len(read_listing(tmp_path).samples) == (3 if folder == "." else 4)
    moving[0].save(tmp_path / folder / f"00003.{suffix}")
    (tmp_path / folder / f"00003.{suffix}").rename(tmp_path / folder / f"run.{suffix}")
    assert len(read_listing(tmp_path).samples) == (3 if folder == "." else 4)


def test_frames_in_a_folder_come_in_natural_order_as_those_of_a_file(tmp_path, film):
    folder = write_frames(tmp_path / "frames", 24, "{}.jpg", first=0)
    for strategy in ("uniform", "dense", "twice", "authors"):
        expected = numbers(read_clip(film, 8, strategy))
        assert numbers(read_frame_folder(str(folder), 8, strategy)) == expected
    assert frame_files(str(folder))[9:11] == ["9.jpg", "10.jpg"]
    assert read_frame_folder(str(folder), 3, size=32).shape == (1, 3, 3, 32, 80)


def test_photographs_come_upright(tmp_path):
    picture = Image.fromarray(barcode(9)).rotate(90, expand=True)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned clockwise to be upright
    picture.save(tmp_path / "1.jpg", exif=exif, quality=95)
    frames = read_frame_folder(str(tmp_path), 1, size=32)
    assert (frames.shape, numbers(frames)) == ((1, 1, 3, 32, 80), [9])


def test_flow_beside_frames_is_left_out_and_a_second_video_refused(tmp_path):
    write_frames(write_frames(tmp_path, 2, "img_{:05d}.jpg"), 2, "flow_x_{:05d}.jpg")
    assert frame_files(str(tmp_path)) == ["img_00001.jpg", "img_00002.jpg"]
    write_frames(tmp_path, 1, "other_{:05d}.jpg")
    with pytest.raises(ValueError, match="named alike but for their number, got img_#.jpg, other_#.jpg"):
        frame_files(str(tmp_path))


def test_a_frame_that_is_no_picture_is_named(tmp_path):
    write_frames(tmp_path, 4)
    (tmp_path / "00003.jpg").write_bytes((tmp_path / "00003.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"00003.jpg' \("):
        read_frame_folder(str(tmp_path), 4)
    Image.fromarray(barcode(1)).resize((80, 32)).save(tmp_path / "00003.jpg")
    with pytest.raises(ValueError, match="pictures of one size, got 80 x 32 for .*00003.jpg"):
        read_frame_folder(str(tmp_path), 4)


def dataset_of(film, count=4, **options):
    samples = tuple(Sample(str(film), number % 2) for number in range(count))
    listing = options.pop("listing", Listing(samples, ("left", "right")))
    return VideoDataset(listing, options.pop("num_segments", 8), **options)


@pytest.mark.parametrize(
    ("sampling", "clips", "views"), [("uniform", 1, 1), ("twice", 1, 2), ("dense", 3, 3), ("authors", 1, 1)]
)
def test_a_test_item_has_every_view_of_every_clip(film, sampling, clips, views):
    transform = eval_transform(32, short_side=48, views=3)
    dataset = dataset_of(film, transform=transform, sampling=sampling, clips=clips)
    item, label = dataset[1]
    assert (item.shape, label) == ((3 * views, 8, 3, 48, 48), 1)
    read = read_clip(film, 8, sampling, num_clips=clips if sampling == "dense" else None)
    assert torch.equal(item, torch.cat([transform(clip) for clip in read]))
    assert dataset_of(film, sampling=sampling, clips=clips)[0][0].shape == (views, 8, 3, HEIGHT, WIDTH)


def test_decoding_at_the_size_of_the_transform_leaves_it_nothing_to_resize(film):
    clip = read_clip(film, 8, size=48)
    assert clip.shape == (1, 8, 3, 48, 120)
    assert torch.equal(ViewCrops(32, 48)(clip), F.center_crop(clip, [32, 32]))
    transform = eval_transform(32, short_side=48)
    assert torch.equal(dataset_of(film, transform=transform, size=48)[0][0], transform(clip))


def test_training_items_are_functions_of_seed_epoch_and_index_alone(film):
    options = dict(transform=train_transform(32, flip=False), training=True, num_segments=4)
    dataset = dataset_of(film, seed=3, **options)
    before = torch.get_rng_state()
    items = [dataset[index][0] for index in range(4)]
    assert torch.equal(before, torch.get_rng_state())
    assert items[0].shape == (4, 3, 32, 32)
    assert not torch.equal(items[0], items[1])
    torch.manual_seed(99)
    again = dataset_of(film, seed=3, **options)
    assert all(torch.equal(again[index][0], items[index]) for index in reversed(range(4)))
    assert torch.equal(again[-1][0], items[3])
    assert not torch.equal(dataset_of(film, seed=4, **options)[0][0], items[0])
    again.set_epoch(1)
    assert not torch.equal(again[0][0], items[0])
    again.set_epoch(0)
    assert torch.equal(again[0][0], items[0])


def test_workers_give_the_same_items_and_hear_of_the_epoch(film):
    dataset = dataset_of(film, transform=train_transform(32, flip=False), training=True, num_segments=4)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=collate)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        clips, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        assert labels.tolist() == [0, 1, 0, 1]
        assert torch.equal(clips, torch.stack([dataset[index][0] for index in range(4)]))


def damaged(film, folder):
    """A video whose last frames cannot be decoded, an empty one, and none."""
    half = write_video(folder / "half.mp4", 24, b_frames=0)
    with av.open(half) as container:
        lost = [(p.pos, p.size) for p in container.demux(video=0) if p.size][12:]
    with open(half, "r+b") as file:
        for position, size in lost:
            file.seek(position)
            file.write(bytes(size))
    (folder / "empty.mp4").touch()
    paths = [str(film), *(str(folder / name) for name in ("half.mp4", "empty.mp4", "gone.mp4"))]
    return Listing(tuple(Sample(path, 0) for path in paths), ("run",))


def test_what_cannot_be_read_is_fatal_or_reported_once_left_out_and_counted(film, tmp_path):
    listing = damaged(film, tmp_path)
    fatal = dataset_of(film, listing=listing)
    for index, message in enumerate(("half.mp4', of which [34] wanted frames", "empty", "gone.mp4"), 1):
        with pytest.raises((ValueError, OSError), match=message):
            fatal[index]
    dataset = dataset_of(film, listing=listing, on_error="skip")
    with pytest.warns(UserWarning, match="left out .*, which cannot be read") as seen:
        clips, labels = collate([dataset[index] for index in range(4)])
    assert (clips.shape, labels.tolist()) == ((1, 1, 8, 3, HEIGHT, WIDTH), [0])
    assert len(seen) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(dataset[2], Unreadable)
    assert dataset.unreadable == tuple(sample.path for sample in listing.samples[1:])
    with pytest.raises(
        ValueError, match=r"at least one video that can be read, got 1 that cannot: .*half.mp4"
    ):
        collate([dataset[1]])


@pytest.mark.filterwarnings("ignore:left out")
def test_what_a_worker_cannot_read_is_counted_outside(film, tmp_path):
    dataset = dataset_of(film, listing=damaged(film, tmp_path), on_error="skip")
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate, sampler=[1, 2, 3, 0])
    batches = iter(loader)
    with pytest.raises(EmptyBatchError, match="at least one video that can be read"):
        next(batches)
    assert next(batches)[1].tolist() == [0]
    assert len(dataset.unreadable) == dataset.num_unreadable == 3


def test_clips_of_several_shapes_make_no_batch():
    with pytest.raises(ValueError, match="clips of one shape, got .* pass a transform that crops"):
        collate([(torch.zeros(1, 2), 0), (torch.zeros(1, 3), 0)])


SIDES = (
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
    "Turning left",
    "Falling",
)


def test_mirrored_clips_take_the_label_of_the_other_side(film):
    listing = Listing(tuple(Sample(str(film), label) for label in range(4) for _ in range(8)), SIDES)
    dataset = dataset_of(film, listing=listing, training=True, flip_pairs="names", num_segments=2)
    plain = dataset_of(film, listing=listing, training=True, num_segments=2)
    mirrored = [0] * 4
    for index, sample in enumerate(listing.samples):
        (clip, label), (straight, same) = dataset[index], plain[index]
        assert same == sample.label
        flipped = torch.equal(clip, straight.flip(-1))
        assert flipped or torch.equal(clip, straight)
        assert label == ({0: 1, 1: 0, 3: 3}[same] if flipped else same)
        mirrored[same] += flipped
    assert all(0 < mirrored[label] < 8 for label in (0, 1, 3))
    assert mirrored[2] == 0
    test = dataset_of(film, listing=listing, flip_pairs="names", num_segments=2)
    assert torch.equal(test[0][0], read_clip(film, 2))


def test_pairs_come_from_names_files_and_published_numbers(tmp_path):
    assert find_flips(None, SIDES) is None
    assert find_flips((), ("a", "b")) == {}
    assert find_flips("names", ("Turning Hand Clockwise", "Turning Hand Counterclockwise")) == {0: 1, 1: 0}
    (tmp_path / "pairs.txt").write_text("a,b\n\n2,3\n")
    assert find_flips(tmp_path / "pairs.txt", ("a", "b", "c", "d")) == {0: 1, 1: 0, 2: 3, 3: 2}
    numbers = tuple(map(str, range(174)))
    assert find_flips("something-v2", numbers) == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert set(find_flips("something-v1", numbers) or ()) == {
        i for pair in PAIRS["something-v1"] for i in pair
    }
    for pairs, message in (
        ([("a", "e")], "a number below 2 in flip_pairs, got 'e'"),
        ([(0, 2)], "below 2 in flip_pairs, got 2"),
        ([(0, 1), (1, 0)], r"each class in one pair, with another, got \(1, 0\)"),
        ("something-v2", "expected the 174 classes .* got 2"),
        ("absent.txt", "a file of pairs of classes, got 'absent.txt'"),
    ):
        with pytest.raises(ValueError, match=message):
            find_flips(pairs, ("a", "b"))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("SwipeLeft", "SwipeRight"),
        ("swipe_leftwards", "swipe_rightwards"),
        ("Rotate CW", "Rotate CCW"),
        ("RotateCW", "RotateACW"),
        ("left-hand wave", "right-hand wave"),
        ("lefthanded", "righthanded"),
        ("turnleft", "turnright"),
        ("TurnCounterClockwise", "turn clockwise"),
        ("turn anti-clockwise", "turn clock-wise"),
        ("L", "R"),
        ("kickL", "kickR"),
    ],
)
def test_sides_are_heard_however_they_are_written(left, right, film):
    assert find_flips("names", (left, "bright light", right)) == {0: 2, 2: 0}
    listing = Listing((Sample(str(film), 0),), (left, right))
    with pytest.raises(ValueError, match="a transform that does not mirror"):
        dataset_of(film, listing=listing, transform=train_transform(32), training=True)


def test_letters_are_no_sides_and_sides_without_the_other_stay():
    assert find_flips("names", ("sign A", "sign L", "sign R")) == {}
    assert find_flips("names", ("move leftwards", "lefthanded", "jump")) == {0: None, 1: None}
    assert find_flips("names", ("SwipeLeft", "swipe_left", "swipe right")) == {0: None, 1: None, 2: None}


@pytest.mark.parametrize("classes", [("0", "1", "2"), ("class 0", "class 1"), ("c_1", "c_2")])
def test_numbers_have_no_sides_to_mirror_by(classes):
    with pytest.raises(
        ValueError, match="names of classes that say what they are .*something-v1.*file of pairs"
    ):
        find_flips("names", classes)


def test_something_something_with_names_is_mirrored_by_its_names():
    names = [f"Doing thing{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(172)]
    names = sorted([*names, "Turning the camera left", "Turning the camera right"])
    left = names.index("Turning the camera left")
    assert find_flips("something-v1", names) == {left: left + 1, left + 1: left}


def test_a_transform_that_mirrors_behind_the_labels_back_is_refused(film):
    mirroring = train_transform(32)
    for options in (dict(flip_pairs="names"), dict(flip_pairs=()), {}):
        with pytest.raises(ValueError, match="a transform that does not mirror, got RandomHorizontalFlip"):
            dataset_of(film, transform=mirroring, training=True, **options)
    listing = Listing((Sample(str(film), 0),), ("run",))
    assert dataset_of(film, listing=listing, transform=mirroring, training=True)[0][0].shape == (8, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(listing=Listing(())), "a listing with videos, got none"),
        (dict(listing=Listing((Sample("a.mp4"),)), training=True), "to train on, got none for 'a.mp4'"),
        (dict(on_error="ignore"), "'raise', 'skip', got 'ignore'"),
        (dict(sampling="random"), "strategy must be one of"),
        (dict(sampling="uniform", clips=2), "num_clips=1 with 'uniform', got 2"),
        (dict(clips=0), "clips must be at least 1, got 0"),
        (dict(size=0), "size must be at least 1"),
        (dict(sampling="dense", num_segments=65), "num_segments <= window=64"),
    ],
)
def test_a_wrong_request_says_what_was_expected(film, options, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(film, **options)


def test_decimal_names_and_several_pictures_in_one_file_are_refused(tmp_path):
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    for name in ("0.00", "0.25", "0.50"):
        first.save(tmp_path / f"{name}.png")
    assert frame_files(str(tmp_path)) == ["0.00.png", "0.25.png", "0.50.png"]
    first.save(tmp_path / "0.3.png")
    with pytest.raises(ValueError, match="decimal numbers of as many digits"):
        frame_files(str(tmp_path))
    (tmp_path / "moving").mkdir()
    first.save(tmp_path / "moving" / "1.webp", save_all=True, append_images=[second], lossless=True)
    with pytest.raises(ValueError, match="2 pictures in one file"):
        read_frame_folder(str(tmp_path / "moving"), 4)


def test_a_strangers_picture_of_16_bits_is_scaled_and_a_moving_one_refused():
    def encoded(image, **options):
        file = io.BytesIO()
        image.save(file, "png", **options)
        return file.getvalue()

    grey = Image.frombytes("I;16", (8, 8), b"\x20\x4e" * 64)  # 20000
    assert decode_picture(encoded(grey)).unique().tolist() == [78]
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    with pytest.raises(ValueError, match="2 pictures in one file"):
        decode_picture(encoded(first, save_all=True, append_images=[second]))


def test_two_threads_do_not_draw_from_one_generator():
    inside, done = threading.Event(), threading.Event()

    def wait():
        with seeded(1):
            inside.set()
            done.wait(10)

    other = threading.Thread(target=wait)
    other.start()
    inside.wait(10)
    with pytest.raises(RuntimeError, match="one thread at a time"), seeded(2):
        pass
    done.set()
    other.join()
    with seeded(2), seeded(3):
        pass
