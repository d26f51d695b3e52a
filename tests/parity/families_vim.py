"""Vision Mamba, whole and its mixer alone, against the reference's numbers and its checkpoints' keys."""

from __future__ import annotations

from functools import partial
from typing import Any

from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from parity_families import family
from parity_models import check_keys, check_run, tolerance
from torch import Tensor, nn

from mamba_apps.mixers import VimMixer, create
from mamba_apps.vision.vim_checkpoint import adapt_checkpoint
from mamba_apps.vision.vim_model import Vim
from mamba_apps.vision.vim_tokens import TokenLayout, resize_position_embedding

# What the reference's arguments are called here, where nothing but the name differs.
_NAMES = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "stride": "stride",
    "depth": "depth",
    "embed_dim": "embed_dim",
    "channels": "in_chans",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path_rate",
    "if_abs_pos_embed": "pos_embed",
    "if_rope": "rope",
    "if_rope_residual": "rope_residual",
    "if_divide_out": "divide_out",
    "init_layer_scale": "layer_scale",
}
_FIXED = {"residual_in_fp32": True, "final_pool_type": "mean"}
_OTHERS = ("d_state", "rms_norm", "bimamba_type", "if_cls_token", "use_middle_cls_token", "use_double_cls_token")
# Of no consequence for the numbers: whether one kernel adds and normalises.
_IDLE = ("fused_add_norm",)


@family("vim_*")
def check_vim(card: Card) -> None:
    constructor = card.options("constructor", *_FIXED, *_NAMES, *_OTHERS, *_IDLE)
    for name, value in _FIXED.items():
        if constructor.get(name, value) != value:
            raise UnsupportedCardError(f"{card.name}: unsupported option {name}={constructor[name]!r}")
    one_way = constructor["bimamba_type"] == "none"
    model = Vim(
        **{_NAMES[name]: value for name, value in constructor.items() if name in _NAMES},
        norm="rms" if constructor["rms_norm"] else "layer",
        mixer_options={"d_state": constructor["d_state"]},
        class_token=_class_token(constructor),
        route="forward" if one_way else "bidirectional",
        bimamba_type="v2" if one_way else constructor["bimamba_type"],
    ).eval()
    model.load_state_dict(adapt_checkpoint({"model": card.group("param.")}, model))
    comparison = Comparison(card)
    for i, block in enumerate(model.layers):
        block.register_forward_hook(partial(_near, card, comparison, f"feat.layer{i}"))
    check_run(card, comparison, model, model.get_parameter)
    comparison.finish()


@family("vim_mixer_*")
def check_mixer(card: Card) -> None:
    known = ("d_state", "d_conv", "expand", "bimamba_type", "if_divide_out")
    options = card.options("constructor", "d_model", *known)
    bimamba_type, divide_out = options.pop("bimamba_type"), options.pop("if_divide_out", False)
    if bimamba_type == "none":
        mixer = create("mamba1", **options)
    else:
        mixer = VimMixer(bimamba_type=bimamba_type, divide_out=divide_out, **options)
    mixer.load_state_dict(card.group("param."))
    comparison = Comparison(card)
    check_run(card, comparison, mixer, mixer.get_parameter)
    comparison.finish()


@family("vim_posembed_interp")
def check_position_embedding(card: Card) -> None:
    if card.entries["extra_tokens"] != 1:
        raise UnsupportedCardError(f"{card.name}: unsupported option extra_tokens={card.entries['extra_tokens']}")
    old, new = (tuple(card.entries[name]) for name in ("old_grid", "new_grid"))
    resized = resize_position_embedding(card.tensors["input.pos_embed"], TokenLayout("middle"), old, new, "official")
    comparison = Comparison(card)
    comparison.near("output.pos_embed", resized, **tolerance(card))
    comparison.finish()


@family("keys_vim_*")
def check_released_keys(card: Card) -> None:
    size, _, stride = card.name.removeprefix("keys_vim_").partition("_")
    check_keys(card, f"vim_{size}_patch16_{stride}_224" if stride else f"vim_{size}_patch16_224")


def _class_token(constructor: dict[str, Any]) -> str:
    if not constructor["if_cls_token"]:
        return "none"
    if constructor.get("use_double_cls_token"):
        return "double"
    return "middle" if constructor["use_middle_cls_token"] else "front"


def _near(
    card: Card, comparison: Comparison, name: str, block: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]
) -> None:
    for part, output in enumerate(outputs):
        comparison.near(f"{name}.{part}", output, **tolerance(card))
