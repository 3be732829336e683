"""The `tsm-triton` command: parse, dispatch, and report users' errors in one line."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .commands import COMMANDS

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit status: 0, 2 for an error of the user's, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
        status = import_module(f".commands.{args.command}", __package__).run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # piped into head: nobody reads on, and Python must not flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("tsm-triton: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"tsm-triton: error: {error}", file=sys.stderr)
        return 2


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tsm-triton",
        description="The Temporal Shift Module: video models out of the 2D models of timm and torchvision.",
        epilog="tsm-triton COMMAND --help describes the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in argv:
            import_module(f".commands.{name}", __package__).add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
