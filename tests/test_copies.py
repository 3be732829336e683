"""Copies of the package under different names in one process: each has ops of its own, and both are right."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

USED = """
import timm, torch
x, frames = torch.randn(8, 16, 4, 4), torch.randn(4, 3, 64, 64)
kept = []
for package, namespace in ((tsm_triton, torch.ops.tsm_triton), (second_copy, torch.ops.second_copy)):
    seen = x.clone().requires_grad_()
    shifted = package.temporal_shift(seen, 4)
    shifted.square().sum().backward()
    compiled = torch.compile(lambda x: package.temporal_shift(x, 4).relu(), backend='aot_eager', fullgraph=True)
    assert torch.equal(compiled(x), shifted.relu())
    assert torch.equal(namespace.temporal_shift(x, 4, 2, 2, False, 1), shifted)
    kept.append([shifted.detach(), seen.grad])
    torch.manual_seed(0)
    model = package.patch(timm.create_model("test_resnet", num_classes=3, zero_init_last=False).eval(), num_segments=4)
    with torch.no_grad():
        kept[-1].append(model(frames))
        fused = package.fuse(model)
        torch.testing.assert_close(fused(frames), kept[-1][-1], atol=1e-4, rtol=1e-4)
    assert fused.report.fused
    graph = torch.export.export(model, (frames,)).graph
    assert namespace.temporal_shift.default in {node.target for node in graph.nodes}
first, second = kept
assert all(map(torch.equal, first, second))
assert second_copy.is_patched(model) and not tsm_triton.is_patched(model)
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A folder in which the package lies as `second_copy`, with the bytecode that the first process writes."""
    folder = tmp_path_factory.mktemp("copied")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tsm_triton", folder / "second_copy", ignore=ignored)
    return folder


def run(code: str, *paths: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning:torch.library", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "order",
    [
        "import tsm_triton, second_copy, torch",
        "import second_copy, tsm_triton, torch",
        "import torch, second_copy, tsm_triton",
    ],
)
def test_both_register_their_ops_in_every_order_of_imports(order, copied):
    run(
        f"{order}\n"
        "x = torch.randn(4, 8); shift = 2, 1, 1, False, 1\n"
        "mine, other = torch.ops.tsm_triton.temporal_shift, torch.ops.second_copy.temporal_shift\n"
        "assert mine is not other and torch.equal(mine(x, *shift), other(x, *shift))\n"
        "assert 'exec_module' not in vars(torch.__spec__.loader)\n"
        "key = torch.compiler.config.cache_key_tag.split()\n"
        "assert {'tsm_triton', 'second_copy'} <= set(key), key",
        ROOT,
        copied,
    )


def test_both_shift_train_compile_patch_and_fuse(copied):
    run(f"import tsm_triton, second_copy\n{USED}", ROOT, copied)


def test_a_copy_is_loaded_from_its_file_under_a_name_that_is_no_identifier(copied):
    run(
        "import importlib.util, sys, torch, tsm_triton\n"
        f"file = {str(copied / 'second_copy' / '__init__.py')!r}\n"
        "spec = importlib.util.spec_from_file_location('second-copy', file)\n"
        "sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "x = torch.randn(4, 8)\n"
        "assert torch.equal(module.temporal_shift(x, 2), tsm_triton.temporal_shift(x, 2))\n"
        "assert torch.ops.second_copy.temporal_shift(x, 2, 1, 1, False, 1).shape == x.shape",
        ROOT,
    )


@pytest.mark.slow  # it brings ray and TensorBoard
def test_every_module_of_both_is_imported(copied):
    run(
        "import importlib, pkgutil, second_copy, tsm_triton\n"
        "for package in (tsm_triton, second_copy):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "import timm, torch; frames = torch.randn(8, 3, 32, 32)\n"
        "model = timm.create_model('tsm_resnet18', num_segments=4, num_classes=3)\n"
        "assert model.eval()(frames).shape == (8, 3) and len(timm.list_models('tsm_*')) == 8",
        ROOT,
        copied,
    )
