"""The `tsm-triton` command: parse, dispatch, and report users' errors in one line."""

import argparse
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from .commands import COMMANDS
from .commands.interrupt import exit_on_signal
from .commands.options import option_of
from .commands.workers import reasons_in
from .version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit status: 0, 1 where the command did not find what it should (`demo`, `verify`), 2 for an error of
        the user's, 130 after Ctrl-C.

    Raises:
        SystemExit: 128 and the signal's number, after another signal that asks for an end.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ascii locale: a label's letters are no reason to fail
            stream.reconfigure(errors="backslashreplace")
    names: list[str] = []
    try:
        parser, commands = _parser()
        args = parser.parse_args(argv)
        usage = commands[args.command].format_usage()
        names = [name for name in vars(args) if option_of(name) in usage]
        with (
            exit_on_signal()
        ):  # no temporary file stays, of commands that do not end in an order of their own
            status = import_module(f".commands.{args.command}.command", __package__).run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # piped into head: nobody reads on, and Python must not flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("tsm-triton: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"tsm-triton: error: {_on_the_command_line(_in_own_words(str(error)), names)}", file=sys.stderr)
        return 2


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command."""
    parser = argparse.ArgumentParser(
        prog="tsm-triton",
        description="The Temporal Shift Module: video models out of the 2D models of timm and torchvision.",
        epilog="tsm-triton COMMAND --help describes the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        import_module(f".commands.{name}", __package__).add_arguments(command)
    return parser, commands.choices


def _in_own_words(message: str) -> str:
    r"""A message without the traceback that a loader's worker sends along.

    Example:
        >>> _in_own_words("Caught OSError in DataLoader worker process 0.\nOriginal Traceback ...\nOSError: gone\n")
        'gone'
    """
    if not re.match(r"Caught \w+ in DataLoader worker process", message):
        return message
    return (reasons_in(message) or [message])[-1]


def _on_the_command_line(message: str, names: Iterable[str]) -> str:
    """A message of the package, which speaks of arguments, in the words of these options.

    Example:
        >>> _on_the_command_line("every must be at least 1, got 0: pass every=1", ["every"])
        '--every must be at least 1, got 0: pass --every 1'
        >>> _on_the_command_line("left and right: pass flip=False", ["flip"])
        'left and right: pass --no-flip'
        >>> _on_the_command_line("broken PNG file (chunk b'tEXt')", [])
        'broken PNG file (chunk tEXt)'
    """
    for name in names:
        option = option_of(name)
        # told from the word of everyday by what stands around it, or by its underscore
        for said, turned in (("True", option), ("False", option.replace("--", "--no-", 1))):
            message = re.sub(rf"(?<![\w.-]){name}={said}\b", turned, message)
        value = r"=(?:'([^']*)'|\"([^\"]*)\"|([\w.]+))"
        message = re.sub(rf"(?<![\w.-]){name}{value}", rf"{option} \1\2\3", message)
        word = rf"{name}\b" if "_" in name else rf"{name}(?= must )"
        message = re.sub(rf"(?<![\w.-]){word}", option, message)
    return re.sub(r"\bb(['\"])(.*?)\1", r"\2", message)


if __name__ == "__main__":
    sys.exit(main())
