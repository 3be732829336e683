"""The sweep over all models: its committed results against what is installed, and how it sums up."""

import json
from collections import Counter
from pathlib import Path

import pytest
import timm
import torchvision

from sweep import __main__ as sweep
from sweep import report, zoo

ROOT = Path(__file__).parents[1]
LIBRARIES = {"timm": timm, "torchvision": torchvision}


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((ROOT / "docs" / "models.json").read_text())


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_totals_are_those_of_the_models(results, library):
    models, total = results["models"][library], results["totals"][library]
    assert total == report.totals(models)
    status = Counter(entry["status"] for entry in models.values())
    assert status.keys() <= {"passed", "refused"}
    assert all(entry["sites"] >= 1 for entry in models.values() if entry["status"] == "passed")
    assert all(entry["error"] for entry in models.values() if entry["status"] == "refused")


def test_nearly_all_of_timm_is_verified(results):
    total = results["totals"]["timm"]
    assert total["structure_passed"] >= 1330
    assert total["groups_numbers_passed"] >= 0.95 * total["groups"]
    assert total["groups_numbers_failed"] == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_installed_is_covered(results, library):
    # ours are there too, where another test has imported tsm_triton.models
    names = {name for name in zoo.names(library) if not name.startswith("tsm_")}
    unknown = names - results["models"][library].keys()
    if results["versions"][library] == LIBRARIES[library].__version__.partition("+")[0]:
        assert not unknown
    else:  # names that came, or went, with another version are none of this test's business
        print(f"not yet verified: {sorted(unknown)}")


def test_the_table_is_that_of_the_results(results):
    assert (ROOT / "docs" / "models.md").read_text() == report.markdown(results)
    head = next(line for line in report.markdown(results).splitlines() if line.startswith("| |"))
    columns = [cell.strip() for cell in head.split("|")[2:-1]]
    assert len(set(columns)) == len(columns) == len(next(iter(results["totals"].values())))
    assert f"timm {results['versions']['timm']}" in report.markdown(results)


def test_models_of_like_classes_share_the_numbers_of_the_smallest():
    def structure(name: str, signature: str, weights: int) -> dict:
        return {
            "kind": "structure",
            "library": "timm",
            "name": name,
            "status": "passed",
            "family": "net",
            "signature": signature,
            "weights": weights,
            "input": [3, 224, 224],
            "sites": 2,
            "channel_dims": {"1": 2},
        }

    records = [structure("big", "a", 20), structure("small", "a", 10), structure("other", "b", 30)]
    tasks = sweep._of_groups("numbers", records)
    assert tasks == [("numbers", "timm", "small", 2, 224), ("numbers", "timm", "other", 2, 224)]
    for name, status in (("small", "passed"), ("other", "too large")):
        records.append({"kind": "numbers", "library": "timm", "name": name, "status": status})
    results = report.table(records, {"timm": "1", "torch": "2"})
    assert {name: entry["numbers"] for name, entry in results["models"]["timm"].items()} == {
        "big": "passed",
        "small": "passed",
        "other": "too large",
    }
    assert results["totals"]["timm"]["groups_numbers_passed"] == 1
    assert results["totals"]["timm"]["groups_structure_only"] == 1
    text = report.markdown(results)
    assert "| net | `big`, `small` | 2 | 1 | structure, numbers |  |" in text
    assert "| net | `other` | 2 | 1 | structure only |" in text


def test_only_results_of_the_same_code_and_libraries_are_gone_on_with(tmp_path):
    progress, made_with = tmp_path / "sweep.jsonl", {"timm": "1", "code": sweep._code()}
    record = {"kind": "structure", "library": "timm", "name": "net"}
    others = [{**made_with, "timm": "0"}, {**made_with, "code": "other"}, {"timm": "1"}]
    lines = [{**record, "versions": other} for other in others]
    progress.write_text("\n".join(map(json.dumps, lines)))
    assert sweep._read(progress, made_with) == []
    lines.append({**record, "versions": made_with})
    progress.write_text("\n".join(map(json.dumps, lines)))
    assert sweep._read(progress, made_with) == [record]
