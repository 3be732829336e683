"""Every error that the package raises says what was expected and what came, and what to do."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tsm_triton"
# raised to be caught inside the package
INTERNAL = {"Failed"}


def text(node: ast.expr) -> str:
    """The literal words of a message, `{}` for each value in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    if isinstance(node, ast.IfExp):
        return text(node.body)
    return "{}"


def raised() -> list[tuple[str, str, str]]:
    """Where, what and with which words."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                message = " ".join(text(argument) for argument in node.exc.args)
                if name not in INTERNAL:
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", name, message))
    return found


def says_enough(error: str, message: str) -> bool:
    if error == "ImportError":
        return ("need" in message and "pip install" in message) or "tsm_triton." in message
    if error == "FileNotFoundError":
        return "expected" in message and "does not exist" in message
    return ("expected" in message or " must " in message) and "got" in message


def test_every_error_says_what_was_expected_and_what_came():
    errors = raised()
    assert len(errors) > 100
    assert not [error for error in errors if not says_enough(*error[1:])]


@pytest.mark.parametrize(
    "message", ["x is wrong", "expected a tensor", "got 3 frames", "needs PyAV"], ids=lambda message: message
)
def test_a_message_that_leaves_something_out_is_seen(message):
    assert not says_enough("ValueError", message)
    assert not says_enough("ImportError", message)
