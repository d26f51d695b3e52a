"""The GPU kernels compile for Hopper (sm_90) wherever Triton is: a compiler refuses what the interpreter lets pass."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled where kernels are interpreted", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mamba_kernels.causal_conv1d.triton_kernels import conv_backward, conv_forward
from mamba_kernels.norm.triton_kernels import norm_backward, norm_forward
from mamba_kernels.selective_scan.triton_backward import scan_backward
from mamba_kernels.selective_scan.triton_forward import scan_forward
from mamba_kernels.selective_scan.triton_steps import carry_states

HOPPER = GPUTarget("cuda", 90, 32)
HALF = "u delta B C z out dout du ddelta dz x y dx dy residual initial final dfinal".split()
SINGLE = (
    "A D bias entering leaving checkpoints decays scratch dA dB dC dD dbias ends start carried weight dweight added "
    "dadded dinitial"
).split()
POINTERS = {
    **dict.fromkeys(HALF, "*bf16"),
    **dict.fromkeys(SINGLE, "*fp32"),
    "marks": "*i8",
    "steps": "*i32",
    "reach": "*i32",
    "counts": "*i64",
    "eps": "fp32",
}
SCAN = {
    "N_PAD": 16, "BLOCK": 32, "CHUNK": 64, "SOFTPLUS": True, "REVERSE": True, "B_VARIES": True, "C_VARIES": True,
    "HAS_D": True, "HAS_Z": True, "HAS_BIAS": True, "HAS_MARKS": True, "HAS_ENTERING": True, "ENDS": False,
}  # fmt: skip
CONV = {
    "WIDTH": 4, "ROWS": 32, "COLUMNS": 64, "SILU": True, "REVERSE": False, "HAS_BIAS": True, "HAS_STEPS": True,
    "HAS_INITIAL": True,
}  # fmt: skip
NORM = {"ROWS": 4, "WIDTH_PAD": 512, "CENTRED": True, "GATE": 0, "HAS_BIAS": True}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "scan_forward": (scan_forward, {**SCAN, "STEPS": 4, "SAVE": True}),
    "scan_backward": (scan_backward, {**SCAN, "STEPS": 2}),
    "carry_states": (carry_states, {"BACKWARD": True, "HAS_START": True, "BLOCK": 128}),
    "conv_forward": (conv_forward, {**CONV, "KEEP": 4}),
    "conv_backward": (conv_backward, CONV),
    "conv_forward_wide": (conv_forward, {**CONV, "WIDTH": 64, "KEEP": 64}),
    "conv_backward_wide": (conv_backward, {**CONV, "WIDTH": 64}),
    "norm_forward": (norm_forward, {**NORM, "HAS_RESIDUAL": True}),
    "norm_backward": (norm_backward, {**NORM, "GATE": 1, "HAS_DADDED": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_compiles(case: str) -> None:
    kernel, options = CASES[case]
    names = inspect.signature(kernel.fn).parameters
    signature = {name: "constexpr" if name in options else POINTERS.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature=signature, constexprs=options)
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": 1 if case.startswith("scan") else 4})
    assert compiled.asm["cubin"]
