"""One step of the selective scan: the public function, its checks and the registered operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.checks import cast_for_autocast, require, require_device, require_float, require_shape
from mamba_kernels.errors import KernelInputError
from mamba_kernels.layout import empty_in_order
from mamba_kernels.selective_state_update.reference import selective_state_update_reference

NAME = "selective_state_update"
MAX_STATE = 256


@torch.library.custom_op("mamba_kernels::selective_state_update", mutates_args=("state",), device_types=("cpu", "cuda"))
def registered_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    A_is_log: bool = False,
    dt_weight: Tensor | None = None,
) -> Tensor:
    """Advance ``state`` in place and return the output; ``dt_weight`` is for the GPU's kernel alone."""
    if dt_weight is not None:
        from mamba_kernels.selective_state_update import triton

        return triton.selective_state_update(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, A_is_log, dt_weight
        )
    kernels = backends.kernels("mamba_kernels.selective_state_update", state.device)
    return kernels.selective_state_update(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, A_is_log
    )


@registered_update.register_fake
def _(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    A_is_log: bool = False,
    dt_weight: Tensor | None = None,
) -> Tensor:
    return empty_in_order(x)


def _check_matrix(name: str, M: Tensor, batch: int, state: int, parts: int, of_what: str) -> None:
    """Check B or C, whose groups divide ``parts`` heads or channels."""
    require(
        M.dim() in (2, 3),
        f"{NAME}: {name} must have shape (B, N) or (B, G, N), got {tuple(M.shape)}",
        f"reshape {name}",
    )
    if M.dim() == 3:
        require(
            M.shape[1] > 0 and parts % M.shape[1] == 0,
            f"{NAME}: the groups G of {name} {tuple(M.shape)} must divide the {parts} {of_what}",
            f"choose a number of groups that divides {parts}",
        )
    shape = (batch, state) if M.dim() == 2 else (batch, M.shape[1], state)
    require_shape(NAME, name, M, shape, "(B, N)" if M.dim() == 2 else "(B, G, N)")


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state_batch_indices: Tensor | None,
    dt_weight: Tensor | None,
) -> None:
    named = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    named["dt_weight"] = dt_weight
    require(
        not A.is_complex(),
        f"{NAME}: complex A ({A.dtype}) is not supported",
        "pass a real A, such as -exp(A_log) initialised with A_log[d, n] = log(n + 1)",
    )
    for name, t in named.items():
        if t is not None:
            require_float(NAME, name, t)
            require_device(NAME, name, t, state.device)
            if t.requires_grad and torch.is_grad_enabled():
                raise KernelInputError(
                    f"{NAME}: {name} requires a gradient, and a step in place has none",
                    "call it under torch.no_grad(), or use selective_scan to differentiate",
                )
    require(
        state.dim() in (3, 4),
        f"{NAME}: state must have shape (B, D, N) or (B, H, P, N), got {tuple(state.shape)}",
        "reshape state",
    )
    channels, letters = state.shape[1:-1], "(B, D)" if state.dim() == 3 else "(B, H, P)"
    pool, size = state.shape[0], state.shape[-1]
    require(
        1 <= size <= MAX_STATE and channels.numel() > 0,
        f"{NAME}: the state size N must be 1 to {MAX_STATE}, with a channel at least, got state {tuple(state.shape)}",
        "use another state",
    )
    require(
        all(stride > 0 or length <= 1 for length, stride in zip(state.shape, state.stride(), strict=True)),
        f"{NAME}: state must not be expanded, got strides {tuple(state.stride())}",
        "pass state.contiguous(), which can be written to",
    )
    require(x.dim() >= 1, f"{NAME}: x must have shape {letters}, got {tuple(x.shape)}", "reshape x")
    batch = x.shape[0]
    require_shape(NAME, "x", x, (batch, *channels), letters)
    if state_batch_indices is None:
        require(
            pool == batch,
            f"{NAME}: state has {pool} sequences and x has {batch}",
            "pass state_batch_indices to choose rows of a larger pool",
        )
    else:
        indices = state_batch_indices
        require(
            indices.dtype in (torch.int32, torch.int64),
            f"{NAME}: state_batch_indices must be int32, got {indices.dtype}",
            "convert them with state_batch_indices.int()",
        )
        require_device(NAME, "state_batch_indices", indices, state.device)
        require_shape(NAME, "state_batch_indices", indices, (batch,), "(B,)")
    if dt_weight is None:
        require_shape(NAME, "dt", dt, x.shape, letters)
    else:
        require(
            state.dim() == 3 and dt_weight.dim() == 2,
            f"{NAME}: dt_weight must have shape (D, R), for a state without heads, got {tuple(dt_weight.shape)}",
            "project dt to the shape of x instead",
        )
        require_shape(NAME, "dt_weight", dt_weight, (*channels, dt_weight.shape[1]), "(D, R)")
        require_shape(NAME, "dt", dt, (batch, dt_weight.shape[1]), "(B, R)")
    require_shape(NAME, "A", A, (*channels, size), "(D, N)" if state.dim() == 3 else "(H, P, N)")
    of_what = "channels" if state.dim() == 3 else "heads"
    _check_matrix("B", B, batch, size, channels[0], of_what)
    _check_matrix("C", C, batch, size, channels[0], of_what)
    if z is not None:
        require_shape(NAME, "z", z, x.shape, letters)
    for name, t in {"D": D, "dt_bias": dt_bias}.items():
        if t is not None:
            require_shape(NAME, name, t, channels, "(D,)" if state.dim() == 3 else "(H, P)")


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    state_batch_indices: Tensor | None = None,
    dt_weight: Tensor | None = None,
    A_is_log: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Advance the state of the selective scan by one position, in place, and return the output there.

    Equals one position of `selective_scan` without heads, and of Mamba-2's recurrence with heads. Follows the argument
    order of mamba-ssm's function of this name. Arithmetic is float32, float64 where an input is. Tensors may have any
    strides, and A, dt, D and dt_bias tied within a head may be expanded. Under autocast x, dt, B, C and z are cast to
    its dtype.

    Args:
        state: State (B, D, N) or (B, H, P, N) of any floating point dtype, replaced by the next one; with
            ``state_batch_indices`` a pool of states (S, ...).
        x: Input (B, D) or (B, H, P).
        dt: Step sizes of the shape of x, before bias and softplus; with ``dt_weight`` their low-rank factor (B, R).
        A: Real decay rates (D, N) or (H, P, N).
        B: Input matrix (B, N) or (B, G, N) with G dividing H (or D).
        C: Output matrix, as B.
        D: Skip weights (D,) or (H, P).
        z: Gate of the shape of x.
        dt_bias: Bias (D,) or (H, P) added to dt before the softplus.
        dt_softplus: Whether to apply softplus (the identity above 20) to dt.
        state_batch_indices: Row of the pool (B,) int32 for each entry, all different; a negative one is padding, whose
            output is 0.
        dt_weight: Weight (D, R) that makes step sizes of the low-rank factor; a GPU's kernel does it on its way.
        A_is_log: Whether A holds log(-A), as models keep it: a GPU's kernel then derives the rates on its way.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output, of the shape, dtype and dimension order of x.

    Raises:
        KernelInputError: If a shape, dtype, device or index is refused, or an input requires a gradient.
        BackendError: If the backend cannot run on the tensors' device.
    """
    _check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, dt_weight)
    x, dt, B, C = (cast_for_autocast(t) for t in (x, dt, B, C))
    z = None if z is None else cast_for_autocast(z)
    by_reference = backends.choose(NAME, state.device, backend, has_triton=True) == "reference"
    if dt_weight is not None and (by_reference or not backends.runs_gpu_kernels(state.device)):
        dt, dt_weight = F.linear(dt, dt_weight.to(dt.dtype)), None
    if by_reference:
        return selective_state_update_reference(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, A_is_log
        )
    return registered_update(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, A_is_log, dt_weight
    )
