"""Whether a call is plain eager execution, in which nothing but autograd has to learn of an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


def is_eager(*args: Any) -> bool:
    """Return whether a call with these arguments only computes.

    That is: no compiler, exporter or tracer follows it, no mode or function transform would change what it does, and
    its tensors are PyTorch's own with their numbers in memory as they read: no meta tensors, none that outlived a
    function transform, and no imaginary part of a conjugate, whose numbers lie in memory with the other sign.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
        or torch._C._is_tracing()
    ):
        return False
    for x in args:
        if isinstance(x, Tensor) and (
            type(x) not in _PLAIN or x.is_meta or x.is_neg() or torch._C._functorch.is_functorch_wrapped_tensor(x)
        ):
            return False
    return True
