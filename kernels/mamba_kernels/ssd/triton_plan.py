"""How SSD's GPU kernels cut their work: the configurations there are, and what a call's shapes decide."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mamba_kernels.errors import KernelInputError
from mamba_kernels.gpu import ceil_divide, next_power_of_2

# The smallest side of a matrix product.
SMALLEST = 16
LARGEST_STATE = 256
# Programs a multiprocessor should have before sequences are cut into parts, and groups of heads split.
PROGRAMS_WANTED = 2
# Positions that a part has at least.
SHORTEST_PART = 256
# Registers of a multiprocessor for each thread of a program of four warps.
REGISTERS = 65536 // 128
# The longest chunk of any configuration.
LONGEST_CHUNK = 64


class Config(NamedTuple):
    """The numbers a kernel may be run with: positions of a chunk, warps, stages of its loads, registers at most."""

    chunk: int
    warps: int
    stages: int
    registers: int | None = None

    def options(self) -> dict[str, int]:
        """Return what Triton compiles with."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


class Tiles(NamedTuple):
    """How states and channels are padded, and what products are made of."""

    state: int
    block: int
    blocks: int
    operand: str
    precision: str


def tiles(x: Tensor, B: Tensor, C: Tensor) -> Tiles:
    """Return how a problem's tensors are cut and multiplied.

    Products are of bfloat16 where all of x, B and C are; float16 becomes TF32, which has its digits and a range in
    which states do not overflow; float32 is made of three TF32 products, which keep its digits.

    Raises:
        KernelInputError: If the state is larger than the kernels' registers.
    """
    width, states = x.shape[-1], B.shape[-1]
    if states > LARGEST_STATE:
        raise KernelInputError(
            f"ssd: the GPU kernels take states N up to {LARGEST_STATE}, got {states}", "pass backend='reference'"
        )
    dtypes = {x.dtype, B.dtype, C.dtype}
    if dtypes == {torch.bfloat16} and x.device.type != "cpu":  # The interpreter multiplies no bfloat16.
        operand, precision = "bf16", "tf32"
    else:
        operand, precision = "fp32", "tf32x3" if torch.float32 in dtypes else "tf32"
    state = max(SMALLEST, next_power_of_2(states))
    # What float32 is split into has to stay in registers.
    largest = 64 if operand == "bf16" else max(SMALLEST, min(32, 2048 // state))
    block = max(SMALLEST, min(largest, next_power_of_2(width)))
    return Tiles(state, block, ceil_divide(width, block), operand, precision)


def state_slice(tiles: Tiles) -> int:
    """Return how many states the gradients of heads take at a time: of float32, whose splits fill registers, few."""
    return tiles.state if tiles.operand == "bf16" else min(32, tiles.state)


def parts(programs: int, length: int, processors: int, wanted: int) -> int:
    """Return into how many parts sequences are cut, so that ``programs`` a part give each processor those wanted."""
    return max(1, min(processors * wanted // max(1, programs), length // SHORTEST_PART))


def walking_programs(operand: str, state: int) -> int:
    """Return how many programs that walk states a multiprocessor holds at a time."""
    registers = _walks(operand, state)[0].registers
    return PROGRAMS_WANTED if registers is None else REGISTERS // registers


def splits(programs: int, shared: int, processors: int) -> int:
    """Return into how many programs the heads of a group are split, a divisor of their number."""
    wanted = max(1, processors * PROGRAMS_WANTED // max(1, programs))
    return next(n for n in range(min(wanted, shared), 0, -1) if shared % n == 0)


def forward_configs(operand: str, state: int) -> list[tuple[Config, Config]]:
    """Return the configurations of the forward pass, of its walk for parts and of the output, the fastest first."""
    return [(walking, Config(walking.chunk, walking.warps, 1)) for walking in _walks(operand, state)]


def backward_configs(operand: str, state: int) -> list[tuple[Config, Config, Config]]:
    """Return the configurations of the backward pass, of its walk, heads and groups, the fastest first."""
    return [(w, Config(w.chunk, w.warps, 1), w) for w in _walks(operand, state)]


def _walks(operand: str, state: int) -> list[Config]:
    """Return the configurations of loops over tiles that are loaded ahead."""
    if operand == "fp32":
        chunk = 32 if state <= 128 else 16
        # Two warps cannot have Hopper's own matrix instructions, which are what was seen miscompiled.
        return [Config(chunk, 4, 1), Config(chunk, 2, 1)]
    # One more program fits a multiprocessor of Hopper's with what these limits leave, and nothing spills.
    registers = {64: 128, 128: 168}.get(state)
    fast = Config(LONGEST_CHUNK, 4, 3, registers) if state <= 128 else Config(LONGEST_CHUNK, 8, 2)
    return [fast, Config(32, 4, 1)]


def needs_64_bits(rows: int, *layouts: tuple[int, int, int]) -> bool:
    """Return whether offsets within a tile pass 32 bits, from strides of rows and columns, and the columns."""
    return any(rows * abs(row) + columns * abs(column) >= 2**31 for row, column, columns in layouts)
