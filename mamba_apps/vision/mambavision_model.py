"""MambaVision: convolutions at high resolution, then selective scans and attention inside windows.

Written from the paper (Hatamizadeh and Kautz, arXiv 2407.08083) and from published facts about the model; the original
code was not used.

Dimensions in names: B batch, C channels, H height, W width; N windows of all images, L tokens of a window, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Attention, DropPath, LayerScale, Mlp, calculate_drop_path_rates, create_classifier
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import RoutedMixer, create, no_weight_decay, spec
from mamba_apps.mixers.routed import Share
from mamba_kernels import Route


class MambaVision(nn.Module):
    """A hierarchy of levels, each half as fine and twice as wide as the one before.

    Any image size is taken: levels of windows pad their maps with zeros to whole windows, and the padding takes part,
    as published.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: How the last map is pooled: one of timm's names, "" to leave it a map.
        dim: Channels of the first level.
        stem_dim: Channels between the stem's two convolutions.
        stem_strides: Strides of those convolutions.
        conv_depths: Blocks of each level of convolutions, which come first.
        depths: Blocks of each level of windows; the last half, rounded down, are attention.
        windows: Cells along a window's side, for each level of windows.
        heads: Heads of attention, for each level of windows.
        mlp_ratio: Hidden channels of the MLPs per channel.
        layer_scale: Where the learned scales of the blocks in windows start; None for no scales.
        mixer: What mixes tokens in the other blocks: "mamba1" for MambaVision's own shell around Mamba-1's scan, or
            another registered mixer in its place, looking ahead where it has the choice.
        mixer_options: That mixer's options.
        route: How a window is read, a route or its name. Along several readings the projections are shared where the
            mixer can share them, else everything is; a route by its name averages the readings.
        drop_rate: Probability of dropping a channel before the classifier.
        drop_path_rate: Probability of skipping the last block in training; the first is never skipped.

    Raises:
        UserError: If the levels' options do not fit, or the mixer is unknown or does not accept the route.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 80,
        stem_dim: int = 32,
        stem_strides: tuple[int, int] = (2, 2),
        conv_depths: Sequence[int] = (1, 3),
        depths: Sequence[int] = (8, 4),
        windows: Sequence[int] = (14, 7),
        heads: Sequence[int] = (8, 16),
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        route: Route | str = "forward",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(depths) == len(windows) == len(heads):
            raise UserError(
                f"mambavision has depths {tuple(depths)}, windows {tuple(windows)} and heads {tuple(heads)}",
                "give one of each for every level of windows",
            )
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.stem = _stem(in_chans, stem_dim, dim, stem_strides)
        self.feature_info: list[dict[str, Any]] = []
        levels: list[Level] = []
        rates = calculate_drop_path_rates(drop_path_rate, [*conv_depths, *depths], stagewise=True)
        for i, level_rates in enumerate(rates):
            width = dim * 2**i
            down = nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False) if i else nn.Identity()
            w = i - len(conv_depths)
            if w < 0:
                levels.append(Level(down, [ConvBlock(width, rate) for rate in level_rates]))
            else:
                attention_from = len(level_rates) - len(level_rates) // 2
                mixers = [
                    _mixer(mixer, width, mixer_options or {}, route) if j < attention_from else _attention(width, heads[w])
                    for j in range(len(level_rates))
                ]
                blocks = [
                    WindowBlock(width, token_mixer, mlp_ratio, layer_scale, rate)
                    for token_mixer, rate in zip(mixers, level_rates, strict=True)
                ]
                levels.append(WindowLevel(down, blocks, windows[w]))
            stride = math.prod(stem_strides) * 2**i
            self.feature_info.append({"num_chs": width, "reduction": stride, "module": f"levels.{i}"})
        self.levels = nn.Sequential(*levels)
        self.num_features = self.head_hidden_size = dim * 2 ** (len(levels) - 1)
        self.norm = nn.BatchNorm2d(self.num_features)
        self.global_pool: nn.Module
        self.head: nn.Module
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the last level's map, normalised."""
        return self.norm(self.levels(self.stem(x_BCHW)))

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of what ``forward_features`` gave, or what the classifier would see."""
        x = F.dropout(self.global_pool(x_BCHW), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x_BCHW: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the levels' maps.

        Args:
            x_BCHW: Images.
            indices: Which levels; the last ones if a number, all if None.
            norm: Whether the last level's map is normalised.
            stop_early: Whether to stop after the last level asked for.
            output_fmt: "NCHW".
            intermediates_only: Whether to return the maps alone, not what ``forward_features`` gives too.
        """
        if output_fmt != "NCHW":
            raise UserError(f"mambavision gives maps in NCHW, not {output_fmt!r}", 'use output_fmt="NCHW"')
        taken, last = feature_take_indices(len(self.levels), indices)
        x_BCHW, maps = self.stem(x_BCHW), []
        for i, level in enumerate(self.levels[: last + 1] if stop_early else self.levels):
            x_BCHW = level(x_BCHW)
            if i in taken:
                maps.append(self.norm(x_BCHW) if norm and i == len(self.levels) - 1 else x_BCHW)
        if intermediates_only:
            return maps
        whole = not stop_early or last == len(self.levels) - 1
        return self.norm(x_BCHW) if whole else x_BCHW, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of the given levels do not need, and return their indices."""
        taken, last = feature_take_indices(len(self.levels), indices)
        cut = last < len(self.levels) - 1
        self.levels = self.levels[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, and the pooling where ``global_pool`` is given."""
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        like = next(self.stem.parameters())
        self.global_pool, self.head = create_classifier(
            self.num_features, num_classes, pool, device=like.device, dtype=like.dtype
        )
        self.head.apply(_init_linear)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed anew in the backward pass rather than kept."""
        for level in self.levels:
            level.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns of timm's layer groups: stem, blocks, and what follows them."""
        blocks = [(r"^levels\.(\d+)\.downsample", (0,)), (r"^levels\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": [(r"^levels\.(\d+)", None), blocks[-1]] if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay: those of the scans."""
        return set(no_weight_decay(self))


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
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp = Mlp(dim, int(dim * mlp_ratio)).apply(_init_linear)
        self.ls1, self.ls2 = (nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        x_NLD = x_NLD + self.drop_path(self.ls1(self.mixer(self.norm1(x_NLD))))
        return x_NLD + self.drop_path(self.ls2(self.mlp(self.norm2(x_NLD))))


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
        if self.grad_checkpointing and torch.is_grad_enabled():
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


class _RoutedWindow(RoutedMixer):
    """A mixer along a route over a square window, whose tokens come as a row."""

    def forward(self, x_NLD: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        side = math.isqrt(x_NLD.shape[1])
        return super().forward(x_NLD.unflatten(1, (side, side))).flatten(1, 2)


def _stem(in_chans: int, stem_dim: int, dim: int, strides: tuple[int, int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inner, outer, stride in ((in_chans, stem_dim, strides[0]), (stem_dim, dim, strides[1])):
        conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(outer, eps=1e-4), nn.ReLU()]
    return nn.Sequential(*parts)


def _attention(dim: int, heads: int) -> nn.Module:
    if dim % heads:
        raise UserError(f"mambavision cannot split {dim} channels into {heads} heads", "give a divisor as heads")
    return Attention(dim, heads, qkv_bias=True).apply(_init_linear)


def _mixer(name: str, dim: int, options: Mapping[str, Any], route: Route | str) -> nn.Module:
    known = spec("mambavision" if name == "mamba1" else name)
    options = {**({"causal": False} if "causal" in known.options else {}), **options}
    route = Route(route, merge="mean") if isinstance(route, str) else route
    if route.name == "forward":
        return create(known.name, dim, **options)
    share: Share = "projections" if known.cls.shared_projections else "all"
    return _RoutedWindow(lambda: create(known.name, dim, **options), route, share, rank=2)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
