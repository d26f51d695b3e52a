"""The derivatives of the registered operators, and the short way to these: past the dispatcher where nobody looks on.

A registered operator costs some 60 us of Python a call, most of it for compilers and modes that are not there. Both
ways run the same implementation and the same derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import CustomOpDef

from mamba_kernels.eager import is_eager
from mamba_kernels.errors import BackendError

Operator = Callable[..., Any]


def register_derivative(
    operator: CustomOpDef, backward: Callable[..., tuple], *, setup_context: Callable[[Any, tuple, Any], None]
) -> Operator:
    """Register an operator's derivative, and return the operator as it is to be called.

    Args:
        operator: The registered operator.
        backward: Takes the context and the gradients of the results, returns those of the arguments.
        setup_context: Takes the context, the arguments and the results, and keeps what ``backward`` needs.

    Returns:
        A function of the operator's arguments, by position. In plain eager execution it runs the implementation
        directly, as a function of autograd where a gradient is wanted; otherwise it calls the operator.
    """
    operator.register_autograd(backward, setup_context=setup_context)
    implementation = operator._init_fn

    def forward(ctx: Any, *args: Any) -> Any:
        results = implementation(*args)
        setup_context(ctx, args, results)
        return results

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(operator._name, (torch.autograd.Function,), members)
    # What `Function.apply` does before calling this is looking for function transforms, as `is_eager` has done.
    differentiable = super(torch.autograd.Function, function).apply

    def call(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(operator, *args)
        if not is_eager(*args):
            return operator(*args)
        return (differentiable if wants_gradient(*args) else implementation)(*args)

    return call


def _refuse_tangents(operator: CustomOpDef, *args: Any) -> None:
    """Refuse inputs of forward-mode differentiation, whose tangents PyTorch would drop without a word."""
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args):
        raise BackendError(
            f"{operator._name}: the operator has no forward-mode derivative",
            "pass backend='reference', which can be differentiated in either mode",
        )


def refuse_second_derivative(op: str, backward: CustomOpDef) -> Operator:
    """Make differentiating an operator's ``backward`` raise an error that names the switch.

    Args:
        op: The operator's public name, for the error.
        backward: The registered operator that computes its gradients.

    Returns:
        ``backward`` as it is to be called: a function of its arguments, by position.
    """

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise BackendError(
            f"{op}: the operator has no second derivative",
            "pass backend='reference', which can be differentiated any number of times",
        )

    backward.register_autograd(refuse)
    implementation = backward._init_fn

    def call(*args: Any) -> Any:
        return (implementation if is_eager(*args) and not wants_gradient(*args) else backward)(*args)

    return call


def wants_gradient(*args: Any) -> bool:
    """Return whether autograd would record an operator with these arguments."""
    if torch.is_grad_enabled():
        for x in args:  # Quicker than any(): most operators' first argument asks for a gradient.
            if isinstance(x, Tensor) and x.requires_grad:
                return True
    return False
