"""The ops as a kernel of Hugging Face's hub: nothing but the ops, under whatever name they are loaded.

    FOLDER/build.toml, CARD.md       what kernel-builder and a reader of the hub begin with
           torch-ext/tsm_triton/     the source, from which kernel-builder builds
           build/torch-cuda/, ...    the same built, a folder a backend: what `kernels` loads

The source is `tsm_triton/functional.py` and all that it imports, file by file as it is: imports of each other are
relative, and the ops' namespace is the name of the import (`tsm_triton/_ops.py`). That name is the kernel's `id`, made
of its content, so that two versions live in one process, beside an installed tsm_triton.
"""

import ast
import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["ROOT", "lay_out", "sources"]

HERE = Path(__file__).parent
ROOT = HERE.parent
API = "functional.py"
# what `kernels` takes on every backend, behind the folder of the backend's own; its metadata must name one
UNIVERSAL = "torch-universal"

ENTRY = '''"""The Temporal Shift Module's ops. See CARD.md."""

from .functional import {names}
from .version import __version__

__all__ = [{quoted}]
'''

# for older loaders, which look one folder deeper
DEEPER = '''"""What stands in the folder above, for loaders that look for it here."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location(f"{__name__}_above", Path(__file__).parent.parent / "__init__.py")
_kernel = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_kernel)
__all__ = _kernel.__all__
globals().update({name: getattr(_kernel, name) for name in __all__})
'''


def lay_out(folder: Path, package: Path = ROOT / "tsm_triton") -> str:
    """Write the ops to a folder, as Hugging Face's `kernels` loads them and `kernel-builder` builds them.

    Args:
        folder: a new one, or one that was written so before: that is replaced.
        package: whose ops.

    Returns:
        What every `id` ends in: a digest of the source.

    Raises:
        ValueError: the folder holds something else.
    """
    general = tomllib.loads((HERE / "build.toml").read_text("utf-8"))["general"]
    name = general["name"].replace("-", "_")
    if (other := _other(folder, name)) is not None:
        raise ValueError(
            f"expected a new folder, or one that holds this kernel alone, which is replaced, got {folder} with "
            f"{other}. Choose another."
        )
    files = {path.relative_to(package).as_posix(): path.read_bytes() for path in sources(package)}
    names = sorted(exported(package / API))
    files["__init__.py"] = ENTRY.format(
        names=", ".join(names), quoted=", ".join(f'"{each}"' for each in [*names, "__version__"])
    ).encode()
    content = hashlib.sha256(b"".join(b"%s\0%s\0" % (path.encode(), files[path]) for path in sorted(files)))
    identity = content.hexdigest()[:10]
    for part in ("torch-ext", "build"):
        shutil.rmtree(folder / part, ignore_errors=True)
    write(folder / "torch-ext" / name, files)
    for file in ("build.toml", "CARD.md"):
        shutil.copyfile(HERE / file, folder / file)
    for variant, backend in {f"torch-{backend}": backend for backend in general["backends"]}.items() | {
        (UNIVERSAL, "cpu")
    }:
        built = {**files, f"{name}/__init__.py": DEEPER.encode()}
        told = {
            "name": general["name"],
            "id": f"_{name}_{variant.removeprefix('torch-')}_{identity}",
            "version": general["version"],
            "license": general["license"],
            "python-depends": [],
            "backend": {"type": backend},
            "digest": {"algorithm": "sha256", "files": {path: digest(built[path]) for path in sorted(built)}},
        }
        built["metadata.json"] = json.dumps(told, indent=2).encode()
        write(folder / "build" / variant, built)
    return identity


def _other(folder: Path, name: str) -> str | None:
    """What a folder holds beside a kernel that was laid out so, if anything."""
    if folder.exists() and not folder.is_dir():
        return "a file of its name"
    held = {path.relative_to(folder).as_posix() for depth in ("*", "*/*") for path in folder.glob(depth)}
    variants = {path for path in held if path.startswith("build/torch-")}
    own = {"torch-ext", f"torch-ext/{name}", "build", *variants, "build.toml", "CARD.md"}
    begun = f"torch-ext/{name}" in held or not held & {"build", "build.toml", "CARD.md"}
    return next(iter(sorted(held - own if begun else held)), None)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def exported(path: Path) -> list[str]:
    """A module's `__all__`, which is a list of names as they stand."""
    assigned: Any = next(
        node.value
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return ast.literal_eval(assigned)


def sources(package: Path) -> set[Path]:
    """The files of a package that its functional API imports, those that it imports on demand included."""
    found: set[Path] = set()
    waiting = {package / API, package / "version.py"}
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= imported(path, package) - found
    return found


def imported(path: Path, package: Path) -> set[Path]:
    """The files that one file's relative imports name."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        above = path.parents[node.level - 1]
        target = above.joinpath(*(node.module or "").split("."))
        named = [target, *(target / alias.name for alias in node.names)]
        found |= {
            file
            for each in named
            for file in (each.with_suffix(".py"), each / "__init__.py")
            if file.exists()
        }
    return found - {package / "__init__.py"}  # the whole package's; the kernel has its own
