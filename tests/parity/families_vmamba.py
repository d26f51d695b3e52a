"""VMamba, whole, as a backbone and its mixer alone, against the published code's numbers and its checkpoints' keys."""

from __future__ import annotations

from functools import partial
from typing import Any

from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from parity_families import family
from parity_models import check_keys, check_run, tolerance
from torch import Tensor, nn

from mamba_apps.mixers import SS2D
from mamba_apps.vision import VMamba
from mamba_apps.vision.vmamba_checkpoint import adapt_checkpoint

# The published constructors' arguments and ours; and those of which we have one value alone.
_MIXER = {
    "d_model": "d_model", "d_state": "d_state", "ssm_ratio": "expand", "dt_rank": "dt_rank", "d_conv": "d_conv",
    "conv_bias": "conv_bias", "forward_type": "forward_type",
}  # fmt: skip
_MIXER_FIXED = {"initialize": "v0"}
_MODEL = {
    "patch_size": "patch_size", "in_chans": "in_chans", "num_classes": "num_classes", "depths": "depths",
    "dims": "dims", "ssm_d_state": "d_state", "ssm_ratio": "expand", "ssm_dt_rank": "dt_rank", "ssm_conv": "d_conv",
    "ssm_conv_bias": "conv_bias", "ssm_drop_rate": "mixer_drop_rate", "forward_type": "forward_type",
    "mlp_ratio": "mlp_ratio", "mlp_drop_rate": "mlp_drop_rate", "gmlp": "gated_mlp",
    "drop_path_rate": "drop_path_rate", "patch_norm": "patch_norm", "downsample_version": "downsample_version",
    "patchembed_version": "patch_version", "posembed": "pos_embed", "imgsize": "img_size",
    "out_indices": "feature_norms",
}  # fmt: skip
_MODEL_FIXED = {"ssm_act_layer": "silu", "ssm_init": "v0", "mlp_act_layer": "gelu", "use_checkpoint": False}


@family("ss2d_*")
def check_mixer(card: Card) -> None:
    theirs = card.options("constructor", *_MIXER, *_MIXER_FIXED, "channel_first")
    channel_first = theirs.pop("channel_first")
    mixer = SS2D(**_ours(card, theirs, _MIXER, _MIXER_FIXED)).eval()
    mixer.load_state_dict(card.group("param."), strict=True)
    comparison = Comparison(card)

    def run(x: Tensor) -> Tensor:
        return mixer(x.movedim(1, -1)).movedim(-1, 1) if channel_first else mixer(x)

    check_run(card, comparison, run, mixer.get_parameter)
    comparison.finish()


@family("vmamba_*")
def check_model(card: Card) -> None:
    theirs = card.options("constructor", *_MODEL, *_MODEL_FIXED, "norm_layer")
    channel_first = {"ln": False, "ln2d": True}.get(theirs.pop("norm_layer"))
    if channel_first is None:
        raise UnsupportedCardError(f"{card.name}: unsupported option norm_layer")
    model = VMamba(**_ours(card, theirs, _MODEL, _MODEL_FIXED)).eval()
    comparison = Comparison(card)
    taps: dict[str, nn.Module] = {"patch_embed": model.patch_embed, "classifier_norm": model.classifier.norm}
    for i, stage in enumerate(model.layers):
        taps |= {f"stage{i}_blocks": stage.blocks, f"stage{i}_down": stage.downsample}
    for name, module in taps.items():
        if f"feat.{name}" in card.expected:
            module.register_forward_hook(partial(_near, card, comparison, f"feat.{name}", channel_first))
    if "out_indices" in theirs:
        model.prune_intermediate_layers(theirs["out_indices"], prune_norm=True)
        model.load_state_dict(adapt_checkpoint(card.group("param."), model))
        features = model.forward_intermediates(card.tensors["input.x"], intermediates_only=True)
        for i, feature in zip(theirs["out_indices"], features, strict=True):
            comparison.near(f"output.{i}", feature, **tolerance(card))
    else:
        model.load_state_dict(adapt_checkpoint(card.group("param."), model))
        check_run(card, comparison, model, model.get_parameter)
    comparison.finish()


@family("keys_vmamba_*")
def check_released_keys(card: Card) -> None:
    check_keys(card, card.name.removeprefix("keys_"))


def _ours(card: Card, theirs: dict[str, Any], names: dict[str, str], fixed: dict[str, Any]) -> dict[str, Any]:
    for name, value in fixed.items():
        if theirs.pop(name, value) != value:
            raise UnsupportedCardError(f"{card.name}: unsupported option {name}, but for {value!r}")
    return {names[name]: value for name, value in theirs.items()}


def _near(
    card: Card, comparison: Comparison, name: str, channel_first: bool, module: nn.Module, inputs: Any, x: Tensor
) -> None:
    comparison.near(name, x.movedim(-1, 1) if channel_first else x, **tolerance(card))
