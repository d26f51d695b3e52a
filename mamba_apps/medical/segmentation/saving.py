"""What a saved segmenter is: the network's name and options, and the plan that its input and its labels follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mamba_apps.errors import UserError
from mamba_apps.medical.unet import SegmentationNetwork
from mamba_apps.medical.zoo import build_network
from mamba_apps.training import ModelCard, load_card, load_weights, saved_folder
from mamba_datasets.volumes import Plan

TASK, DOMAIN = "segmentation", "volume"
_NETWORK = "network."
# what of a plan a trained network does not depend on
_INDIFFERENT = ("dataset", "configuration", "batch_size", "batch_dice", "median_shape", "file_ending")


def make_network(
    name: str, plan: Plan, options: Mapping[str, Any], *, deep_supervision: bool = False
) -> SegmentationNetwork:
    """Return a new network for a plan; deep supervision changes what it returns, not its weights.

    Raises:
        UserError: If there is no such network, or its options do not fit.
    """
    return build_network(
        name, plan.network, plan.in_channels, plan.num_classes, deep_supervision=deep_supervision, **options
    )


def segmenter_card(
    name: str,
    plan: Plan,
    *,
    options: Mapping[str, Any],
    overlap: float,
    mirror: bool,
    metrics: Mapping[str, float],
) -> ModelCard:
    """Return the card that stands beside a network's weights."""
    return ModelCard(
        task=TASK,
        domain=DOMAIN,
        model=name,
        arguments=dict(options),
        preprocessing={"plan": plan.to_dict(), "overlap": overlap, "mirror": mirror},
        labels=list(plan.classes),
        metrics=dict(metrics),
    )


def load_segmenter(directory: str | Path) -> tuple[SegmentationNetwork, Plan, ModelCard]:
    """Load what training saved.

    Args:
        directory: The saved model's folder, or the folder of the run.

    Returns:
        The network, ready to predict, its plan and its card.

    Raises:
        UserError: There is no such model, it is damaged, or it does not segment volumes.
    """
    folder, card = _card(directory)
    weights = load_weights(folder)
    own = {name.removeprefix(_NETWORK): value for name, value in weights.items() if name.startswith(_NETWORK)}
    try:
        plan = _plan(folder, card)
        network = make_network(card.model, plan, card.arguments)
        network.load_state_dict(own)
    except (TypeError, ValueError, RuntimeError) as error:
        text = " ".join(str(getattr(error, "message", error)).split())[:200]
        raise UserError(
            f"{folder}: the card and the weights do not fit together ({text})", "save the segmenter again"
        ) from None
    return network.eval(), plan, card


def load_plan(directory: str | Path) -> Plan:
    """Return the plan of a saved model.

    Args:
        directory: The saved model's folder, or the folder of the run.

    Raises:
        UserError: There is no such model, or it does not segment volumes.
        DataError: The plan on its card is damaged.
    """
    return _plan(*_card(directory))


def _card(directory: str | Path) -> tuple[Path, ModelCard]:
    folder = saved_folder(directory)
    card = load_card(folder)
    if (card.task, card.domain) != (TASK, DOMAIN):
        raise UserError(f"{folder} holds a model for {card.task} of {card.domain}", "give a segmenter of volumes")
    return folder, card


def _plan(folder: Path, card: ModelCard) -> Plan:
    return Plan.from_dict(card.preprocessing.get("plan", {}), folder / "model.json")


def plan_digest(plan: Plan) -> bytes:
    """Return 32 bytes that tell plans apart by what a network's input, shape and labels depend on."""
    content = {name: value for name, value in plan.to_dict().items() if name not in _INDIFFERENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
