"""The commands of `tsm-triton`, a folder each: `add_arguments(parser)`, without torch, and `command.run`."""

# Listed here so that `tsm-triton --help` imports none of them, and no torch.
COMMANDS = {
    "classify": "say what is seen in videos, on this machine or on a cluster",
    "demo": "train a small model with and without the shift on clips that no single frame tells apart",
    "eval": "measure a model on labelled videos: top-1 and top-5, per class and per video",
    "export": "write a model as ONNX, torch.export's .pt2 or an AOTInductor package, for use without this package",
    "inspect": "say what a file of weights is, how it is shifted, and which line loads it",
    "serve": "show a page on which a camera or a video is seen by a causal model, live",
    "sites": "list the modules of a timm or torchvision model that the shift would stand before",
    "stream": "run a causal model on live video, frame by frame, and draw what it makes of it",
    "train": "train a shifted model on videos, on one device or many, going on exactly where it was stopped",
    "verify": "check every kernel on this machine: its GPU, driver and Triton, or the interpreter",
}
