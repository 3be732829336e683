"""The optional packages, as pyproject.toml asks for them."""

from importlib.util import find_spec

__all__ = ["check_installed", "requirements"]

EXTRAS = {
    "accelerate": "accelerate>=1.10",
    "av": "av>=14.1",
    "fastapi": "fastapi>=0.115",
    "hypothesis": "hypothesis>=6.100",
    "matplotlib": "matplotlib>=3.8",
    "pyarrow": "pyarrow>=17",
    "ray": "ray[data]>=2.40",
    "tensorboard": "tensorboard>=2.17",
    "tomli": "tomli>=2",
    "torchmetrics": "torchmetrics>=1.6",
    "webdataset": "webdataset>=0.2.100",
    "uvicorn": "uvicorn>=0.35",
    "websockets": "websockets>=13",
    "onnx": "onnx>=1.18",
    "onnxscript": "onnxscript>=0.5.6",
    "onnxruntime": "onnxruntime>=1.20",
    "torchao": "torchao>=0.15",
}


def requirements(*modules: str) -> str:
    """What to give `pip install` for these modules, quoted for a shell."""
    return " ".join(f"'{EXTRAS[module]}'" for module in modules)


def check_installed(what: str, *modules: str) -> None:
    """Raise `ImportError` now, and not half-way, if one is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(f"{what} needs {' and '.join(missing)}: pip install {requirements(*missing)}")
