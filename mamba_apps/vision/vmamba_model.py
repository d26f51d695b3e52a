"""VMamba: a pyramid of SS2D blocks (Liu et al., arXiv 2401.10166), with timm's protocol.

Whatever the layout that a checkpoint was trained in, the grid is channel-last from the patch embedding on.

Dimensions in names: B batch, C channels, H height, W width, D channels of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from timm.layers import SelectAdaptivePool2d, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers.base import no_weight_decay
from mamba_apps.mixers.norms import LayerNorm
from mamba_apps.mixers.ss2d import SS2D
from mamba_apps.vision.vmamba_checkpoint import resized_pos_embed
from mamba_apps.vision.vmamba_parts import VMambaStage, VSSBlock, downsample, patch_embed, reset_linear
from mamba_kernels import Route


class VMambaHead(nn.Module):
    """The norm of the last grid (B, H, W, D), and what classifies it: pool, drop, project.

    Args:
        width: Channels of the grid.
        num_classes: Number of classes; 0 for the pooled features.
        global_pool: timm's name of the pooling; "" for none.
        drop_rate: Probability of dropping a pooled feature in training.
        backend: The norm's implementation to force.
    """

    def __init__(
        self, width: int, num_classes: int, global_pool: str, drop_rate: float, backend: str | None = None
    ) -> None:
        super().__init__()
        self.width = width
        self.norm: nn.Module = LayerNorm(width, backend=backend)
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the pooling unless it is None."""
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool), input_fmt="NHWC")
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.width * self.global_pool.feat_mult(), num_classes)
            reset_linear(self.head)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify a normalised grid."""
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.head(x)


class VMamba(nn.Module):
    """VMamba, version 2 and the first ("vanilla") one, with timm's protocol.

    Args:
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: timm's name of the pooling; "" for none.
        img_size: Size of the images that position embeddings are made for, a side or (height, width). Images of other
            sizes see them resized.
        patch_size: Pixels along a cell of the first stage's grid.
        depths: Blocks of each stage.
        dims: Channels of each stage.
        d_state: States per inner channel of SS2D.
        expand: Inner channels of SS2D per channel.
        dt_rank: Rank of SS2D's step sizes, or "auto".
        d_conv: Width of SS2D's convolution; 1 for none.
        conv_bias: Whether that convolution has a bias.
        forward_type: VMamba's name for what SS2D scans, gates and normalises.
        mlp_ratio: Hidden channels of the MLPs per channel; 0 for no MLPs.
        gated_mlp: Whether half of the MLPs' hidden layer gates the other.
        patch_version: "v1" for patches, "v2" for two overlapping convolutions.
        patch_norm: Whether the patch embedding is normalised.
        downsample_version: "v1" for patch merging, "v2" or "v3" for a convolution of 2 x 2 or 3 x 3.
        pos_embed: Whether learnt position embeddings are added to the first grid.
        feature_norms: Stages whose features have a norm of their own, as in VMamba's backbones for dense tasks.
        mixer: SS2D's inner operator: "mamba1", or another registered mixer.
        mixer_options: That other mixer's options.
        route: The route that SS2D reads in place of the forward type's own, or its name.
        window: The window's edge in cells, for the name "windowed".
        drop_rate: Probability of dropping a feature before the classifier.
        drop_path_rate: Probability of leaving out a branch, which grows linearly over the blocks up to this.
        mixer_drop_rate: Probability of dropping one of SS2D's outputs.
        mlp_drop_rate: Probability of dropping a value inside the MLPs.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.

    Raises:
        UserError: If an option is out of range, or a combination is refused.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        d_state: int = 1,
        expand: float = 1.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = False,
        forward_type: str = "v05_noz",
        mlp_ratio: float = 4.0,
        gated_mlp: bool = False,
        patch_version: str = "v2",
        patch_norm: bool = True,
        downsample_version: str = "v3",
        pos_embed: bool = False,
        feature_norms: Sequence[int] = (),
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        route: Route | str | None = None,
        window: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mixer_drop_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not depths or len(depths) != len(dims):
            raise UserError(f"VMamba: depths are {tuple(depths)}, dims {tuple(dims)}", "give one of each a stage")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"VMamba: drop_path_rate is {drop_path_rate}", "give a probability in [0, 1)")
        if not set(feature_norms) <= set(range(len(dims))):
            raise UserError(f"VMamba: feature_norms are {tuple(feature_norms)}", f"choose from 0 to {len(dims) - 1}")
        reading = Route(route, window=window) if isinstance(route, str) else route
        if window is not None and reading is route:
            raise UserError(f"VMamba: window is {window}, and no route by its name", 'give route="windowed"')
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": patch_size * 2**i, "module": f"layers.{i}.blocks"}
            for i, width in enumerate(dims)
        ]
        self.patch_embed = patch_embed(patch_version, in_chans, dims[0], patch_size, patch_norm, backend)
        grid = tuple(side // patch_size for side in to_2tuple(img_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, dims[0], *grid)) if pos_embed else None
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        rates = cast(list[list[float]], calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True))
        self.layers = nn.ModuleList()
        for i, width in enumerate(dims):
            blocks = [
                VSSBlock(
                    SS2D(
                        width, d_state, expand, dt_rank, d_conv, conv_bias, dropout=mixer_drop_rate,
                        forward_type=forward_type, route=reading, mixer=mixer, mixer_options=mixer_options,
                        backend=backend,
                    ),
                    mlp_ratio, gated_mlp, mlp_drop_rate, rate,
                )
                for rate in rates[i]
            ]  # fmt: skip
            last = i == len(dims) - 1
            halve = nn.Identity() if last else downsample(downsample_version, width, dims[i + 1], backend)
            self.layers.append(VMambaStage(blocks, halve))
        for i in feature_norms:
            self.add_module(f"outnorm{i}", LayerNorm(dims[i], backend=backend))
        self.classifier = VMambaHead(dims[-1], num_classes, global_pool, drop_rate, backend)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised last grid (B, H, W, D) of images (B, C, H, W)."""
        x = self._embed(x)
        for stage in self._stages:
            x = stage(x)
        return self.classifier.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of the last grid, or the pooled features."""
        return self.classifier(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the stages' features, each before its grid is halved.

        Args:
            x: Images (B, C, H, W).
            indices: The stages; the last n for a number, all for None.
            norm: Whether the last stage's feature is normalised as for the classifier.
            stop_early: Whether later stages are left out.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Whether the normalised last grid is left out.

        Returns:
            The normalised last grid (B, H, W, D) and the features, or the features alone.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise UserError(f"VMamba has no features of the format {output_fmt!r}", "choose NCHW or NHWC")
        taken, deepest = feature_take_indices(len(self.layers), indices)
        features = []
        x = self._embed(x)
        for i, stage in enumerate(self._stages):
            x = stage.run_blocks(x)
            if i in taken:
                feature = self.classifier.norm(x) if norm and i == len(self.layers) - 1 else x
                feature = getattr(self, f"outnorm{i}", nn.Identity())(feature)
                features.append(feature if output_fmt == "NHWC" else feature.permute(0, 3, 1, 2).contiguous())
            if stop_early and i == deepest:
                break
            x = stage.downsample(x)
        if intermediates_only:
            return features
        return (self.classifier.norm(x) if i == len(self.layers) - 1 else x), features

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that the features ``indices`` do not need, and return these as a list."""
        taken, deepest = feature_take_indices(len(self.layers), indices)
        shortened = deepest < len(self.layers) - 1
        self.layers = self.layers[: deepest + 1]
        for i in range(len(self.feature_info)):
            if i not in taken and hasattr(self, f"outnorm{i}"):
                delattr(self, f"outnorm{i}")
        if shortened:
            self._stages[-1].downsample = nn.Identity()
            self.num_features = self.head_hidden_size = self.classifier.width = self.feature_info[deepest]["num_chs"]
        if prune_norm or shortened:
            self.classifier.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, and the pooling unless ``global_pool`` is None."""
        self.num_classes = num_classes
        self.classifier.reset(num_classes, global_pool)
        self.classifier.head.to(next(self.parameters()))  # the device and dtype of the others
        self.head_hidden_size = self.classifier.width * self.classifier.global_pool.feat_mult()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameters of one depth: a stage each, or a block each."""
        blocks = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99999,)),  # with the block before
            (r"^outnorm(\d+)", (99999,)),
            (r"^classifier\.norm", (99999,)),
        ]
        return {"stem": r"^patch_embed|^pos_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay."""
        return {*no_weight_decay(self), *({"pos_embed"} if self.pos_embed is not None else ())}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them, or keep them."""
        for stage in self._stages:
            stage.grad_checkpointing = enable

    @property
    def _stages(self) -> list[VMambaStage]:
        return cast(list[VMambaStage], list(self.layers))

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        if self.pos_embed is not None:
            x = x + resized_pos_embed(self.pos_embed, (x.shape[1], x.shape[2])).permute(0, 2, 3, 1)
        return x
