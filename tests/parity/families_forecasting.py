"""Published forecasters against their reference code, through the state-dict adapters."""

from __future__ import annotations

from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from parity_families import family

from mamba_apps.forecasting.models.adapters import from_reference, our_names

_CLASSES = {
    "S-D-Mamba model.S_Mamba.Model": "smamba",
    "iTransformer model.iTransformer.Model": "itransformer",
    "TSLib models.PatchTST.Model": "patchtst",
    "TSLib models.DLinear.Model": "dlinear",
    "TSLib models.MambaSimple.Model": "mambasimple",
    "TimeMachine models.TimeMachine.Model": "timemachine",
}


@family("smamba_*", "itransformer_*", "patchtst_*", "dlinear*", "timemachine_*", "tslib_mambasimple*")
def check_forecaster(card: Card) -> None:
    if card.kind not in _CLASSES:
        raise UnsupportedCardError(f"{card.name}: unsupported model {card.kind!r}")
    name = _CLASSES[card.kind]
    model = from_reference(name, card.entries["args"], card.group("param.") | card.group("buffer.")).eval()
    inputs = {key: x.requires_grad_() for key, x in card.group("input.").items()}
    unknown = sorted(set(inputs) - {"x", "x_enc", "x_mark_enc"})
    if unknown:
        raise UnsupportedCardError(f"{card.name}: unsupported input {', '.join(unknown)}")
    comparison = Comparison(card)
    tolerance = card.entries["tolerance"]
    y_BHC = model(*inputs.values())
    comparison.near("output.y", y_BHC, **tolerance["fp32_forward"])
    if "cotangent.y" in card.tensors:
        y_BHC.backward(card.tensors["cotangent.y"])
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        comparison.near_all("grad.", gradients, lambda theirs: our_names(name, theirs), **tolerance["fp32_grad"])
        for key, x in inputs.items():
            if f"grad_input.{key}" in card.tensors:
                comparison.near(f"grad_input.{key}", x.grad, **tolerance["fp32_grad"])
    comparison.finish()
