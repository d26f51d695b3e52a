"""MambaVision's released models and small ones, by timm's names.

The released weights are NVIDIA's, under CC-BY-NC-SA-4.0: not for commercial use.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from mamba_apps.vision.mambavision_checkpoint import adapt_checkpoint
from mamba_apps.vision.mambavision_model import MambaVision


def _cfg(hub: str = "", size: int = 224, crop_pct: float = 1.0, **more: Any) -> dict[str, Any]:
    released = {
        "hf_hub_id": f"nvidia/MambaVision-{hub}",
        "license": "cc-by-nc-sa-4.0",
        "origin_url": "https://github.com/NVlabs/MambaVision",
        "paper_ids": "arXiv:2407.08083",
    }
    return {
        "input_size": (3, size, size),
        "crop_pct": crop_pct,
        "first_conv": "stem.0",
        "classifier": "head",
        **(released if hub else {}),
        **more,
    }


default_cfgs = generate_default_cfgs(
    {
        "mambavision_tiny.in1k": _cfg("T-1K"),
        "mambavision_tiny2.in1k": _cfg("T2-1K", crop_pct=0.98),
        "mambavision_small.in1k": _cfg("S-1K", crop_pct=0.93),
        "mambavision_base.in1k": _cfg("B-1K"),
        "mambavision_large.in1k": _cfg("L-1K"),
        "mambavision_large2.in1k": _cfg("L2-1K"),
        "mambavision_base_21k.in21k_ft_in1k": _cfg("B-21K"),
        "mambavision_large_21k.in21k_ft_in1k": _cfg("L-21K"),
        "mambavision_large2_512_21k.in21k_ft_in1k": _cfg("L2-512-21K", 512),
        "mambavision_large3_256_21k.in21k_ft_in1k": _cfg("L3-256-21K", 256),
        "mambavision_large3_512_21k.in21k_ft_in1k": _cfg("L3-512-21K", 512),
        "mambavision_micro_32": _cfg(size=32, num_classes=10),
        "mambavision_nano_8": _cfg(size=8, num_classes=10),
    }
)

_TINY = {"conv_depths": (1, 3), "depths": (8, 4)}
_BASE = {
    "dim": 128, "stem_dim": 64, "conv_depths": (3, 3), "depths": (10, 5), "layer_scale": 1e-5, "drop_path_rate": 0.3
}  # fmt: skip
_LARGE = {**_BASE, "dim": 196, "heads": (16, 32)}
_LARGE2 = {**_LARGE, "depths": (12, 5)}
_LARGE3 = {**_LARGE, "dim": 256, "depths": (20, 10), "drop_path_rate": 0.5}


def _create(variant: str, pretrained: bool, options: dict[str, Any], **sizes: Any) -> MambaVision:
    arguments = {**_TINY, **sizes, **options}
    levels = len(arguments["conv_depths"]) + len(arguments["depths"])
    return build_model_with_cfg(
        MambaVision,
        variant,
        pretrained,
        pretrained_filter_fn=adapt_checkpoint,
        feature_cfg={"out_indices": tuple(range(levels)), "feature_cls": "getter"},
        **arguments,
    )


@register_model
def mambavision_tiny(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-T, 31.8 M parameters."""
    return _create("mambavision_tiny", pretrained, options, drop_path_rate=0.2)


@register_model
def mambavision_tiny2(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-T2, 35.1 M parameters."""
    return _create("mambavision_tiny2", pretrained, options, depths=(11, 4), drop_path_rate=0.2)


@register_model
def mambavision_small(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-S, 50.1 M parameters."""
    sizes = {"dim": 96, "stem_dim": 64, "conv_depths": (3, 3), "depths": (7, 5), "drop_path_rate": 0.2}
    return _create("mambavision_small", pretrained, options, **sizes)


@register_model
def mambavision_base(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-B, 97.7 M parameters."""
    return _create("mambavision_base", pretrained, options, **_BASE)


@register_model
def mambavision_base_21k(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-B as pretrained on ImageNet-21k, 97.7 M parameters."""
    return _create("mambavision_base_21k", pretrained, options, **_BASE)


@register_model
def mambavision_large(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-L, 228.0 M parameters."""
    return _create("mambavision_large", pretrained, options, **_LARGE)


@register_model
def mambavision_large_21k(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-L as pretrained on ImageNet-21k, 228.0 M parameters."""
    return _create("mambavision_large_21k", pretrained, options, **_LARGE)


@register_model
def mambavision_large2(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-L2, 241.6 M parameters."""
    return _create("mambavision_large2", pretrained, options, **_LARGE2)


@register_model
def mambavision_large2_512_21k(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-L2 for 512 pixels, pretrained on ImageNet-21k, 241.6 M parameters."""
    return _create("mambavision_large2_512_21k", pretrained, options, windows=(32, 16), **_LARGE2)


@register_model
def mambavision_large3_256_21k(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-L3 for 256 pixels, pretrained on ImageNet-21k, 739.6 M parameters."""
    return _create("mambavision_large3_256_21k", pretrained, options, windows=(16, 8), **_LARGE3)


@register_model
def mambavision_large3_512_21k(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build MambaVision-L3 for 512 pixels, pretrained on ImageNet-21k, 739.6 M parameters."""
    return _create("mambavision_large3_512_21k", pretrained, options, windows=(32, 16), **_LARGE3)


@register_model
def mambavision_micro_32(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build a small MambaVision for images of 32 pixels, 6.0 M parameters."""
    sizes = {"dim": 40, "stem_strides": (1, 1), "depths": (6, 3), "windows": (8, 4), "heads": (4, 8)}
    return _create("mambavision_micro_32", pretrained, options, **sizes)


@register_model
def mambavision_nano_8(pretrained: bool = False, **options: Any) -> MambaVision:
    """Build a tiny MambaVision for images of 8 pixels, such as scikit-learn's digits, 0.2 M parameters."""
    sizes = {
        "dim": 32, "stem_dim": 16, "stem_strides": (1, 1), "conv_depths": (1,), "depths": (4,), "windows": (4,),
        "heads": (4,),
    }  # fmt: skip
    return _create("mambavision_nano_8", pretrained, options, **sizes)
