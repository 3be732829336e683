"""Cells and tables of Markdown."""

from collections.abc import Iterable, Sequence

__all__ = ["microseconds", "percent", "table"]


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A line for the head, the rule and each row; none where there is no row."""
    rows = list(body)
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] if rows else []


def percent(value: float) -> str:
    return f"{value:.0%}"


def microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"
