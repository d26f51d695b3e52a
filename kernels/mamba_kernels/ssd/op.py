"""SSD's public function: its checks, autocast's rule, and the choice of what runs."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import wants_gradient
from mamba_kernels.checks import FLOATS, cast_for_autocast, require, require_device, require_float, require_shape
from mamba_kernels.memo import per_layout
from mamba_kernels.ssd import cpu
from mamba_kernels.ssd.reference import ssd_reference
from mamba_kernels.ssd.registered import run

NAME = "ssd"


@per_layout
def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int | None,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_limit: tuple[float, float],
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    for name, t in {**named, "initial_states": initial_states}.items():
        if t is not None:
            require_float(NAME, name, t)
            require_device(NAME, name, t, x.device)
    require(x.dim() == 4, f"{NAME}: x must have shape (B, L, H, P), got {tuple(x.shape)}", "reshape x")
    batch, length, heads, width = x.shape
    require(
        length > 0 and heads > 0 and width > 0,
        f"{NAME}: L, H and P must be at least 1, got x of shape {tuple(x.shape)}",
        "drop empty sequences, and give a head of a channel at least",
    )
    require_shape(NAME, "dt", dt, (batch, length, heads), "(B, L, H)")
    require_shape(NAME, "A", A, (heads,), "(H,)")
    require(B.dim() == 4, f"{NAME}: B must have shape (B, L, G, N), got {tuple(B.shape)}", "reshape B")
    groups, state = B.shape[2:]
    require_shape(NAME, "B", B, (batch, length, groups, state), "(B, L, G, N)")
    require_shape(NAME, "C", C, B.shape, "(B, L, G, N)")
    require(
        groups > 0 and heads % groups == 0 and state > 0,
        f"{NAME}: the groups G of B {tuple(B.shape)} must divide the H = {heads} heads of x, and N be at least 1",
        f"choose a number of groups that divides {heads}",
    )
    if D is not None:
        shape, letters = ((heads,), "(H,)") if D.dim() == 1 else ((heads, width), "(H, P)")
        require_shape(NAME, "D", D, shape, letters)
    if z is not None:
        require_shape(NAME, "z", z, x.shape, "(B, L, H, P)")
    if dt_bias is not None:
        require_shape(NAME, "dt_bias", dt_bias, (heads,), "(H,)")
    if initial_states is not None:
        require_shape(NAME, "initial_states", initial_states, (batch, heads, width, state), "(B, H, P, N)")
    if seq_idx is not None:
        require(
            seq_idx.dtype == torch.int32,
            f"{NAME}: seq_idx must be int32, got {seq_idx.dtype}",
            "convert it with seq_idx.int()",
        )
        require_device(NAME, "seq_idx", seq_idx, x.device)
        require_shape(NAME, "seq_idx", seq_idx, (batch, length), "(B, L)")
    require(
        chunk_size is None or chunk_size >= 1,
        f"{NAME}: chunk_size must be at least 1, got {chunk_size}",
        "pass None to leave it to the implementation",
    )
    require(
        len(dt_limit) == 2 and 0 <= dt_limit[0] <= dt_limit[1],
        f"{NAME}: dt_limit must be (smallest, largest) with 0 <= smallest <= largest, got {dt_limit}",
        "pass (0, inf) for no limit",
    )
    require(
        out_dtype is None or out_dtype in FLOATS,
        f"{NAME}: out_dtype must be a real floating point dtype, got {out_dtype}",
        "pass torch.float32, torch.bfloat16, torch.float16 or None",
    )


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    return_final_states: bool = False,
    *,
    reverse: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run Mamba-2's recurrence, the state space dual of a masked attention, along a sequence.

    With dt = clamp(softplus(dt + dt_bias), dt_limit), per head h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T and
    y_t = h_t C_t + D x_t, times silu(z_t). Follows "Transformers are SSMs" (Dao and Gu, 2024) and the names of
    mamba-ssm's ``mamba_chunk_scan_combined``. Arithmetic is float32, float64 where an input is. Tensors may have any
    strides; the output is dense in the dimension order of x. Under autocast x, dt, B, C and z are cast to its dtype.
    On a CPU it is differentiable any number of times, and traced by compilers and exporters for one length; on a GPU
    it is one operator to these, and differentiable once.

    Args:
        x: Input (B, L, H, P), L >= 1.
        dt: Step sizes (B, L, H), before bias, softplus and limit.
        A: Decay rates (H,), one a head; negative in any stable model.
        B: Input matrix (B, L, G, N); head h reads group h // (H / G).
        C: Output matrix (B, L, G, N).
        chunk_size: Positions whose exchange is computed as one matrix; it changes speed and memory, not the result. The
            implementation's own choice if None; the GPU kernels always take their own.
        D: Skip weights (H,), or (H, P).
        z: Gate (B, L, H, P).
        dt_bias: Bias (H,) added to dt before the softplus.
        dt_softplus: Whether to apply softplus (the identity above 20) to dt.
        dt_limit: The smallest and the largest step size, at least 0.
        initial_states: State (B, H, P, N) before the first position; zeros if None.
        seq_idx: Segment ids (B, L) int32. A change of value resets the state; ``initial_states`` reach the leading
            segment only if its id is 0; negative is padding, where the output is 0, no gradient flows and the state
            stays as it is.
        return_final_states: Whether to return the final states too.
        reverse: Whether to read from the last position to the first; ``initial_states`` then enter after the last one.
        out_dtype: The output's dtype; that of x if None.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output (B, L, H, P), or the pair of it and the state (B, H, P, N) after the last position read that is not
        padding, float32 (float64 for float64 inputs). Gradients flow through both states.

    Raises:
        KernelInputError: If a shape, dtype, device or option is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of "triton".
    """
    dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
    _check(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_limit, initial_states, seq_idx, out_dtype)
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    x, dt, B, C = (cast_for_autocast(t) for t in (x, dt, B, C))
    z = None if z is None else cast_for_autocast(z)
    rest = (D, z, dt_bias, dt_softplus, dt_limit, initial_states, seq_idx, reverse, out_dtype or x.dtype)
    # Autocast would run the matrix products below in half precision.
    with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
        if chosen == "reference":
            out, final_states = ssd_reference(x, dt, A, B, C, *rest)
        elif chosen == "triton":
            tensors = (x, dt, A, B, C, D, z, dt_bias)
            save = wants_gradient(*tensors, initial_states)
            out, final_states, _ = run(
                *tensors, dt_softplus, *dt_limit, initial_states, seq_idx, reverse, out_dtype or x.dtype, save
            )
        else:
            out, final_states = cpu.ssd(x, dt, A, B, C, chunk_size, *rest)
    return (out, final_states) if return_final_states else out
