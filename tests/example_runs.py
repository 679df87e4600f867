"""Runs an example as its user does, and reads the table that it prints."""

import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run_example(script, output, *arguments):
    """What a script prints; it has to end well."""
    command = [sys.executable, str(EXAMPLES / script), "--output", str(output), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def stopped(example, capsys, *arguments):
    """The line that an example prints that cannot have what it needs; it ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        example.main(arguments)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def parse_table(output, column="mean scale", rows=2):
    """The table that has this column, as a dict of row name to a dict of column to text."""
    lines = iter(output.splitlines())
    header = next(re.split(r"\s{2,}", line.strip()) for line in lines if column in line)
    cells = [re.split(r"\s{2,}", next(lines).strip()) for _ in range(rows)]
    return {row[0]: dict(zip(header, row)) for row in cells}
