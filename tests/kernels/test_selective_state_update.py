"""One step of the selective scan: against the scan, against its definition, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_outcomes import LAYOUTS, dense_stride, draw
from torch import Tensor

from mamba_kernels import selective_scan, selective_state_update
from mamba_kernels.errors import KernelInputError
from mamba_kernels.selective_state_update.op import registered_update
from mamba_kernels.selective_state_update.reference import rates

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

BACKENDS = ["reference", "cpu"]


def make_step(
    *channels: int,
    batch: int = 3,
    state: int = 16,
    groups: tuple[int, ...] = (),
    pool: int | None = None,
    absent: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return the arguments of a step by name; one number of channels, or heads and their width."""
    channels = channels or (20,)
    step = {
        "state": draw(pool or batch, *channels, state, seed=1, dtype=dtype),
        "x": draw(batch, *channels, seed=2, dtype=dtype),
        "dt": draw(batch, *channels, seed=3, dtype=dtype),
        "A": -draw(*channels, state, seed=4, dtype=dtype).exp(),
        "B": draw(batch, *groups, state, seed=5, dtype=dtype),
        "C": draw(batch, *groups, state, seed=6, dtype=dtype),
        "D": draw(*channels, seed=7, dtype=dtype),
        "z": draw(batch, *channels, seed=8, dtype=dtype),
        "dt_bias": draw(*channels, seed=9, dtype=dtype),
    }
    return {name: None if name in absent else x for name, x in step.items()}


def run(step: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """Return the output and the next states, leaving the step's state alone."""
    state = step["state"].clone()
    y = selective_state_update(**{**step, "state": state}, **{"dt_softplus": True, **options})
    return y, state


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [(), (4,)])
@pytest.mark.parametrize("absent", [(), ("D", "z", "dt_bias")])
def test_step_by_step_equals_the_scan(absent: tuple[str, ...], groups: tuple[int, ...], backend: str) -> None:
    length, channels, size = 9, 20, 5
    u, delta, z = (draw(2, channels, length, seed=i) for i in (1, 2, 3))
    B, C = (draw(2, *groups, size, length, seed=i) for i in (4, 5))
    A, D, bias = -draw(channels, size).exp(), draw(channels, seed=6), draw(channels, seed=7)
    state = draw(2, channels, size, seed=8)
    optional = {"D": D, "z": z, "bias": bias}
    D, z, bias = (None if name in absent or f"dt_{name}" in absent else x for name, x in optional.items())
    wanted, last = selective_scan(u, delta, A, B, C, D, z, bias, True, True, initial_state=state)
    for t in range(length):
        gate = None if z is None else z[..., t]
        y = selective_state_update(
            state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, gate, bias, True, backend=backend
        )
        torch.testing.assert_close(y, wanted[..., t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((20,), {}),
    ((20,), {"groups": (5,), "state": 17}),
    ((1,), {"batch": 1, "state": 1}),
    ((4, 20), {"groups": (2,), "state": 32}),
    ((4, 20), {"absent": ("D", "z", "dt_bias"), "state": 3}),
    ((2, 33), {"groups": (1,), "state": 128}),
    ((300,), {"batch": 7, "state": 256}),
]


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(("channels", "case"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_path_agrees_with_the_reference(
    dtype: torch.dtype, channels: tuple[int, ...], case: dict[str, Any], softplus: bool
) -> None:
    step = make_step(*channels, dtype=dtype, **case)
    step["dt"] = step["dt"] if softplus else step["dt"].abs() + 3  # no state may grow
    got, wanted = (run(step, dt_softplus=softplus, backend=backend) for backend in ("cpu", "reference"))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_heads_have_states_of_their_own() -> None:
    step = make_step(3, 4, groups=(3,), state=6, absent=("z",))
    y, state = run(step, dt_softplus=False)
    dt = step["dt"] + step["dt_bias"]
    decay = torch.exp(dt[..., None] * step["A"])
    wanted = decay * step["state"] + (dt * step["x"])[..., None] * step["B"][:, :, None]
    torch.testing.assert_close(state, wanted)
    torch.testing.assert_close(y, torch.einsum("bhpn,bhn->bhp", wanted, step["C"]) + step["D"] * step["x"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_tied_within_a_head_may_be_expanded(backend: str) -> None:
    step = make_step(4, 20, groups=(2,), state=32)
    step["A"] = step["A"][:, :1, :1].expand(4, 20, 32)
    for name in ("dt", "D", "dt_bias"):
        step[name] = step[name][..., :1].expand_as(step[name])
    dense = {name: x.contiguous() for name, x in step.items()}
    torch.testing.assert_close(run(step, backend=backend), run(dense, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [False, True])
def test_rates_may_be_given_by_their_logarithms(tied: bool, backend: str) -> None:
    step = make_step(4, 20, groups=(2,), state=32)
    A_log = draw(4, 20, 32, seed=10)
    A_log = A_log[:, :1, :1].expand(4, 20, 32) if tied else A_log
    wanted = run({**step, "A": -A_log.exp()}, backend=backend)
    torch.testing.assert_close(run({**step, "A": A_log}, A_is_log=True, backend=backend), wanted)
    assert rates(A_log).stride()[1:] == ((0, 0) if tied else (32, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_step_sizes_may_be_given_by_a_low_rank_factor(mixed: bool, backend: str) -> None:
    step = make_step(20)
    factor, weight = draw(3, 5, seed=10), draw(20, 5, seed=11)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        whole = {**step, "dt": torch.nn.functional.linear(factor, weight)}
        wanted = run(whole, backend=backend)
        torch.testing.assert_close(run({**step, "dt": factor}, dt_weight=weight, backend=backend), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_indices_choose_states_of_a_pool(integer: torch.dtype, dtype: torch.dtype, backend: str) -> None:
    step = make_step(20, pool=6)
    step["state"] = step["state"].to(dtype)
    indices = torch.tensor([4, -1, 0], dtype=integer)
    y, state = run(step, state_batch_indices=indices, backend=backend)
    chosen = {**step, "state": step["state"][[4, 1, 0]]}
    wanted, advanced = run(chosen, backend=backend)
    torch.testing.assert_close(y[[0, 2]], wanted[[0, 2]])
    assert (y[1] == 0).all()
    assert torch.equal(state[[4, 0]], advanced[[0, 2]])
    assert torch.equal(state[[1, 2, 3, 5]], step["state"][[1, 2, 3, 5]])


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "expanded" not in layout])
@pytest.mark.parametrize("channels", [(20,), (4, 20)])
def test_any_strides(channels: tuple[int, ...], layout: str) -> None:
    step = make_step(*channels, state=19)
    laid = {name: LAYOUTS[layout](x) if x.dim() > 1 else x for name, x in step.items()}
    strides = laid["state"].stride()
    wanted, next_state = run(step, backend="cpu")
    y = selective_state_update(**laid, dt_softplus=True, backend="cpu")
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(laid["state"], next_state)
    assert laid["state"].stride() == strides
    assert y.stride() == dense_stride(laid["x"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_states_are_advanced_in_float32(backend: str) -> None:
    step = {name: x.bfloat16() for name, x in make_step(20).items()}
    y, state = run(step, backend=backend)
    wanted, advanced = run({name: x.float() for name, x in step.items()}, backend="reference")
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(y.float(), wanted, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(state, advanced.bfloat16(), rtol=1e-2, atol=1e-2)


def test_autocast_leaves_the_state_in_float32() -> None:
    step = make_step(20)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(step)
    cast = {name: x.bfloat16() if name in ("x", "dt", "B", "C", "z") else x for name, x in step.items()}
    wanted, advanced = run(cast)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, wanted)
    assert torch.equal(state, advanced)


@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    step = make_step(600, batch=16)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(run(step))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_registered_operator_keeps_pytorchs_rules() -> None:
    for step in (make_step(6, state=3), make_step(2, 3, state=3, groups=(2,), pool=5, absent=("D", "z", "dt_bias"))):
        indices = None if step["state"].shape[0] == 3 else torch.tensor([4, 1, 0], dtype=torch.int32)
        torch.library.opcheck(registered_update, (*step.values(), True, indices))


def test_compiled_whole_it_gives_the_same() -> None:
    step = make_step(20)

    def generate(state: Tensor, x: Tensor, **rest: Tensor) -> Tensor:
        return selective_state_update(state, selective_state_update(state, x, **rest), **rest)

    states = [step.pop("state"), step["x"]]
    compiled = torch.compile(generate, fullgraph=True, backend="aot_eager")
    first, second = states[0].clone(), states[0].clone()
    torch.testing.assert_close(compiled(first, **step), generate(second, **step))
    assert torch.equal(first, second)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a state of two dimensions": ({"state": draw(3, 16)}, "state must have shape"),
    "a large state": ({"state": draw(3, 20, 300)}, "1 to 256"),
    "an expanded state": ({"state": draw(1, 20, 16).expand(3, 20, 16)}, "must not be expanded"),
    "another batch": ({"x": draw(2, 20)}, "state has 3 sequences and x has 2"),
    "x of another width": ({"x": draw(3, 19)}, r"x must have shape \(B, D\)"),
    "dt of another shape": ({"dt": draw(3, 1)}, r"dt must have shape \(B, D\)"),
    "A transposed": ({"A": draw(16, 20)}, r"A must have shape \(D, N\)"),
    "complex A": ({"A": torch.zeros(20, 16, dtype=torch.complex64)}, "complex A"),
    "B of one dimension": ({"B": draw(16)}, r"B must have shape \(B, N\) or \(B, G, N\)"),
    "groups that do not divide": ({"C": draw(3, 7, 16)}, "must divide the 20 channels"),
    "z of another shape": ({"z": draw(3, 20, 1)}, r"z must have shape"),
    "D of another shape": ({"D": draw(3, 20)}, r"D must have shape \(D,\)"),
    "integers": ({"x": torch.ones(3, 20, dtype=torch.int64)}, "x must be a real floating point tensor"),
    "a weight of another width": ({"dt": draw(3, 5), "dt_weight": draw(19, 5)}, r"dt_weight must have shape \(D, R\)"),
    "a factor of another rank": ({"dt": draw(3, 4), "dt_weight": draw(20, 5)}, r"dt must have shape \(B, R\)"),
    "a weight of one dimension": ({"dt_weight": draw(20)}, "for a state without heads"),
    "a gradient": ({"dt": draw(3, 20).requires_grad_()}, "dt requires a gradient"),
    "float indices": ({"state_batch_indices": draw(3)}, "must be int32"),
    "too few indices": ({"state_batch_indices": torch.tensor([0])}, r"state_batch_indices must have shape \(B,\)"),
    "indices beyond the pool": ({"state_batch_indices": torch.tensor([0, 1, 3])}, "must be below the pool's 3 states"),
    "one state twice": ({"state_batch_indices": torch.tensor([0, 1, 1])}, "must differ from each other"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, backend: str) -> None:
    wrong, message = REFUSED[name]
    with pytest.raises(KernelInputError, match=message) as caught:
        selective_state_update(**{**make_step(20), **wrong}, backend=backend)
    assert caught.value.remedy


def test_inputs_that_require_gradients_are_fine_without_them() -> None:
    step = {name: x.requires_grad_() for name, x in make_step(20).items()}
    with torch.no_grad():
        assert not run(step)[0].requires_grad
