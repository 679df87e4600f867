"""Grids of test cells: the default run has a part of one, the extended run the whole."""

import itertools

import pytest


def diagonals(*factors, every, allowed=lambda *cell: True):
    """The product of `factors`, in which all but one cell in `every` are marked as extended.

    Those that are left lie along diagonals, and hold every pair of two factors' values.
    """
    cells = {}  # values to whether the default run has them
    for numbered in itertools.product(*(enumerate(factor) for factor in factors)):
        positions, values = zip(*numbered)
        if allowed(*values):
            cells[values] = sum(positions) % every == 0
    assert _pairs(filter(cells.get, cells)) == _pairs(cells), f"every={every} leaves pairs out"
    return [
        pytest.param(*values, marks=[] if default else [pytest.mark.extended])
        for values, default in cells.items()
    ]


def _pairs(cells):
    """Of each two factors the pairs of values that occur together."""
    return {pair for cell in cells for pair in itertools.combinations(enumerate(cell), 2)}
