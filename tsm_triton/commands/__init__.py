"""The commands of `tsm-triton`, a folder each: `add_arguments(parser)`, without torch, and `command.run`."""

# Listed here so that `tsm-triton --help` imports none of them, and no torch.
COMMANDS = {
    "demo": "train a small model with and without the shift on clips that no single frame tells apart",
    "export": "write a model as ONNX, torch.export's .pt2 or an AOTInductor package, for use without this package",
    "sites": "list the modules of a timm or torchvision model that the shift would stand before",
    "stream": "run a causal model on live video, frame by frame, and draw what it makes of it",
    "verify": "check every kernel on this machine: its GPU, driver and Triton, or the interpreter",
}
