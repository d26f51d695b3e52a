"""What MambaVision is made of: blocks of convolutions and of windows, and the levels they stand in.

Dimensions in names: B batch, C channels, H height, W width; N windows of all images, L tokens of a window, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Attention, DropPath, LayerScale, Mlp
from timm.models import checkpoint_seq
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import LayerNorm, RoutedMixer, create, spec
from mamba_apps.mixers.norms import linear_dtype
from mamba_apps.mixers.routed import Share
from mamba_kernels import Route


class ConvBlock(nn.Module):
    """A residual pair of convolutions.

    Args:
        dim: Channels.
        drop_path: Probability of skipping the block in training.
    """

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y_BCHW = F.gelu(self.norm1(self.conv1(x_BCHW)), approximate="tanh")
        return x_BCHW + self.drop_path(self.norm2(self.conv2(y_BCHW)))


class WindowBlock(nn.Module):
    """A mixer of a window's tokens and an MLP, each normalised before and added after.

    Args:
        dim: Channels.
        mixer: The module from (N, L, D) to (N, L, D).
        mlp_ratio: Hidden channels of the MLP per channel.
        layer_scale: Where the learned scales start; None for no scales.
        drop_path: Probability of skipping each part in training.
        backend: The norms' implementation to force.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (LayerNorm(dim, backend=backend) for _ in range(2))
        self.mixer = mixer
        self.mlp = Mlp(dim, int(dim * mlp_ratio)).apply(init_linear)
        self.ls1, self.ls2 = (nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        mixed_NLD = self.drop_path(self.ls1(self.mixer(self.norm1(x_NLD, out_dtype=linear_dtype(x_NLD)))))
        # The sum and its norm in one pass; under autocast a layer scale makes the sum wider than its first term.
        x_NLD = x_NLD.to(torch.promote_types(x_NLD.dtype, mixed_NLD.dtype))
        normed_NLD, x_NLD = self.norm2.add(mixed_NLD, x_NLD)
        return x_NLD + self.drop_path(self.ls2(self.mlp(normed_NLD)))


class Level(nn.Module):
    """Blocks at one resolution, behind the convolution that leads to it.

    Args:
        downsample: From the level before.
        blocks: The blocks.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the level's map of the one before."""
        return self._run(self.downsample(x_BCHW))

    def _run(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class WindowLevel(Level):
    """A level whose blocks see the tokens of one square window at a time, row by row.

    Args:
        downsample: From the level before.
        blocks: The blocks, from (N, L, D) to (N, L, D).
        window: Cells along a window's side.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], window: int) -> None:
        super().__init__(downsample, blocks)
        self.window = window

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the level's map of the one before."""
        x_BCHW, side = self.downsample(x_BCHW), self.window
        height, width = x_BCHW.shape[2:]
        x_BCHW = F.pad(x_BCHW, (0, -width % side, 0, -height % side))
        x_NLD = rearrange(x_BCHW, "b c (h p) (w q) -> (b h w) (p q) c", p=side, q=side)
        rows, columns = x_BCHW.shape[2] // side, x_BCHW.shape[3] // side
        x_BHWC = rearrange(self._run(x_NLD), "(b h w) (p q) c -> b (h p) (w q) c", h=rows, w=columns, p=side, q=side)
        # Channels stay last in memory, as the tokens have them.
        return x_BHWC[:, :height, :width].permute(0, 3, 1, 2)


class RoutedWindow(RoutedMixer):
    """A mixer along a route over a square window, whose tokens come as a row; the arguments are RoutedMixer's."""

    def forward(self, x_NLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Mix the windows' tokens (N, L, D)."""
        side = math.isqrt(x_NLD.shape[1])
        return super().forward(x_NLD.unflatten(1, (side, side))).flatten(1, 2)


def stem(in_chans: int, stem_dim: int, dim: int, strides: tuple[int, int]) -> nn.Sequential:
    """Build what turns images into the first map."""
    parts: list[nn.Module] = []
    for inner, outer, stride in ((in_chans, stem_dim, strides[0]), (stem_dim, dim, strides[1])):
        conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(outer, eps=1e-4), nn.ReLU()]
    return nn.Sequential(*parts)


def attention(dim: int, heads: int) -> nn.Module:
    """Build the attention among a window's tokens.

    Raises:
        UserError: If the heads do not divide the channels.
    """
    if dim % heads:
        raise UserError(f"mambavision cannot split {dim} channels into {heads} heads", "give a divisor as heads")
    return Attention(dim, heads, qkv_bias=True).apply(init_linear)


def window_mixer(dim: int, name: str, options: Mapping[str, Any], route: Route) -> nn.Module:
    """Build the mixer of a window's tokens (N, L, D), as ``MambaVision`` describes it.

    Raises:
        UserError: If the mixer or an option is unknown, or the mixer does not accept the route.
    """
    known = spec("mambavision" if name == "mamba1" else name)
    options = {**({"causal": False} if "causal" in known.options else {}), **options}
    if route.name == "forward":
        return create(known.name, dim, **options)
    share: Share = "projections" if known.cls.shared_projections else "all"
    return RoutedWindow(lambda: create(known.name, dim, **options), route, share, rank=2)


def init_linear(module: nn.Module) -> None:
    """Draw a linear layer as MambaVision does, and leave any other module as it is."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
