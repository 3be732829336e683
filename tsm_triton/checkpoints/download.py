"""Files of weights behind an address: in torch.hub's cache, or in that of the Hugging Face hub."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

__all__ = ["HUB_FILES", "check_sum", "is_remote", "local_file"]

HUB = "hf-hub:"
# in the order that timm looks for them
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
CHUNK = 1 << 20


def is_remote(source: str) -> bool:
    """Whether this is an address, and no path.

    Example:
        >>> is_remote("hf-hub:owner/name"), is_remote("https://a.b/c.pth"), is_remote("weights/c.pth")
        (True, True, False)
    """
    return source.startswith((HUB, "https://", "http://"))


def local_file(source: str, checksum: str | None = None) -> Path:
    """Where the weights of an address are on this machine; downloaded, with a bar, where they are not yet.

    Args:
        source: `https://...`, whose name may hold the beginning of its SHA-256 as torch.hub's do, `NAME-0123abcd.pth`;
            or `hf-hub:owner/name`, `hf-hub:owner/name@revision`, `hf-hub:owner/name:file`.
        checksum: the SHA-256, or its beginning, at least eight digits.

    Raises:
        ImportError: a hub's address without huggingface_hub.
        ValueError: what cannot be downloaded, or is another file than the checksum's.
    """
    path = _from_hub(source) if source.startswith(HUB) else _from_address(source, checksum)
    if checksum is not None:
        check_sum(path, checksum)
    return path


def check_sum(path: Path, checksum: str) -> None:
    """Raise `ValueError` unless a file's SHA-256 begins so."""
    if not re.fullmatch("[0-9a-fA-F]{8,64}", checksum):
        raise ValueError(f"checksum must be 8 to 64 hexadecimal digits of a SHA-256, got {checksum!r}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(checksum.lower()):
        raise ValueError(
            f"expected a file whose SHA-256 begins with {checksum}, got {digest.hexdigest()} of {str(path)!r}. Delete "
            "it to download it again, or pass its own checksum if it is trusted."
        )


def _from_address(address: str, checksum: str | None) -> Path:
    name = Path(unquote(urlsplit(address).path)).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not name:
        raise ValueError(
            f"expected the address of a file, got {address!r}: pass that of the weights themselves"
        )
    in_name = re.search(r"-([a-f0-9]{8,})\.", name)
    if in_name is None:  # another address may end in the same name
        folder /= hashlib.sha256(address.encode()).hexdigest()[:16]
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    known = checksum.lower() if checksum is not None else in_name and in_name[1]
    try:
        torch.hub.download_url_to_file(address, str(path), known)
    except (OSError, RuntimeError) as error:  # of the network, of the disk, or a sum that differs
        raise ValueError(
            f"expected to download {address!r}, got {type(error).__name__} ({error}). Check the address, or download "
            "the file and pass its path."
        ) from error
    return path


def _from_hub(source: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ImportError(f"{source!r} needs huggingface_hub: pip install 'huggingface_hub'") from None
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::(.+))?", source.removeprefix(HUB))
    if match is None:
        raise ValueError(
            "expected hf-hub:owner/name, hf-hub:owner/name@revision or hf-hub:owner/name:file, got "
            f"{source!r}: pass one of these"
        )
    repository, revision, name = match.groups()
    reasons: list[Exception] = []
    for file in (name,) if name else HUB_FILES:
        path = _hub_file(hf_hub_download, repository, file, revision, reasons)
        if path is not None:
            return path
    reason = reasons[0]
    raise ValueError(
        f"expected weights at {source!r}, got {type(reason).__name__} ({str(reason).partition(chr(10))[0]}). Pass "
        f"{HUB}owner/name:file for one that is called otherwise than {' or '.join(HUB_FILES)}."
    ) from reason


def _hub_file(
    download: Callable[..., str], repository: str, file: str, revision: str | None, reasons: list[Exception]
) -> Path | None:
    try:
        return Path(download(repository, file, revision=revision))
    except Exception as error:  # no such file, or of the network, of a login, of the hub
        reasons.append(error)
        return None
