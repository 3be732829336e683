"""`tsm-triton train DATA`: a shifted model on one's own videos."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...choices import DIRECTIONS, PLACES
from ...training.recipes import RECIPES
from ...training.settings import FREEZE_BN, GROUPS, PRECISIONS, Settings
from ..options import SEEDS, option_of, weights_at, within

__all__ = ["MODEL_DEFAULTS", "SAMPLINGS", "add_arguments"]

SAMPLINGS = ("uniform", "dense")

# what a recipe may say beside the settings of the loop
MODEL_DEFAULTS: dict[str, Any] = {
    "model": "resnet50.tv_in1k",
    "pretrained": False,
    "num_segments": 8,
    "size": None,
    "direction": "bidirectional",
    "place": "blockres",
    "shift_div": 8,
    "dropout": 0.0,
    "flip": False,
    "flip_pairs": None,
    "sampling": "uniform",
}
CHOICES = {"groups": GROUPS, "freeze_bn": FREEZE_BN, "precision": PRECISIONS}
HELP = {
    "epochs": "passes over all clips",
    "batch_size": "clips a step, of all processes and parts together",
    "accumulate": "parts that a process makes of its share of a batch, for less memory",
    "opt": "an optimiser of timm's",
    "lr": "learning rate",
    "weight_decay": "decay of weights",
    "momentum": "of sgd",
    "groups": "authors: the head learns at 5 and 10 times the rate, biases at twice, without decay",
    "freeze_bn": "batch-norms that keep their statistics and weights",
    "clip_grad": "largest norm of the gradients; 0 for any",
    "sched": "constant, cosine, multistep, poly or tanh",
    "milestones": "epochs after which multistep divides the rate by ten",
    "warmup_epochs": "in which the rate rises",
    "label_smoothing": "share of the label that goes to all classes",
    "mixup": "timm's alpha; 0 for none",
    "cutmix": "timm's alpha, one box for all frames; 0 for none",
    "ema": "decay of averaged weights, which are then tested and kept; 0 for none",
    "precision": "of what is multiplied",
    "compile": "train through torch.compile with the backend tsm_triton",
    "checkpoint_activations": "compute blocks again in the backward, for less memory",
    "fsdp": "shard weights over the processes",
    "sync_bn": "statistics of batch-norm over all processes",
    "seed": "of the order of clips, of what is drawn of each, and of weights",
    "workers": "processes that decode",
    "save_every": "steps between two states to go on from, beside the ends of epochs; 0 for these alone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder with a folder for each class, or a list of videos")
    add(
        "--val",
        metavar="DATA",
        help="videos to test on after each epoch (default: the part val of DATA, if it has one)",
    )
    add("--split", help="which part of DATA, where it holds several (default: train)")
    add("--root", type=Path, metavar="DIR", help="what the paths of a list start from (default: its folder)")
    add(
        "--out",
        type=Path,
        default=Path("train"),
        metavar="DIR",
        help="new folder for results, outside of the data (default: train/)",
    )
    add("--resume", action="store_true", help="go on exactly from the state in the folder, if there is one")
    add(
        "--recipe",
        metavar="NAME",
        help=f"settings of {', '.join(RECIPES)}, or a TOML file; options come first",
    )
    add(
        "--weights",
        type=weights_at,
        metavar="FILE",
        help="weights to start from, ours or published: their model and shift, unless options say otherwise, and "
        "their head, if of the same classes",
    )
    add(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="of a video that cannot be read, or is not there",
    )
    add("--device", help="where to train (default: cuda where there is one, else cpu)")

    model = parser.add_argument_group("model and clips").add_argument
    model(
        "--model",
        metavar="NAME",
        help=f"a timm name, or torchvision/NAME (default: {MODEL_DEFAULTS['model']})",
    )
    model(
        "--pretrained", action=argparse.BooleanOptionalAction, help="start from weights of images, downloaded"
    )
    model("--num-segments", type=within(1, 1024), metavar="T", help="frames a clip (default: 8)")
    model(
        "--size", type=within(1, 4096), metavar="S", help="side of a frame in pixels (default: the model's)"
    )
    model("--direction", choices=DIRECTIONS, help="causal for live video (default: bidirectional)")
    model("--place", choices=PLACES, help="what is shifted, a branch or its block (default: blockres)")
    model(
        "--shift-div", type=within(1, 4096), metavar="D", help="a D-th of the channels each way (default: 8)"
    )
    model("--dropout", type=float, metavar="P", help="before the head (default: 0)")
    model(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror half of the clips, under their own label",
    )
    model(
        "--flip-pairs",
        metavar="PAIRS",
        help="mirror half of the clips, and exchange classes: names (that say left and right), something-v1, "
        "something-v2, or a file of pairs a,b",
    )
    model("--sampling", choices=SAMPLINGS, help="which frames (default: uniform)")

    loop = parser.add_argument_group("training", "of a recipe, else the default").add_argument
    for field in fields(Settings):
        option, default = option_of(field.name), field.default
        about: dict[str, Any] = {"help": f"{HELP[field.name]} (default: {default})"}
        if field.name == "lr":
            about["help"] = f"{HELP['lr']} (default: {default}, a tenth of it from trained weights)"
        elif field.name in ("workers", "precision"):
            about["help"] = f"{HELP[field.name]} (default: as fits the machine)"
        if isinstance(default, bool):
            loop(option, action=argparse.BooleanOptionalAction, help=HELP[field.name])
        elif isinstance(default, tuple):
            loop(option, type=int, nargs="+", metavar="N", help=HELP[field.name])
        elif field.name in CHOICES:
            loop(option, choices=CHOICES[field.name], **about)
        elif isinstance(default, str):
            loop(option, metavar="NAME", **about)
        elif field.name == "seed":
            loop(option, type=within(*SEEDS), metavar="N", **about)
        else:
            loop(option, type=type(default), metavar="N", **about)
