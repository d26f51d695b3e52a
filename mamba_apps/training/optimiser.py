"""The optimiser of a backbone and its head: what decays, at which rate each layer learns, when the backbone begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import Lamb, param_groups_layer_decay
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.training.adamw import make_adamw
from mamba_apps.training.muon import Muon, hidden_weights
from mamba_apps.training.schedule import Rate, over_budget, rate_factor

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

OPTIMISERS = ("adamw", "lamb", "muon")
"""LAMB is timm's, which also clips the norm of all gradients at 1."""


def check_rates(*, lr: float, weight_decay: float, layer_decay: float, **parts: float) -> None:
    """Refuse settings that are out of range.

    Args:
        lr: Above 0.
        weight_decay: 0 or more.
        layer_decay: In (0, 1].
        **parts: Of the budget or of a target, by name, in [0, 1).

    Raises:
        UserError: One is not.
    """
    if not lr > 0:
        raise UserError(f"lr is {lr}", "give a positive learning rate")
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay is {layer_decay}", "give a number in (0, 1]; 1 gives all layers one rate")
    for name, part in parts.items():
        if not 0 <= part < 1:
            raise UserError(f"{name} is {part}", "give a number in [0, 1)")
    if weight_decay < 0:
        raise UserError(f"weight_decay is {weight_decay}", "give 0 for none, or more")


def head_of(network: nn.Module) -> nn.Module:
    """Return a network's classifier, which gives a score for each class."""
    ask = getattr(network, "get_classifier", None)
    head = ask() if callable(ask) else None
    if not isinstance(head, nn.Module):
        raise UserError(f"{type(network).__name__} does not tell its classifier", "use a model with get_classifier()")
    return head


def freeze_all_but_head(network: nn.Module) -> None:
    """Let nothing but a network's classifier learn."""
    network.requires_grad_(requires_grad=False)
    head_of(network).requires_grad_(requires_grad=True)


def make_optimiser(
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    betas: tuple[float, float],
    name: str = "adamw",
) -> tuple[torch.optim.Optimizer, list[bool]]:
    """Return the optimiser over the parameters that learn, and of each of its groups whether it is the head's.

    Vectors and what the model names in ``no_weight_decay`` do not decay; a layer's rate is ``layer_decay`` times that
    of the layer after it (BEiT, arXiv 2106.08254), by the model's own ``group_matcher``.

    Args:
        network: A timm model, or one with timm's protocol.
        lr: The head's rate.
        weight_decay: Of matrices.
        layer_decay: In (0, 1]; 1 gives all layers one rate.
        betas: Of the moments.
        name: "adamw"; "lamb" for large batches (arXiv 1904.00962); or "muon", whose steps of matrices are orthogonal,
            for as good a model in fewer of them.
    """
    head = head_of(network)
    spared: set[str] = getattr(network, "no_weight_decay", set)()
    own = {id(parameter) for parameter in head.parameters()}
    turned = {id(weight) for weight in hidden_weights(network, head)} if name == "muon" else set()
    groups: list[dict[str, Any]] = []
    for group in param_groups_layer_decay(
        network, weight_decay, no_weight_decay_list=tuple(spared), layer_decay=layer_decay
    ):
        decay, rate = group["weight_decay"], lr * group["lr_scale"]
        for parameter in group["params"]:
            kind = {"of_head": id(parameter) in own, "orthogonal": id(parameter) in turned}
            groups.append({"params": [parameter], "weight_decay": decay, "lr": rate, **kind})
    merged = merge_alike(groups)
    are_head = [group["of_head"] for group in merged]
    if name == "lamb":
        return Lamb(merged, lr=lr, betas=betas), are_head
    return make_adamw(merged, Muon if name == "muon" else torch.optim.AdamW, lr=lr, betas=betas), are_head


def merge_alike(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups of parameters, those with the same settings as one: an optimiser's step begins anew for each.

    Args:
        groups: Each with ``params`` and its settings; without parameters it is left out.
    """
    found: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        into = found.setdefault(tuple(sorted(settings.items())), {"params": [], **settings})
        into["params"] += group["params"]
    return [group for group in found.values() if group["params"]]


def head_rate(warmup: float) -> Rate:
    """Return the head's factor on its rate, over the part of the budget that is spent."""
    return lambda spent: rate_factor(spent, warmup)


def backbone_rate(warmup: float, head_warmup: float) -> Rate:
    """Return the backbone's: nothing while the head warms up, then a rise of its own to the common cosine.

    Args:
        warmup: The part of the budget in which rates rise.
        head_warmup: The part of the budget in which the head learns alone.
    """

    def factor(spent: float) -> float:
        if spent < head_warmup:
            return 0.0
        rise = min((spent - head_warmup) / warmup, 1.0) if head_warmup and warmup else 1.0
        return rise * rate_factor(spent, warmup)

    return factor


def with_rates(
    trainer: pl.Trainer,
    optimiser: torch.optim.Optimizer,
    are_head: Sequence[bool],
    *,
    warmup: float,
    head_warmup: float,
) -> OptimizerLRScheduler:
    """Return an optimiser of `make_optimiser` and each group's rate over the trainer's budget, as Lightning takes them.

    Args:
        trainer: Whose budget it is.
        optimiser: The optimiser.
        are_head: Of each of its groups, whether it is the head's.
        warmup: The part of the budget in which rates rise.
        head_warmup: The part of the budget in which the head learns alone.
    """
    head, backbone = head_rate(warmup), backbone_rate(warmup, head_warmup)
    return over_budget(trainer, optimiser, [head if is_head else backbone for is_head in are_head])
