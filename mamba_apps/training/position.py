"""Where a run is: what its checkpoints tell beside weights and optimisers, so that it goes on as the unbroken one.

Several processes write one checkpoint, and each has random generators and running means of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from torch import distributed

from mamba_apps.errors import UserError
from mamba_apps.training.seeding import random_state

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Position(TypedDict):
    """A place in a run, as one of its processes sees it.

    Args:
        mid_epoch: Whether it lies between two batches rather than two epochs.
        validation_pending: Whether the validation after the last batch has still to be run.
        epoch: The number of the running epoch, from 0.
        random: The random state to go on with; see `random_state`.
        epoch_random: Those with which the epoch made its iterator ("iterator") and drew its first batch ("first").
        accumulators: The epoch's running means; see `accumulators.collect`.
    """

    mid_epoch: bool
    validation_pending: bool
    epoch: int
    random: dict[str, Any]
    epoch_random: dict[str, Any]
    accumulators: dict[str, Any]


def position_of(
    trainer: pl.Trainer,
    *,
    mid_epoch: bool,
    epoch_random: dict[str, Any],
    accumulators: dict[str, Any],
    validation_pending: bool = False,
    random: dict[str, Any] | None = None,
) -> Position:
    """Return where a run is; ``random`` is the present state where it is None."""
    return Position(
        mid_epoch=mid_epoch,
        validation_pending=validation_pending,
        epoch=trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        random=random_state() if random is None else random,
        epoch_random=epoch_random,
        accumulators=accumulators,
    )


def of_all_processes(position: Position) -> list[Position]:
    """Collect the positions of all processes, in the order of their ranks."""
    if not _is_distributed():
        return [position]
    positions: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(positions, position)
    return positions


def of_this_process(positions: Sequence[Position]) -> Position:
    """Return this process's position of all.

    Raises:
        UserError: There are more or fewer processes now.
    """
    processes = distributed.get_world_size() if _is_distributed() else 1
    if len(positions) != processes:
        raise UserError(
            f"the run was saved by {len(positions)} processes and is resumed by {processes}",
            f"resume it with as many devices, {len(positions)}",
        )
    return positions[distributed.get_rank() if _is_distributed() else 0]


def counts(trainer: pl.Trainer) -> tuple[int, ...]:
    """Return what tells one safe point from another: completed steps, batches and epochs."""
    loop = trainer.fit_loop
    return (trainer.global_step, loop.epoch_loop.batch_progress.total.completed, loop.epoch_progress.total.completed)


def rewind(progress: Any) -> None:
    """Take loops' progress, as a checkpoint holds it, back to before the batch that is being trained on."""
    for key, value in progress.items():
        # the running epoch has begun, and stays so
        if isinstance(value, dict) and key != "epoch_progress":
            rewind(value)
    if "completed" in progress:
        progress.update({key: progress["completed"] for key in ("ready", "started", "processed") if key in progress})
    if "is_last_batch" in progress:
        progress["is_last_batch"] = False


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
