"""SSD's GPU kernels compile for Hopper (sm_90) in every configuration of their plan, with its matrix instructions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled where kernels are interpreted", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mamba_kernels.launch import Launch
from mamba_kernels.ssd import triton_launch, triton_plan
from mamba_kernels.ssd.triton_states import carry_states

# Shared memory that one of Hopper's programs may have.
SHARED_MEMORY = 227 * 1024
SINGLE = (
    "A D bias steps entering dleaving carried leaving ends decays dentering sums dA dbias dD"
).split()  # Of float32, whatever the inputs are.
NAMES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
slow = pytest.mark.slow
SHAPES: dict[str, dict[str, Any]] = {
    "language": {"heads": 32, "width": 64, "states": 128},
    "image": {"heads": 12, "width": 64, "states": 64, "everything": True},
    "large": {"heads": 4, "width": 128, "states": 256, "everything": True},
    "odd": {"heads": 3, "width": 70, "states": 5, "everything": True},
    "route": {"heads": 6, "width": 64, "states": 64, "readings": 4},
}


@pytest.fixture(autouse=True)
def _on_a_large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sequences cut into parts, as on a GPU with more multiprocessors than there are heads."""
    monkeypatch.setattr(triton_launch, "multiprocessors", lambda device: 132)


def plans(
    dtype: torch.dtype, choice: int, *, heads: int, width: int, states: int, everything: bool = False, readings: int = 0
) -> Iterator[tuple[Launch | None, str]]:
    """Yield the launches of a configuration, and what its products are made of."""

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    single, each = torch.float32, (1, readings, 1000) if readings else (1, 1000)
    x, B = tensor(*each, heads, width), tensor(*each, 1, states)
    all_heads = heads * max(1, readings)
    A, D = tensor(all_heads, dtype=single), tensor(all_heads, width, dtype=single)
    z, bias = (x, A) if everything else (None, None)
    tensors = (x, tensor(*each, heads), A, B, B, D, z, bias)
    options = triton_launch._Options(everything, (0.0, 1.0), everything or readings > 0, everything, readings > 0)
    tiles = triton_plan.tiles(x, B, B)
    configs = triton_plan.forward_configs(tiles.operand, tiles.state)[choice]
    forward = triton_launch._plan_forward(configs, *tensors, options, everything, everything)
    backward = triton_launch._plan_backward(
        triton_plan.backward_configs(tiles.operand, tiles.state)[choice], x, *tensors, options, everything, everything
    )
    for plan in (forward, backward):
        for launch in plan:
            if isinstance(launch, Launch):
                yield launch, tiles.operand


def compile_for_hopper(launch: Launch, dtype: torch.dtype, operand: str) -> Any:
    """Compile what a launch would, on aligned tensors."""
    names = launch.kernel.arg_names
    constants = {name: value for name, value in launch.constants.items() if name in names}
    pointers = names[: len(names) - len(constants) - len(launch.numbers)]
    signature = (
        dict.fromkeys(pointers, NAMES[dtype])
        | {n: "*fp32" for n in pointers if n in SINGLE}
        | {"marks": "*i32", "order": "*i32"}
    )
    signature |= {n: "*bf16" if operand == "bf16" else "*fp32" for n in ("kept", "dscores") if n in pointers}
    attributes: dict[tuple[int], Any] = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    for name, number in zip(names[len(pointers) :], launch.numbers, strict=False):
        signature[name] = "fp32" if isinstance(number, float) else "i32"
        if number == 1 and isinstance(number, int):
            constants[name] = 1
        elif isinstance(number, int) and number % 16 == 0:
            attributes[(names.index(name),)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        launch.kernel,
        {n: signature[n] for n in names},
        {(names.index(n),): v for n, v in constants.items()},
        attributes,
    )
    options = {
        name: launch.constants[name] for name in ("num_warps", "num_stages", "maxnreg") if name in launch.constants
    }
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize(
    ("dtype", "choice", "shape"),
    [
        (torch.bfloat16, 0, "language"),
        *(pytest.param(torch.bfloat16, 0, shape, marks=slow) for shape in SHAPES if shape != "language"),
        *(pytest.param(torch.bfloat16, 1, shape, marks=slow) for shape in SHAPES),
        pytest.param(torch.float16, 0, "image", marks=slow),
        *(pytest.param(torch.float32, 0, shape, marks=slow) for shape in SHAPES),
        pytest.param(torch.float32, 1, "language", marks=slow),
    ],
    ids=str,
)
def test_compiles(dtype: torch.dtype, choice: int, shape: str) -> None:
    for launch, operand in plans(dtype, choice, **SHAPES[shape]):
        compiled = compile_for_hopper(launch, dtype, operand)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY
        if choice == 0 and operand == "bf16" and SHAPES[shape]["states"] >= 64 and "OPERAND" in launch.constants:
            assert "wgmma.mma_async" in compiled.asm["ptx"], launch.kernel.__name__


@pytest.mark.parametrize("shape", SHAPES)
def test_what_carries_states_over_parts_compiles(shape: str) -> None:
    launches = [
        (launch, operand) for launch, operand in plans(torch.bfloat16, 0, **SHAPES[shape]) if launch is not None
    ]
    carrying = [(launch, operand) for launch, operand in launches if launch.kernel is carry_states]
    assert len(carrying) == 2  # Forward, and both ways.
    for launch, operand in carrying:
        assert compile_for_hopper(launch, torch.bfloat16, operand).asm["cubin"]
