"""What the registered operators' derivatives share."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import CustomOpDef

from mamba_kernels.errors import BackendError


def refuse_second_derivative(op: str, backward: CustomOpDef) -> None:
    """Make differentiating an operator's ``backward`` raise an error that names the switch.

    Args:
        op: The operator's public name, for the error.
        backward: The registered operator that computes its gradients.
    """

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise BackendError(
            f"{op}: the operator has no second derivative",
            "pass backend='reference', which can be differentiated any number of times",
        )

    backward.register_autograd(refuse)
