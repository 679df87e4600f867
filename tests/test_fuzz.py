"""Random small models and optimizers: two backends agree, and what is saved is what is loaded.

FUZZ_CASES=300 KERAS_BACKEND=jax python -m pytest tests/test_fuzz.py -n 0
"""

import importlib.util
import os

import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from modes import BACKEND

CASES = int(os.environ.get("FUZZ_CASES", 4))


@pytest.fixture(scope="module")
def other_backend():
    name = "torch" if BACKEND == "jax" else "jax"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name}, the other backend, is not installed")
    backend = fuzz.OtherBackend(name)
    yield backend
    backend.close()


@pytest.mark.extended
@pytest.mark.skipif(BACKEND == "torch", reason="the run on JAX compares this pair of backends")
@given(fuzz.cases())
@settings(
    max_examples=CASES,
    phases=[Phase.reuse, Phase.generate],  # to shrink a case takes minutes
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
def test_two_backends_agree_and_saving_keeps_all(other_backend, case):
    # There Keras's own optimizers, and so what is not guided, update only the rows of an embedding
    # that were looked up, and square the gradient of each look-up apart.
    assume(BACKEND != "tensorflow" or case["model"]["kind"] != "tokens")
    check(other_backend, case)


def check(other_backend, case):
    other_backend.start(case)
    try:
        found = fuzz.run(case)
    finally:
        expected = other_backend.result()
    assert "error" not in expected, expected["error"]
    assert found["resumed"] and expected["resumed"]
    for name in ("losses", "weights", "slots"):
        assert len(found[name]) == len(expected[name])
        for one, other in zip(found[name], expected[name]):
            one, other = np.array(one), np.array(other)
            assert np.isfinite(one).all()
            # Of the largest; Keras computes in float64, but for losses and GELU on some backends.
            allowed = 1e-7 + 1e-4 * np.max(np.abs(other), initial=0)
            difference = np.max(np.abs(one - other), initial=0)
            assert difference <= allowed, f"{name} differ by {difference:.1e} of {allowed:.1e}"
