"""The bits are those of the formula on every backend, and look like chance."""

import numpy as np
import pytest
from keras import ops
from modes import to_numpy

from sage_keras import random_bits
from sage_keras.backend import compiled


def twin_hash(number):
    number = number ^ (number >> np.uint32(16))
    number = number * np.uint32(0x7FEB352D)
    number = number ^ (number >> np.uint32(15))
    number = number * np.uint32(0x846CA68B)
    return number ^ (number >> np.uint32(16))


def twin(seed, step, position):
    key = np.atleast_1d((seed * 0x9E3779B9 + step) % 2**32).astype("uint32")
    return twin_hash(twin_hash(key) + position.astype("uint32"))


def draw(seed, step, count=2**16):
    return to_numpy(random_bits.random_bits(seed, step, (count,)))


def test_golden_values():
    """A seed's masks of today are its masks for good."""
    expected = [[0x5E00D4B8, 0xD2181765, 0xCBC19A18], [0xD4CD25DE, 0x5BAB8DFD, 0xFF4C928E]]
    bits = random_bits.random_bits(1, 7, (2, 3))
    np.testing.assert_array_equal(to_numpy(bits).view("uint32"), np.array(expected, "uint32"))


@pytest.mark.parametrize(
    ("seed", "step", "shape"),
    [
        (0, 0, (5,)),
        (1, 2, ()),
        (3, 2**31 - 1, (1,)),
        (2**31, 10**6, (4, 3, 2)),
        (2**70 + 7, 1, (2, 3, 1, 5)),
    ],
)
def test_they_are_those_of_the_formula(seed, step, shape):
    bits = to_numpy(random_bits.random_bits(seed, step, shape))
    expected = twin(seed, step, np.arange(np.prod(shape, dtype=int))).reshape(shape)
    np.testing.assert_array_equal(bits.view("uint32"), expected)


def test_compiled_they_are_the_same():
    """With a tensor for the seed and the step, as inside a training step."""
    shape = (30, 5, 7)
    draw = compiled(lambda seed, step: random_bits.random_bits(seed, step, shape))
    for seed, step in [(0, 0), (1, 2**31 - 1), (2**31 - 1, 3), (-5, 123)]:
        tensors = [ops.convert_to_tensor(number, "int32") for number in (seed, step)]
        expected = twin(seed, step, np.arange(30 * 5 * 7)).reshape(shape)
        np.testing.assert_array_equal(to_numpy(draw(*tensors)).view("uint32"), expected)


def chi_square(counts):
    """How many standard deviations of its own chi-square lies off its mean."""
    counts = counts.ravel()
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (np.sum((counts - expected) ** 2) / expected - freedom) / np.sqrt(2 * freedom)


def bytes_of(bits):
    return [(bits.view("uint32") >> shift).astype("uint8") for shift in (0, 8, 16, 24)]


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0, 1), (1, 0), (2**31 - 1, 10**6)])
def test_every_byte_is_uniform(seed, step):
    for byte in bytes_of(draw(seed, step)):
        assert abs(chi_square(np.bincount(byte, minlength=256))) < 4


@pytest.mark.parametrize("neighbour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (0, 1, 1)])
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 1), (123456789, 5000)])
def test_neighbouring_seeds_steps_and_positions_are_independent(seed, step, neighbour):
    """Pairs of half bytes, of equal and of different places, fill a table evenly."""
    more, later, further = neighbour
    one = draw(seed, step + 1)
    other = draw(seed + more, step + 1 + later, 2**16 + further)[further:]
    for a in bytes_of(one):
        for b in bytes_of(other):
            table = np.bincount((a & 15).astype(int) * 16 + (b >> 4), minlength=256)
            assert abs(chi_square(table)) < 4.5
    # No bit follows another: each of the 32 differs half of the time.
    differences = np.unpackbits((one ^ other).view("uint8")).reshape(-1, 32).mean(axis=0)
    np.testing.assert_allclose(differences, 0.5, atol=4.5 * 0.5 / np.sqrt(2**16))


def test_one_position_over_steps_and_over_seeds_is_uniform():
    many = np.arange(2**16)
    for bits in (twin(3, many, many * 0), twin(many, 3, many * 0)):  # as the tests above find them
        for byte in bytes_of(bits):
            assert abs(chi_square(np.bincount(byte, minlength=256))) < 4


@pytest.mark.parametrize("probability", [1.0, 1 - 2.0**-24, 0.7, 0.5, 1e-3, 2.0**-31, 0.0])
def test_choices_are_true_with_the_probability_to_32_bits(probability):
    """The smallest value that is chosen tells how many of all 2^32 are."""
    low, high = -(2**31), 2**31 - 1
    assert bool(random_bits.chosen(ops.convert_to_tensor(high, "int32"), probability))
    while low < high:
        middle = (low + high) // 2
        if bool(random_bits.chosen(ops.convert_to_tensor(middle, "int32"), probability)):
            high = middle
        else:
            low = middle + 1
    assert abs((2**31 - low) / 2**32 - probability) <= 2.0**-32
