"""The command line that all examples share."""

import argparse
import pathlib


def make_parser(documentation):
    """A parser that shows the first line of a script's docstring, and all defaults."""
    return argparse.ArgumentParser(
        description=documentation.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def parse(parser, arguments, output, quick, trial="a trial run on few examples"):
    """Adds `--output` and `--quick` to a parser, and reads the command line.

    Args:
        parser: An `argparse.ArgumentParser`.
        arguments: List of strings, or `None` for the command line itself.
        output: String, the default of `--output`.
        quick: Dict of the defaults that hold with `--quick`; what is passed goes before them.
        trial: String, what `--help` says of `--quick`.

    Returns:
        An `argparse.Namespace`.
    """
    parser.add_argument("--output", type=pathlib.Path, default=output, help="where files go")
    parser.add_argument("--quick", action="store_true", help=trial)
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**quick)
    return parser.parse_args(arguments)


def positive_integer(text):
    """Reads the value of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0. Received: {text}")
    return value


def ratio(text):
    """Reads the value of an argument."""
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1. Received: {text}")
    return value
