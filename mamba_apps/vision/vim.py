"""Vision Mamba's released models and small ones, by timm's names.

The released weights (Apache-2.0) lie on the Hugging Face hub; their download is not covered by tests.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from mamba_apps.vision.vim_checkpoint import adapt_checkpoint
from mamba_apps.vision.vim_model import Vim


def _cfg(hub: str = "", file: str = "", **more: Any) -> dict[str, Any]:
    released = {
        "hf_hub_id": f"hustvl/{hub}",
        "hf_hub_filename": file,
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_ids": "arXiv:2401.09417",
    }
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **(released if hub else {}),
        **more,
    }


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        "vim_small_patch16_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        "vim_base_patch16_224.in1k": _cfg("Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
        "vim_tiny_patch16_stride8_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small_patch16_stride8_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_micro_patch4_32": _cfg(input_size=(3, 32, 32), num_classes=10),
        "vim_nano_patch2_8": _cfg(input_size=(3, 8, 8), num_classes=10),
    }
)


def _create(variant: str, pretrained: bool, options: dict[str, Any], **sizes: Any) -> Vim:
    return build_model_with_cfg(
        Vim,
        variant,
        pretrained,
        pretrained_filter_fn=adapt_checkpoint,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**sizes, **options},
    )


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **options: Any) -> Vim:
    """Build Vim-Ti, 7.1 M parameters."""
    return _create("vim_tiny_patch16_224", pretrained, options, embed_dim=192)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **options: Any) -> Vim:
    """Build Vim-S, 25.8 M parameters."""
    return _create("vim_small_patch16_224", pretrained, options, embed_dim=384)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **options: Any) -> Vim:
    """Build Vim-B, 97.6 M parameters."""
    return _create("vim_base_patch16_224", pretrained, options, embed_dim=768)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **options: Any) -> Vim:
    """Build Vim-Ti+, whose patches overlap by half, 7.3 M parameters."""
    return _create("vim_tiny_patch16_stride8_224", pretrained, options, embed_dim=192, stride=8)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **options: Any) -> Vim:
    """Build Vim-S+, whose patches overlap by half, 26.0 M parameters."""
    return _create("vim_small_patch16_stride8_224", pretrained, options, embed_dim=384, stride=8)


@register_model
def vim_micro_patch4_32(pretrained: bool = False, **options: Any) -> Vim:
    """Build a small Vim for images of 32 pixels, wider and half as deep as Vim-Ti, 5.5 M parameters."""
    sizes: dict[str, Any] = {"embed_dim": 256, "depth": 12, "patch_size": 4}
    if options.get("mixer", "mamba1") == "mamba1":
        sizes["mixer_options"] = {"d_state": 8}
    return _create("vim_micro_patch4_32", pretrained, options, **sizes)


@register_model
def vim_nano_patch2_8(pretrained: bool = False, **options: Any) -> Vim:
    """Build a tiny Vim for images of 8 pixels, such as scikit-learn's digits, 0.2 M parameters."""
    return _create("vim_nano_patch2_8", pretrained, options, embed_dim=64, depth=4, patch_size=2)
