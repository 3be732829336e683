"""What `import tsm_triton` brings along, in fresh processes, and what the top-level links refuse."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code: str) -> None:
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_neither_triton_nor_any_model_library_is_imported():
    run(
        "import sys, tsm_triton;"
        "roots = {name.partition('.')[0] for name in sys.modules};"
        "unwanted = roots & {'timm', 'torchvision', 'triton', 'av', 'hypothesis', 'matplotlib'};"
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


def test_the_caches_of_torch_compile_know_the_version():
    run(
        "import torch; torch.compiler.config.cache_key_tag = 'mine'; import tsm_triton\n"
        "assert torch.compiler.config.cache_key_tag == f'mine tsm_triton {tsm_triton.__version__}'"
    )
