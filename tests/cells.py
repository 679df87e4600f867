"""Grids of test cells, of which the default run and the backends but TensorFlow have a part."""

import itertools

import pytest
from modes import BACKEND


def diagonals(*factors, every, allowed=lambda *cell: True):
    """The product of `factors`: one cell in `every`, and on TensorFlow the others as extended.

    The first ones lie along diagonals, and hold every pair of two factors' values.
    """
    cells = {}  # values to whether they are on a diagonal
    for numbered in itertools.product(*(enumerate(factor) for factor in factors)):
        positions, values = zip(*numbered)
        if allowed(*values):
            cells[values] = sum(positions) % every == 0
    assert _pairs(filter(cells.get, cells)) == _pairs(cells), f"every={every} leaves pairs out"
    return [
        pytest.param(*values, marks=[] if chosen else [pytest.mark.extended])
        for values, chosen in cells.items()
        if chosen or BACKEND == "tensorflow"
    ]


def _pairs(cells):
    """Of each two factors the pairs of values that occur together."""
    return {pair for cell in cells for pair in itertools.combinations(enumerate(cell), 2)}
