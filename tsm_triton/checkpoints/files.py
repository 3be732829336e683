"""What a file of weights holds, read without running any code of it, and written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..files import printable, replacing

__all__ = ["read", "write"]

# where a safetensors file holds what is no tensor, as JSON
METADATA = "tsm_triton"


def read(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` or safetensors wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, a damaged one, or one that needs code to be run.
    """
    path = Path(path)
    try:
        return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected weights at {str(path)!r}, which does not exist: check the path"
        ) from None
    except Exception as error:  # a damaged pickle fails in any way
        reason = printable(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise ValueError(
            f"expected weights that torch.load(weights_only=True) reads, got {str(path)!r} ({reason}). "
            + (
                "Write Paddle's arrays anew, where Paddle is: safetensors.numpy.save_file({key: value.numpy() for key, "
                "value in paddle.load(path).items() if hasattr(value, 'numpy')}, 'weights.safetensors')."
                if path.suffix == ".pdparams"
                else "Save a plain model.state_dict(), or use tsm_triton.save_checkpoint. Of a file that needs code to "
                "be run, and that you trust, write the weights anew: torch.save(torch.load(path, "
                "weights_only=False)['state_dict'], 'weights.pth')."
            )
        ) from error


def write(held: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write tensors under `state_dict`, and the rest beside them; what was there stays until all is written."""
    with replacing(path) as temporary:
        if _is_safetensors(Path(path)):
            from safetensors.torch import save_file

            about = {key: value for key, value in held.items() if key != "state_dict"}
            save_file(held["state_dict"], temporary, {METADATA: json.dumps(about)})
        else:
            torch.save(held, temporary)


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
        about = (file.metadata() or {}).get(METADATA)
    return state if about is None else {**json.loads(about), "state_dict": state}
