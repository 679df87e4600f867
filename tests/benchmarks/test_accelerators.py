"""What the compilers for GPU and TPU make of a step: kernels, and bytes of memory.

Exact and free of noise, and no GPU or TPU is needed. `.ci/accelerators` installs the compilers and
runs this file; where they are not installed the tests are skipped. Each target has a process of its
own, since its compiler wants other variables in the environment than those of this one.
"""

import functools
import json
import subprocess
import sys

import pytest
from modes import BACKEND

from benchmarks import common, compilers

# A matrix of attention and a feed-forward part of MiniLM: few compilations, each of few variables.
SHAPES = [(384, 384), (384,), (384, 1536), (1536,), (1536, 384), (384,)]
PARAMETERS = common.parameter_count(SHAPES)
COMPILE = """
import json, os, sys
target, shapes, names = json.loads(sys.argv[1])
os.environ["KERAS_BACKEND"] = "jax"
from benchmarks import accelerators, compilers
compilers.set_up(target)
chip = compilers.Chip(target)
found = {}
for name in names:
    function, arguments, donate = accelerators.step(chip, name, shapes)
    program = compilers.Program(target, chip.lower(function, *arguments, donate=donate))
    found[name] = [program.kernels, program.bytes, program.counted_bytes, program.temporaries]
print(json.dumps(found))
"""


def needs_compilers(test):
    skip = pytest.mark.skipif(BACKEND != "jax", reason="the compilers are asked through JAX")
    return pytest.mark.extended(skip(test))


@functools.cache
def compiled(target):
    """Kernels, and bytes a parameter, by the names of the optimizers."""
    reason = compilers.missing(target)
    if reason:
        pytest.skip(reason)
    names = {
        "h100": [
            "AdamW",
            "Sage",
            "Sage bfloat16",
            "Sage calibrate",
            "Sage clipped, skip",
            "DPSMix",
        ],
        "v5e": ["AdamW", "Sage", "Sage bfloat16", "Sage calibrate", "DPSDense"],
    }[target]
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps([target, SHAPES, names])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    return {
        name: (kernels, moved / PARAMETERS, counted and counted / PARAMETERS, temporaries)
        for name, (kernels, moved, counted, temporaries) in found.items()
    }


@needs_compilers
def test_on_an_h100_adamw_and_sage_move_the_least_bytes_there_are():
    _, adamw, _, _ = compiled("h100")["AdamW"]
    kernels, sage, _, _ = compiled("h100")["Sage"]
    assert adamw == pytest.approx(28, abs=0.1)
    assert 36 <= sage <= 36.1
    assert kernels <= len(SHAPES) + 5


@needs_compilers
def test_on_an_h100_a_bfloat16_slot_is_half_a_slot():
    assert 32 <= compiled("h100")["Sage bfloat16"][1] <= 32.1


@needs_compilers
def test_on_an_h100_calibrating_takes_no_second_pass():
    assert compiled("h100")["Sage calibrate"][1] <= 36.1
    assert compiled("h100")["Sage calibrate"][3] < 4 * PARAMETERS / 10  # no copy


@needs_compilers
def test_on_an_h100_clipping_and_skipping_share_a_read_of_the_gradients():
    assert 40 <= compiled("h100")["Sage clipped, skip"][1] <= 40.1


@needs_compilers
def test_on_an_h100_mix_copies_no_state():
    _, moved, _, temporaries = compiled("h100")["DPSMix"]
    assert moved <= 76
    assert temporaries <= 1.5 * PARAMETERS  # a mask, of a byte for each weight


@needs_compilers
def test_on_a_v5e_sage_takes_at_most_1_30_times_the_bytes_of_adamw():
    _, adamw, adamw_counted, _ = compiled("v5e")["AdamW"]
    _, sage, sage_counted, _ = compiled("v5e")["Sage"]
    assert sage <= 1.30 * adamw
    assert sage_counted <= 1.30 * adamw_counted


@needs_compilers
@pytest.mark.parametrize(
    ("name", "most"), [("Sage bfloat16", 1.15), ("Sage calibrate", 1.4), ("DPSDense", 1.4)]
)
def test_on_a_v5e_a_mode_moves_what_its_slots_take(name, most):
    assert compiled("v5e")[name][1] <= most * compiled("v5e")["AdamW"][1]


# How it is counted.

MODULE = """HloModule jit_step

%fused (p: f32[8,4], q: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[8,4]{1,0} parameter(1)
  %both = f32[8,4]{1,0} multiply(%p, %q)
  ROOT %cut = f32[2,4]{1,0} slice(%both), slice={[0:8:4], [0:4]}
}

%begin (t: (f32[8,4])) -> (f32[8,4]) {
  %t = (f32[8,4]{1,0}) parameter(0)
  %e = f32[8,4]{1,0} get-tuple-element(%t), index=0
  %c = f32[8,4]{1,0} copy(%e)
  ROOT %r = (f32[8,4]{1,0}) tuple(%c)
}

%stay (t: (f32[8,4])) -> (f32[8,4]) {
  ROOT %t = (f32[8,4]{1,0}) parameter(0)
}

ENTRY %main (a: f32[8,4], b: f32[8,4], s: pred[]) -> (f32[2,4], f32[8,4]) {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %b = f32[8,4]{1,0} parameter(1)
  %s = pred[] parameter(2)
  %on = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %chip = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%on)
  %part = f32[2,4]{1,0} fusion(%b, %chip), kind=kLoop, calls=%fused
  %t = (f32[8,4]{1,0}) tuple(%b)
  %new = (f32[8,4]{1,0}) conditional(%s, %t, %t), true_computation=%begin, false_computation=%stay
  ROOT %out = (f32[2,4]{1,0}, (f32[8,4]{1,0})) tuple(%part, %new)
}
"""


@pytest.mark.backend_agnostic
def test_bytes_are_those_that_are_read_and_written_in_memory():
    moved = {one["name"]: one["bytes"] for one in compilers.moves(MODULE)}
    # Read once on the way to the chip, where its rows are filled up to 128; a quarter of the other
    # operand, and the result; of the condition the branch that does nothing.
    assert moved == {"on": 8 * 128 * 4, "part": 2 * 4 * 4 + 2 * 4 * 4}
