"""Any timm backbone as a pyramid of feature maps, by what timm states about it; our families are in timm's registry.

Dimensions in names: B batch, C channels, H and W rows and columns.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.vision.weights import check_name, create_model

LEVELS = 4
_VIT_STRIDE = 16


class Pyramid(nn.Module):
    """Feature maps of a timm backbone, finest first, each normalised over its channels.

    A backbone whose resolution falls gives the last map of each of its coarsest four resolutions. One that keeps its
    resolution (ViT, Vim) gives four maps from evenly spaced depths, brought to strides around its own by transposed
    convolutions and pooling, the simple feature pyramid of ViTDet (Li et al. 2022).

    Args:
        name: A model in timm's registry, our families among them.
        size: Height and width of its input.
        weights: What it starts from: None, "released", a file or the folder of a classifier that we saved.
        options: Further arguments of the model, such as `drop_path_rate`.

    Raises:
        UserError: If there is no such model, it gives no feature maps, it does not take an option, or the weights do
            not fit it.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        *,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.options = name, dict(options or {})
        plan = self._plan()
        config = plan.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        strides = [int(entry["reduction"]) for entry in plan.feature_info]
        flat = len(set(strides)) == 1
        if flat and len(strides) < LEVELS:
            raise UserError(f"backbone {name!r} has {len(strides)} blocks", f"choose one with at least {LEVELS}")
        taken = _evenly(len(strides)) if flat else _last_of_each(strides)
        # Position embeddings and window masks are made for the one size that the model will see.
        sized = {"img_size": size} if "img_size" in inspect.signature(type(plan).__init__).parameters else {}
        body: Any = create_model(name, {"features_only": True, "out_indices": taken, **sized, **self.options}, weights)
        self.body = body
        self.channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"
        self.channels: list[int] = body.feature_info.channels()
        # Where a backbone normalises before each block, its residual stream has no scale of its own.
        self.norms = nn.ModuleList(LayerNorm2d(count) for count in self.channels)
        shift = round(math.log2(strides[0] / _VIT_STRIDE))
        self.resize = nn.ModuleList(
            _resize(count, 2 - level + shift) if flat else nn.Identity() for level, count in enumerate(self.channels)
        )

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the maps (B, C, H, W), finest first."""
        maps = self.body(images_BCHW)
        if self.channels_last:
            maps = [found.permute(0, 3, 1, 2) for found in maps]
        return [resize(norm(found)) for resize, norm, found in zip(self.resize, self.norms, maps, strict=True)]

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Return the backbone's parameters as timm groups them: by depth, and by what the model wants undecayed.

        Args:
            weight_decay: Of matrices.
            layer_decay: What the learning rate is multiplied by from each layer to the one before; 1 for none.

        Returns:
            Groups with `params`, `weight_decay` and `lr_scale`; the norms and resizing layers here are in none.
        """
        # The wrapper that gives features has renamed the parameters and lost the model's knowledge of its layers.
        plan = self._plan()
        undecayed: set[str] = getattr(plan, "no_weight_decay", set)()
        names = {id(parameter): _flat_name(name) for name, parameter in plan.named_parameters()}
        here = {_flat_name(name): parameter for name, parameter in self.body.named_parameters()}
        groups = param_groups_layer_decay(plan, weight_decay, undecayed, layer_decay=layer_decay)
        for group in groups:
            wanted = (names[id(parameter)] for parameter in group["params"])
            group["params"] = [here[name] for name in wanted if name in here]
        return [group for group in groups if group["params"]]

    def _plan(self) -> Any:
        """Return the whole model without memory behind it."""
        check_name(self.name)
        try:
            with torch.device("meta"):
                plan = timm.create_model(self.name, **self.options)
        except TypeError as error:
            raise UserError(f"backbone {self.name!r}: {error}", "correct backbone_options") from None
        if not getattr(plan, "feature_info", None):
            raise UserError(f"backbone {self.name!r} gives no feature maps", "choose one that timm has features of")
        return plan


def _evenly(depth: int) -> list[int]:
    """Return the blocks after each quarter of the depth."""
    return [math.ceil(depth * part / LEVELS) - 1 for part in range(1, LEVELS + 1)]


def _last_of_each(strides: list[int]) -> list[int]:
    """Return the last map of each of the coarsest resolutions, finest first."""
    last = {stride: index for index, stride in enumerate(strides)}
    return [last[stride] for stride in sorted(last)[-LEVELS:]]


def _resize(channels: int, doublings: int) -> nn.Sequential:
    """Return layers that double the size so many times, or halve it where the number is negative."""
    if doublings < 0:
        return nn.Sequential(nn.MaxPool2d(2**-doublings))
    layers: list[nn.Module] = []
    for number in range(doublings):
        layers += [nn.BatchNorm2d(channels), nn.GELU()] if number else []
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*layers)


def _flat_name(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")
