"""Names of classes, as data."""

import unicodedata

__all__ = ["as_label"]

# of Unicode's categories, those that no name has: controls, lone surrogates, ends of lines and paragraphs
NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}


def as_label(name: str) -> str:
    """A class name, in which controls and what ends a line become U+FFFD; all else stays, joiners and spaces too.

    Example:
        >>> as_label("\\x1b[31mred"), as_label("می\\u200cدود") == "می\\u200cدود"
        ('\ufffd[31mred', True)
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in NO_TEXT else character
        for character in name
    )
