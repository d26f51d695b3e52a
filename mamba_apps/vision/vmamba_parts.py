"""VMamba's parts: patch embeddings, down-sampling, blocks and stages, on channel-last grids.

Names of parameters are those of VMamba's code, in which a layer's place in its sequence is its name.

Dimensions in names: B batch, C channels, H height, W width, D channels of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from timm.layers import DropPath, GluMlp, Mlp, trunc_normal_
from timm.models import checkpoint_seq
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.norms import LayerNorm, linear_dtype
from mamba_apps.mixers.ss2d import SS2D


class _ChannelsLast(nn.Module):
    """From (B, C, H, W) to (B, H, W, C), which also lies so in memory: every later layer runs on it as it is."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.permute(0, 2, 3, 1).contiguous()


class _ResidualNorm(LayerNorm):
    """A layer norm that gives its weights' dtype under autocast too: the blocks after it add up in full precision."""

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return super().forward(x, out_dtype or self.weight.dtype)


def reset_linear(layer: nn.Linear) -> None:
    """Draw a projection's weights from a narrow normal, and zero its biases."""
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _channels_first() -> nn.Module:
    return Rearrange("b h w c -> b c h w")


def patch_embed(
    version: str, in_chans: int, width: int, patch_size: int, norm: bool, backend: str | None = None
) -> nn.Sequential:
    """Build the layers from an image (B, C, H, W) to a grid (B, H / patch, W / patch, D).

    Args:
        version: "v1" for one convolution of patches, "v2" for two overlapping ones.
        in_chans: Channels of the image.
        width: Channels of the grid.
        patch_size: Pixels along a cell; 1, 2 or 4 in version 2.
        norm: Whether each convolution is normalised.
        backend: The norms' implementation to force.

    Raises:
        UserError: If the version is unknown or has no such patches.
    """
    last_norm = _ResidualNorm(width, backend=backend) if norm else nn.Identity()
    if version == "v1":
        return nn.Sequential(nn.Conv2d(in_chans, width, patch_size, patch_size), _ChannelsLast(), last_norm)
    if version != "v2" or patch_size not in (1, 2, 4):
        raise UserError(
            f"VMamba has no patch embedding {version!r} of {patch_size} pixels", "choose v1, or v2 with 1, 2 or 4"
        )
    first, second = {1: (1, 1), 2: (1, 2), 4: (2, 2)}[patch_size]
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, first, 1),
        _ChannelsLast(),
        LayerNorm(width // 2, backend=backend) if norm else nn.Identity(),
        _channels_first(),
        nn.GELU(),
        nn.Conv2d(width // 2, width, 3, second, 1),
        _ChannelsLast(),
        last_norm,
    )


class PatchMerging(nn.Module):
    """Halve a grid: the four cells of each square side by side, normalised and projected; odd sizes are padded.

    Args:
        width: Channels of the input.
        out_width: Channels of the output.
        backend: The norm's implementation to force.
    """

    def __init__(self, width: int, out_width: int, backend: str | None = None) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, out_width, bias=False)
        self.norm = LayerNorm(4 * width, backend=backend)
        reset_linear(self.reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ceil(H / 2), ceil(W / 2), D') from (B, H, W, D)."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Squares are read column by column.
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x, out_dtype=linear_dtype(x)))


def downsample(version: str, width: int, out_width: int, backend: str | None = None) -> nn.Module:
    """Build the layers that halve a grid (B, H, W, D).

    Args:
        version: "v1" for patch merging, "v2" for a convolution of 2 x 2 cells, "v3" for an overlapping one of 3 x 3.
        width: Channels of the input.
        out_width: Channels of the output.
        backend: The norm's implementation to force.

    Raises:
        UserError: If the version is unknown.
    """
    if version == "v1":
        return PatchMerging(width, out_width, backend)
    if version not in ("v2", "v3"):
        raise UserError(f"VMamba has no down-sampling {version!r}", "choose v1, v2 or v3")
    conv = nn.Conv2d(width, out_width, 2, 2) if version == "v2" else nn.Conv2d(width, out_width, 3, 2, 1)
    return nn.Sequential(_channels_first(), conv, _ChannelsLast(), _ResidualNorm(out_width, backend=backend))


class VSSBlock(nn.Module):
    """Add what the mixer makes of the normalised grid, then what the MLP makes of it.

    Args:
        op: The mixer.
        mlp_ratio: Hidden channels of the MLP per channel; 0 for no MLP.
        gated_mlp: Whether half of the MLP's hidden layer gates the other.
        mlp_drop: Probability of dropping a value inside the MLP.
        drop_path: Probability of leaving out a branch in training.
    """

    def __init__(
        self, op: SS2D, mlp_ratio: float = 4.0, gated_mlp: bool = False, mlp_drop: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        width, hidden = op.d_model, int(op.d_model * mlp_ratio)
        self.norm = LayerNorm(width, backend=op.backend)
        self.op = op
        self.norm2, self.mlp = None, None
        if hidden:
            self.norm2 = LayerNorm(width, backend=op.backend)
            self.mlp = (
                GluMlp(width, 2 * hidden, act_layer=nn.GELU, drop=mlp_drop)
                if gated_mlp
                else Mlp(width, hidden, drop=mlp_drop)
            )
            for layer in self.mlp.modules():
                if isinstance(layer, nn.Linear):
                    reset_linear(layer)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, D) from (B, H, W, D)."""
        mixed = self.drop_path(self.op(self.norm(x, out_dtype=linear_dtype(x))))
        if self.norm2 is None or self.mlp is None:
            return x + mixed
        normed, x = self.norm2.add(mixed, x)  # the sum and its norm in one pass
        return x + self.drop_path(self.mlp(normed))


class VMambaStage(nn.Module):
    """Blocks on grids of one size, and the down-sampling after them.

    Args:
        blocks: The blocks.
        downsample: What halves the grid; an identity in the last stage.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def run_blocks(self, x: Tensor) -> Tensor:
        """Return the stage's feature: the grid before it is halved."""
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next stage's input."""
        return self.downsample(self.run_blocks(x))
