"""What every registered mixer must hold, whatever is inside it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import Mixer, RoutedMixer, create, names, spec
from mamba_apps.mixers.base import ROUTE_NAMES
from mamba_kernels import Route
from mamba_kernels.graph_steps import ReplayedStep

D = 12
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mamba1": [{"d_conv": 1}, {"d_conv": 3, "d_state": 5, "dt_rank": 2, "bias": True, "conv_bias": False}],
    "mamba2": [
        {
            "d_state": 5,
            "headdim": 4,
            "ngroups": 3,
            "norm_before_gate": True,
            "D_has_hdim": True,
            "dt_limit": (0.01, 0.05),
        },
        {"d_state": 3, "d_conv": 1, "d_ssm": 8, "headdim": 2, "bias": True, "rmsnorm": False, "chunk_size": 4},
    ],
    "mambavision": [{"d_conv": 2}, {"d_conv": 4, "d_state": 3, "expand": 2, "dt_rank": 2}],
    "attention": [{"heads": 3, "rotary": True, "qkv_bias": True, "bias": True}, {"heads": 2, "causal": False}],
}
CASES = [(name, options) for name in names() for options in ({}, *VARIANTS.get(name, []))]
CAUSAL = [case for case in CASES if create(case[0], D, **case[1]).causal]
LENGTHS = [1, 2, 3, 17]
GRIDS = {1: (6,), 2: (3, 5), 3: (2, 3, 2)}


def build(case: tuple[str, dict[str, Any]], seed: int = 0, **more: Any) -> Mixer:
    torch.manual_seed(seed)
    return create(case[0], D, **case[1], **more)


def sample(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def route_named(name: str, merge: str = "sum") -> Route:
    return Route(name, merge=merge, window=2 if name == "windowed" else None)


over_cases = pytest.mark.parametrize("case", CASES, ids=str)
over_causal = pytest.mark.parametrize("case", CAUSAL, ids=str)


@over_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", LENGTHS)
def test_shape_and_dtype_are_kept(case: tuple[str, dict[str, Any]], dtype: torch.dtype, length: int) -> None:
    x = sample(2, length, D, dtype=torch.float64).to(dtype)
    y = build(case).to(dtype)(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.isfinite().all()


@over_cases
def test_causal_tells_the_truth(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    x = sample(2, 9, D)
    changed = x.clone()
    changed[:, 5:] += 1.0
    before = (mixer(x) - mixer(changed)).abs().amax(dim=(0, 2))
    assert before[5:].min() > 1e-9
    assert (before[:5].max() < 1e-12) == mixer.causal


@over_causal
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("grad", [True, False])
def test_step_by_step_equals_parallel(case: tuple[str, dict[str, Any]], length: int, grad: bool) -> None:
    mixer = build(case).double()
    x = sample(2, length, D)
    with torch.set_grad_enabled(grad):
        expected = mixer(x).detach()
    state = mixer.init_state(2, max_length=length)
    ys = []
    with torch.no_grad():
        for t in range(length):
            y, state = mixer.step(x[:, t], state)
            ys.append(y)
    torch.testing.assert_close(torch.stack(ys, dim=1), expected, rtol=1e-10, atol=1e-12)


@over_causal
@pytest.mark.parametrize("parts", [(17,), (1, 16), (2, 3, 12), (5, 1, 1, 10)], ids=str)
def test_prefill_in_parts_equals_parallel(case: tuple[str, dict[str, Any]], parts: tuple[int, ...]) -> None:
    mixer = build(case).double()
    x = sample(2, 17, D)
    state = mixer.init_state(2, max_length=17)
    ys = []
    for part in x.split(parts, dim=1):
        kept = [torch.as_tensor(part).detach().clone() for part in state]
        y, after = mixer.prefill(part, state)
        for old, new in zip(kept, state, strict=True):
            assert torch.equal(old, torch.as_tensor(new)), "prefill changed the state it was given"
        state = after
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, dim=1), mixer(x), rtol=1e-10, atol=1e-12)


@over_causal
def test_prefill_then_steps_equals_parallel(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    x = sample(2, 11, D)
    with torch.no_grad():
        y, state = mixer.prefill(x[:, :6], mixer.init_state(2, max_length=11))
        ys = [y]
        for t in range(6, 11):
            y, state = mixer.step(x[:, t], state)
            ys.append(y[:, None])
        torch.testing.assert_close(torch.cat(ys, dim=1), mixer(x), rtol=1e-10, atol=1e-12)


@over_causal
def test_steps_decide_nothing_by_the_numbers_of_their_state(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    x = sample(2, 9, D)
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :5], mixer.init_state(2, max_length=9))
        # As a captured graph keeps it: whole numbers are known to the device alone.
        state = type(state)(*(torch.as_tensor(part) for part in state))
        for t in range(5, 9):
            places = [part.data_ptr() for part in state]
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, mixer(x)[:, t], rtol=1e-10, atol=1e-12)
            assert [part.data_ptr() for part in state] == places, "a step updates its state in place"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@over_causal
def test_replayed_steps_equal_parallel(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).cuda()
    x = sample(2, 9, D, dtype=torch.float32).cuda()
    with torch.no_grad():
        expected = mixer(x)
        _, state = mixer.prefill(x[:, :5], mixer.init_state(2, max_length=9))
        step = ReplayedStep(mixer.step, [x[:, 5].contiguous()], state, steps=4)
        ys = torch.stack([step(x[:, t].contiguous()) for t in range(5, 9)], dim=1)
    torch.testing.assert_close(ys, expected[:, 5:], rtol=1e-4, atol=1e-5)


@over_causal
def test_gradients_flow_through_a_prefilled_state(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    whole = sample(2, 8, D).requires_grad_()
    mixer(whole)[:, 5:].square().sum().backward()
    parts = whole.detach().clone().requires_grad_()
    _, state = mixer.prefill(parts[:, :5], mixer.init_state(2, max_length=8))
    mixer.prefill(parts[:, 5:], state)[0].square().sum().backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-9, atol=1e-11)


@over_causal
def test_state_has_the_dtype_and_device_asked_for(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    tensors = [part for part in mixer.init_state(3, max_length=4) if isinstance(part, Tensor)]
    assert all(part.dtype == torch.float32 and part.shape[0] == 3 for part in tensors)
    half = mixer.to(torch.bfloat16).init_state(3, max_length=4, device="meta")
    assert {part.dtype for part in half if isinstance(part, Tensor)} <= {torch.bfloat16, torch.float32}
    assert all(part.device.type == "meta" for part in half if isinstance(part, Tensor))
    asked = mixer.init_state(3, max_length=4, dtype=torch.float64)
    assert torch.float64 in {part.dtype for part in asked if isinstance(part, Tensor)}


@pytest.mark.parametrize("case", [case for case in CASES if case not in CAUSAL], ids=str)
def test_mixers_that_look_ahead_refuse_to_step(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    with pytest.raises(UserError, match=r"init_state needs a causal mixer"):
        mixer.init_state(1, max_length=4)
    for method, x in ((mixer.prefill, torch.zeros(1, 2, D)), (mixer.step, torch.zeros(1, D))):
        with pytest.raises(UserError, match="needs a causal mixer"):
            method(x, ())


@over_cases
def test_packed_sequences_equal_separate_ones(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    lengths = (1, 4, 2, 5)
    x = sample(2, sum(lengths) + 3, D)
    ids = torch.tensor([0] * 1 + [-1] + [1] * 4 + [2] * 2 + [-1, -1] + [5] * 5, dtype=torch.int32).expand(2, -1)
    y = mixer(x, seq_idx_BL=ids)
    nothing = mixer(torch.zeros(2, 1, D, dtype=x.dtype), seq_idx_BL=torch.full((2, 1), -1, dtype=torch.int32))
    for start, length in ((0, 1), (2, 4), (6, 2), (10, 5)):
        alone = mixer(x[:, start : start + length])
        torch.testing.assert_close(y[:, start : start + length], alone, rtol=1e-10, atol=1e-12)
    for position in (1, 8, 9):
        torch.testing.assert_close(y[:, position], nothing[:, 0], rtol=0, atol=1e-12)


@over_cases
def test_padding_reaches_nothing(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    ids = torch.tensor([[-1, 0, 0, -1, 0, -1]])
    x = sample(1, 6, D)
    x[ids < 0] = float("nan")
    x.requires_grad_()
    y = mixer(x, seq_idx_BL=ids)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert torch.equal(x.grad[ids < 0], torch.zeros(3, D, dtype=torch.float64))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@over_cases
def test_gradients_reach_every_parameter_and_the_input(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    x = sample(2, 9, D, dtype=torch.float32).requires_grad_()
    # A second block behind the first, so that biases are not all that the loss sees.
    mixer(mixer(x)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.grad.dtype == parameter.dtype


@over_cases
def test_seeds_decide_the_start(case: tuple[str, dict[str, Any]]) -> None:
    one, same, other = build(case, 3).state_dict(), build(case, 3).state_dict(), build(case, 4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    again = build(case, 5)
    again.reset_parameters()
    assert all(value.isfinite().all() for value in again.state_dict().values())
    assert any(not torch.equal(value, build(case, 5).state_dict()[name]) for name, value in again.state_dict().items())


@over_cases
def test_copies_keep_values_and_marks(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    twin = copy.deepcopy(mixer)
    x = sample(1, 5, D, dtype=torch.float32)
    assert torch.equal(twin(x), mixer(x))
    for name in mixer.undecayed:
        assert getattr(twin, name)._no_weight_decay
        assert getattr(twin, name) is not getattr(mixer, name)


@over_cases
def test_autocast_runs_the_projections_in_half_precision(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    x = sample(2, 9, D, dtype=torch.float32).requires_grad_()
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.03)
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mixer.parameters())


@over_causal
def test_autocast_steps(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    x = sample(2, 6, D, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = mixer(x)
        y, state = mixer.prefill(x[:, :5], mixer.init_state(2, max_length=6))
        last, _ = mixer.step(x[:, 5], state)
    torch.testing.assert_close(torch.cat([y, last[:, None]], dim=1), expected, rtol=0.1, atol=0.03)


@over_cases
def test_checkpointing_gives_the_same_gradients(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case).double()
    x = sample(2, 9, D).requires_grad_()
    expected = torch.autograd.grad(mixer(x).square().sum(), [x, *mixer.parameters()])
    y = torch.utils.checkpoint.checkpoint(mixer, x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@over_cases
def test_the_reference_backend_agrees(case: tuple[str, dict[str, Any]]) -> None:
    mixer, plain = build(case).double(), build(case, backend="reference").double()
    x = sample(2, 9, D)
    torch.testing.assert_close(mixer(x), plain(x), rtol=1e-10, atol=1e-12)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(plain(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@over_cases
@pytest.mark.parametrize("shape", [(2, 0, D), (2, D), (2, 3, D + 1), (1, 2, 3, D)], ids=str)
def test_wrong_shapes_are_refused(case: tuple[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"got an input of shape .*; give \(batch, length, {D}\)"):
        build(case)(torch.zeros(shape))


@over_causal
def test_steps_that_cannot_be_taken_leave_the_state_as_it_was(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    state = mixer.init_state(2, max_length=3)
    kept = copy.deepcopy(state)
    for shape in ((2, 1, D), (2, D + 1), (D,)):
        with torch.no_grad(), pytest.raises(UserError, match=rf"step got a token of shape .*; give \(batch, {D}\)"):
            mixer.step(torch.zeros(shape), state)
    with pytest.raises(UserError, match=r"step changes its state in place, .*; call it under torch.no_grad"):
        mixer.step(torch.ones(2, D), state)
    for part, before in zip(state, kept, strict=True):
        assert torch.equal(torch.as_tensor(part), torch.as_tensor(before))
    mixer.requires_grad_(False).step(torch.ones(2, D), state)


@over_cases
def test_wrong_sequence_ids_are_refused(case: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"got seq_idx of shape \(2, 4\); give \(batch, length\) = \(2, 3\)"):
        build(case)(torch.zeros(2, 3, D), seq_idx_BL=torch.zeros(2, 4, dtype=torch.int32))


@over_cases
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_accepted_routes_run_on_every_rank(case: tuple[str, dict[str, Any]], rank: int) -> None:
    first = build(case)
    shares = [("all", "sum"), ("all", "concat"), ("none", "mean")]
    if first.shared_projections:
        shares.append(("projections", "sum"))
    x = sample(2, *GRIDS[rank], D, dtype=torch.float32)
    for route in sorted(first.routes):
        for share, merge in shares:
            routed = RoutedMixer(lambda: build(case), route_named(route, merge), share, rank)  # type: ignore[arg-type]
            y = routed(x)
            assert y.shape == x.shape
            y.square().sum().backward()
            for name, parameter in routed.named_parameters():
                assert parameter.grad is not None, (route, share, merge, name)


@over_cases
def test_other_routes_are_refused_by_name(case: tuple[str, dict[str, Any]]) -> None:
    mixer = build(case)
    assert mixer.routes <= ROUTE_NAMES
    assert mixer.routes
    for route in ROUTE_NAMES - mixer.routes:
        with pytest.raises(UserError, match=rf"{type(mixer).__name__} does not accept the route '{route}'"):
            RoutedMixer(mixer, route_named(route))
    if not mixer.shared_projections:
        with pytest.raises(UserError, match="no projections that its readings could share"):
            RoutedMixer(mixer, route_named("forward"), "projections")
        with pytest.raises(UserError, match="no projections that its readings could share"):
            mixer.forward_route(torch.zeros(1, 2, D), route_named("forward"), [mixer])


@pytest.mark.parametrize("name", names())
def test_every_option_is_documented(name: str) -> None:
    known = spec(name)
    assert known.summary.endswith(".")
    for option in known.options:
        assert f"\n        {option}: " in (known.cls.__doc__ or ""), option
