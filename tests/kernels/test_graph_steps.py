"""Steps replayed from a CUDA graph: the same numbers as without, in states of their own."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mamba_kernels import causal_conv1d_update, selective_state_update
from mamba_kernels.errors import BackendError, KernelInputError
from mamba_kernels.gpu import uncollected
from mamba_kernels.graph_steps import ReplayedStep, replays_safely

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
on_a_gpu = pytest.mark.gpu if GPU else pytest.mark.skip(reason="needs a GPU")
marks = [pytest.mark.gpu] if GPU else []
pytestmark = marks


class Held(NamedTuple):
    """A convolution's and a scan's states, a sum that each step makes anew, and a count."""

    window: Tensor
    scan: Tensor
    total: Tensor
    count: Any


def start(batch: int = 3, channels: int = 5) -> Held:
    window, scan = torch.zeros(batch, channels, 4), torch.zeros(batch, channels, 2)
    return Held(window.to(DEVICE), scan.to(DEVICE), torch.zeros(batch, device=DEVICE), 0)


def step(x: Tensor, state: Held, noise: torch.Generator | None = None) -> tuple[dict[str, Tensor], Held]:
    weight = torch.arange(20.0, device=DEVICE).view(5, 4) / 20
    u = causal_conv1d_update(x, state.window, weight, None, "silu")
    A, B = -weight[:, :2] - 0.1, u[:, :2]
    y = selective_state_update(state.scan, u, u, A, B, B, dt_softplus=True)
    count = state.count + 1
    y = y + torch.empty_like(y).exponential_(generator=noise) / count
    total = state.total + y.sum(1)
    return {"y": y, "total": total}, Held(state.window, state.scan, total, count)


def drawn(steps: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return [torch.randn(3, 5, generator=made).to(DEVICE) for _ in range(steps)]


def stepwise(xs: list[Tensor], state: Held, noise: torch.Generator | None = None) -> tuple[list[Any], Held]:
    found = []
    for x in xs:
        y, state = step(x, state, noise)
        found.append(y)
    return found, state


@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "a generator"])
def test_the_numbers_are_those_of_the_step(own: bool) -> None:
    xs = drawn(6)
    noise = torch.Generator(DEVICE) if own else None

    def seed() -> None:
        torch.manual_seed(3) if noise is None else noise.manual_seed(3)

    seed()
    wanted, last = stepwise(xs, start(), noise)
    given = start()
    seed()
    replayed = ReplayedStep(
        lambda x, state: step(x, state, noise), xs[:1], given, generators=() if noise is None else (noise,)
    )
    found = [replayed(x) for x in xs]
    torch.testing.assert_close(found, wanted)
    assert all(not bool(x.any()) for x in given[:3]), "the state given was changed"
    for ours, theirs in zip(replayed.state, last, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours).to(DEVICE), torch.as_tensor(theirs).to(DEVICE))
    seed()
    replayed.reset(start())
    torch.testing.assert_close([replayed(x) for x in xs], wanted)


def test_a_state_in_the_middle_is_taken_up() -> None:
    torch.manual_seed(0)
    xs = drawn(5)
    _, middle = stepwise(xs[:2], start())
    replayed = ReplayedStep(step, xs[:1], middle)
    torch.manual_seed(1)
    wanted, _ = stepwise(xs[2:], Held(*(x.clone() for x in middle[:3]), middle.count))
    torch.manual_seed(1)
    torch.testing.assert_close([replayed(x) for x in xs[2:]], wanted)


def test_parts_that_become_each_other() -> None:
    def swap(state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return state[0] - state[1], (state[1], state[0])

    replayed = ReplayedStep(swap, (), (torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)))
    assert [float(replayed()[0]) for _ in range(3)] == [1, -1, 1]


def test_other_inputs_states_and_more_steps_than_fit_are_refused() -> None:
    xs = drawn(3)
    replayed = ReplayedStep(step, xs[:1], start(), steps=2)
    for wrong in ((), (xs[0][:2],), (xs[0].bfloat16(),)):
        with pytest.raises(KernelInputError, match=r"was captured with torch\.float32"):
            replayed(*wrong)
    replayed(xs[0])
    replayed(xs[1])
    with pytest.raises(KernelInputError, match="called more than 2 times"):
        replayed(xs[2])
    for other in (start(2), tuple(start())):
        with pytest.raises(KernelInputError, match="of another structure or other shapes"):
            replayed.reset(other)
    replayed.reset(start())
    replayed(xs[2])
    with pytest.raises(KernelInputError, match="lie on no device"):
        ReplayedStep(step, (), ())


def test_gradients_are_not_recorded() -> None:
    weight = torch.ones(2, device=DEVICE, requires_grad=True)
    replayed = ReplayedStep(lambda x, state: (x * weight, state), [weight], {"at": weight.detach()})
    assert not replayed(weight).requires_grad


def test_where_replays_are_safe() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    assert replays_safely(module, torch.device(DEVICE)) == GPU
    module[0].register_forward_hook(lambda *_: None)
    assert not replays_safely(module, torch.device(DEVICE))


@on_a_gpu
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda x, state: (x, torch.cat([state, x])), r"of shape \(2,\) becomes of shape \(4,\)"),
        (lambda x, state: (x, 3), "becomes 3"),
        (lambda x, state: (x, (state, state)), "changes its structure"),
    ],
    ids=["grows", "counts in Python", "another structure"],
)
def test_steps_that_cannot_be_captured(wrong: Any, why: str) -> None:
    x = torch.ones(2, device="cuda")
    with pytest.raises(BackendError, match=why):
        ReplayedStep(wrong, [x], x.clone())
    assert float((x + x).sum()) == 4, "the GPU goes on working"


PEEKING = """
import torch
from mamba_kernels.errors import BackendError
from mamba_kernels.graph_steps import ReplayedStep

x = torch.ones(2, device="cuda")
try:
    ReplayedStep(lambda x, state: (x, state + float(x.sum())), [x], x.clone())
except BackendError as error:
    assert "cannot be captured" in str(error)
    print("refused")
assert float((x + x).sum()) == 4, "the GPU goes on working"
"""


def test_garbage_waits_until_a_capture_is_over() -> None:
    with uncollected(), uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), uncollected():
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@on_a_gpu
def test_old_graphs_among_the_garbage_do_not_end_a_capture() -> None:
    x = torch.ones(2, device="cuda")
    old = []
    for _ in range(4):
        old.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(old[-1]):
            x + 1

    def littering(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        litter: list[Any] = [old.pop()]
        litter.append(litter)
        del litter
        kept = [[i] for i in range(10_000)]  # More than what makes Python look for garbage.
        return x, total + len(kept)

    replayed = ReplayedStep(littering, [x], x.clone())
    assert len(old) == 1
    assert replayed(x).tolist() == [1, 1]
    assert replayed.state.tolist() == [10_001, 10_001]


@on_a_gpu
def test_a_step_that_reads_numbers_back_cannot_be_captured() -> None:
    # In a process of its own: PyTorch's random numbers do not survive a capture that fails.
    done = subprocess.run([sys.executable, "-c", PEEKING], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused\n"
