"""Every error that the package raises says what was expected, what came and what to do."""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tsm_triton"
# raised to be caught inside the package
INTERNAL = {"Failed"}
# how a clause that says what to do begins, behind "got ..."
DO = (
    "call|check|choose|compose|convert|copy|create|divide|drop|encode|export|find|flatten|fuse|give|import|leave|lower|"
    "make|pass|patch|raise|reset|reshape|run|sample|save|scale|shift|stream|train|try|unpatch|use|write"
)


def texts(node: ast.expr) -> list[str]:
    """The literal words of a message, `{}` for each value in it; of each branch, where it has some."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in product(*map(texts, node.values))]
    if isinstance(node, ast.BinOp):
        return [left + right for left, right in product(texts(node.left), texts(node.right))]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp):
        return texts(node.value)
    return ["{}"]


def raised() -> list[tuple[str, int, str, str]]:
    """In which file and line, what and with which words."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            error = node.exc if isinstance(node, ast.Raise) else getattr(node, "value", None)
            if isinstance(node, ast.Raise | ast.Return) and isinstance(error, ast.Call):
                name, file = ast.unparse(error.func), path.relative_to(PACKAGE).as_posix()
                messages = map(" ".join, product(*map(texts, error.args)))
                # raised, or returned by a function that is called to raise it
                if name.endswith("Error") and name not in INTERNAL:
                    found += [(file, node.lineno, name, message) for message in messages]
    return found


def says_what(error: str, message: str) -> bool:
    """What was expected, and what came."""
    if error == "ImportError" and "expected" not in message:
        return "need" in message
    if error == "AssertionError" and message.startswith("{}"):  # a property's own words, and of which case
        return True
    if error == "FileNotFoundError":
        return "expected" in message and "does not exist" in message
    return bool(re.search(r"(expected | must ).*\bgot ", message))


def says_what_to_do(error: str, message: str) -> bool:
    if error == "AssertionError":  # a property that fails: the finding itself
        return True
    # of an argument: what is expected is what to pass
    if re.search(r"\b(must (have|hold|name|be (?!1, got))|between \S+ and)", message):
        return True
    if error == "ImportError" and re.search(r"pip install ['{]", message):
        return True
    behind = re.split(r"\bgot |does not exist", message)[-1]
    return bool(re.search(rf"[.:;,?] (or )?({DO})\b", behind, re.IGNORECASE))


def test_every_error_says_what_was_expected_and_what_came():
    errors = raised()
    assert len(errors) > 100
    assert not [error for error in errors if not says_what(*error[2:])]


def test_every_error_says_what_to_do():
    assert not [error for error in raised() if not says_what_to_do(*error[2:])]


@pytest.mark.parametrize(
    "message", ["x is wrong", "expected a tensor", "got 3 frames", "takes PyAV"], ids=lambda message: message
)
def test_a_message_that_leaves_something_out_is_seen(message):
    assert not says_what("ValueError", message)
    assert not says_what("ImportError", message)


@pytest.mark.parametrize(
    "message",
    [
        "needs PyAV",
        "x must be 1, got {}",
        "expected 1, got {}: nothing would move",
        "expected a patched model: pass one, got {}",
    ],
    ids=lambda message: message,
)
def test_a_message_without_what_to_do_is_seen(message):
    assert not says_what_to_do("ValueError", message)
    assert not says_what_to_do("ImportError", message)


def test_each_branch_of_a_message_is_read():
    (node,) = ast.parse("f'{x}, {\"a\" if y else \"b\"}' + ('.' if z else '?')").body
    assert texts(node.value) == ["{}, a.", "{}, a?", "{}, b.", "{}, b?"]
