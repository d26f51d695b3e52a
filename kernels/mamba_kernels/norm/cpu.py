"""The norms on the CPU: how tensors become rows, and in how many tasks the compiled kernels run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import empty_in_order
from mamba_kernels.norm.cpu_kernels import GATE_FIRST, GATE_LAST, NO_GATE, Plan, Rows, norm_backward, norm_forward
from mamba_kernels.simd import LANES
from mamba_kernels.threads import run_tasks
from mamba_kernels.tiles import flat

# Numbers a task reads at least, to make up for the cost of calling it; and how many tasks there are at most, since each
# keeps a gradient of the weight to itself.
TASK_SIZE = 1 << 16
TASKS = 64


def _plan(x: Tensor, group_size: int, eps: float, *, centred: bool = False, gate: int = NO_GATE) -> Plan:
    """Cut the work by the shapes alone, so that the result does not depend on the number of threads."""
    width = x.shape[-1]
    rows = x.numel() // width
    rows_each = max(1, -(-rows // TASKS), TASK_SIZE // width)
    padded = -(-group_size // LANES) * LANES
    return Plan(rows, rows_each, width // group_size, group_size, padded, eps, int(centred), gate)


def _tasks(plan: Plan) -> int:
    return -(-plan.rows // plan.rows_each)


def _rows(x: Tensor | None, plan: Plan, dtype: torch.dtype) -> Rows:
    """Return a tensor as rows, a copy where its dtype differs, groups lack lanes or rows don't lie side by side."""
    if x is None:
        return Rows(torch.zeros(0, dtype=dtype).numpy(), 0)
    x = x.to(dtype).reshape(-1, x.shape[-1])
    if plan.padded > plan.size:
        x = F.pad(x.reshape(-1, plan.groups, plan.size), (0, plan.padded - plan.size)).flatten(1)
    elif x.stride(1) != 1:
        x = x.contiguous()
    return Rows(flat(x), x.stride(0))


class _Result:
    """A tensor in the dimension order and dtype asked for, and the rows the kernels write: its own where that fits."""

    def __init__(self, like: Tensor, dtype: torch.dtype, plan: Plan, compute: torch.dtype) -> None:
        self.tensor = empty_in_order(like, dtype)
        self.apart: Tensor | None = None
        written = self.tensor
        if dtype != compute or plan.padded > plan.size or not self.tensor.is_contiguous():
            written = self.apart = torch.empty(plan.rows, plan.groups, plan.padded, dtype=compute)
        self.rows = Rows(flat(written), plan.groups * plan.padded)
        self.size = plan.size

    def get(self) -> Tensor:
        if self.apart is None:
            return self.tensor
        return self.tensor.copy_(self.apart[..., : self.size].reshape(self.tensor.shape))


def _forward(
    plan: Plan,
    dtype: torch.dtype,
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: _Result,
    added: _Result | None,
) -> None:
    shift = torch.zeros_like(weight) if bias is None else bias
    inputs = [_rows(t, plan, dtype) for t in (x, residual, z, weight, shift)]
    outputs = (out.rows, _rows(None, plan, dtype) if added is None else added.rows)
    if plan.rows:
        run_tasks(lambda task: norm_forward(task, plan, *inputs, *outputs), _tasks(plan))


def _backward(
    plan: Plan,
    dtype: torch.dtype,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    dadded: Tensor | None,
    dx: _Result,
    dz: _Result | None,
) -> tuple[Tensor, Tensor]:
    """Write dx and dz, and return the gradients of weight and bias, the latter of size 0 if there is none."""
    shift = torch.zeros_like(weight) if bias is None else bias
    inputs = [_rows(t, plan, dtype) for t in (x, z, weight, shift, dout, dadded)]
    parts = [torch.empty(_tasks(plan), plan.groups, plan.padded, dtype=dtype) for _ in range(2)]
    part_rows = [Rows(flat(part), plan.groups * plan.padded) for part in parts]
    outputs = (dx.rows, _rows(None, plan, dtype) if dz is None else dz.rows, *part_rows)
    if plan.rows:
        run_tasks(lambda task: norm_backward(task, plan, *inputs, *outputs), _tasks(plan))
    dweight, dbias = (part.sum(0)[:, : plan.size].reshape(weight.shape) for part in parts)
    dweight = empty_in_order(weight).copy_(dweight)
    return dweight, weight.new_empty(0) if bias is None else empty_in_order(bias).copy_(dbias)


def add_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, centred: bool, out: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the norm of ``x + residual`` in dtype ``out``, and the sum; of size 0 without residual."""
    dtype = compute_dtype(x, weight, bias, residual)
    plan = _plan(x, x.shape[-1], eps, centred=centred)
    result = _Result(x, out, plan, dtype)
    added = None if residual is None else _Result(residual, residual.dtype, plan, dtype)
    _forward(plan, dtype, x, residual, None, weight, bias, result, added)
    return result.get(), x.new_empty(0) if added is None else added.get()


def add_norm_backward(
    dout: Tensor,
    dadded: Tensor | None,
    added: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the sum in x's dtype and in the residual's, of size 0 where not asked, and the others."""
    dtype = compute_dtype(added, weight, bias, dout)
    plan = _plan(added, added.shape[-1], eps, centred=centred)
    result = _Result(added, dtype, plan, dtype)
    dweight, dbias = _backward(plan, dtype, added, None, weight, bias, dout, dadded, result, None)
    gradient = result.get()
    dx, dresidual = gradient.to(x_dtype), weight.new_empty(0)
    if residual_dtype is not None:
        dresidual = gradient.to(residual_dtype)
    return dx, dresidual.clone() if dresidual is dx else dresidual, dweight, dbias


def _gate(z: Tensor | None, norm_before_gate: bool) -> int:
    if z is None:
        return NO_GATE
    return GATE_LAST if norm_before_gate else GATE_FIRST


def gated_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    """Return the gated norm of ``x`` in its dtype."""
    dtype = compute_dtype(x, weight, bias, z)
    plan = _plan(x, group_size, eps, gate=_gate(z, norm_before_gate))
    out = _Result(x, x.dtype, plan, dtype)
    _forward(plan, dtype, x, None, z, weight, bias, out, None)
    return out.get()


def gated_norm_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and z, those of missing ones of size 0."""
    dtype = compute_dtype(x, weight, bias, z)
    plan = _plan(x, group_size, eps, gate=_gate(z, norm_before_gate))
    dx = _Result(x, x.dtype, plan, dtype)
    dz = None if z is None else _Result(z, z.dtype, plan, dtype)
    dweight, dbias = _backward(plan, dtype, x, z, weight, bias, dout, None, dx, dz)
    return dx.get(), dweight, dbias, x.new_empty(0) if dz is None else dz.get()
