"""The ops as a kernel of Hugging Face's hub, loaded by `kernels` from a folder, beside an imported tsm_triton.

In processes whose path has no checkout on it: there the link `kernels` would stand before the package of that name.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_hub.layout import lay_out

ROOT = Path(__file__).parent.parent
VARIANTS = ("torch-cpu", "torch-cuda", "torch-rocm", "torch-universal")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with the kernel in `one`, another version of it in `two`, and the package by itself in `path`."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "path").mkdir()
    (folder / "path" / "tsm_triton").symlink_to(ROOT / "tsm_triton")
    changed = folder / "changed"
    shutil.copytree(ROOT / "tsm_triton", changed, ignore=shutil.ignore_patterns("__pycache__"))
    with (changed / "functional.py").open("a") as file:
        file.write("\n# another version\n")
    assert lay_out(folder / "one") != lay_out(folder / "two", changed)
    return folder


def run(code: str, hub: Path, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(hub / "path"), "OMP_NUM_THREADS": "1", **environment}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=hub, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_each_folder_holds_the_ops_alone_and_every_import_is_relative(hub):
    source = hub / "one" / "torch-ext" / "tsm_triton"
    files = {path.relative_to(source).as_posix(): path for path in source.rglob("*.py")}
    rooms = {name.split("/")[0].removesuffix(".py") for name in files}
    assert {"ops", "kernels", "functional", "_ops"} <= rooms
    assert not rooms & {"patching", "video", "commands", "cli", "late", "reference"}
    kernels = {path.name for path in (ROOT / "tsm_triton" / "kernels").glob("*.py")}
    assert {name.partition("/")[2] for name in files if name.startswith("kernels/")} == kernels
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert {name.partition(".")[0] for name in names} <= allowed, path
    for variant in VARIANTS:
        built = hub / "one" / "build" / variant
        assert all((built / name).read_bytes() == path.read_bytes() for name, path in files.items())
        more = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()} - set(
            files
        )
        assert more == {"metadata.json", "tsm_triton/__init__.py"}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"expected a new folder.*got .*Choose another"):
        lay_out(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_what_the_builder_and_the_loader_read_is_valid(hub):
    run(
        "import pathlib; from kernels._rust import Build, Digest, DigestAlgorithm, Metadata\n"
        "general = Build.open(pathlib.Path('one')).general\n"
        "assert {str(backend).lower() for backend in general.backends} == {'cpu', 'cuda', 'rocm'}\n"
        "ids = set()\n"
        "for folder in pathlib.Path('one/build').iterdir():\n"
        "    told = Metadata.read_from_file(folder / 'metadata.json'); ids.add(told.id)\n"
        "    assert (told.name.python_name, told.version, told.license) == ('tsm_triton', 0, 'MIT')\n"
        "    assert told.id.isidentifier() and told.python_depends == []\n"
        "    told.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))\n"
        f"assert len(ids) == {len(VARIANTS)}",
        hub,
    )


BESIDE = """
import pathlib, kernels, torch, tsm_triton
one, two = (kernels.get_local_kernel(pathlib.Path(name)) for name in ("one", "two"))
assert pathlib.Path(kernels.__file__).parent.parent.name == "site-packages"
x, weight = torch.randn(8, 16, 4, 4), torch.randn(8, 16)
results, names = [], set()
for package in (tsm_triton, one, two):
    seen = x.clone().requires_grad_()
    shifted = package.temporal_shift(seen, 4)
    convolved = package.functional.shift_conv1x1(seen, weight, 4, activation="relu")
    y, moved = package.functional.residual_shift(seen, x.flip(0), 4)
    (shifted.square().sum() + convolved.square().sum() + (y * moved).sum()).backward()
    compiled = torch.compile(lambda x: package.temporal_shift(x, 4).relu(), fullgraph=True)
    again = x.clone().requires_grad_()
    compiled(again).sum().backward()
    results.append([shifted, convolved, y, moved, seen.grad, compiled(x), again.grad])
    op = package.functional.ops.temporal_shift
    assert op is getattr(torch.ops, package.__name__).temporal_shift.default
    if package is one:
        torch.library.opcheck(op, (seen, 4, 2, 2, False, 1))
    names.add(op.name())
for copy in results[1:]:
    assert all(map(torch.equal, results[0], copy))
assert len(names) == 3, names
assert {*one.__all__} == {"temporal_shift", "residual_shift", "shift_conv1x1", "__version__"}
assert one.__version__ == tsm_triton.__version__
print("right")
"""


def test_two_versions_are_loaded_beside_an_imported_tsm_triton_and_all_are_right(hub):
    assert run(BESIDE, hub) == "right\n"


def test_it_is_loaded_where_tsm_triton_is_not_and_runs_its_kernels(hub):
    code = (
        "import pathlib, sys; sys.modules['tsm_triton'] = None\n"
        "import kernels, torch\n"
        "tsm = kernels.get_local_kernel(pathlib.Path('one'), backend='cpu')\n"
        "x, weight = torch.randn(8, 16, 4, 4), torch.randn(8, 16)\n"
        "shifted, out = tsm.temporal_shift(x, 4), torch.zeros_like(x)\n"
        "clips, moved = x.unflatten(0, (2, 4)), out.unflatten(0, (2, 4))\n"
        "moved[:, :-1, :2], moved[:, 1:, 2:4] = clips[:, 1:, :2], clips[:, :-1, 2:4]\n"
        "moved[:, :, 4:] = clips[:, :, 4:]\n"
        "assert torch.equal(shifted, out)\n"
        "product = torch.nn.functional.conv2d(out, weight[:, :, None, None])\n"
        "torch.testing.assert_close(tsm.shift_conv1x1(x, weight, 4), product, atol=1e-5, rtol=1e-5)\n"
        "assert f'{tsm.__name__}.kernels.temporal_shift' in sys.modules and tsm.__name__.startswith('_tsm_triton_cpu_')"
    )
    run(code, hub, TRITON_INTERPRET="1")


def test_get_kernel_takes_the_folder_for_a_repository(hub):
    code = (
        "import kernels, torch, tsm_triton\n"
        "tsm = kernels.get_kernel('someone/tsm-triton', version=0)\n"
        "x = torch.randn(4, 8)\n"
        "assert torch.equal(tsm.temporal_shift(x, 2), tsm_triton.temporal_shift(x, 2))\n"
        "assert tsm.temporal_shift is not tsm_triton.temporal_shift and 'one/build/torch-' in tsm.__file__"
    )
    run(code, hub, LOCAL_KERNELS="someone/tsm-triton=one")


def test_the_namespace_is_that_of_the_file_which_kernel_builder_writes(hub, tmp_path):
    built = tmp_path / "built"
    shutil.copytree(hub / "one" / "build" / "torch-cpu", built)
    (built / "_ops.py").write_text(
        "import torch\nops = torch.ops._given_by_a_builder\n"
        "def add_op_namespace_prefix(op_name):\n    return '_given_by_a_builder::' + op_name\n"
    )
    run(
        "import importlib.util, sys, torch\n"
        f"spec = importlib.util.spec_from_file_location('loaded', {str(built / '__init__.py')!r})\n"
        "sys.modules['loaded'] = loaded = importlib.util.module_from_spec(spec); spec.loader.exec_module(loaded)\n"
        "x = torch.randn(4, 8)\n"
        "shifted = torch.ops._given_by_a_builder.temporal_shift(x, 2, 1, 1, False, 1)\n"
        "compiled = torch.compile(lambda x: loaded.temporal_shift(x, 2), backend='aot_eager', fullgraph=True)\n"
        "assert torch.equal(loaded.temporal_shift(x, 2), shifted) and torch.equal(compiled(x), shifted)",
        hub,
    )


def test_an_older_loader_finds_the_same_one_folder_deeper(hub):
    file = hub / "one" / "build" / "torch-universal" / "tsm_triton" / "__init__.py"
    run(
        "import importlib.util, sys, torch, tsm_triton\n"
        f"spec = importlib.util.spec_from_file_location('tsm_triton_0123', {str(file)!r})\n"
        "sys.modules[spec.name] = kernel = importlib.util.module_from_spec(spec); spec.loader.exec_module(kernel)\n"
        "x = torch.randn(4, 8)\n"
        "assert torch.equal(kernel.temporal_shift(x, 2), tsm_triton.temporal_shift(x, 2))\n"
        "assert kernel.temporal_shift is not tsm_triton.temporal_shift",
        hub,
    )


@pytest.mark.parametrize(
    "held", ["notes.txt", "torch-ext/mine/a.py", "build/mine/a.so", "build/torch-cpu/a.py"]
)
@pytest.mark.parametrize("begun", [False, True])
def test_what_it_did_not_write_is_not_removed(held, begun, tmp_path):
    if begun:
        lay_out(tmp_path)
        lay_out(tmp_path)
    if begun and held.startswith("build/torch-cpu"):
        return  # its own
    (tmp_path / held).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / held).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="expected a new folder, or one that holds this kernel alone"):
        lay_out(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
