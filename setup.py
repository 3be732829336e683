"""The README as the page of a package registry shows it; all else is in pyproject.toml.

A relative link leads nowhere on such a page: of a link its words stay, of a picture nothing.
"""

import re
from pathlib import Path

from setuptools import setup

RELATIVE = r"\((?!https?:|#)[^)]*\)"
NOTE = "Files that are named here lie in the source distribution."


def on_a_page(readme: str) -> str:
    text = re.sub(rf"!\[[^\]]*\]{RELATIVE}\n+", "", readme)
    return re.sub(rf"\[([^\]]*)\]{RELATIVE}", r"`\1`", text) + f"\n{NOTE}\n"


if __name__ == "__main__":
    setup(
        long_description=on_a_page(Path(__file__).with_name("README.md").read_text("utf-8")),
        long_description_content_type="text/markdown",
    )
