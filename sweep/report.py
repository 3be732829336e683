"""The results as `docs/models.json` and a table to search, `docs/models.md`."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .checks import Record

HEAD = """# Which models can be shifted

Every classification model of {libraries}, patched by `tsm_triton.patch(model)` and checked by `make sweep`.
Torch {torch}. A row is a group of models of the same classes with the same numbers of sites of each kind; the
search of your browser or editor finds a name.

{totals}

- *structure*: on the meta device the patched model is the original plus exactly the shifts, each shortcut
  unshifted. Checked for every name.
- *numbers*: with random weights, at the smallest size it takes, the group's smallest member reaches t-1 and
  t+1, clips stay apart, one site reaches one frame each way, a disabled shift is bit-exact, the keys of
  `state_dict` stay. Large transformers are made narrower for it, with the same classes and sites.
- *structure only*: the group's numbers are still to be run (`make sweep` goes on where it stopped), or its
  smallest member is too large for the machine, which the notes then say.
- *compiled*: one model of the family goes through `torch.compile(fullgraph=True)` with two batch sizes and
  `torch.export` with a dynamic one; without the word, the notes say which failed, or it is still to be run.
- Axis 1 is `[N*T, C, H, W]`, axis -1 tokens and `[N*T, H, W, C]`; class and register tokens are shifted as
  the others are.

"""


def table(records: list[Record], versions: dict[str, str]) -> dict[str, Any]:
    """All results, by library and name."""
    by_kind: dict[str, dict[tuple[str, str], Record]] = defaultdict(dict)
    for record in records:
        by_kind[record["kind"]][record["library"], record["name"]] = record
    models: dict[str, dict[str, Any]] = defaultdict(dict)
    group_of: dict[tuple[str, str], Record] = {}
    for (library, _), record in by_kind["numbers"].items():
        structure = by_kind["structure"].get((library, record["name"]))
        if structure is not None:
            group_of[library, structure.get("signature", "")] = record
    compiled = {
        (library, by_kind["structure"][library, name]["family"]): record
        for (library, name), record in by_kind["compilers"].items()
    }
    for (library, name), record in sorted(by_kind["structure"].items()):
        entry = {
            key: value for key, value in record.items() if key not in ("kind", "library", "name", "seconds")
        }
        numbers = group_of.get((library, record.get("signature", "")))
        if numbers is not None and record["status"] == "passed":
            entry["numbers"] = numbers["status"]
            entry["numbers_of"] = numbers["name"]
            if "embed_dim" in numbers:
                entry["numbers_width"] = numbers["embed_dim"]
            if numbers["status"] != "passed":
                entry["numbers_error"] = numbers.get("error") or numbers.get("checks")
        family = compiled.get((library, record.get("family", "")))
        if family is not None and record["status"] == "passed":
            entry["compiled"] = family["status"]
            entry["compiled_checks"] = family.get("checks")
        models[library][name] = entry
    return {"versions": versions, "totals": {lib: totals(models[lib]) for lib in models}, "models": models}


def totals(models: dict[str, Any]) -> dict[str, int]:
    status = Counter(entry["status"] for entry in models.values())
    groups: dict[str, set[str]] = defaultdict(set)
    for entry in models.values():
        if entry["status"] == "passed":
            groups[entry.get("numbers", "not checked")].add(entry["signature"])
    return {
        "names": len(models),
        "structure_passed": status["passed"],
        "only_chosen": sum("only_chosen" in entry for entry in models.values()),
        "refused": status["refused"],
        "structure_failed": status["failed"] + status["too large"],
        "groups": sum(len(group) for group in groups.values()),
        "groups_numbers_passed": len(groups["passed"]),
        "groups_numbers_failed": len(groups["failed"]),
        "groups_structure_only": len(groups["too large"] | groups["not checked"]),
    }


def markdown(results: dict[str, Any]) -> str:
    versions = results["versions"]
    lines = ["| | names | structure | of these only when chosen | refused | structure failed "]
    lines[0] += "| groups | numbers | numbers failed | structure only |"
    lines.append("|---|" + "---:|" * 9)
    for library, total in results["totals"].items():
        lines.append(
            f"| {library} {versions[library]} | " + " | ".join(str(n) for n in total.values()) + " |"
        )
    libraries = " and ".join(f"{library} {versions[library]}" for library in results["totals"])
    text = HEAD.format(libraries=libraries, torch=versions["torch"], totals="\n".join(lines))
    for library, models in results["models"].items():
        text += f"## {library}\n\n| family | names | sites | axis | verified | notes |\n"
        text += "|---|---|---:|---|---|---|\n"
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, entry in models.items():
            groups[entry.get("family", ""), entry.get("signature", name)].append(name)
        for (family, _), names in sorted(groups.items()):
            text += _row(family, names, [models[name] for name in names])
        text += "\n"
    return text


def _row(family: str, names: list[str], entries: list[Record]) -> str:
    sites = sorted({entry.get("sites", 0) for entry in entries})
    axes = sorted({axis for entry in entries for axis in entry.get("channel_dims", {})})
    cells = (
        family,
        ", ".join(f"`{name}`" for name in names),
        ", ".join(map(str, sites)),
        ", ".join(axes),
        "; ".join(sorted({_verified(entry) for entry in entries})),
        "; ".join(sorted({note for entry in entries for note in _notes(entry)})),
    )
    return "| " + " | ".join(cells) + " |\n"


def _verified(entry: Record) -> str:
    if entry["status"] != "passed":
        return "no" if entry["status"] == "refused" else entry["status"]
    verified = ["structure"]
    if entry.get("numbers") == "passed":
        verified.append("numbers")
    if entry.get("compiled") == "passed" and entry.get("compiled_checks"):
        verified += ["compiled"] if set(entry["compiled_checks"].values()) == {"passed"} else []
    return ", ".join(verified) if len(verified) > 1 else "structure only"


def _notes(entry: Record) -> list[str]:
    notes = []
    error = entry.get("error", "")
    if "place=" in error:
        notes.append('no residual branch: raises, use `place="block"`')
    elif entry["status"] == "refused":
        notes.append(error.partition(": ")[2].partition(". ")[0])
    elif entry["status"] != "passed":
        notes.append(error[:200].replace("|", "/").replace("\n", " "))
    if "only_chosen" in entry:
        notes.append("raises unless sites are chosen with `filter_fn`")
    if entry.get("windows"):
        notes.append(f"{entry['windows']} sites receive windows")
    if entry.get("narrow"):
        notes.append(f"{entry['narrow']} sites with less than 8 channels stay unshifted")
    if entry.get("numbers") == "too large":
        notes.append(f"too large for numbers: {entry['numbers_error']}")
    if entry.get("numbers") == "failed":
        notes.append(f"numbers failed: {str(entry.get('numbers_error'))[:200]}".replace("|", "/"))
    for check, outcome in (entry.get("compiled_checks") or {}).items():
        if outcome != "passed":
            notes.append(f"{check}: {outcome[:80]}".replace("|", "/").replace("\n", " "))
    return notes


def save(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    # a line for each model
    models = ",\n".join(
        f'"{library}": {{\n'
        + ",\n".join(f'"{name}": {json.dumps(entry, sort_keys=True)}' for name, entry in entries.items())
        + "\n}"
        for library, entries in results["models"].items()
    )
    head = "".join(f'"{key}": {json.dumps(results[key])},\n' for key in ("versions", "totals"))
    (folder / "models.json").write_text(f'{{{head}"models": {{{models}}}}}\n')
    (folder / "models.md").write_text(markdown(results))
