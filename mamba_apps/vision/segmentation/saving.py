"""What a saved segmenter is: the network's arguments, how pictures are read for it, and its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard, load_card, load_weights, saved_folder
from mamba_apps.vision.segmentation.network import Segmenter

TASK, DOMAIN = "segmentation", "image"
_NETWORK = "network."


def segmenter_card(
    network: Segmenter,
    labels: Sequence[str],
    *,
    overlap: float,
    short_side: int | None,
    metrics: Mapping[str, float],
) -> ModelCard:
    """Return the card that stands beside a network's weights."""
    return ModelCard(
        task=TASK,
        domain=DOMAIN,
        model=network.backbone.name,
        arguments={
            "classes": network.classes,
            "window": list(network.window),
            "width": network.width,
            "auxiliary": network.auxiliary is not None,
            "backbone_options": network.backbone.options,
        },
        preprocessing={"overlap": overlap, "short_side": short_side},
        labels=list(labels),
        metrics=dict(metrics),
    )


def load_segmenter(directory: str | Path) -> tuple[Segmenter, ModelCard]:
    """Load what training saved.

    Args:
        directory: The saved model's folder, or the folder of the run.

    Returns:
        The network, ready to predict, and its card.

    Raises:
        UserError: There is no such model, it is damaged, or it does not segment images.
    """
    directory = saved_folder(directory)
    card = load_card(directory)
    if (card.task, card.domain) != (TASK, DOMAIN):
        raise UserError(f"{directory} holds a model for {card.task} of {card.domain}", "give a segmenter of images")
    weights = load_weights(directory)
    try:
        arguments = {**card.arguments, "window": tuple(card.arguments["window"])}
        network = Segmenter(card.model, **arguments)
        network.load_state_dict({name.removeprefix(_NETWORK): value for name, value in weights.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        text = " ".join(str(getattr(error, "message", error)).split())[:200]
        raise UserError(
            f"{directory}: the card and the weights do not fit together ({text})", "save the segmenter again"
        ) from None
    return network.eval(), card
