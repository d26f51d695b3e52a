"""MambaVision: convolutions at high resolution, then selective scans and attention inside windows.

Written from the paper (Hatamizadeh and Kautz, arXiv 2407.08083) and from published facts about the model; the original
code was not used.

Dimensions in names: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import no_weight_decay
from mamba_apps.vision.mambavision_parts import (
    ConvBlock,
    Level,
    WindowBlock,
    WindowLevel,
    attention,
    init_linear,
    stem,
    window_mixer,
)
from mamba_kernels import Route


class MambaVision(nn.Module):
    """A hierarchy of levels, each half as fine and twice as wide as the one before.

    Any image size is taken: levels of windows pad their maps with zeros to whole windows, and the padding takes part,
    as published.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: How the last map is pooled: one of timm's names, "" to leave it a map without classes.
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
        window: For the route's name "windowed", the edge in cells of the windows that it reads within a window.
        drop_rate: Probability of dropping a channel before the classifier.
        drop_path_rate: Probability of skipping the last block in training; the first is never skipped.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.

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
        window: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not len(depths) == len(windows) == len(heads):
            raise UserError(
                f"mambavision has depths {tuple(depths)}, windows {tuple(windows)} and heads {tuple(heads)}",
                "give one of each for every level of windows",
            )
        if min(windows, default=1) < 1:
            raise UserError(f"mambavision has windows {tuple(windows)}", "give sides of at least 1 cell")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"mambavision: drop_path_rate is {drop_path_rate}", "give a probability in [0, 1)")
        reading = Route(route, merge="mean", window=window) if isinstance(route, str) else route
        if window is not None and reading is route:
            raise UserError(f"mambavision: window is {window}, and no route by its name", 'give route="windowed"')
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.stem = stem(in_chans, stem_dim, dim, stem_strides)
        self.feature_info: list[dict[str, Any]] = []
        inner = {"backend": backend, **(mixer_options or {})}
        levels: list[Level] = []
        rates = torch.linspace(0, drop_path_rate, sum(conv_depths) + sum(depths), device="cpu")
        for i, level_rates in enumerate(part.tolist() for part in rates.split([*conv_depths, *depths])):
            width = dim * 2**i
            down = nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False) if i else nn.Identity()
            if i < len(conv_depths):
                levels.append(Level(down, [ConvBlock(width, rate) for rate in level_rates]))
            else:
                w, mixed = i - len(conv_depths), math.ceil(len(level_rates) / 2)
                blocks = [
                    WindowBlock(
                        width,
                        window_mixer(width, mixer, inner, reading) if j < mixed else attention(width, heads[w]),
                        mlp_ratio,
                        layer_scale,
                        rate,
                        backend,
                    )
                    for j, rate in enumerate(level_rates)
                ]
                levels.append(WindowLevel(down, blocks, windows[w]))
            stride = math.prod(stem_strides) * 2**i
            self.feature_info.append({"num_chs": width, "reduction": stride, "module": f"levels.{i}"})
        self.levels = nn.Sequential(*levels)
        self.num_features = dim * 2 ** (len(levels) - 1)
        self.norm: nn.Module = nn.BatchNorm2d(self.num_features)
        self.global_pool: SelectAdaptivePool2d
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
        for i, level in enumerate(self.levels):
            x_BCHW = level(x_BCHW)
            if i in taken:
                maps.append(self.norm(x_BCHW) if norm and i == len(self.levels) - 1 else x_BCHW)
            if stop_early and i == last:
                break
        if intermediates_only:
            return maps
        return self.norm(x_BCHW) if i == len(self.levels) - 1 else x_BCHW, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of the given levels do not need, and return their indices."""
        taken, last = feature_take_indices(len(self.levels), indices)
        cut = last < len(self.levels) - 1
        self.levels = nn.Sequential(*list(self.levels)[: last + 1])
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, and the pooling where ``global_pool`` is given.

        Raises:
            UserError: If there are classes, and no pooling.
        """
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        if num_classes and not pool:
            raise UserError(
                "mambavision: global_pool is '', which leaves a map, and the classifier reads a row of channels",
                "give num_classes=0, or a pooling such as avg",
            )
        like = next(self.stem.parameters())
        self.global_pool, self.head = create_classifier(
            self.num_features, num_classes, pool, device=like.device, dtype=like.dtype
        )
        self.head.apply(init_linear)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed anew in the backward pass rather than kept."""
        for level in self.levels:
            cast(Level, level).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns of timm's layer groups: stem, blocks, and what follows them."""
        blocks = [(r"^levels\.(\d+)\.downsample", (0,)), (r"^levels\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": [(r"^levels\.(\d+)", None), blocks[-1]] if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay: those of the scans."""
        return set(no_weight_decay(self))
