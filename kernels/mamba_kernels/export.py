"""Decompositions of the registered operators into PyTorch's own, for exporters that know no others, such as ONNX.

An exported program keeps the registered operators; a table of decompositions replaces them::

    program = torch.export.export(model, inputs).run_decompositions(mamba_kernels.decompositions())
    torch.onnx.export(program, dynamo=True).save("model.onnx")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._ops import OpOverload
from torch.library import CustomOpDef

_table: dict[OpOverload, Callable[..., Any]] = {}


def register_decomposition(operator: CustomOpDef) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes a function of an operator's signature its decomposition."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _table[operator._opoverload] = function
        return function

    return register


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Return a new table of the decompositions of this package's operators, for ``run_decompositions``.

    Returns:
        Each operator with a function of its signature that calls PyTorch's own operators alone.
    """
    return dict(_table)
