"""What the commands that use a Lightning trainer share: a clean interrupt, the header line, saving and loading."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mamba_apps.errors import UserError
from mamba_apps.state_dicts import fitted
from mamba_apps.training.checkpoint import AtomicCheckpointIO
from mamba_apps.training.run_checkpoints import not_logged
from mamba_apps.training.saved import ModelCard, load_weights, save_model, saved_folder
from mamba_recipes.build import Built
from mamba_recipes.cli.termination import TERMINATED, end_as_ever, stop_at_once
from mamba_recipes.recipe import Recipe
from mamba_recipes.setting import data_words, device_words, parameter_words

# Whole models in another precision, which only some tasks bring their data to.
_TRUE = ("16-true", "bf16-true", "64-true")


def header(name: str, built: Built) -> None:
    """Write the header line to stderr: model, parameters, device, kernel path, data."""
    count = sum(p.numel() for p in built.model.parameters())
    device = device_words(str(built.trainer_options.get("accelerator", "auto")))
    words = [name, _label(built), parameter_words(count), device, data_words(built.data)]
    print(" · ".join(words), file=sys.stderr, flush=True)


def _label(built: Built) -> str:
    """Return what the model calls itself, or its class's name."""
    return str(getattr(built.model, "label", type(built.model).__name__))


class AtStart(Callback):
    """Does something once a training begins: its data are there, and a checkpoint that it goes on from is loaded.

    Args:
        work: What it does.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do it."""
        self._work()


class MonitorCheck(Callback):
    """Refuses a monitored metric that a rehearsed batch of validation does not log, before a long epoch is trained.

    Args:
        monitor: The metric.
    """

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what was logged; what training logs shows only later."""
        if self._monitor not in trainer.callback_metrics and not self._monitor.startswith("train"):
            raise not_logged(self._monitor, trainer.callback_metrics)


class _StopsAtOnce(Callback):
    """Lets SIGTERM end a measurement where it is, as there is nothing to save."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_at_once()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_at_once()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_at_once()


def run_interruptibly(trainer: Trainer, work: Callable[[], Any]) -> Any:
    """Call ``work``, which measures; Lightning makes a failure of an interrupt, and this makes it one again."""
    if trainer.world_size > 1:
        end_as_ever()
    trainer.callbacks.append(_StopsAtOnce())  # type: ignore[attr-defined]
    try:
        return work()
    except SystemExit as stop:
        if trainer.interrupted and stop.code != TERMINATED:
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        refuse_precision(error, trainer.precision)
        raise


def refuse_precision(error: BaseException, precision: object) -> None:
    """Raise the refusal of a precision that a model does not compute in, if that is what ``error`` tells.

    Raises:
        UserError: It does.
    """
    if isinstance(error, RuntimeError) and precision in _TRUE and re.search(r"dtype|[Ii]nput type", str(error)):
        raise UserError(f"this model does not compute in {precision}", "use bf16-mixed or 32-true") from error


def save(built: Built, recipe: Recipe, config: dict[str, Any], metrics: dict[str, float], folder: Path) -> Path:
    """Save the model in ``folder``, with the card that it gives of itself or a general one."""
    card_of = getattr(built.model, "model_card", None)
    if callable(card_of):
        card: ModelCard = card_of(built.data, metrics)
    else:
        card = ModelCard(
            task=recipe.name,
            domain=str(recipe.card["domain"]),
            model=config["model"]["class_path"],
            arguments=dict(config["model"].get("init_args") or {}),
            metrics=metrics,
        )
    return save_model(folder, built.model, card)


def load_into(model: LightningModule, source: Path) -> None:
    """Load trained weights into ``model`` from a run's folder, a saved model or a checkpoint.

    Raises:
        UserError: If there are none, they are damaged, or they belong to another model.
    """
    if source.is_dir():
        state = load_weights(saved_folder(source))
    else:
        state = AtomicCheckpointIO().load_checkpoint(source)["state_dict"]
    try:
        model.load_state_dict(state)
    except RuntimeError:
        # PyTorch's own text names every key.
        owner = f"{source}: the weights do not fit the recipe's model"
        fitted(owner, state, model.state_dict(), "name the recipe they were trained by")
        raise
