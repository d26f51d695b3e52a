"""The scan's kernels laid out by hand compile for Hopper (sm_90) in every shape of their plan; no GPU is needed."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest

pytest.importorskip("triton.experimental.gluon")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter cannot run Gluon", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from mamba_kernels.selective_scan.triton_launch import hopper_kernel
from mamba_kernels.selective_scan.triton_plan import Shape, hopper_plan

HALF = "u delta B C z out dout du ddelta dz".split()
SINGLE = "A D bias entering leaving checkpoints decays scratch dA dB dC dD dbias".split()
POINTERS = {**dict.fromkeys(HALF, "*bf16"), **dict.fromkeys(SINGLE, "*fp32"), "marks": "*i8", "order": "*i32"}
EVERYTHING = {"SOFTPLUS": True, "HAS_D": True, "HAS_Z": True, "HAS_BIAS": True, "HAS_ENTERING": True, "ENDS": False}
PLAIN = dict.fromkeys(EVERYTHING, False)
slow = pytest.mark.slow
# Shared memory that one of Hopper's programs may have.
SHARED_MEMORY = 227 * 1024


def compile_for_hopper(kernel: Any, constants: dict[str, Any]) -> Any:
    parameters = inspect.signature(kernel.fn).parameters
    constants = {name: x.default for name, x in parameters.items() if x.default is not x.empty} | constants
    names = list(parameters)
    # What slices of states are added up in.
    sums = dict.fromkeys(("out", "du", "ddelta", "dz"), "*fp32") if constants.get("ADD") else {}
    pointers = POINTERS | sums
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    options = {name: constants.pop(name) for name in ("maxnreg",) if name in constants}
    source = GluonASTSource(kernel, signature, {(names.index(name),): constants[name] for name in constants})
    options["num_warps"] = constants["num_warps"]
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("states", "channels", "groups", "walk", "options"),
    [
        (16, 768, 1, "forward", EVERYTHING),
        (1, 384, 4, "order", PLAIN),
        pytest.param(16, 768, 1, "order", {**PLAIN, "HAS_MARKS": True, "ENDS": True}, marks=slow),
        pytest.param(16, 16, 1, "reverse", {**EVERYTHING, "HAS_MARKS": True}, marks=slow),
        pytest.param(1, 5, 1, "order", EVERYTHING, marks=slow),
        pytest.param(1, 96, 1, "reverse", {**EVERYTHING, "HAS_MARKS": True}, marks=slow),
        pytest.param(1, 96, 1, "forward", {**PLAIN, "HAS_MARKS": True, "ENDS": True}, marks=slow),
        pytest.param(2, 64, 1, "order", EVERYTHING, marks=slow),
        pytest.param(4, 33, 1, "forward", EVERYTHING, marks=slow),
        pytest.param(8, 512, 4, "forward", EVERYTHING, marks=slow),
        pytest.param(20, 1024, 1, "reverse", EVERYTHING, marks=slow),
        pytest.param(32, 512, 1, "forward", {**EVERYTHING, "HAS_D": False, "ADD": True}, marks=slow),
        pytest.param(17, 40, 1, "reverse", {**EVERYTHING, "HAS_MARKS": True, "ADD": True}, marks=slow),
        pytest.param(25, 96, 1, "order", {**PLAIN, "SOFTPLUS": True, "HAS_MARKS": True, "ADD": True}, marks=slow),
        pytest.param(32, 1024, 1, "forward", {**EVERYTHING, "ENDS": True}, marks=slow),
    ],
)
def test_compiles(backward: bool, states: int, channels: int, groups: int, walk: str, options: dict) -> None:
    plan = hopper_plan(Shape(2, channels, 500, states, groups, 132), backward)
    assert plan is not None
    time_fast = tuple(i % 2 == 1 for i in range(6 if backward else 5))
    constants = {"HAS_MARKS": False, **plan.constants, **options, "WALK": walk, "TIME_FAST": time_fast}
    constants["WIDE"] = walk == "reverse"
    # Numbers that are 1 are constants to Triton.
    constants |= {"states": 1} if states == 1 else {}
    constants |= {"readings": 1, "parts": 1, "u_d": 1, "u_k": 1} if walk == "forward" else {}
    if not backward:
        constants["SAVE"] = True
    compiled = compile_for_hopper(hopper_kernel(states, backward), constants)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_MEMORY


@pytest.mark.parametrize(("states", "groups", "channels"), [(33, 1, 64), (16, 8, 24)])
def test_what_does_not_fit_is_left_to_the_other_kernels(states: int, groups: int, channels: int) -> None:
    assert hopper_plan(Shape(2, channels, 100, states, groups, 132), backward=True) is None
