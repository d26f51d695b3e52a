"""MambaVision, whole and its mixer alone, against the published code's numbers and the keys of its checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any

from parity_cards import Card
from parity_compare import Comparison
from parity_families import family
from parity_models import check_keys, check_run, tolerance
from torch import Tensor, nn

from mamba_apps.mixers import MambaVisionMixer
from mamba_apps.vision import MambaVision
from mamba_apps.vision.mambavision_checkpoint import adapt_checkpoint, our_name

_MODEL = (
    "dim", "in_dim", "depths", "window_size", "mlp_ratio", "num_heads", "drop_path_rate", "in_chans", "num_classes",
    "layer_scale",
)  # fmt: skip


@family("mambavision_mixer")
def check_mixer(card: Card) -> None:
    mixer = MambaVisionMixer(**card.options("constructor", "d_model", "d_state", "d_conv", "expand"))
    mixer.load_state_dict(card.group("param."), strict=True)
    comparison = Comparison(card)
    check_run(card, comparison, mixer, mixer.get_parameter)
    comparison.finish()


@family("mambavision_*")
def check_model(card: Card) -> None:
    model = MambaVision(**_arguments(card.options("constructor", *_MODEL))).eval()
    model.load_state_dict(adapt_checkpoint(card.group("param."), model))
    comparison = Comparison(card)
    last = len(model.levels) - 1
    # The card's levels end with the convolution that leads to the next one, where ours begin with it.
    taps = {f"level{i}": model.levels[i + 1].downsample for i in range(last)}
    for name, module in {
        "patch_embed": model.stem,
        **taps,
        f"level{last}": model.levels[last],
        "norm": model.norm,
    }.items():
        module.register_forward_hook(partial(_near, card, comparison, f"feat.{name}"))
    check_run(card, comparison, model, lambda theirs: model.get_parameter(our_name(theirs)))
    comparison.finish()


@family("keys_mambavision_*")
def check_released_keys(card: Card) -> None:
    check_keys(card, card.name.removeprefix("keys_"), our_name)


def _arguments(theirs: dict[str, Any]) -> dict[str, Any]:
    """Return our constructor's arguments for the published one's, whose first two levels are convolutions."""
    ours = {"stem_dim": theirs.pop("in_dim"), "conv_depths": theirs["depths"][:2], "depths": theirs.pop("depths")[2:]}
    return {**ours, "windows": theirs.pop("window_size")[2:], "heads": theirs.pop("num_heads")[2:], **theirs}


def _near(card: Card, comparison: Comparison, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    comparison.near(name, output, **tolerance(card))
