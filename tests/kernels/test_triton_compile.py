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
from mamba_kernels.causal_conv1d.triton_update import conv_update
from mamba_kernels.causal_conv1d.triton_walk import turn, walk_backward, walk_forward
from mamba_kernels.depthwise_conv.triton_kernels import depthwise_forward, depthwise_gradients
from mamba_kernels.norm.triton_kernels import norm_backward, norm_forward
from mamba_kernels.routes.triton_merge import merge, unmerge
from mamba_kernels.selective_scan.triton_backward import scan_backward
from mamba_kernels.selective_scan.triton_forward import scan_forward
from mamba_kernels.selective_scan.triton_steps import carry_states
from mamba_kernels.selective_scan.triton_totals import total_blocks, total_parts
from mamba_kernels.selective_state_update.triton_kernels import state_update
from mamba_kernels.triton_sums import sum_parts

HOPPER = GPUTarget("cuda", 90, 32)
HALF = "u delta B C z out dout du ddelta dz x y dx dy residual initial final dfinal grad".split()
SINGLE = (
    "A D bias entering leaving checkpoints decays scratch dA dB dC dD dbias ends start carried weight dweight added "
    "dadded dinitial dresidual sums dA_parts dD_parts dbias_parts"
).split()
POINTERS = {
    **dict.fromkeys(HALF, "*bf16"),
    **dict.fromkeys(SINGLE, "*fp32"),
    "marks": "*i8",
    "order": "*i32",
    "chosen": "*i32",
    "seen": "*i32",
    "dt": "*bf16",
    "dt_weight": "*bf16",
    "state": "*fp32",
    "steps": "*i32",
    "reach": "*i32",
    "counts": "*i64",
    "eps": "fp32",
    "scale": "fp32",
    "merged": "*bf16",
    "ys": "*fp32",
    "dparts": "*bf16",
}
SCAN = {
    "N_PAD": 16, "BLOCK": 32, "CHUNK": 64, "SOFTPLUS": True, "WALK": "order", "B_VARIES": True, "C_VARIES": True,
    "HAS_D": True, "HAS_Z": True, "HAS_BIAS": True, "HAS_MARKS": True, "HAS_ENTERING": True, "ENDS": False,
}  # fmt: skip
CONV = {
    "WIDTH": 4, "ROWS": 32, "COLUMNS": 64, "SILU": True, "REVERSE": False, "HAS_BIAS": True, "HAS_STEPS": True,
    "HAS_INITIAL": True,
}  # fmt: skip
WALK = {
    "WIDTH": 4, "ROWS": 4, "COLUMNS": 128, "STEPS": 4, "SILU": True, "REVERSE": False, "BOTH": False, "HAS_BIAS": True,
    "HAS_INITIAL": True,
}  # fmt: skip
BOTH = {**WALK, "ROWS": 2, "BOTH": True, "HAS_INITIAL": False}
IMAGE = {"ACROSS": 3, "WALKERS": 8, "COLUMNS": 64, "STEPS": 2, "SILU": True, "HAS_BIAS": True}
VOLUME = {**IMAGE, "ACROSS": 9, "WALKERS": 4, "STEPS": 1}
NORM = {"ROWS": 8, "CHUNKS": 3, "CHUNK": 128, "CENTRED": True, "GATE": 0, "HAS_BIAS": True}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "scan_forward": (scan_forward, {**SCAN, "STEPS": 4, "SAVE": True, "ADD": True}),
    "scan_backward": (scan_backward, {**SCAN, "STEPS": 2, "ADD": True}),
    "merge": (merge, {"HAS_Z": True, "KEEP": True, "ROWS": 16, "COLUMNS": 128}),
    "unmerge": (unmerge, {"ROWS": 16, "COLUMNS": 128}),
    "state_update": (
        state_update,
        {
            "SOFTPLUS": True,
            "HAS_D": True,
            "HAS_Z": True,
            "HAS_BIAS": True,
            "HAS_ROWS": True,
            "LOG_RATES": True,
            "LOW_RANK": True,
            "R_PAD": 64,
            "BLOCK": 32,
            "N_PAD": 16,
        },
    ),
    "conv_update": (
        conv_update,
        {
            "WIDTH": 4,
            "SILU": True,
            "HAS_BIAS": True,
            "RING": True,
            "HAS_ROWS": True,
            "BLOCK": 128,
            "KEPT": 4,
        },
    ),
    "carry_states": (carry_states, {"BACKWARD": True, "HAS_START": True, "BLOCK": 128}),
    "total_parts": (total_parts, {"HAS_D": True, "HAS_BIAS": True, "ROWS": 16, "COLUMNS": 64}),
    "total_blocks": (total_blocks, {"N_PAD": 16, "ROWS": 64}),
    "conv_forward": (conv_forward, {**CONV, "KEEP": 4, "HAS_FINAL": True}),
    "conv_backward": (conv_backward, {**CONV, "HAS_DFINAL": True}),
    "conv_forward_wide": (conv_forward, {**CONV, "WIDTH": 64, "KEEP": 64, "HAS_FINAL": True}),
    "conv_backward_wide": (conv_backward, {**CONV, "WIDTH": 64, "HAS_DFINAL": True}),
    "walk_forward": (walk_forward, {**WALK, "HAS_FINAL": True}),
    "walk_backward": (walk_backward, {**WALK, "HAS_DFINAL": True}),
    "walk_forward_both": (walk_forward, {**BOTH, "HAS_FINAL": False}),
    "walk_backward_both": (walk_backward, {**BOTH, "HAS_DFINAL": False}),
    "turn": (turn, {"ROWS": 64, "COLUMNS": 64}),
    "depthwise_forward": (depthwise_forward, {**IMAGE, "FLIP": False}),
    "depthwise_forward_volume": (depthwise_forward, {**VOLUME, "FLIP": True}),
    "depthwise_gradients": (depthwise_gradients, IMAGE),
    "depthwise_gradients_volume": (depthwise_gradients, VOLUME),
    "sum_parts": (sum_parts, {"TAPS": 4, "TERMS": 5, "ROWS": 64, "COLUMNS": 16}),
    "norm_forward": (norm_forward, {**NORM, "HAS_RESIDUAL": True}),
    "norm_backward": (norm_backward, {**NORM, "GATE": 1, "HAS_DADDED": False, "HAS_DRESIDUAL": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_compiles(case: str) -> None:
    kernel, options = CASES[case]
    names = inspect.signature(kernel.fn).parameters
    signature = {name: "constexpr" if name in options else POINTERS.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature=signature, constexprs=options)
    warps = 1 if case.startswith(("scan", "carry")) else 4
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": warps})
    assert compiled.asm["cubin"]
