"""What the checks of whole models share: one run with its gradients, and a released checkpoint's list of keys."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from parity_cards import Card, UnsupportedCardError
from parity_compare import Comparison
from torch import Tensor, nn

# Where a model has more parameters than this, its keys are loaded without values.
_TOO_LARGE = 3e8


def tolerance(card: Card, kind: str = "") -> dict[str, float]:
    """Return the card's tolerance of outputs, or of gradients ("grad_")."""
    return {name: card.entries["expected_tolerance"][kind + name] for name in ("atol", "rtol")}


def check_run(
    card: Card, comparison: Comparison, run: Callable[[Tensor], Tensor], parameter: Callable[[str], nn.Parameter]
) -> None:
    """Compare the output and, where the card has a loss, every gradient it holds.

    ``parameter`` finds the parameter that the card calls by a name.
    """
    x = card.group("input.")["x"].requires_grad_()
    y = run(x)
    comparison.near("output", y, **tolerance(card))
    if "loss" not in card.tensors:
        return
    loss = (y * card.tensors["lossw.output"]).sum() / y.numel() ** 0.5
    comparison.near("loss", loss.reshape(1), **tolerance(card))
    loss.backward()
    comparison.near("grad.input.x", x.grad, **tolerance(card, "grad_"))
    for name in (name for name in card.expected if name.startswith("grad.param.")):
        comparison.near(name, parameter(name.removeprefix("grad.param.")).grad, **tolerance(card, "grad_"))


def check_keys(card: Card, model: str, our_name: Callable[[str], str] = str) -> None:
    """A released checkpoint's keys load into the timm model of that name, strictly, and every value arrives."""
    if not timm.is_model(model):
        raise UnsupportedCardError(f"{card.name}: unsupported model {model}")
    meta = card.entries["_meta"]["n_params"] > _TOO_LARGE
    random = torch.Generator().manual_seed(0)
    released = {
        key: torch.empty(shape, device="meta") if meta else torch.randn(shape, generator=random)
        for key, (shape, _) in card.entries["keys"].items()
    }
    with torch.device("meta" if meta else "cpu"):
        loaded = timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"state_dict": {"model": released}})
    assert sum(parameter.numel() for parameter in loaded.parameters()) == card.entries["_meta"]["n_params"]
    ours = loaded.state_dict()
    assert ours.keys() == {our_name(key) for key in released}
    for key, tensor in released.items():
        assert meta or torch.equal(ours[our_name(key)], tensor.to(ours[our_name(key)].dtype)), key
