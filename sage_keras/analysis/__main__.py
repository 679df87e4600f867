"""Writes a page about the logs of several runs: `python -m sage_keras.analysis LOG_DIR ...`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from sage_keras.analysis.report import write_report
from sage_keras.analysis.text import printable
from sage_keras.log.reading import read_log

_PROGRAM = "python -m sage_keras.analysis"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: List of strings, or `None` for those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Writes one page that shows and compares what SensitivityLogger logged.",
    )
    parser.add_argument(
        "log_dirs", nargs="+", metavar="LOG_DIR", help="the folder that a logger was given"
    )
    parser.add_argument(
        "-o", "--output", default="report.html", help="the page; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        logs = {name: read_log(folder) for name, folder in name_runs(options.log_dirs).items()}
        path = write_report(logs, options.output)
    except (ImportError, OSError, ValueError) as error:
        print(printable(f"{_PROGRAM}: {error}"), file=sys.stderr)
        raise SystemExit(2) from error
    print(printable(f"Wrote {path}"))


def name_runs(log_dirs: Sequence[str]) -> dict[str, str]:
    """Dict of name to folder; a name is so much of a path's end as tells it from the others."""
    paths = [pathlib.Path(folder).resolve() for folder in log_dirs]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"each LOG_DIR must be named once. Received several times: {twice}")
    named = {}
    for path, folder in zip(paths, log_dirs):
        others = [other.parts for other in paths if other != path]
        length = 1
        while any(other[-length:] == path.parts[-length:] for other in others):
            length += 1
        named["/".join(path.parts[-length:])] = folder
    return named


if __name__ == "__main__":
    main()
