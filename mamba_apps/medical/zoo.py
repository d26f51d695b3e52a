"""The medical networks by name, each built from the same plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from mamba_apps.errors import UserError
from mamba_apps.medical.baselines import seg_res_net, swin_unetr
from mamba_apps.medical.plain_unet import PlainUNet
from mamba_apps.medical.residual_unet import ResidualUNet
from mamba_apps.medical.umamba import UMamba
from mamba_apps.medical.unet import SegmentationNetwork
from mamba_apps.registry import check_option_names
from mamba_datasets.report import nearest
from mamba_datasets.volumes import NetworkPlan

_NETWORKS: dict[str, Callable[..., SegmentationNetwork]] = {
    "umamba_bot": partial(UMamba, place="bottleneck", channel_tokens=False),
    "umamba_enc": UMamba,
    "residual_unet": ResidualUNet,
    "plain_unet": PlainUNet,
    "segresnet": seg_res_net,
    "swin_unetr": swin_unetr,
}
_GIVEN = ("plan", "in_channels", "num_classes", "deep_supervision")


def network_names() -> list[str]:
    """Return the names of the networks in alphabetical order."""
    return sorted(_NETWORKS)


def network_options(name: str) -> dict[str, Any]:
    """Return the options of a network, beside the plan, the channels and the classes, with their defaults.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in _NETWORKS:
        raise UserError(f"unknown medical network {name!r}", nearest(name, network_names()))
    parameters = inspect.signature(_NETWORKS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in _GIVEN}


def build_network(
    name: str,
    plan: NetworkPlan,
    in_channels: int,
    num_classes: int,
    *,
    deep_supervision: bool = False,
    **options: Any,
) -> SegmentationNetwork:
    """Build a network with fresh weights: from images (B, C, *spatial) to logits (B, K, *spatial).

    Args:
        name: "umamba_bot", "umamba_enc", their twin without Mamba "residual_unet", nnU-Net's "plain_unet", or MONAI's
            "segresnet" and "swin_unetr", which take nothing from the plan but the patch.
        plan: The sizes.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        deep_supervision: Whether it returns a list of the logits of several resolutions, the finest first; the
            attribute of that name may be set later too.
        options: The network's own, with plain values; ``network_options(name)`` lists them.

    Raises:
        UserError: If the name or an option is unknown or out of range.
    """
    check_option_names(f"the medical network {name!r}", options, network_options(name))
    return _NETWORKS[name](plan, in_channels, num_classes, deep_supervision=deep_supervision, **options)
