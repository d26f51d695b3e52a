"""Mamba-1 over one token and of one channel: the same numbers as its general scan, at a fraction of the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_apps.mixers import Mamba1Mixer

# Width, length.
SMALL = [(1, 7), (1, 1), (5, 1)]


def results(mixer: Mamba1Mixer, x: Tensor, **options: Any) -> dict[str, Tensor]:
    """Return the output, and the gradients of the input and of every parameter."""
    leaves = {"x": x.clone().requires_grad_(), **dict(mixer.named_parameters())}
    y = mixer(leaves["x"], **options)
    weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    return {"y": y, **dict(zip(leaves, torch.autograd.grad((y * weight).sum(), [*leaves.values()]), strict=True))}


@pytest.mark.parametrize(("width", "length"), SMALL)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_agrees_with_the_general_scan(width: int, length: int, dtype: torch.dtype, precision: float) -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(width, d_state=6, d_conv=2, expand=1).to(dtype)
    x = torch.randn(3, length, width, dtype=dtype)
    # One segment is all of a sequence; where segments are named, the general scan runs.
    segment = torch.zeros(3, length, dtype=torch.int32)
    found, wanted = results(mixer, x), results(mixer, x, seq_idx_BL=segment)
    for name in wanted:
        scale = max(1e-6, float(wanted[name].detach().abs().max()))
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=precision * scale, msg=name)


@torch.no_grad()
@pytest.mark.parametrize(("width", "length"), SMALL)
def test_a_sequence_may_come_in_pieces(width: int, length: int) -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(width, d_state=6, expand=1)
    x = torch.randn(2, length + 2, width)
    first, state = mixer.prefill(x[:, :length], mixer.init_state(2))
    second, state = mixer.prefill(x[:, length : length + 1], state)
    third, _ = mixer.step(x[:, -1], state)
    torch.testing.assert_close(torch.cat([first, second, third[:, None]], 1), mixer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "length"), SMALL)
def test_under_autocast(width: int, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(width, d_state=6, expand=1)
    x = torch.randn(2, length, width)
    wanted = mixer(x)
    with torch.autocast("cpu", dtype):
        y = mixer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("width", "length"), SMALL)
def test_compiles_whole_and_tells_shapes_without_numbers(width: int, length: int) -> None:
    mixer, x = Mamba1Mixer(width, d_state=6, expand=1), torch.randn(2, length, width)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
    assert mixer.to("meta")(x.to("meta")).shape == x.shape


def test_inputs_whose_squares_16_bits_do_not_hold() -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(1, d_state=6, expand=1)
    with torch.no_grad():
        mixer.conv1d.bias.fill_(400)
        mixer.x_proj.weight.mul_(1e-3)
    x = torch.randn(2, 5, 1) * 0.01
    with torch.autocast("cpu", torch.float16):
        assert mixer(x).isfinite().all()


def test_of_one_channel_training_keeps_neither_B_nor_C() -> None:
    batch, length, sizes = 32, 256, []

    def keep(x: Tensor) -> Tensor:
        sizes[-1].append(x.numel())
        return x

    for states in (32, 64):
        mixer = Mamba1Mixer(1, d_state=states, expand=1)
        sizes.append([])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            mixer(torch.randn(batch, length, 1))
    few, many = map(sum, sizes)
    assert many - few < 0.3 * batch * length * 32


@pytest.mark.parametrize(("width", "length"), SMALL)
def test_rates_that_float32_does_not_hold(width: int, length: int) -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(width, d_state=6, expand=1)
    with torch.no_grad():
        mixer.A_log.fill_(100)
    x = torch.randn(2, length, width)
    segment = torch.zeros(2, length, dtype=torch.int32)
    assert mixer(x).isfinite().all()
    torch.testing.assert_close(mixer(x), mixer(x, seq_idx_BL=segment))
