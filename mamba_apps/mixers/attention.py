"""Softmax attention behind the mixers' interface.

Dimensions in names: B batch, L length of the queries, M length of the keys, D channels, H heads, P head width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import ROUTE_NAMES, Mixer, State
from mamba_apps.mixers.registry import register
from mamba_apps.mixers.rotary import rotate, rotation
from mamba_kernels.segments import segment_marks


class AttentionState(NamedTuple):
    """Keys and values of the tokens read so far.

    Args:
        key_BHMP: Room for ``max_length`` keys, of which the first ``length`` are filled.
        value_BHMP: The same for values.
        bias_BM: What is added to the scores of these keys: 0 where filled, minus infinity elsewhere.
        length: Number of tokens read; an integer tensor on the device of the keys where steps are captured in a graph,
            whose kernels alone then know it: ``step`` attends to all the room, with the bias.
    """

    key_BHMP: Tensor
    value_BHMP: Tensor
    bias_BM: Tensor
    length: int | Tensor


@register("attention")
class AttentionMixer(Mixer):
    """Multi-head softmax attention through PyTorch's fused scaled dot product.

    It accepts every route where it is causal; where it is not, the order of reading means nothing to it, so that it
    accepts "forward" and "windowed" (attention inside each window) alone.

    Args:
        d_model: Channels of the input and of the output.
        heads: Number of heads, a divisor of ``d_model``; None for the one that makes heads of 64 channels, or a
            single head for narrower models.
        causal: Whether a position sees only itself and those before it.
        rotary: Whether queries and keys carry rotary positions. Without, attention knows no order beyond causality.
        rotary_base: The base of the rotary wavelengths.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        bias: Whether the output projection has a bias.
        dropout: Probability of dropping an attention weight in training, in [0, 1).
        backend: "reference" forces the plain formula, which is differentiable any number of times.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        d_model: int,
        heads: int | None = None,
        causal: bool = True,
        rotary: bool = False,
        rotary_base: float = 10000.0,
        qkv_bias: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, backend)
        if heads is None:
            heads = max(1, d_model // 64)
        if heads < 1 or d_model % heads:
            raise UserError(f"attention cannot split {d_model} channels into {heads} heads", "give a divisor as heads")
        if rotary and (d_model // heads) % 2:
            raise UserError(f"rotary positions need an even head width, got {d_model // heads}", "change heads")
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"attention's dropout is {dropout}", "give a probability in [0, 1)")
        self.heads = heads
        self.causal = causal
        self.routes = ROUTE_NAMES if causal else frozenset({"forward", "windowed"})
        self.rotary_base = rotary_base if rotary else None
        self.dropout = dropout
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=qkv_bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw every parameter anew, as PyTorch initialises its linear layers."""
        self.qkv_proj.reset_parameters()
        self.out_proj.reset_parameters()

    def forward(self, x_BLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Attend within each sequence; see ``Mixer.forward``."""
        x_BLD = self.checked(x_BLD, seq_idx_BL)
        query_BHLP, key_BHLP, value_BHLP = self._project(x_BLD, start=0)
        if seq_idx_BL is None:
            return self._merge(self._attend(query_BHLP, key_BHLP, value_BHLP, causal=self.causal))
        mask_B1LL = _same_sequence(seq_idx_BL)
        if self.causal:
            mask_B1LL = mask_B1LL.tril()
        y_BHLP = self._attend(query_BHLP, key_BHLP, value_BHLP, mask=mask_B1LL)
        return self._merge(y_BHLP.masked_fill((seq_idx_BL < 0)[:, None, :, None], 0.0))

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> AttentionState:
        """Return an empty key/value cache for ``max_length`` tokens; see ``Mixer.init_state``."""
        if not self.causal:
            raise self._not_causal("init_state")
        if max_length is None or max_length < 1:
            raise UserError(f"attention's state stores every token, and max_length is {max_length}", "give max_length")
        weight = self.qkv_proj.weight
        shape = (batch_size, self.heads, max_length, self.d_model // self.heads)
        key_BHMP = torch.zeros(shape, dtype=dtype or weight.dtype, device=device or weight.device)
        bias_BM = key_BHMP.new_full((batch_size, max_length), -math.inf)
        return AttentionState(key_BHMP, torch.zeros_like(key_BHMP), bias_BM, 0)

    def prefill(self, x_BLD: Tensor, state: State) -> tuple[Tensor, AttentionState]:
        """Read several tokens at once; see ``Mixer.prefill``."""
        x_BLD = self.checked(x_BLD)
        key_BHMP, value_BHMP, bias_BM, start = self._room(state, x_BLD.shape[1])
        query_BHLP, new_key_BHLP, new_value_BHLP = self._project(x_BLD, start)
        length = start + x_BLD.shape[1]
        bias_BM = torch.cat([torch.zeros_like(bias_BM[:, :length]), bias_BM[:, length:]], dim=1)
        key_BHMP = _extended(key_BHMP, new_key_BHLP, start)
        value_BHMP = _extended(value_BHMP, new_value_BHLP, start)
        if start == 0:
            y_BHLP = self._attend(query_BHLP, new_key_BHLP, new_value_BHLP, causal=True)
        else:
            mask_LM = torch.ones(length - start, length, dtype=torch.bool, device=x_BLD.device).tril(start)
            y_BHLP = self._attend(query_BHLP, key_BHMP[:, :, :length], value_BHMP[:, :, :length], mask=mask_LM)
        return self._merge(y_BHLP), AttentionState(key_BHMP, value_BHMP, bias_BM, length)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, AttentionState]:
        """Read one token; see ``Mixer.step``."""
        if self.causal:
            self.checked_token(x_BD, self.qkv_proj.weight)
        if self.causal and isinstance(state[-1], Tensor):
            return self._step_anywhere(x_BD, *state)
        key_BHMP, value_BHMP, bias_BM, start = self._room(state, 1)
        query_BHLP, new_key_BHLP, new_value_BHLP = self._project(x_BD[:, None], start)
        key_BHMP[:, :, start] = new_key_BHLP[:, :, 0].to(key_BHMP.dtype)
        value_BHMP[:, :, start] = new_value_BHLP[:, :, 0].to(value_BHMP.dtype)
        bias_BM[:, start] = 0
        length = start + 1
        y_BHLP = self._attend(query_BHLP, key_BHMP[:, :, :length], value_BHMP[:, :, :length])
        return self._merge(y_BHLP)[:, 0], AttentionState(key_BHMP, value_BHMP, bias_BM, length)

    def _step_anywhere(
        self, x_BD: Tensor, key_BHMP: Tensor, value_BHMP: Tensor, bias_BM: Tensor, length: Tensor
    ) -> tuple[Tensor, AttentionState]:
        """Read one token at a place that the device alone knows, which is advanced in place."""
        query_BHLP, new_key_BHLP, new_value_BHLP = self._project(x_BD[:, None], length)
        at = length[None]
        key_BHMP.index_copy_(2, at, new_key_BHLP.to(key_BHMP.dtype))
        value_BHMP.index_copy_(2, at, new_value_BHLP.to(value_BHMP.dtype))
        bias_BM.index_fill_(1, at, 0)
        length += 1
        y_BHLP = self._attend(query_BHLP, key_BHMP, value_BHMP, mask=bias_BM[:, None, None].to(query_BHLP.dtype))
        return self._merge(y_BHLP)[:, 0], AttentionState(key_BHMP, value_BHMP, bias_BM, length)

    def _room(self, state: State, tokens: int) -> tuple[Tensor, Tensor, Tensor, int]:
        if not self.causal:
            raise self._not_causal("prefill and step")
        key_BHMP, value_BHMP, bias_BM, length = state
        length, max_length = int(length), key_BHMP.shape[2]
        if length + tokens > max_length:
            raise UserError(
                f"attention's cache is full: {length} tokens read, {tokens} more do not fit max_length {max_length}",
                "give init_state a larger max_length",
            )
        return key_BHMP, value_BHMP, bias_BM, length

    def _project(self, x_BLD: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads_BLHP = self.qkv_proj(x_BLD).unflatten(-1, (3 * self.heads, -1))
        query_BHLP, key_BHLP, value_BHLP = heads_BLHP.transpose(1, 2).chunk(3, dim=1)
        if self.rotary_base is not None:
            cos_LP, sin_LP = rotation(start, x_BLD.shape[1], query_BHLP.shape[-1], self.rotary_base, query_BHLP)
            query_BHLP, key_BHLP = rotate(query_BHLP, cos_LP, sin_LP), rotate(key_BHLP, cos_LP, sin_LP)
        return query_BHLP, key_BHLP, value_BHLP

    def _attend(
        self, query_BHLP: Tensor, key_BHMP: Tensor, value_BHMP: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        key_BHMP, value_BHMP = key_BHMP.to(query_BHLP.dtype), value_BHMP.to(query_BHLP.dtype)
        dropout = self.dropout if self.training else 0.0
        if self.backend != "reference":
            return F.scaled_dot_product_attention(
                query_BHLP, key_BHMP, value_BHMP, attn_mask=mask, dropout_p=dropout, is_causal=causal
            )
        score_BHLM = query_BHLP @ key_BHMP.transpose(-1, -2) / math.sqrt(query_BHLP.shape[-1])
        if causal:
            mask = torch.ones(score_BHLM.shape[-2:], dtype=torch.bool, device=score_BHLM.device).tril()
        if mask is not None:
            kept = mask.dtype == torch.bool
            score_BHLM = score_BHLM.masked_fill(~mask, float("-inf")) if kept else score_BHLM + mask
        return F.dropout(score_BHLM.softmax(-1), dropout) @ value_BHMP

    def _merge(self, y_BHLP: Tensor) -> Tensor:
        return self.out_proj(y_BHLP.transpose(1, 2).flatten(2))


def usual_heads(d_model: int, *, rotary: bool) -> int:
    """Return how many heads of about 16 channels there are, of an even width where positions are rotary."""
    fits = (heads for heads in range(max(1, d_model // 16), 0, -1) if d_model % heads == 0)
    return next((heads for heads in fits if not rotary or d_model // heads % 2 == 0), 1)


def _same_sequence(seq_idx_BL: Tensor) -> Tensor:
    """Return the mask (B, 1, L, L) of the pairs of positions in one sequence.

    Padding sees padding, so that no row of the mask is empty.
    """
    reset_BL, padding_BL = segment_marks(seq_idx_BL)
    number_BL = reset_BL.cumsum(dim=1).masked_fill(padding_BL, -1)
    return number_BL[:, None, :, None] == number_BL[:, None, None, :]


def _extended(cache_BHMP: Tensor, new_BHLP: Tensor, start: int) -> Tensor:
    end = start + new_BHLP.shape[2]
    return torch.cat([cache_BHMP[:, :, :start], new_BHLP.to(cache_BHMP.dtype), cache_BHMP[:, :, end:]], dim=2)
