"""The short way of an eager call: taken where only autograd looks on, and never to be told from the long one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from operator_outcomes import draw, outcome
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import CustomOpDef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mamba_kernels import selective_scan
from mamba_kernels.eager import is_eager
from mamba_kernels.errors import BackendError, KernelInputError

X = torch.ones(3)


class Subclass(Tensor):
    """Somebody's own tensor."""


class Passing(TorchDispatchMode):
    """A mode that sees every operator and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Relaying(TorchFunctionMode):
    """A mode that sees every function and changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("x", [X, X.requires_grad_(), torch.nn.Parameter(X), X.expand(2, 3), X[:0], None, 3, "x"])
def test_plain_tensors_are_eager(x: object) -> None:
    assert is_eager(x)
    with torch.no_grad():
        assert is_eager(x, 1)
    with torch.inference_mode():
        assert is_eager(None, x)
    with torch.autocast("cpu"):
        assert is_eager(None, x)


def outlived() -> Tensor:
    """Return what a function transform made and left behind."""
    kept = []
    torch.func.grad(lambda x: kept.append(x * 2) or x.sum())(X)
    return kept[0]


@pytest.mark.parametrize(
    "x",
    [X.as_subclass(Subclass), X.to("meta"), torch.ones(3, dtype=torch.complex64).conj().imag, outlived()],
    ids=["subclass", "meta", "negative", "outlived"],
)
def test_tensors_that_are_not_what_lies_in_memory_are_not(x: Tensor) -> None:
    assert not is_eager(X, x)


@pytest.mark.parametrize("mode", [Passing(), Relaying(), torch.device("cpu")], ids=["dispatch", "function", "device"])
def test_modes_see_the_operator(mode: AbstractContextManager) -> None:
    with mode:
        assert not is_eager(X)
    assert is_eager(X)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    "run",
    [
        lambda f: torch.func.vmap(f)(X),
        lambda f: torch.func.grad(lambda x: f(x).sum())(X),
        lambda f: make_fx(f)(X),
        lambda f: make_fx(f, pre_dispatch=True)(X),
        lambda f: make_fx(f, tracing_mode="symbolic")(X),
        lambda f: torch.jit.trace(f, X, check_trace=False),
        lambda f: torch.compile(f, fullgraph=True, backend="eager")(X),
    ],
    ids=["vmap", "grad", "make_fx", "pre_dispatch", "symbolic", "trace", "compile"],
)
def test_transforms_and_tracers_see_the_operator(run: Callable) -> None:
    found = []

    def function(x: Tensor) -> Tensor:
        found.append(is_eager(x))
        return x * 2

    run(function)
    assert found
    assert not any(found)


def inputs() -> dict[str, Tensor | None]:
    """Return a scan's inputs by name."""
    u, delta, z = (draw(2, 6, 9, seed=seed) for seed in (1, 2, 3))
    return {
        "u": u.mT.contiguous().mT,
        "delta": delta,
        "A": -draw(6, 4).exp(),
        "B": draw(2, 4, 9, seed=4),
        "C": draw(2, 2, 4, 9, seed=5),
        "D": draw(6, seed=6),
        "z": z.bfloat16(),
        "delta_bias": None,
        "initial_state": draw(2, 6, 4, seed=7),
    }


OPTIONS = {"delta_softplus": True, "return_last_state": True}


@pytest.fixture
def no_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the registered operator was called")

    monkeypatch.setattr(CustomOpDef, "__call__", refuse)


@pytest.mark.usefixtures("no_dispatcher")
def test_eager_calls_pass_the_dispatcher_by() -> None:
    outcome(selective_scan, inputs(), **OPTIONS)
    with torch.no_grad():
        selective_scan(**inputs())
    with pytest.raises(AssertionError, match="was called"), Passing():
        selective_scan(**inputs())


def test_both_ways_give_the_same_bits() -> None:
    short = outcome(selective_scan, inputs(), **OPTIONS)
    with Relaying():
        long = outcome(selective_scan, inputs(), **OPTIONS)
    assert short.keys() == long.keys()
    for name, x in short.items():
        assert torch.equal(x, long[name]), name
        assert (x.dtype, x.stride()) == (long[name].dtype, long[name].stride()), name


def test_both_ways_keep_the_same_rules() -> None:
    leaves = {name: None if x is None else x.requires_grad_() for name, x in inputs().items()}

    def second_derivative() -> None:
        y = selective_scan(**leaves)
        (du,) = torch.autograd.grad(y.sum(), leaves["u"], create_graph=True)
        du.sum().backward()

    def refusal(run: Callable[[], object], error: type[Exception]) -> str:
        with pytest.raises(error) as short:
            run()
        with pytest.raises(error) as long, Relaying():
            run()
        assert str(short.value) == str(long.value)
        return str(short.value)

    assert "no second derivative" in refusal(second_derivative, BackendError)
    for _ in range(2):  # Also once the right layouts are known.
        assert "delta must have" in refusal(lambda: selective_scan(**{**leaves, "delta": X}), KernelInputError)
    with torch.no_grad():
        assert not selective_scan(**leaves).requires_grad
    with torch.inference_mode():
        assert selective_scan(**leaves).is_inference()
    u = leaves["u"] * 1
    y = selective_scan(**{**leaves, "u": u})
    u.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_and_checkpointing_go_the_short_way() -> None:
    leaves = {name: None if x is None else x.requires_grad_() for name, x in inputs().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**leaves)
        assert y.dtype == torch.bfloat16
        with Relaying():
            assert torch.equal(selective_scan(**leaves), y)
    wanted = torch.autograd.grad(selective_scan(**leaves).sum(), leaves["u"])[0]
    again = checkpoint(lambda: selective_scan(**leaves), use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), leaves["u"])[0], wanted)


def test_modes_and_subclasses_reach_the_operator() -> None:
    with Passing() as mode:
        outcome(selective_scan, inputs(), **OPTIONS)
    assert {"mamba_kernels.selective_scan.default", "mamba_kernels.selective_scan_backward.default"} <= set(mode.seen)
    plain = inputs()
    wanted = selective_scan(**plain)
    y = selective_scan(**{**plain, "u": plain["u"].as_subclass(Subclass)})
    assert isinstance(y, Subclass)
    assert torch.equal(y.as_subclass(Tensor), wanted)


# PyTorch's own, at a process' first use of forward mode.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_forward_mode_is_refused_rather_than_dropped() -> None:
    plain = inputs()
    u = plain.pop("u")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(u, torch.ones_like(u))
        with pytest.raises(BackendError, match="selective_scan: the operator has no forward-mode derivative"):
            selective_scan(dual, **plain)
        assert selective_scan(u, **plain).isfinite().all()
        assert forward_ad.unpack_dual(selective_scan(dual, **plain, backend="reference")).tangent is not None
    with pytest.raises(BackendError, match="forward-mode"):
        torch.func.jvp(lambda x: selective_scan(x, **plain), (u,), (torch.ones_like(u),))


def test_views_with_the_other_sign_in_memory_are_read_as_they_are() -> None:
    plain = inputs()
    negative = torch.complex(torch.zeros(2, 6, 9), -plain["u"]).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(selective_scan(**{**plain, "u": negative}), selective_scan(**plain))


def test_what_outlived_a_transform_is_read() -> None:
    plain, kept = inputs(), []
    torch.func.grad(lambda u: kept.append(u * 1) or u.sum())(plain["u"])
    torch.testing.assert_close(selective_scan(**{**plain, "u": kept[0]}), selective_scan(**plain))
