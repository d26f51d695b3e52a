"""The language models that decoding is measured with: Mamba's, and a Transformer of the same size.

Two Mamba blocks have about the parameters of a Transformer's attention and MLP, so that 12 pairs stand beside 24
blocks.

Dimensions in names: B batch, L length, D channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.mixers import Mixer, MixerBlock, RMSNorm, State
from mamba_apps.text import MambaLM, MambaLMConfig

BYTES = 256


class TransformerBlock(nn.Module):
    """An attention block and an MLP four times as wide inside, with the interface of the block.

    Args:
        block: The attention block.
        d_model: Channels.
    """

    def __init__(self, block: MixerBlock, d_model: int) -> None:
        super().__init__()
        self.block = block
        self.norm = RMSNorm(d_model)
        self.up = nn.Linear(d_model, 4 * d_model, bias=False)
        self.down = nn.Linear(4 * d_model, d_model, bias=False)

    @property
    def mixer(self) -> Mixer:
        """The attention."""
        return self.block.mixer

    def forward(
        self, hidden_BLD: Tensor, residual_BLD: Tensor | None = None, *, seq_idx_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run both on whole sequences; see ``MixerBlock``."""
        return self._mlp(*self.block(hidden_BLD, residual_BLD, seq_idx_BL=seq_idx_BL))

    def prefill(self, hidden_BLD: Tensor, residual_BLD: Tensor | None, state: State) -> tuple[Tensor, Tensor, State]:
        """Run both on several tokens from a state."""
        hidden_BLD, residual_BLD, state = self.block.prefill(hidden_BLD, residual_BLD, state)
        return *self._mlp(hidden_BLD, residual_BLD), state

    def step(self, hidden_BD: Tensor, residual_BD: Tensor | None, state: State) -> tuple[Tensor, Tensor, State]:
        """Run both on one token from a state."""
        hidden_BD, residual_BD, state = self.block.step(hidden_BD, residual_BD, state)
        return *self._mlp(hidden_BD, residual_BD), state

    def _mlp(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        hidden, residual = self.norm.add(hidden, residual, self.block.residual_in_fp32)
        return self.down(F.gelu(self.up(hidden))), residual


def language_model(mixer: str, d_model: int, n_layer: int, **options: Any) -> MambaLM:
    """Return a model of bytes in 16 bits, in evaluation mode and with random weights on torch's default device.

    Args:
        mixer: The blocks' mixer; "attention" stands for a Transformer without positional encoding, the quickest there
            is.
        d_model: Channels of the residual stream.
        n_layer: Number of blocks, each attention and each MLP of the Transformer counted as one.
        **options: The mixer's.
    """
    depth = n_layer // 2 if mixer == "attention" else n_layer
    model = MambaLM(MambaLMConfig(BYTES, d_model, depth, mixer, options))
    if mixer == "attention":
        blocks = [TransformerBlock(cast(MixerBlock, block), d_model) for block in model.backbone.layers]
        model.backbone.layers = nn.ModuleList(blocks)
    return halved(model).eval()


def halved(model: nn.Module) -> Any:
    """Convert a model to 16 bits, all but what decides how states decay."""
    exact = {id(getattr(part, name)) for part in model.modules() if isinstance(part, Mixer) for name in part.undecayed}
    for parameter in model.parameters():
        if id(parameter) not in exact:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.requires_grad_(False)
