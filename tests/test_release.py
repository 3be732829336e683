"""The distributions: what is in them, what a registry shows of them, and that they work where the checkout is not.

Run by `make test-release`. The environments are empty but for the declared requirements, which are linked out of the
one that runs the tests: what is imported and not declared is missing there, and so is the checkout.
"""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

import tsm_triton
from tsm_triton.models import NAMES

ROOT = Path(__file__).parent.parent
# links, and what only a clone is asked for
LEFT_OUT = {"kernels", "integrations", ".gitignore", ".ci/run"}
MADE = {"PKG-INFO", "setup.cfg"}
# no PYTHONPATH: the checkout would be found by it
ENVIRONMENT = {
    name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ
} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONNOUSERSITE": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}

pytestmark = pytest.mark.slow


def tracked() -> set[str]:
    """The files of the tree, as git knows them, those included that shall be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if os.path.lexists(ROOT / name)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both distributions, the wheel made from the other one; built from a copy of the tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("expected a clone: there is no list of files to compare with")
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy, follow_symlinks=False)
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder / "dist",
        folder / "source",
    ]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "dist"


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def in_wheel(built: Path, pattern: str) -> str:
    with zipfile.ZipFile(one(built, "*.whl")) as wheel:
        (name,) = (name for name in wheel.namelist() if PurePosixPath(name).match(pattern))
        return wheel.read(name).decode()


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(one(built, "*.whl")) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
        told = {name.partition("/")[2] for name in wheel.namelist() if ".dist-info/" in name}
        assert wheel.read("tsm_triton/version.py") == (ROOT / "tsm_triton" / "version.py").read_bytes()
    package = {name for name in tracked() if name.startswith("tsm_triton/")}
    assert files == package
    assert {"tsm_triton/py.typed", "tsm_triton/training/recipes/kinetics.toml"} <= files
    assert told == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert in_wheel(built, "*/top_level.txt").split() == ["tsm_triton"]


def test_the_source_distribution_holds_the_tree(built):
    with tarfile.open(one(built, "*.tar.gz")) as archive:
        files = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    files = {name for name in files if not name.startswith("tsm_triton.egg-info/")}
    assert files - MADE == tracked() - LEFT_OUT
    folders = ("tests/", "docs/", "examples/", "benchmarks/", "sweep/", "kernel_hub/")
    assert all(any(name.startswith(folder) for name in files) for folder in folders)
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "setup.py"} <= files


def test_a_registry_takes_both_and_renders_the_page(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir())]
    result = subprocess.run(command, cwd=built, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("PASSED") == 2


def test_the_page_says_what_a_reader_of_it_needs(built):
    from trove_classifiers import classifiers

    page = email.message_from_string(in_wheel(built, "*/METADATA"))
    assert page["Version"] == tsm_triton.__version__
    assert page["License-Expression"] == "MIT"
    assert page["Description-Content-Type"] == "text/markdown"
    links = dict(url.split(", ") for url in page.get_all("Project-URL", []))
    assert links == {"Paper": "https://arxiv.org/abs/1811.08383"}  # the only address there is
    said = page.get_all("Classifier", [])
    assert set(said) <= classifiers
    assert "Environment :: GPU :: NVIDIA CUDA" in said
    tried = " ".join(json.loads((ROOT / "docs" / "compatibility.json").read_text()))
    tested = set(re.findall(r"python=(3\.\d+)", tried))
    pythons = {name.rpartition(" ")[2] for name in said if re.search(r":: 3\.\d+$", name)}
    assert pythons == tested
    assert page["Requires-Python"] == f">={min(pythons, key=lambda version: int(version[2:]))}"


def test_no_link_of_the_page_leads_nowhere(built):
    page = email.message_from_string(in_wheel(built, "*/METADATA")).get_payload()
    readme = (ROOT / "README.md").read_text()
    assert "](docs/" in readme  # there are some to be replaced
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert targets
    assert all(target.startswith("https://") for target in targets), targets
    assert "`docs/checkpoints.md`" in page
    headings = re.findall(r"^## .*$", readme, re.MULTILINE)
    assert [line for line in page.splitlines() if line.startswith("## ")] == headings


def needed_by(name: str) -> dict[str, Path]:
    """The top-level files and folders of all that a distribution's requirements bring, without extras."""
    found: dict[str, Path] = {}
    seen = set()
    waiting = [(Requirement(line), "") for line in distribution(name).requires or ()]
    while waiting:
        needed, extra = waiting.pop()
        applies = needed.marker is None or needed.marker.evaluate({"extra": extra})
        if not applies or (needed.name, *sorted(needed.extras)) in seen:
            continue
        seen.add((needed.name, *sorted(needed.extras)))
        held = distribution(needed.name)
        tops = {file.parts[0] for file in held.files or ()} - {"..", "__pycache__"}
        found |= {top: Path(str(held.locate_file(top))) for top in tops}
        lines = [Requirement(line) for line in held.requires or ()]
        waiting += [(line, extra) for line in lines for extra in {"", *needed.extras}]
    return found


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "source"])
def installed(request, built, tmp_path_factory):
    """Runs a command of an environment with one distribution and its requirements, outside of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    for old in packages.glob("setuptools*"):  # older than it builds with; Python 3.12 brings none
        shutil.rmtree(old)
    for name, path in needed_by("tsm-triton").items():
        if not (packages / name).exists():
            (packages / name).symlink_to(path)

    def run(command: str, *arguments: str) -> str:
        line = [folder / "venv" / "bin" / command, *arguments]
        result = subprocess.run(line, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        output = result.stdout + result.stderr
        assert result.returncode == 0, output
        return output

    run("python", "-m", "pip", "install", "--no-build-isolation", str(one(built, request.param)))
    return run


TRIED = """
import sys, pathlib, importlib.metadata
import tsm_triton, torch, timm
assert pathlib.Path(tsm_triton.__file__).is_relative_to(sys.prefix), tsm_triton.__file__
assert importlib.metadata.version("tsm-triton") == tsm_triton.__version__
assert not any("editable" in name for name in sys.modules)

x = torch.randn(8, 16, 4, 4)
shifted = tsm_triton.temporal_shift(x, 4)
from tsm_triton import reference
assert torch.equal(shifted, reference.temporal_shift(x, 4, 2, 2))
model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5, zero_init_last=False).eval(), num_segments=4)
with torch.no_grad():
    frames = torch.randn(8, 3, 64, 64)
    rows = model(frames)
    assert rows.shape == (8, 5)
    torch.testing.assert_close(tsm_triton.fuse(model)(frames), rows, atol=1e-4, rtol=1e-4)
    with tsm_triton.shift_disabled(model):
        assert not torch.equal(model(frames), rows)
tsm_triton.save_checkpoint(model, "weights.pt")
with torch.no_grad():
    assert torch.equal(tsm_triton.load_checkpoint("weights.pt")(frames), rows)

import importlib.resources, tsm_triton.models
assert importlib.resources.files("tsm_triton").joinpath("py.typed").is_file()
assert importlib.resources.files("tsm_triton.training.recipes").joinpath("kinetics.toml").is_file()
assert "tsm_triton" in {entry.name for entry in importlib.metadata.entry_points(group="torch_dynamo_backends")}
print(*timm.list_models("tsm*"))
"""


def test_it_works_where_the_checkout_is_not(installed):
    names = installed("python", "-W", "error", "-c", TRIED).split()
    assert sorted(names) == sorted(f"tsm_{name}" for name in NAMES)


def test_its_requirements_are_declared_and_fit(installed):
    assert "No broken requirements" in installed("python", "-m", "pip", "check")


def test_both_ways_to_the_command_line_are_one(installed):
    script = installed("tsm-triton", "--help")
    assert installed("python", "-m", "tsm_triton", "--help") == script
    assert installed("tsm-triton", "--version") == f"tsm-triton {tsm_triton.__version__}\n"
    assert script.startswith("usage: tsm-triton")


def test_a_command_runs_and_the_next_says_what_it_needs(installed):
    sites = installed("tsm-triton", "sites", "resnet18")
    assert "layer1.0.conv1" in sites
    assert "8 sites" in sites
    with pytest.raises(AssertionError, match=r"needs av.*: pip install 'av>="):
        installed("tsm-triton", "stream", "video.mp4")
