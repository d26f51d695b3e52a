"""An nnU-Net dataset for training, validation and test: planned and prepared when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from mamba_apps.errors import UserError, no_data
from mamba_apps.medical.segmentation.augment import Augmentation
from mamba_apps.medical.segmentation.patches import Patches
from mamba_apps.medical.segmentation.saving import load_plan
from mamba_apps.training import ResumableLoader
from mamba_datasets.cores import usable_cores
from mamba_datasets.errors import DataError
from mamba_datasets.volumes import Plan, Prepared, RawDataset, Volume, folds, preprocess, read_folds
from mamba_datasets.volumes.fingerprints import fingerprint
from mamba_datasets.volumes.json_files import read_json
from mamba_datasets.volumes.planning import make_plan

CACHE = ".mamba-apps"
_MOST_WORKERS = 8


class VolumeData(pl.LightningDataModule):
    """Volumes in nnU-Net's raw layout (dataset.json, imagesTr, labelsTr), one fold of them held out.

    The held-out cases are those whose place in the sorted names leaves the rest ``fold`` when it is divided by
    ``folds``. They are validation and test at once: nothing is chosen by them as long as the trainer monitors nothing.

    Args:
        root: The folder.
        fold: Which of the folds is held out; None holds none out, and there is no validation or test.
        folds: How many there are.
        splits: A file of folds that were dealt elsewhere, such as nnU-Net's splits_final.json, in place of ``folds``.
        plan: A plan that was written as JSON, the folder of a model or run that has one, or nnU-Net v2's plans.json;
            None makes one from the data.
        configuration: Which configuration of nnU-Net's plans.
        dim: The axes that the network sees, where the plan is made here: 3, or 2 for slices and flat pictures; None
            takes what the data has.
        memory_gib: The GPU memory for which it is made.
        cache: The folder of prepared cases; None takes .mamba-apps within ``root``.
        leave_out: The list of broken files that `mamba-apps check` wrote; None leaves out none.
        batch_size: Patches a step; None takes the plan's.
        steps: Steps an epoch has.
        foreground: The part of a batch that is centred on a labelled voxel.
        augment: Whether to rotate, scale and change the values of patches.
        mirror: Whether to mirror them, along every axis.
        workers: Processes that cut and augment patches; None takes one a core, at most 8.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        fold: int | None = 0,
        folds: int = 5,
        splits: str | None = None,
        plan: str | None = None,
        configuration: str = "3d_fullres",
        dim: int | None = None,
        memory_gib: float = 8.0,
        cache: str | None = None,
        leave_out: str | None = None,
        batch_size: int | None = None,
        steps: int = 250,
        foreground: float = 1 / 3,
        augment: bool = True,
        mirror: bool = True,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if dim not in (None, 2, 3):
            raise UserError(f"dim is {dim}", "give 3 for volumes, or 2 for slices and pictures")
        if folds < 2 or (fold is not None and (fold < 0 or (splits is None and fold >= folds))):
            raise UserError(f"fold is {fold} of {folds}", f"give 0 to {max(folds, 2) - 1}, or null to train on all")
        for name, count in (("batch_size", batch_size), ("steps", steps)):
            if count is not None and count < 1:
                raise UserError(f"{name} is {count}", "give at least 1")
        if not memory_gib > 0:
            raise UserError(f"memory_gib is {memory_gib}", "give the GiB of GPU memory to plan for")
        if not 0 <= foreground <= 1:
            raise UserError(f"foreground is {foreground}", "give a part of a batch, in [0, 1]")
        if workers is not None and workers < 0:
            raise UserError(f"workers is {workers}", "give 0 or more")
        self.root, self.fold, self.folds, self.splits, self.leave_out = root, fold, folds, splits, leave_out
        self.plan_path, self.configuration, self.dim, self.memory_gib = plan, configuration, dim, memory_gib
        self.cache = Path(root or ".", CACHE) if cache is None else Path(cache)
        self._batch_size, self.steps, self.foreground = batch_size, steps, foreground
        self.augment, self.mirror = augment, mirror
        self.workers = min(usable_cores(), _MOST_WORKERS) if workers is None else workers

    @cached_property
    def dataset(self) -> RawDataset:
        """The files."""
        if self.root is None:
            raise no_data("volumes", "name their folder: --data.root DIR, in nnU-Net's raw layout")
        return RawDataset(self.root, leave_out=self.leave_out)

    @cached_property
    def plan(self) -> Plan:
        """How volumes are prepared and what the network looks like."""
        if self.plan_path is None:
            dataset = self.dataset
            with self._caching():
                looked_at = fingerprint(dataset, self.cache)
            return make_plan(looked_at, self.memory_gib, self.dim)
        path = Path(self.plan_path)
        if path.is_dir():
            plan = load_plan(path)
        elif "configurations" in read_json(path, "give a plan that was written here, or nnU-Net v2's plans.json"):
            plan = Plan.from_nnunet(path, self.configuration, Path(self.root or ".", "dataset.json"))
        else:
            plan = Plan.from_json(path)
        for what, planned, found in (
            ("labels", plan.labels, self.dataset.labels),
            ("channels", plan.channel_names, self.dataset.channel_names),
        ):
            if planned != found:
                raise UserError(
                    f"{path} was made for the {what} {planned}, the data has {found}", "give the data's plan"
                )
        return plan

    @property
    def batch_size(self) -> int:
        """Patches a step."""
        return self._batch_size or self.plan.batch_size

    @cached_property
    def prepared(self) -> Prepared:
        """All cases as the network takes them; each is prepared once."""
        plan = self.plan
        with self._caching():
            return preprocess(self.dataset, plan, self.cache)

    @contextmanager
    def _caching(self) -> Iterator[None]:
        """Where the folder of prepared cases is refused, name the setting that chooses another."""
        try:
            yield
        except DataError as error:
            if not Path(error.path).is_relative_to(self.cache):
                raise
            remedy = f"{error.remedy}: --data.cache DIR"
            raise DataError(error.path, "folder of prepared cases", error.expected, remedy) from None

    @cached_property
    def split(self) -> tuple[list[str], list[str]]:
        """The names of the cases to train on, and of those that are held out."""
        names = [case.name for case in self.dataset.cases]
        if self.fold is None:
            return names, []
        if self.splits is None:
            return folds(names, self.folds)[self.fold]
        dealt = read_folds(self.splits, names, lacking=self.leave_out is not None)
        if self.fold >= len(dealt):
            what = f"fold is {self.fold}, {self.splits} has {len(dealt)}"
            raise UserError(what, f"give 0 to {len(dealt) - 1}, or null to train on all")
        return dealt[self.fold]

    @property
    def held_out(self) -> list[str]:
        """The names of the cases that are held out."""
        return self.split[1]

    def held_out_arrays(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (C, ...) and the labels (...) of a case as the network takes them, mapped from the disk."""
        prepared = self.prepared[case]
        return prepared.image, prepared.label

    def held_out_files(self, case: str) -> tuple[Volume, Volume]:
        """Return the image and the label of a case as their files have them."""
        image, label = self.dataset.read(self.dataset[case])
        if label is None:
            raise UserError(f"{self.root}: {case} has no label", "add it to labelsTr, or leave out the image")
        return image, label

    def describe(self) -> str:
        """Return one line on the data."""
        trained, held_out = self.split
        patch = " x ".join(map(str, self.plan.network.patch_size))
        return (
            f"{self.dataset.name}: {len(trained)} cases to train on, {len(held_out)} held out, "
            f"{len(self.plan.classes) - 1} labels, patch {patch}, batch {self.batch_size}"
        )

    def setup(self, stage: str) -> None:
        """Prepare the cases where training or validation asks for them; several processes share the work."""
        if stage in ("fit", "validate"):
            _ = self.prepared

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches (B, C, ...) and (B, ...) of an epoch, which follow the seed."""
        patch = self.plan.network.patch_size
        augmentation = Augmentation(
            patch,
            mirror=range(len(patch)) if self.mirror else (),
            resample=self.augment,
            intensity=self.augment,
        )
        patches = Patches(
            self.prepared.only(self.split[0]),
            patch,
            self.steps * self.batch_size,
            foreground=self.foreground,
            augmentation=augmentation,
        )
        return ResumableLoader(
            patches,
            self.batch_size,
            shuffle=False,
            seed=torch.initial_seed() % 2**32,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the numbers of the held-out cases."""
        return DataLoader(range(len(self.held_out)))  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the numbers of the held-out cases.

        Raises:
            UserError: If none is held out.
        """
        if not self.held_out:
            raise UserError("every case was trained on: none is held out", "give --data.fold 0 for one fifth of them")
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the numbers of the held-out cases."""
        return self.test_dataloader()
