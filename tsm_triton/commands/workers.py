"""What the errors of workers say, whose tracebacks torch and Ray send along in the message."""

import re

__all__ = ["reasons_in"]


def reasons_in(traceback: str) -> list[str]:
    r"""What each error of a traceback says, in its order.

    Example:
        >>> reasons_in("Original Traceback ...\nOSError: gone\n")
        ['gone']
    """
    return re.findall(r"^(?:[\w.]*\.)?\w*(?:Error|Exception): (.+)$", traceback, re.MULTILINE)
