"""VMamba as timm backbones: the published sizes with their weights' names, and two small ones.

Follows VMamba's code and weights (MIT licence; Liu et al., arXiv 2401.10166).
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from mamba_apps.vision.initial_weights import draw_by_width
from mamba_apps.vision.vmamba_checkpoint import adapt_checkpoint
from mamba_apps.vision.vmamba_model import VMamba

_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"


def _cfg(release: str = "", **changed: Any) -> dict[str, Any]:
    return {
        "url": _RELEASES + release if release else "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.0",
        "classifier": "classifier.head",
        "license": "mit",
        "paper_ids": "arXiv:2401.10166",
        **changed,
    }


default_cfgs = generate_default_cfgs(
    {
        "vmamba_tiny_s1l8.in1k": _cfg("%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg("%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_small_s1l20.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s2l15.in1k": _cfg("%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_base_s1l20.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "vmamba_v0_tiny.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"),
        "vmamba_v0_small.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
        "vmamba_v0_base.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
        "vmamba_micro_32": _cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, num_classes=10),
        "vmamba_nano_8": _cfg(input_size=(3, 8, 8), pool_size=(4, 4), crop_pct=1.0, num_classes=10),
    }
)


def _create(name: str, pretrained: bool, given: dict[str, Any], **sizes: Any) -> VMamba:
    options = {**sizes, **given}
    features = {"out_indices": tuple(range(len(options["depths"]))), "feature_cls": "getter"}
    return build_model_with_cfg(
        VMamba, name, pretrained, feature_cfg=features, pretrained_filter_fn=adapt_checkpoint, **options
    )


_TINY = {"dims": (96, 192, 384, 768), "drop_path_rate": 0.2}
_SMALL = {"dims": (96, 192, 384, 768), "drop_path_rate": 0.3}
_BASE = {"dims": (128, 256, 512, 1024), "drop_path_rate": 0.6}
_VANILLA = {
    "d_state": 16,
    "expand": 2.0,
    "conv_bias": True,
    "forward_type": "v0",
    "mlp_ratio": 0.0,
    "patch_version": "v1",
    "downsample_version": "v1",
}


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **options: Any) -> VMamba:
    """Build VMamba-T, the final one, 30.2 M parameters."""
    return _create("vmamba_tiny_s1l8", pretrained, options, **_TINY, depths=(2, 2, 8, 2))


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **options: Any) -> VMamba:
    """Build VMamba-T with wider scans in fewer blocks, 30.7 M parameters."""
    return _create("vmamba_tiny_s2l5", pretrained, options, **_TINY, depths=(2, 2, 5, 2), expand=2.0)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **options: Any) -> VMamba:
    """Build VMamba-S, the final one, 50.1 M parameters."""
    return _create("vmamba_small_s2l15", pretrained, options, **_SMALL, depths=(2, 2, 15, 2), expand=2.0)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **options: Any) -> VMamba:
    """Build VMamba-S with narrower scans in more blocks, 49.0 M parameters."""
    return _create("vmamba_small_s1l20", pretrained, options, **_SMALL, depths=(2, 2, 20, 2))


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **options: Any) -> VMamba:
    """Build VMamba-B, the final one, 88.6 M parameters."""
    return _create("vmamba_base_s2l15", pretrained, options, **_BASE, depths=(2, 2, 15, 2), expand=2.0)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **options: Any) -> VMamba:
    """Build VMamba-B with narrower scans in more blocks, 86.6 M parameters."""
    sizes = {**_BASE, "drop_path_rate": 0.5}
    return _create("vmamba_base_s1l20", pretrained, options, **sizes, depths=(2, 2, 20, 2))


@register_model
def vmamba_v0_tiny(pretrained: bool = False, **options: Any) -> VMamba:
    """Build the first VMamba-T, gated, with 16 states and no MLPs, 22.9 M parameters."""
    sizes = {**_TINY, "drop_path_rate": 0.1}
    return _create("vmamba_v0_tiny", pretrained, options, **sizes, **_VANILLA, depths=(2, 2, 9, 2))


@register_model
def vmamba_v0_small(pretrained: bool = False, **options: Any) -> VMamba:
    """Build the first VMamba-S, 44.4 M parameters."""
    return _create("vmamba_v0_small", pretrained, options, **_SMALL, **_VANILLA, depths=(2, 2, 27, 2))


@register_model
def vmamba_v0_base(pretrained: bool = False, **options: Any) -> VMamba:
    """Build the first VMamba-B, 76.3 M parameters."""
    return _create("vmamba_v0_base", pretrained, options, **_BASE, **_VANILLA, depths=(2, 2, 27, 2))


@register_model
def vmamba_micro_32(pretrained: bool = False, **options: Any) -> VMamba:
    """Build a small VMamba for images of 32 pixels, on grids of 16, 8 and 4 cells, 6.7 M parameters."""
    sizes = {"img_size": 32, "patch_size": 2, "depths": (2, 6, 1), "dims": (128, 256, 320)}
    model = _create("vmamba_micro_32", pretrained, options, **sizes, num_classes=10, drop_path_rate=0.1)
    if not pretrained:
        draw_by_width(model)
    return model


@register_model
def vmamba_nano_8(pretrained: bool = False, **options: Any) -> VMamba:
    """Build a tiny VMamba for images of 8 pixels, on grids of 8 and 4 cells, 0.1 M parameters."""
    sizes = {"img_size": 8, "patch_size": 1, "depths": (2, 2), "dims": (32, 64)}
    return _create("vmamba_nano_8", pretrained, options, **sizes, num_classes=10)
