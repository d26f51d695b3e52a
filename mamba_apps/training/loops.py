"""Lightning's training loops with safe points: the moments between two batches or two epochs when nothing is pending.

A checkpoint written at a safe point, and only there, holds a state that the unbroken run also passes through.
Lightning's own callbacks save inside a batch or a validation, and its resume then skips what had not happened yet (the
validation after the last batch, schedulers of the epoch, running means).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mamba_apps.training import accumulators
from mamba_apps.training.interrupt import StopRequestedError
from mamba_apps.training.loader import ResumableLoader
from mamba_apps.training.seeding import random_state, set_random_state
from mamba_apps.training.whole_step import WholeOptimization

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from mamba_apps.training.run_checkpoints import RunCheckpoints


class SafeFitLoop(_FitLoop):
    """The loop over epochs.

    Args:
        trainer: Its trainer.
        checkpoints: What is told of every safe point.
        min_epochs: As in Lightning.
        max_epochs: As in Lightning.
    """

    def __init__(
        self, trainer: pl.Trainer, checkpoints: RunCheckpoints, min_epochs: int | None, max_epochs: int | None
    ) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.checkpoints = checkpoints
        self.epoch_loop: SafeEpochLoop

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        position = self.checkpoints.position
        if self.epoch_loop.validation_pending or (position is not None and position["validation_pending"]):
            return False
        return super().done

    def setup_data(self) -> None:
        """Make the training loader, from the same random state in a resumed run as in the unbroken one."""
        if self._combined_loader is None:
            position = self.checkpoints.position
            if position is not None and position["epoch"] == 0:
                set_random_state(position["epoch_random"]["iterator"])
            self.checkpoints.epoch_random = {"iterator": random_state()}
        super().setup_data()

    def on_run_start(self) -> None:
        """Start the run, or put a resumed one where it was."""
        super().on_run_start()
        position = self.checkpoints.start(self.trainer)
        if position is None:
            return
        # from here on this is the unbroken run: Lightning's own handling of restarts stays out of it
        self._restarting = False
        self.epoch_loop.restarting = False
        self.checkpoints.epoch_random = position["epoch_random"]
        if position["mid_epoch"]:
            self.epoch_loop.continue_epoch(validate_first=position["validation_pending"])
            if self._combined_loader is not None and self._data_fetcher is not None:
                self._skip_batches(self._combined_loader, self._data_fetcher, position["epoch"])
        else:
            self._resuming_from_checkpoint = False  # so that the epoch begins with a new iterator, as it would have
        accumulators.restore(self.trainer, position["accumulators"])
        set_random_state(position["random"])

    def on_advance_end(self) -> None:
        """End an epoch; afterwards it is safe to save."""
        try:
            super().on_advance_end()
        except SIGTERMException:
            self.checkpoints.safe_point(self.trainer, mid_epoch=False, force=True)
            raise
        self.checkpoints.safe_point(self.trainer, mid_epoch=False)

    def on_run_end(self) -> None:
        """End the run with a last checkpoint."""
        self.checkpoints.safe_point(self.trainer, mid_epoch=False, force=True)
        super().on_run_end()

    def _skip_batches(self, combined: CombinedLoader, fetcher: _DataFetcher, epoch: int) -> None:
        """Put the training data after the completed batches of the epoch."""
        batches = self.epoch_loop.batch_progress.current.completed
        loaders = combined.flattened
        if len(loaders) == 1 and isinstance(loaders[0], ResumableLoader):
            loaders[0].skip(epoch, batches)
            return
        if all(isinstance(loader, _Stateful) for loader in loaders):
            if self._combined_loader_states_to_load:  # the loaders were made before the checkpoint's loops were read
                combined._load_state_dicts(self._combined_loader_states_to_load)
                self._combined_loader_states_to_load = []
                iter(fetcher)
            return
        # read them again, from the random states that the epoch began with
        if epoch > 0:
            set_random_state(self.checkpoints.epoch_random["iterator"])
            for loader in loaders:
                _set_sampler_epoch(loader, epoch)
            iter(fetcher)
        if batches:
            set_random_state(self.checkpoints.epoch_random["first"])
        for _ in range(batches):
            next(fetcher)
        fetcher.fetched = 0  # the epoch loop adds what was completed


class SafeEpochLoop(_TrainingEpochLoop):
    """The loop over the batches of an epoch.

    Args:
        trainer: Its trainer.
        checkpoints: What is told of every safe point.
        min_steps: As in Lightning.
        max_steps: As in Lightning.
    """

    def __init__(self, trainer: pl.Trainer, checkpoints: RunCheckpoints, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.automatic_optimization = WholeOptimization(trainer)
        self._results = accumulators.Results(training=True)
        self.checkpoints = checkpoints
        self._continuing = False
        self.validation_pending = False

    def continue_epoch(self, *, validate_first: bool) -> None:
        """Let the next epoch go on from the loaded progress instead of from its first batch."""
        self._continuing = True
        self.validation_pending = validate_first

    @property
    def done(self) -> bool:
        """Whether the epoch is over."""
        return not self.validation_pending and super().done

    def reset(self) -> None:
        """Prepare the epoch."""
        if self._continuing:
            self._continuing = False
        else:
            super().reset()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Begin the epoch's iterator and remember the random state that it begins with."""
        fit_loop = self.trainer.fit_loop
        if self.trainer.current_epoch > 0 and not fit_loop.is_resuming and not self.restarting:
            self.checkpoints.epoch_random = {"iterator": random_state()}
        super().on_run_start(data_fetcher)
        if "first" not in self.checkpoints.epoch_random:
            self.checkpoints.epoch_random["first"] = random_state()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch, unless a validation that was interrupted has to be run first."""
        if not self.validation_pending:
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate where it is due; afterwards it is safe to save, except between the batches of one step."""
        before = random_state() if self._should_check_val_fx(data_fetcher) else None
        self.validation_pending = False
        try:
            super().on_advance_end(data_fetcher)
        except StopRequestedError:
            # left the validation: the state is that of before it, but for the random generators
            self.checkpoints.save(self.trainer, mid_epoch=True, validation_pending=True, random=before)
            raise
        except SIGTERMException:
            if self._should_accumulate():
                return  # it is raised again after the next batch
            self.checkpoints.safe_point(self.trainer, mid_epoch=True, force=True)
            raise
        if not self._should_accumulate() and not self.done:
            self.checkpoints.safe_point(self.trainer, mid_epoch=True)

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        if super()._should_check_val_fx(data_fetcher):
            return True
        # the weights that a run ends with are validated too, wherever in the epoch its budget ends
        ends = _is_max_limit_reached(self.global_step, self.max_steps) or (
            self.trainer.should_stop and self.trainer.fit_loop._can_stop_early
        )
        return ends and self.trainer.enable_validation and not self._should_accumulate()
