"""AST, the Audio Spectrogram Transformer (Gong et al., arXiv 2104.01778), on timm's ViT: the Transformer baseline.

Dimensions in names: B batch, T frames, F mel bands, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import PatchEmbed, to_2tuple
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.vision.vim_tokens import Grid


class _StridedPatches(PatchEmbed):
    """timm's patches, which may overlap, and whose rest at the far edges belongs to none."""

    def __init__(self, *args: Any, stride: Grid, **options: Any) -> None:
        self.stride = stride
        super().__init__(*args, **options)
        self.proj.stride = stride

    def dynamic_feat_size(self, img_size: Grid) -> Grid:
        height, width = (
            (size - patch) // step + 1 for size, patch, step in zip(img_size, self.patch_size, self.stride, strict=True)
        )
        return height, width

    def feat_ratio(self, as_scalar: bool = True) -> int | Grid:
        return max(self.stride) if as_scalar else self.stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.proj(x_BCHW).movedim(1, -1))

    def _init_img_size(self, img_size: int | Grid) -> tuple[Grid, Grid, int]:
        size = to_2tuple(img_size)
        grid = self.dynamic_feat_size(size)
        return size, grid, grid[0] * grid[1]


class AST(nn.Module):
    """A ViT over the patches of a spectrogram, under the published names: ``v`` and ``mlp_head``.

    Args:
        frames: Frames of the clips that the positions are made for; other clips have them interpolated.
        mels: Mel bands.
        patch_size: Bands and frames of a patch, or one number for both.
        stride: Distance of neighbouring patches in bands and in frames, likewise; None for ``patch_size``.
        num_classes: Classes; 0 for no classifier.
        distilled: Whether a distillation token stands beside the class token, as in the published weights; their mean
            is classified.
        options: The other arguments of timm's ``VisionTransformer``, such as ``embed_dim`` and ``depth``.
    """

    def __init__(
        self,
        frames: int = 1024,
        mels: int = 128,
        patch_size: int | Grid = 16,
        stride: int | Grid | None = None,
        num_classes: int = 527,
        distilled: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.mels, self.num_classes = mels, num_classes
        vit: Callable[..., Any] = VisionTransformerDistilled if distilled else VisionTransformer
        self.v = vit(
            img_size=(mels, frames),
            patch_size=to_2tuple(patch_size),
            in_chans=1,
            num_classes=0,
            dynamic_img_size=True,
            embed_layer=partial(_StridedPatches, stride=to_2tuple(stride or patch_size)),
            **options,
        )
        self.reset_classifier(num_classes)

    @property
    def num_features(self) -> int:
        """Channels of the embedding."""
        return self.v.embed_dim

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one."""
        self.num_classes = num_classes
        like = self.v.patch_embed.proj.weight
        self.mlp_head: nn.Module = nn.Identity()
        if num_classes > 0:
            self.mlp_head = nn.Sequential(
                nn.LayerNorm(self.v.embed_dim, device=like.device, dtype=like.dtype),
                nn.Linear(self.v.embed_dim, num_classes, device=like.device, dtype=like.dtype),
            )

    def forward(self, x_BTF: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of normalised spectrograms (B, T, F)."""
        return self.forward_head(self.forward_features(x_BTF))

    def forward_features(self, x_BTF: Tensor) -> Tensor:
        """Return the last block's sequence, normalised.

        Raises:
            UserError: If the shape does not fit.
        """
        if x_BTF.dim() != 3 or x_BTF.shape[2] != self.mels or x_BTF.shape[1] < self.v.patch_embed.patch_size[1]:
            raise UserError(
                f"AST: the spectrograms have shape {tuple(x_BTF.shape)}",
                f"give (batch, frames, mel bands), {self.mels} bands and a patch's "
                f"{self.v.patch_embed.patch_size[1]} frames at least",
            )
        return self.v.forward_features(x_BTF.mT[:, None])

    def forward_head(self, x_BLD: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of what ``forward_features`` gave, or what the classifier would see."""
        pooled_BD = self.v.forward_head(x_BLD, pre_logits=True)
        return pooled_BD if pre_logits else self.mlp_head(pooled_BD)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.mlp_head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed anew in the backward pass rather than kept."""
        self.v.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's rules for which parameters belong to which layer."""
        rules = self.v.group_matcher(coarse)
        blocks = [(rf"^v\.{pattern.removeprefix('^')}", order) for pattern, order in rules["blocks"]]
        return {"stem": r"^v\.(?:cls_token|dist_token|pos_embed|patch_embed)", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay: positions and class tokens."""
        return {f"v.{name}" for name in self.v.no_weight_decay()}
