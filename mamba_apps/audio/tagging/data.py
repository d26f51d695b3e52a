"""Labelled sounds for training, validation and test: opened, divided, cut to clips, in memory or from the disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from mamba_apps.audio.filterbank import STATISTICS
from mamba_apps.audio.tagging.loading import BalancedDraw, ClipNumbers, CutClips, joined
from mamba_apps.audio.tagging.parts import divide
from mamba_apps.audio.tagging.policy import ClipPolicy, SoundBatch
from mamba_apps.audio.tagging.statistics import MOST_SECONDS, measure_seconds, measure_statistics
from mamba_apps.audio.tagging.store import ClipStore
from mamba_apps.errors import UserError, no_data
from mamba_apps.training import ResumableLoader
from mamba_datasets.audio import ClipSet, open_clips

_log = logging.getLogger(__name__)

Long = Literal["windows", "middle", "start"]
Short = Literal["silence", "repeat"]


class AudioData(pl.LightningDataModule):
    """Labelled sounds, from folders, a table, or a published set's own layout.

    A broken sound stops the run with its path. Sounds of another rate are resampled, and the log says so.

    Args:
        root: The folder; or the name of a sample, "sounds".
        layout: "folder" for a folder a class (in folders of splits or not); "table" for a CSV of paths and labels;
            "speech_commands", "esc50", "fsdd" or "audioset" for these sets as they are published; None tells it from
            what is there.
        options: Further arguments of the layout, such as {"multilabel": true} of a table's; `mamba_datasets.audio` has
            them.
        val: The validation part: the name of a split; or a number in (0, 1), that part of the training sounds held
            back, of each class alike and always the same ones, where the set has no validation part of its own; None
            for its own or none.
        test: The test part, likewise.
        fold: Instead of ``test``, the fold to be tested, the others being trained on; "seed" takes the first fold with
            seed 1, the next with seed 2, so that a comparison over as many seeds as folds is the cross-validation.
        leave_out: A list of broken files to leave out, as `mamba-apps check` writes it.
        rate: Samples a second that models hear.
        seconds: What they hear at once; None takes the length that 19 of 20 training sounds do not exceed, at most
            10.24. In training longer sounds are cut at random.
        long: What is heard of longer sounds otherwise: "windows", as many as cover them, whose probabilities are
            averaged; "middle" or "start", one window.
        short: Shorter sounds are followed by "silence", or "repeat" themselves.
        channel: "mean" of the channels, or the number of one of them, from 0.
        statistics: Mean and standard deviation of the log mel energies, by which spectrograms are normalised; or a
            published set's name, "audioset", "vggsound", "voxceleb" or "speech_commands"; None measures the training
            sounds.
        balanced: Whether each class is drawn as often as any other; an epoch then has as many draws as there are
            sounds.
        batch_size: Sounds a training batch, on each device; a rest that fills none is left out of the epoch.
        eval_batch_size: Sounds a batch of validation and test.
        workers: Processes that read sounds from the disk; unused with ``in_memory``.
        in_memory: Whether all sounds are decoded once and kept, on the GPU where they leave it free enough, so that a
            small model never waits for them.
        memory_gib: How much memory each part of them may take.

    Raises:
        UserError: If a setting is out of range.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        layout: str | None = None,
        options: dict[str, Any] | None = None,
        val: float | str | None = None,
        test: float | str | None = None,
        fold: int | Literal["seed"] | None = None,
        leave_out: str | None = None,
        rate: int = 16000,
        seconds: float | None = None,
        long: Long = "windows",
        short: Short = "silence",
        channel: int | Literal["mean"] = "mean",
        statistics: tuple[float, float] | str | None = None,
        balanced: bool = False,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        workers: int = 4,
        in_memory: bool = True,
        memory_gib: float = 8.0,
    ) -> None:
        super().__init__()
        for name, count in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if count < 1:
                raise UserError(f"{name} is {count}", "give at least 1")
        if workers < 0:
            raise UserError(f"workers is {workers}", "give 0 or more")
        if isinstance(statistics, str) and statistics not in STATISTICS:
            raise UserError(
                f"statistics is {statistics!r}", f"give two numbers, none to measure, or {', '.join(STATISTICS)}"
            )
        self.root, self.layout = root, layout
        self.val_part, self.test_part, self.fold = val, test, fold
        # refuses what is out of range
        self._given = ClipPolicy(rate, MOST_SECONDS if seconds is None else seconds, long, short)
        self._measures_length = seconds is None
        self.channel, self.balanced = channel, balanced
        self.options = {**({} if leave_out is None else {"leave_out": leave_out}), **(options or {})}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.in_memory, self.memory_gib = workers, in_memory, memory_gib
        self._statistics = statistics
        self._seed = torch.initial_seed()
        self._stores: dict[str, ClipStore] = {}
        self._measured: dict[int, tuple[float, float]] = {}

    @cached_property
    def parts(self) -> dict[str, ClipSet]:
        """The clips of "train" and, where there are any, "val" and "test"."""
        fold = self.fold
        if fold == "seed":
            known = sorted(set(self._source.folds or ()))
            if not known:
                raise UserError(f"{self.root}: fold is 'seed', but its sounds are in no folds", "give val and test")
            fold = known[(self._seed - 1) % len(known)]
        return divide(self._source, self.val_part, self.test_part, fold)

    @cached_property
    def policy(self) -> ClipPolicy:
        """What models hear of a sound."""
        if not self._measures_length:
            return self._given
        return replace(self._given, seconds=measure_seconds(self.parts["train"]))

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes in the order of their numbers."""
        return self._source.classes

    @property
    def multilabel(self) -> bool:
        """Whether a sound may have several classes, or none."""
        return self._source.multilabel

    def statistics(self, mels: int = 128) -> tuple[float, float]:
        """Return mean and standard deviation of the log mel energies of the training sounds, in so many bands."""
        if isinstance(self._statistics, str):
            return STATISTICS[self._statistics]
        if self._statistics is not None:
            return self._statistics
        if mels not in self._measured:
            self._measured[mels] = measure_statistics(self.parts["train"], self.policy, mels)
        return self._measured[mels]

    def describe(self) -> str:
        """Return one line on the data."""
        name, count = Path(str(self.root)).resolve().name, len(self.parts["train"])
        heard = f"{self.policy.seconds:g} s at {self.policy.rate} Hz"
        return f"{name}: {count:,} training sounds, {len(self.classes)} classes, {heard}"

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, in an order that follows the run's seed and can be resumed anywhere."""
        clips = self.parts["train"]
        draw = BalancedDraw(clips) if self.balanced else None
        # Lightning asks for them once the run is seeded: all models of one seed hear the same sounds in one order.
        return ResumableLoader(
            self._dataset("train", random=True, draw=draw),
            min(self.batch_size, len(clips)),
            shuffle=True,
            seed=torch.initial_seed() % 2**32,
            drop_last=True,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation batches; none where there is no validation part."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test batches; none where there is no test part."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test batches."""
        return self._evaluation("test")

    def predicted_names(self) -> list[str]:
        """Return the names of the sounds that `predict_dataloader` gives, in its order."""
        return [place.name for place in self.parts["test"].places] if "test" in self.parts else []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> SoundBatch:
        """Cut the windows of sounds that are kept in memory, on the device."""
        if isinstance(batch, SoundBatch):
            return batch
        (part, random), index_N, targets_N = batch
        store = self._store(part)
        store.move_to(targets_N.device)
        if random:
            wave_BS, lengths_B = store.random_windows(index_N, self.policy)
            clip_B = torch.arange(len(wave_BS), device=wave_BS.device)
        else:
            wave_BS, lengths_B, clip_B = store.all_windows(index_N, self.policy)
        device = targets_N.device
        return SoundBatch(wave_BS.to(device), lengths_B.to(device), targets_N, clip_B.to(device))

    @cached_property
    def _source(self) -> ClipSet:
        if self.root is None:
            raise no_data("sounds", "name their folder: --data.root DIR (a folder a class)")
        clips = open_clips(self.root, rate=self._given.rate, layout=self.layout, channel=self.channel, **self.options)
        for note in clips.notes:
            _log.warning("%s: %s", self.root, note)
        return clips

    def _evaluation(self, part: str) -> DataLoader[Any] | list[Any]:
        if part not in self.parts:
            return []
        return DataLoader(self._dataset(part, random=False), batch_size=self.eval_batch_size, **self._loading())

    def _dataset(self, part: str, *, random: bool, draw: Any = None) -> Dataset[Any]:
        if self.in_memory:
            self._store(part)
            return ClipNumbers((part, random), self.parts[part].labels, draw)
        return CutClips(self.parts[part], self.policy, random=random, draw=draw)

    def _store(self, part: str) -> ClipStore:
        if part not in self._stores:
            self._stores[part] = ClipStore(self.parts[part], self.memory_gib)
        return self._stores[part]

    def _loading(self) -> dict[str, Any]:
        pin = torch.cuda.is_available()
        if self.in_memory:
            return {"collate_fn": joined, "pin_memory": pin}
        workers = self.workers
        return {"collate_fn": joined, "num_workers": workers, "persistent_workers": workers > 0, "pin_memory": pin}
