"""What `import tsm_triton` brings along, in fresh processes, and what the top-level links refuse."""

import subprocess
import sys
from pathlib import Path

import pytest

from tsm_triton.commands import COMMANDS

ROOT = Path(__file__).parent.parent


def run(code: str) -> None:
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_nothing_is_imported_beside_torch_and_the_package():
    run(
        "import sys, torch; before = set(sys.modules)\n"
        "import tsm_triton; assert all(getattr(tsm_triton, name) for name in tsm_triton.__all__)\n"
        "new = set(sys.modules) - before\n"
        "others = {name for name in new if not name.startswith('tsm_triton')} - sys.stdlib_module_names\n"
        "assert len(new) < 125 and not others, sorted(new)"
    )


def test_torch_is_imported_when_a_name_is_asked_for():
    run(
        "import sys, tsm_triton; from tsm_triton import cli; assert 'torch' not in sys.modules\n"
        "assert set(tsm_triton.__all__) <= set(dir(tsm_triton)) and 'torch' not in sys.modules\n"
        "from tsm_triton import patch; from tsm_triton.patching.patch import patch as again\n"
        "assert patch is again is tsm_triton.patch and 'torch' in sys.modules\n"
        "import copy, pickle; assert pickle.loads(pickle.dumps(patch)) is patch\n"
        "assert set(tsm_triton.__all__) <= set(vars(tsm_triton))"
    )


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    run(
        "import tsm_triton\n"
        "try: tsm_triton.nonsense\n"
        "except AttributeError as error: assert 'nonsense' in str(error)\n"
        "else: raise AssertionError\n"
        "try: from tsm_triton import nonsense\n"
        "except ImportError as error: assert 'nonsense' in str(error)\n"
        "else: raise AssertionError"
    )


@pytest.mark.parametrize(
    "order",
    [
        "import torch, tsm_triton",
        "import tsm_triton, torch",
        "import tsm_triton.functional, torch",
        "import tsm_triton.activations as first, torch, tsm_triton; assert first is tsm_triton.activations",
        "import tsm_triton.torch_private, torch",
        "import tsm_triton.ops.checks as first, torch, tsm_triton; assert first is tsm_triton.ops.checks",
        "import tsm_triton.patching.hook_guards, torch",
        "import tsm_triton; from torch import nn; import torch",
    ],
)
def test_the_ops_are_registered_in_every_order_of_imports(order):
    run(
        f"{order}; import sys\n"
        "x = torch.randn(4, 8); shifted = torch.ops.tsm_triton.temporal_shift(x, 2, 1, 1, False, 1)\n"
        "assert torch.equal(shifted, tsm_triton.temporal_shift(x, 2))\n"
        "assert not any(getattr(finder, 'name', None) == 'torch' for finder in sys.meta_path)\n"
        "assert 'exec_module' not in vars(torch.__spec__.loader)"
    )


def test_a_name_first_asked_for_inside_a_compiled_function_is_found():
    run(
        "import tsm_triton, torch; x = torch.randn(4, 8)\n"
        "shift = torch.compile(lambda x: tsm_triton.temporal_shift(x, 2), backend='eager', fullgraph=True)\n"
        "assert torch.equal(shift(x), tsm_triton.temporal_shift(x, 2))"
    )


def test_a_torch_that_is_missing_is_said_to_be():
    run(
        "import sys; sys.path = [path for path in sys.path if 'packages' not in path]\n"
        "import tsm_triton\n"
        "try: tsm_triton.patch\n"
        "except ModuleNotFoundError as error: assert error.name == 'torch'\n"
        "else: raise AssertionError"
    )


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_no_torch(argv):
    run(
        "import runpy, sys\n"
        f"sys.argv[1:] = {argv!r}\n"
        "try: runpy.run_module('tsm_triton', run_name='__main__')\n"
        "except SystemExit as exit_: assert exit_.code == 0\n"
        "unwanted = {'torch', 'numpy', 'tqdm', 'timm'} & set(sys.modules)\n"
        "assert not unwanted, unwanted"
    )


def test_shifting_and_training_work_without_triton():
    run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, tsm_triton\n"
        "x = torch.randn(8, 8, 3, 3, requires_grad=True)\n"
        "tsm_triton.temporal_shift(x, 4).sum().backward()\n"
        "assert x.grad[:, 2:].eq(1).all()"
    )


def test_only_the_library_of_the_model_is_imported():
    run(
        "import sys, torchvision, tsm_triton\n"
        "tsm_triton.patch(torchvision.models.resnet18())\n"
        "assert 'timm' not in sys.modules"
    )


def test_the_source_distribution_holds_what_the_tests_read():
    taken = (ROOT / "MANIFEST.in").read_text().split()
    for folder in ("tests", "docs", "benchmarks", "sweep", "examples", "kernel_hub"):
        assert (ROOT / folder).is_dir()
        assert folder in taken
    assert {"Makefile", "CHANGELOG.md"} <= set(taken)


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution has no links")
def test_the_links_at_the_top_refuse_to_be_packages():
    for name in ("kernels", "integrations"):
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == ROOT / "tsm_triton" / name
        message = f"expected the import `tsm_triton.{name}`, got `{name}`"
        run(
            f"try: import {name}\n"
            f"except ImportError as error: assert {message!r} in str(error)\n"
            "else: raise AssertionError"
        )


def test_the_interpreter_runs_the_op_on_cpu_tensors_when_asked():
    run(
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import sys, torch, tsm_triton\n"
        "x = torch.randn(8, 8, 3, 3)\n"
        "shifted = tsm_triton.temporal_shift(x, 4)\n"
        "assert 'tsm_triton.kernels.temporal_shift' in sys.modules\n"
        "from tsm_triton import reference\n"
        "assert torch.equal(shifted, reference.temporal_shift(x, 4, 1, 1))"
    )


def test_the_caches_of_torch_compile_know_the_version_and_the_sources():
    run(
        "import torch; torch.compiler.config.cache_key_tag = 'mine'; import tsm_triton\n"
        "from tsm_triton.ops import declare\n"
        "said = f'mine tsm_triton {tsm_triton.__version__} {declare._sources()}'\n"
        "assert torch.compiler.config.cache_key_tag == said"
    )
