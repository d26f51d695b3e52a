"""timm's vision Transformer at the sizes of the small Mamba models, under names of their own in its registry."""

from __future__ import annotations

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from mamba_apps.vision.initial_weights import draw_by_width


def _cfg(size: int, classes: int) -> dict[str, Any]:
    return {
        "num_classes": classes,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({"deit_micro_patch4_32": _cfg(32, 10), "deit_nano_patch2_8": _cfg(8, 10)})


def _create(variant: str, pretrained: bool, **arguments: Any) -> VisionTransformer:
    return build_model_with_cfg(
        VisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **arguments,
    )


@register_model
def deit_micro_patch4_32(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A DeiT (arXiv 2012.12877), wider and shallower than DeiT-Ti, on 8 x 8 patches: 5.6 M parameters."""
    arguments = {"img_size": 32, "patch_size": 4, "embed_dim": 256, "depth": 7, "num_heads": 4}
    model = _create("deit_micro_patch4_32", pretrained, **{**arguments, **options})
    if not pretrained:
        draw_by_width(model)
    return model


@register_model
def deit_nano_patch2_8(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A DeiT on the 4 x 4 patches of an 8-pixel image: 0.2 M parameters."""
    arguments = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 2}
    model = _create("deit_nano_patch2_8", pretrained, **{**arguments, **options})
    if not pretrained and model.pos_embed is not None:
        # Patches of so few pixels drown positions of timm's 0.02, and it would learn no more than a bag of patches can.
        nn.init.normal_(model.pos_embed, std=0.5)
    return model
