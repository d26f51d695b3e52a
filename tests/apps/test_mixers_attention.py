"""Softmax attention: its formula, its cache, its positions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import AttentionMixer


def written_out(mixer: AttentionMixer, x_BLD: Tensor) -> Tensor:
    """The formula, head by head."""
    width = mixer.d_model // mixer.heads
    query, key, value = mixer.qkv_proj(x_BLD).chunk(3, -1)
    heads = []
    for h in range(mixer.heads):
        q, k, v = (part[..., h * width : (h + 1) * width] for part in (query, key, value))
        score = q @ k.mT / math.sqrt(width)
        if mixer.causal:
            score = score.masked_fill(torch.ones_like(score).triu(1).bool(), -math.inf)
        heads.append(score.softmax(-1) @ v)
    return mixer.out_proj(torch.cat(heads, -1))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_output_and_gradients_follow_the_formula(causal: bool, heads: int, backend: str | None) -> None:
    torch.manual_seed(0)
    mixer = AttentionMixer(12, heads, causal, qkv_bias=True, bias=True, backend=backend).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    inputs = [x, *mixer.parameters()]
    expected = written_out(mixer, x)
    slopes = torch.autograd.grad(expected.square().sum(), inputs)
    y = mixer(x)
    torch.testing.assert_close(y, expected)
    for found, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_heads_are_64_wide_by_default() -> None:
    assert AttentionMixer(192).heads == 3
    assert AttentionMixer(40).heads == 1


def test_order_is_unknown_without_positions_and_known_with_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    order = torch.randperm(8)
    plain = AttentionMixer(16, 2, causal=False).double()
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])
    rotary = AttentionMixer(16, 2, causal=False, rotary=True).double()
    assert not torch.allclose(rotary(x[:, order]), rotary(x)[:, order], rtol=1e-3)


def test_rotary_scores_depend_on_distances_alone() -> None:
    torch.manual_seed(0)
    mixer = AttentionMixer(16, 2, rotary=True).double()
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    state = mixer.init_state(1, max_length=100)
    _, shifted = mixer.prefill(torch.randn(1, 50, 16, dtype=torch.float64), state)
    query, key, _ = mixer._project(x, 0)
    later_query, later_key, _ = mixer._project(x, shifted.length)
    assert shifted.length == 50
    assert not torch.allclose(query, later_query)
    torch.testing.assert_close(query @ key.mT, later_query @ later_key.mT, rtol=1e-10, atol=1e-12)


def test_a_full_cache_is_refused() -> None:
    mixer = AttentionMixer(8)
    state = mixer.init_state(1, max_length=3)
    with pytest.raises(UserError, match=r"0 tokens read, 4 more do not fit max_length 3") as caught:
        mixer.prefill(torch.randn(1, 4, 8), state)
    assert "larger max_length" in caught.value.remedy
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(1, 3, 8), state)
        with pytest.raises(UserError, match=r"3 tokens read, 1 more do not fit max_length 3"):
            mixer.step(torch.randn(1, 8), state)


@pytest.mark.parametrize("length", [None, 0])
def test_the_cache_needs_a_length(length: int | None) -> None:
    with pytest.raises(UserError, match=f"max_length is {length}; give max_length"):
        AttentionMixer(8).init_state(1, max_length=length)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_dropout_acts_in_training_only(backend: str | None) -> None:
    torch.manual_seed(0)
    mixer = AttentionMixer(8, dropout=0.5, backend=backend)
    x = torch.randn(1, 30, 8)
    assert not torch.equal(mixer(x), mixer(x))
    mixer.eval()
    assert torch.equal(mixer(x), mixer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "split 8 channels into 3 heads"),
        ({"heads": 0}, "into 0 heads"),
        ({"heads": 8, "rotary": True}, "even head width, got 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttentionMixer(8, **options)


def test_a_half_precision_cache_serves_a_float_model() -> None:
    torch.manual_seed(0)
    mixer = AttentionMixer(8, 2)
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        y, state = mixer.prefill(x[:, :4], mixer.init_state(1, max_length=5, dtype=torch.bfloat16))
        assert state.key_BHMP.dtype == torch.bfloat16
        last, state = mixer.step(x[:, 4], state)
        assert state.key_BHMP.dtype == torch.bfloat16
        torch.testing.assert_close(torch.cat([y, last[:, None]], 1), mixer(x), rtol=0.05, atol=0.02)
