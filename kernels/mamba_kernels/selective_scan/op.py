"""The selective scan's public function: its checks, autocast's rule, and the choice of what runs."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import wants_gradient
from mamba_kernels.checks import FLOATS, cast_for_autocast, require, require_device, require_float, require_shape
from mamba_kernels.memo import per_layout
from mamba_kernels.selective_scan.reference import selective_scan_reference
from mamba_kernels.selective_scan.registered import scan

NAME = "selective_scan"
MAX_STATE = 256


def _check_matrix(name: str, M: Tensor, u: Tensor, state: int) -> None:
    """Check B or C, which may be constant, per step or grouped."""
    batch, channels, length = u.shape
    shapes = {2: (channels, state), 3: (batch, state, length)}
    letters = {2: "(D, N)", 3: "(B, N, L)", 4: "(B, G, N, L)"}
    require(
        M.dim() in letters,
        f"{NAME}: {name} must have 2 to 4 dimensions, (D, N), (B, N, L) or (B, G, N, L), got {tuple(M.shape)}",
        f"reshape {name}",
    )
    if M.dim() == 4:
        groups = M.shape[1]
        require(
            groups > 0 and channels % groups == 0,
            f"{NAME}: the groups G of {name} {tuple(M.shape)} must divide the D = {channels} channels of u",
            f"choose a number of groups that divides {channels}",
        )
        shapes[4] = (batch, groups, state, length)
    require_shape(NAME, name, M, shapes[M.dim()], letters[M.dim()])


@per_layout
def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    named["initial_state"] = initial_state
    require(
        not A.is_complex(),
        f"{NAME}: complex A ({A.dtype}) is not supported",
        "pass a real A, such as -exp(A_log) initialised with A_log[d, n] = log(n + 1)",
    )
    for name, x in named.items():
        if x is not None:
            require_float(NAME, name, x)
            require_device(NAME, name, x, u.device)
    require(u.dim() == 3, f"{NAME}: u must have shape (B, D, L), got {tuple(u.shape)}", "reshape u")
    batch, channels, length = u.shape
    require(
        length > 0, f"{NAME}: the length L must be at least 1, got u of shape {tuple(u.shape)}", "drop empty sequences"
    )
    require(channels > 0, f"{NAME}: there must be a channel, got u of shape {tuple(u.shape)}", "pass D >= 1 channels")
    require_shape(NAME, "delta", delta, u.shape, "(B, D, L)")
    require(A.dim() == 2, f"{NAME}: A must have shape (D, N), got {tuple(A.shape)}", "reshape A")
    state = A.shape[1]
    require(
        1 <= state <= MAX_STATE,
        f"{NAME}: the state size N must be 1 to {MAX_STATE}, got A of shape {tuple(A.shape)}",
        "use a smaller state, or the SSD operator of Mamba-2 for large ones",
    )
    require_shape(NAME, "A", A, (channels, state), "(D, N)")
    _check_matrix("B", B, u, state)
    _check_matrix("C", C, u, state)
    if D is not None:
        require_shape(NAME, "D", D, (channels,), "(D,)")
    if z is not None:
        require_shape(NAME, "z", z, u.shape, "(B, D, L)")
    if delta_bias is not None:
        require_shape(NAME, "delta_bias", delta_bias, (channels,), "(D,)")
    if initial_state is not None:
        require_shape(NAME, "initial_state", initial_state, (batch, channels, state), "(B, D, N)")
    if seq_idx is not None:
        require(
            seq_idx.dtype == torch.int32,
            f"{NAME}: seq_idx must be int32, got {seq_idx.dtype}",
            "convert it with seq_idx.int()",
        )
        require_device(NAME, "seq_idx", seq_idx, u.device)
        require_shape(NAME, "seq_idx", seq_idx, (batch, length), "(B, L)")
    require(
        out_dtype is None or out_dtype in FLOATS,
        f"{NAME}: out_dtype must be a real floating point dtype, got {out_dtype}",
        "pass torch.float32, torch.bfloat16, torch.float16 or None",
    )


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    reverse: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective state space recurrence of Mamba along a sequence.

    With dt = softplus(delta + delta_bias), per channel d and state n, h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and
    y_t = sum_n C_t h_t + D u_t, times silu(z_t). Follows "Mamba: Linear-Time Sequence Modeling with Selective State
    Spaces" (Gu and Dao, 2023) and the argument order of mamba-ssm's ``selective_scan_fn``. Arithmetic is float32,
    float64 where an input is. Tensors may have any strides; the output and each gradient are dense in the dimension
    order of their input. Under autocast u, delta, B, C and z are cast to its dtype.

    Args:
        u: Input (B, D, L), L >= 1.
        delta: Step sizes (B, D, L), before bias and softplus.
        A: Real decay rates (D, N), N <= 256; negative in any stable model.
        B: Input matrix: constant (D, N), per step (B, N, L), or grouped (B, G, N, L) where channel d reads group
            d // (D / G).
        C: Output matrix, in any of the shapes of B.
        D: Skip weights (D,).
        z: Gate (B, D, L).
        delta_bias: Bias (D,) added to delta before the softplus.
        delta_softplus: Whether to apply softplus (the identity above 20) to delta.
        return_last_state: Whether to return the last state too.
        initial_state: State (B, D, N) before the first position; zeros if None.
        seq_idx: Segment ids (B, L) int32. A change of value resets the state; ``initial_state`` reaches the leading
            segment only if its id is 0; negative is padding, where the output is 0, no gradient flows and the state
            stays as it is.
        reverse: Whether to read from the last position to the first; ``initial_state`` then enters after the last one.
        out_dtype: The output's dtype; that of u if None.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output (B, D, L), or the pair of it and the state (B, D, N) after the last position read that is not
        padding, float32 (float64 for float64 inputs). Gradients flow through both states.

    Raises:
        KernelInputError: If a shape, dtype or device is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, out_dtype)
    if u.device.type != "meta" and torch.is_autocast_enabled(u.device.type):
        u, delta, B, C = (cast_for_autocast(x) for x in (u, delta, B, C))
        z = None if z is None else cast_for_autocast(z)
    out_dtype = u.dtype if out_dtype is None else out_dtype
    if backends.choose(NAME, u.device, backend, has_triton=True) == "reference":
        out, last_state = selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, reverse, out_dtype
        )
    else:
        save = wants_gradient(u, delta, A, B, C, D, z, delta_bias, initial_state)
        out, last_state, _ = scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, reverse, out_dtype, save
        )
    return (out, last_state) if return_last_state else out
