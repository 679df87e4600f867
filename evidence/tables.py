"""Metrics and differences as they are written: times 100, with two decimals."""

import statistics


def difference_cells(difference):
    """A difference and its interval as two cells, empty ones where there is none."""
    if difference is None:
        return ["", ""]
    interval = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    return [f"{100 * difference.mean:+.2f}", interval]


def mean(values):
    """The mean of metrics as it is written, a dash where there are none."""
    return percent(statistics.fmean(values)) if len(values) else "-"


def percent(value):
    return f"{100 * value:.2f}"


def table(rows):
    rows = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
