"""MambaVision, whole and its mixer alone, against the published code's numbers, through the adapter of its weights."""

from __future__ import annotations

from typing import Any

from parity_cards import Card
from parity_compare import Comparison
from parity_families import family
from torch import Tensor, nn

from mamba_apps.mixers import MambaVisionMixer
from mamba_apps.vision import MambaVision
from mamba_apps.vision.mambavision import adapt, our_name

_MODEL = (
    "dim", "in_dim", "depths", "window_size", "mlp_ratio", "num_heads", "drop_path_rate", "in_chans", "num_classes",
    "layer_scale",
)  # fmt: skip


@family("mambavision_mixer")
def check_mixer(card: Card) -> None:
    mixer = MambaVisionMixer(**card.options("constructor", "d_model", "d_state", "d_conv", "expand"))
    mixer.load_state_dict(card.group("param."), strict=True)
    comparison = Comparison(card)
    _check(card, comparison, mixer, {name: name for name, _ in mixer.named_parameters()})
    comparison.finish()


@family("mambavision_*")
def check_model(card: Card) -> None:
    model = MambaVision(**_arguments(card.options("constructor", *_MODEL))).eval()
    model.load_state_dict(adapt(card.group("param."), model))
    comparison = Comparison(card)
    # The card's levels end with the convolution that leads to the next one, where ours begin with it.
    taps: dict[str, nn.Module] = {"patch_embed": model.stem, "norm": model.norm}
    for i in range(len(model.levels) - 1):
        taps[f"level{i}"] = model.levels[i + 1].downsample
    taps[f"level{len(model.levels) - 1}"] = model.levels[-1]
    for name, module in taps.items():
        module.register_forward_hook(_near(comparison, f"feat.{name}", card))
    wanted = [name.removeprefix("grad.param.") for name in card.expected if name.startswith("grad.param.")]
    _check(card, comparison, model, {name: our_name(name) for name in wanted})
    comparison.finish()


def _arguments(theirs: dict[str, Any]) -> dict[str, Any]:
    """Return our constructor's arguments for the published one's, whose first two levels are convolutions."""
    ours = {"stem_dim": theirs.pop("in_dim"), "conv_depths": theirs["depths"][:2], "depths": theirs.pop("depths")[2:]}
    return {**ours, "windows": theirs.pop("window_size")[2:], "heads": theirs.pop("num_heads")[2:], **theirs}


def _near(comparison: Comparison, name: str, card: Card) -> Any:
    def compare(module: nn.Module, inputs: Any, output: Tensor) -> None:
        comparison.near(name, output, **_tolerance(card, ""))

    return compare


def _check(card: Card, comparison: Comparison, module: nn.Module, names: dict[str, str]) -> None:
    """Compare the output and, where the card has a loss, gradients; ``names`` has the parameters', theirs to ours."""
    x = card.group("input.")["x"].requires_grad_()
    y = module(x)
    comparison.near("output", y, **_tolerance(card, ""))
    if "loss" not in card.tensors:
        return
    loss = (y * card.tensors["lossw.output"]).sum() / y.numel() ** 0.5
    comparison.near("loss", loss.reshape(1), **_tolerance(card, ""))
    loss.backward()
    comparison.near("grad.input.x", x.grad, **_tolerance(card, "grad_"))
    for theirs, ours in names.items():
        comparison.near(f"grad.param.{theirs}", module.get_parameter(ours).grad, **_tolerance(card, "grad_"))


def _tolerance(card: Card, kind: str) -> dict[str, float]:
    return {name: card.entries["expected_tolerance"][kind + name] for name in ("atol", "rtol")}
