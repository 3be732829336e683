"""The sweep over all models: its committed results against what is installed."""

import json
import warnings
from pathlib import Path

import pytest
import timm


def test_the_sweeps_results_cover_what_is_installed():
    path = Path(__file__).parents[1] / "docs" / "models.json"
    if not path.exists():
        pytest.skip("the sweep's results are not there: make sweep")
    results = json.loads(path.read_text())
    for library, models in results["models"].items():
        total = results["totals"][library]
        passed = [name for name, entry in models.items() if entry["status"] == "passed"]
        assert total["names"] == len(models)
        assert total["structure_passed"] == len(passed)
        assert total["structure_passed"] + total["refused"] + total["structure_failed"] == total["names"]
    installed = set(timm.list_models()) - set(results["models"]["timm"])
    if results["versions"]["timm"] == timm.__version__:
        assert not installed
    elif installed:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(f"not yet verified: {sorted(installed)}", stacklevel=1)
