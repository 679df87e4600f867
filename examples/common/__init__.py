"""What the examples share; here the command line, and how an example ends that cannot go on."""

import argparse
import pathlib
import sys


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


def stop(message):
    """Prints one line that says what to do, and ends the script with status 2.

    Args:
        message: String, or an exception that carries it.
    """
    script = pathlib.Path(sys.argv[0]).name
    print(f"{script}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def print_rows(rows):
    """Prints a table: lists of cells, in columns that are as wide as they need to be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
    print()
