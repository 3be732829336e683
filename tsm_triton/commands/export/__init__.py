"""`tsm-triton export CHECKPOINT | MODEL --to FORMAT`: a model as a file that others run."""

import argparse
from pathlib import Path

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="CHECKPOINT|MODEL",
        help="what save_checkpoint wrote; a timm name, or torchvision/NAME",
    )
    add("--to", choices=["onnx", "pt2", "aoti"], required=True, help="ONNX, torch.export, or AOTInductor")
    add(
        "--path", type=Path, metavar="FILE", help="(default: the model's name with the format's ending, here)"
    )
    add("--frames", action="store_true", help="a row of logits a frame, in place of one a clip of any length")
    add("--streaming", action="store_true", help="one frame at a time, caches as inputs and outputs")
    add("--fused", action="store_true", help="rewrite the graph on the fused ops first")
    add("--num-segments", type=int, metavar="T", help="frames of a clip, where they are fixed")
    add("--size", type=int, metavar="S", help="side of a frame in pixels (default: the model's own)")
    add("--dynamic-size", action="store_true", help="height and width are free, multiples of 32")
    add(
        "--native",
        action="store_true",
        help="keep our registered ops, in a pt2 that needs tsm_triton to run; our kernels, in an aoti for CUDA",
    )
    add(
        "--device",
        default="cpu",
        help="what an aoti is compiled for, and a pt2 runs on (default: %(default)s)",
    )
    add(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="what is computed in (default: %(default)s)",
    )
    add(
        "--int8",
        metavar="DATA",
        help="compute in int8, in the ranges of clips of DATA: a folder of videos or a list, as trained on",
    )
    add("--direction", choices=["bidirectional", "causal"], help="of a MODEL, which is shifted anew")
