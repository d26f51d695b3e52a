"""What follows from layouts is worked out once for each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from mamba_kernels import memo
from mamba_kernels.memo import per_layout

X = torch.zeros(4, 6)


class Counted:
    """A remembered function, and how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self.sizes = per_layout(self._sizes)

    def _sizes(self, x: Tensor, y: Tensor | None = None, flag: object = False) -> tuple[int, ...]:
        self.runs += 1
        if flag == "fail":
            raise ValueError("flag")
        return tuple(x.shape)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_it_runs_once_for_each_layout_and_option(counted: Counted) -> None:
    calls = [
        ((X,), {}),
        ((X.mT,), {}),
        ((X.double(),), {}),
        ((X[:3],), {}),
        ((X.to("meta"),), {}),
        ((X, X), {}),
        ((X, None, True), {}),
        ((X,), {"flag": True}),
        ((X,), {"y": X}),
        ((X,), {"y": X.mT}),
    ]
    for count, (args, kwargs) in enumerate(calls, 1):
        for _ in range(2):
            assert counted.sizes(*args, **kwargs) == args[0].shape
            assert counted.runs == count
    assert counted.sizes(torch.ones(4, 6)) == (4, 6)
    assert counted.runs == len(calls)


def test_what_it_raises_is_not_remembered(counted: Counted) -> None:
    for count in (1, 2):
        with pytest.raises(ValueError, match="flag"):
            counted.sizes(X, None, "fail")
        assert counted.runs == count


def test_it_forgets_before_it_grows_without_end(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "LIMIT", 3)
    for flag in (0, 1, 2, 3, 3, 0):
        counted.sizes(X, None, flag)
    assert counted.runs == 5


def test_symbolic_shapes_and_compilers_are_not_remembered(counted: Counted) -> None:
    for _ in range(2):
        make_fx(lambda x: x + counted.sizes(x)[0], tracing_mode="symbolic")(X)
    assert counted.runs == 2
    run = per_layout(lambda x: x.shape[0] * 2)
    compiled = torch.compile(lambda x: x * run(x), fullgraph=True, backend="eager", dynamic=True)
    for length in (3, 4, 5):
        assert compiled(torch.ones(length)).sum() == 2 * length**2
