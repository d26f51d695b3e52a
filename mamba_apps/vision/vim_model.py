"""Vision Mamba (Vim; Zhu et al., arXiv 2401.09417): a line of patches and a class token, read from both its ends.

Dimensions in names: B batch, C channels of the image, H height, W width, L length of the sequence, M patches, T class
tokens, D channels of a token.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any, Literal, cast

import torch
from timm.layers import apply_rot_embed, global_pool_nlc, to_2tuple, trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import create_norm, no_weight_decay
from mamba_apps.mixers.norms import LayerNorm, RMSNorm
from mamba_apps.vision.vim_block import LINES, VimBlock, create_mixer
from mamba_apps.vision.vim_tokens import (
    Grid,
    PatchEmbed,
    Place,
    ResizeRule,
    TokenLayout,
    resize_position_embedding,
    rotary_positions,
)
from mamba_kernels import Route

_POOLS = ("token", "avg", "max", "avgmax", "")


class Vim(nn.Module):
    """Vision Mamba behind timm's protocol.

    The residual stream stays in float32, apart from the blocks' outputs, until the next norm adds the two.

    Args:
        img_size: Height and width of the images, or one number for both.
        patch_size: Height and width of a patch, or one number for both.
        stride: Distance of neighbouring patches, likewise; None for ``patch_size``.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for no classifier.
        global_pool: What the classifier sees: "token" (the class token, or the mean of two), "avg", "max" or "avgmax"
            of the patches, or "" for the whole sequence. None for "token" where there is one, else "avg".
        embed_dim: Channels of a token.
        depth: Number of blocks.
        class_token: Where it stands: "middle" before patch M // 2, "front", "end", "double" for one at either end, or
            "none".
        pos_embed: Whether every place of the sequence has a learned position.
        rope: Whether what enters a block turns with each patch's row and column.
        rope_residual: Whether the residual does so too.
        norm: "rms" or "layer".
        layer_scale: Where the learned scales of the blocks' outputs start; None for no scales.
        mixer: The mixer inside, by its registered name.
        mixer_options: Its options, such as ``{"d_state": 16}``.
        route: How it reads the patches. "forward" and "bidirectional" read the line with its class tokens; the other
            routes read the grid, on which class tokens have no place. Along several readings projections are shared
            where the mixer can share them, as Mamba-1 can, else everything is.
        window: The window's edge in patches, for the route "windowed".
        bimamba_type: Whether "mamba1" on the route "bidirectional" has parameters of its own for reading backwards,
            "v2", or shares all but the decay rates, "v1".
        divide_out: Whether the readings are averaged rather than added.
        dynamic_img_size: Whether images of other sizes are taken, with the positions interpolated each time.
        pos_resize: How the positions of a checkpoint are interpolated to another grid: "grid", "official" or
            "antialiased"; see ``resize_position_embedding``.
        drop_rate: Probability of dropping a channel before the classifier.
        pos_drop_rate: Probability of dropping a channel of a token before the first block.
        drop_path_rate: Probability of dropping the last block's output in training; the first's is never dropped.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.
        patch_embed: What cuts the images and projects the patches, where it is not ``PatchEmbed``.

    Raises:
        UserError: If an option is unknown or out of range, or the mixer does not accept the route.
    """

    def __init__(
        self,
        img_size: int | Grid = 224,
        patch_size: int | Grid = 16,
        stride: int | Grid | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 192,
        depth: int = 24,
        class_token: Place = "middle",  # noqa: S107  no secret
        pos_embed: bool = True,
        rope: bool = False,
        rope_residual: bool = False,
        norm: Literal["rms", "layer"] = "rms",
        layer_scale: float | None = None,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        route: str = "bidirectional",
        window: int | None = None,
        bimamba_type: Literal["v2", "v1"] = "v2",
        divide_out: bool = True,
        dynamic_img_size: bool = False,
        pos_resize: ResizeRule = "grid",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        backend: str | None = None,
        patch_embed: PatchEmbed | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"vim: depth is {depth}", "give at least 1 block")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"vim: drop_path_rate is {drop_path_rate}", "give a probability in [0, 1)")
        if rope and embed_dim % 4:
            raise UserError(f"vim: rope turns channels by fours, and embed_dim is {embed_dim}", "give a multiple of 4")
        if pos_resize not in ("grid", "official", "antialiased"):
            raise UserError(f"vim: pos_resize is {pos_resize!r}", 'choose "grid", "official" or "antialiased"')
        self.layout = TokenLayout(class_token)
        reading = Route(route, merge="mean" if divide_out else "sum", window=window)
        self.reads_grid = route not in LINES
        if self.reads_grid and self.layout.count:
            raise UserError(
                f"vim: the route {route!r} reads a grid, on which a class token has no place",
                'give class_token="none", or the route "forward" or "bidirectional"',
            )
        self.in_chans, self.num_classes = in_chans, num_classes
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.rope, self.rope_residual = rope, rope_residual
        self.dynamic_img_size, self.pos_resize = dynamic_img_size, pos_resize
        self.grad_checkpointing = False

        self.patch_embed = patch_embed or PatchEmbed(in_chans, embed_dim, patch_size, stride)
        self.img_size: Grid = to_2tuple(img_size)
        self.grid = self.patch_embed.grid(self.img_size)
        self._class_names = {"none": (), "double": ("cls_token_head", "cls_token_tail")}.get(
            class_token, ("cls_token",)
        )
        for name in self._class_names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, embed_dim)))
        length = self.grid[0] * self.grid[1] + self.layout.count
        self.pos_embed = nn.Parameter(torch.zeros(1, length, embed_dim)) if pos_embed else None
        self.pos_drop = nn.Dropout(pos_drop_rate)

        inner = {"backend": backend, **(mixer_options or {})}
        # The block before the last norm takes the full rate, whatever the depth.
        rates = [*torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()[:-1], drop_path_rate]
        self.layers = nn.ModuleList(
            VimBlock(
                create_mixer(mixer, embed_dim, reading, bimamba_type, inner),
                create_norm(norm, embed_dim, backend=backend),
                layer_scale,
                rate,
            )
            for rate in rates
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": max(self.patch_embed.stride), "module": f"layers.{i}"}
            for i in range(depth)
        ]
        self.norm_f: RMSNorm | LayerNorm | nn.Identity = create_norm(norm, embed_dim, backend=backend)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module
        self.global_pool = "token" if self.layout.count else "avg"
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw what the mixers did not, and scale what writes to the residual, as the reference does."""
        self.patch_embed.reset_parameters()
        for name in self._class_names:
            trunc_normal_(self.get_parameter(name), std=0.02)
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.layers.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
                nn.init.zeros_(module.bias)
            if name.endswith("out_proj"):
                module.weight.div_(math.sqrt(len(self.layers)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the last block's sequence (B, L, D), normalised, with the class tokens in their places."""
        return self._encode(x_BCHW)[0]

    def forward_head(self, x_BLD: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of what ``forward_features`` gave, or what the classifier would see."""
        if self.global_pool == "token":
            x = self.layout.class_tokens(x_BLD).mean(dim=1)
        elif self.global_pool:
            x = global_pool_nlc(self.layout.patches(x_BLD), self.global_pool, num_prefix_tokens=0)
        else:
            x = x_BLD
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x_BCHW: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Return the residual stream after some of the blocks.

        Args:
            x_BCHW: Images.
            indices: Which blocks; the last ones if a number, all if None.
            return_prefix_tokens: Whether to pair the patches of each block with its class tokens (B, T, D).
            norm: Whether the last norm is applied to each.
            stop_early: Whether to stop after the last block asked for.
            output_fmt: "NCHW" for the patches on their grid, "NLC" in a row.
            intermediates_only: Whether to return these alone, not what ``forward_features`` gives too.

        Raises:
            UserError: If the format is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"vim: output_fmt is {output_fmt!r}", 'choose "NCHW" or "NLC"')
        taken, last = feature_take_indices(len(self.layers), indices)
        x_BLD, streams, grid = self._encode(x_BCHW, taken, norm, last + 1 if stop_early else None)
        intermediates: list[Any] = []
        for stream_BLD in streams:
            patches = self.layout.patches(stream_BLD)
            if output_fmt == "NCHW":
                patches = patches.mT.unflatten(2, grid).contiguous()
            intermediates.append((patches, self.layout.class_tokens(stream_BLD)) if return_prefix_tokens else patches)
        return intermediates if intermediates_only else (x_BLD, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the given blocks' streams do not need, and return their indices."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, and the pooling where ``global_pool`` is given.

        Raises:
            UserError: If the pooling is unknown, or asks for a class token that the model does not have.
        """
        if global_pool is not None:
            if global_pool not in _POOLS or (global_pool == "token" and not self.layout.count):
                pools = [pool for pool in _POOLS if pool != "token" or self.layout.count]
                raise UserError(f"vim: global_pool is {global_pool!r}", f"choose one of {', '.join(map(repr, pools))}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            like = cast(VimBlock, self.layers[0]).norm.weight
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def set_input_size(
        self, img_size: int | Grid | None = None, patch_size: int | Grid | None = None, stride: int | Grid | None = None
    ) -> None:
        """Take images of another size, or patches, from now on, with positions and projection resized."""
        if patch_size is not None:
            self.patch_embed.set_patch_size(patch_size, stride)
        size: Grid = to_2tuple(img_size or self.img_size)
        grid = self.patch_embed.grid(size)
        if self.pos_embed is not None:
            resized = self._positions(self.pos_embed.detach(), grid)
            self.pos_embed = nn.Parameter(resized, self.pos_embed.requires_grad)
        self.img_size, self.grid = size, grid
        update_model_input_size(self, size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed anew in the backward pass rather than kept."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns of timm's layer groups: tokens, blocks, and what follows them."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay: positions, class tokens and those of the scans."""
        positions = set() if self.pos_embed is None else {"pos_embed"}
        return {*positions, *self._class_names, *no_weight_decay(self)}

    def _encode(
        self, x_BCHW: Tensor, taken: Container[int] = (), norm: bool = False, stop: int | None = None
    ) -> tuple[Tensor, list[Tensor], Grid]:
        """Return the normalised result, the streams after the blocks in ``taken``, and the grid of the patches."""
        hidden, grid = self._embed(x_BCHW)
        turn = self._turn(grid, x_BCHW.device) if self.rope else None
        residual: Any = None
        streams = []
        for i, block in enumerate(self.layers[:stop]):
            if turn is not None:
                hidden = apply_rot_embed(hidden, *turn)
                if residual is not None and self.rope_residual:
                    residual = apply_rot_embed(residual, *turn)
            if self.grad_checkpointing:
                hidden, residual = checkpoint(block, hidden, residual)
            else:
                hidden, residual = block(hidden, residual)
            if i in taken:
                streams.append(self._sum(hidden, residual, norm))
        return self._sum(hidden, residual, norm=True), streams, grid

    def _embed(self, x_BCHW: Tensor) -> tuple[Tensor, Grid]:
        """Return the tokens (B, L, D), or on the grid (B, H, W, D) where the route reads one, and their grid."""
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        if size != self.img_size and not self.dynamic_img_size:
            raise UserError(
                f"vim: the images have {size[0]} x {size[1]} pixels, the model takes {self.img_size[0]} x "
                f"{self.img_size[1]}",
                f"build the model with img_size={size}, or with dynamic_img_size=True",
            )
        grid = self.patch_embed.grid(size)
        x_BLD = self.patch_embed(x_BCHW).flatten(2).mT
        if self._class_names:
            class_1TD = torch.cat([self.get_parameter(name) for name in self._class_names], dim=1)
            x_BLD = self.layout.insert(x_BLD, class_1TD.expand(x_BLD.shape[0], -1, -1))
        if self.pos_embed is not None:
            x_BLD = x_BLD + self._positions(self.pos_embed, grid)
        # Without class tokens it is a view of the convolution's map, channels first.
        x_BLD = self.pos_drop(x_BLD.contiguous())
        return x_BLD.unflatten(1, grid) if self.reads_grid else x_BLD, grid

    def _positions(self, embedding_1LD: Tensor, grid: Grid) -> Tensor:
        rule: ResizeRule = "grid" if self.pos_resize == "official" else self.pos_resize
        return resize_position_embedding(embedding_1LD, self.layout, self.grid, grid, rule)

    def _turn(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        sin_LD, cos_LD = rotary_positions(self.layout, grid, self.embed_dim, device)
        return (sin_LD.unflatten(0, grid), cos_LD.unflatten(0, grid)) if self.reads_grid else (sin_LD, cos_LD)

    def _sum(self, hidden: Tensor, residual: Tensor, norm: bool) -> Tensor:
        """Return the residual stream after a block (B, L, D), or its norm unless that was pruned."""
        if norm and not isinstance(self.norm_f, nn.Identity):
            return self.norm_f.add(hidden, residual)[0].flatten(1, -2)
        return (hidden + residual).flatten(1, -2)
