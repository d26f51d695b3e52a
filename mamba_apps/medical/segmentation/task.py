"""Training a segmenter of volumes as nnU-Net does, and scoring its masks on the files as they came.

Dimensions in names: B batch, K classes, z, y, x the axes in the plan's order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.medical.segmentation.data import VolumeData
from mamba_apps.medical.segmentation.losses import NOBODY, supervised_loss
from mamba_apps.medical.segmentation.optimiser import POWER, check_optimiser, make_optimiser
from mamba_apps.medical.segmentation.predictor import Predictor
from mamba_apps.medical.segmentation.results import Results
from mamba_apps.medical.segmentation.saving import make_network, plan_digest, segmenter_card
from mamba_apps.medical.segmentation.scores import TOLERANCE
from mamba_apps.medical.segmentation.sliding import OVERLAP
from mamba_apps.training import ModelCard
from mamba_apps.training.curve import CurvePanel, learning_curve
from mamba_apps.training.outputs import output_folder
from mamba_apps.training.schedule import over_budget, poly_factor
from mamba_datasets.volumes import Plan, Volume


class VolumeSegmentationTask(pl.LightningModule):
    """A network with its loss and optimiser; it is made when the plan is known.

    Training reads patches. Validation reads the held-out cases whole, by sliding windows, on the plan's grid; the test
    does so too, with mirroring, and scores the masks on the grid of the files.

    Args:
        network: A name that `mamba_apps.medical.zoo.build_network` knows, such as "umamba_enc".
        network_options: Its further options.
        deep_supervision: Whether coarser outputs are learned from too.
        dice: Weight of the Dice loss beside the cross-entropy.
        optimiser: "sgd" (Nesterov, momentum 0.99) or "adamw".
        lr: The highest learning rate; it falls to 0 as the 0.9th power of the budget that is left.
        warmup: The part of the budget in which the rate rises first.
        weight_decay: Of matrices and kernels.
        overlap: The part of a window that the next one covers again.
        mirror: Whether the test averages over mirrored windows, where training mirrors too.
        tolerance: Up to which distance in mm surfaces agree, for the normalised surface Dice.
        scores: Where the test's table, page and pictures go: True for scores/ in the trainer's folder, a folder, or
            None for none.
        compile: Whether torch compiles the network.

    Raises:
        UserError: If a number is out of range or the optimiser is unknown.
    """

    plan_digest: Tensor

    def __init__(
        self,
        network: str = "umamba_enc",
        *,
        network_options: dict[str, Any] | None = None,
        deep_supervision: bool = True,
        dice: float = 1.0,
        optimiser: str = "sgd",
        lr: float = 0.01,
        warmup: float = 0.0,
        weight_decay: float = 3e-5,
        overlap: float = OVERLAP,
        mirror: bool = True,
        tolerance: float = TOLERANCE,
        scores: str | bool | None = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise UserError(f"lr is {lr}", "give a positive learning rate")
        for name, value in (("warmup", warmup), ("overlap", overlap)):
            if not 0 <= value < 1:
                raise UserError(f"{name} is {value}", "give a part in [0, 1)")
        for name, value in (("dice", dice), ("weight_decay", weight_decay), ("tolerance", tolerance)):
            if not value >= 0:
                raise UserError(f"{name} is {value}", "give 0 or more")
        check_optimiser(optimiser)
        self.label, self.network_options, self.deep_supervision = network, dict(network_options or {}), deep_supervision
        self.dice, self.overlap, self.mirror, self.tolerance = dice, overlap, mirror, tolerance
        self.optimiser, self.lr, self.warmup, self.weight_decay = optimiser, lr, warmup, weight_decay
        self.scores, self.compiled = scores, compile
        self.plan: Plan | None = None
        self.network: nn.Module
        self.register_buffer("plan_digest", torch.zeros(32, dtype=torch.uint8))
        self._overlaps: list[Tensor] = []
        self._curve: list[tuple[float, float]] = []

    def prepare_for(self, data: VolumeData) -> None:
        """Make the network for the data's plan, or check that it was made for it.

        Raises:
            UserError: If it was made for another, or the network cannot be made.
            DataError: If the data cannot be planned.
        """
        if self.plan is None:
            self.plan = data.plan
            self.network = make_network(
                self.label, self.plan, self.network_options, deep_supervision=self.deep_supervision
            )
            self.plan_digest.copy_(torch.tensor(list(plan_digest(self.plan)), dtype=torch.uint8))
        elif self.plan != data.plan:
            raise UserError("the network was made for another plan", "give the data it was made for, or its plan")

    def configure_model(self) -> None:
        """Make the network before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, VolumeData):
            self.prepare_for(data)
        elif self.plan is None:
            raise UserError("the plan is not known", "train with VolumeData")
        if self.compiled:
            self.network.compile()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, unless they were trained with another plan.

        Raises:
            UserError: If they were.
        """
        found = state_dict.get("plan_digest")
        if found is not None and not torch.equal(found.cpu(), self.plan_digest.cpu()):
            raise UserError(
                "the model was trained with another plan than this data has",
                "give the data it was trained on, or its own plan, with --data.plan and the folder of its run",
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def forward(self, patches: Tensor) -> Tensor | list[Tensor]:
        """Return the scores (B, K, ...) of patches (B, C, ...), with deep supervision a list, the finest first."""
        return self.network(patches)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of patches."""
        patches, labels = batch
        loss = supervised_loss(
            self(patches),
            labels.long(),
            over_batch=self._plan.batch_dice,
            dice=self.dice,
            ignored=self._ignored,
        )
        self.log("train/loss", loss, batch_size=len(patches))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the cases of an earlier validation."""
        self._overlaps = []

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Count, on the plan's grid, how a held-out case's mask overlaps its truth."""
        image, label = self._data.held_out_arrays(self._data.held_out[int(batch)])
        counts = torch.zeros(3, self._plan.num_classes, dtype=torch.int64, device=self.device)
        first = 0
        for scores in self._predictor(mirror=False).scores(image):
            found = scores.argmax(dim=0)
            truth = torch.from_numpy(label[first : first + found.shape[0]].astype(np.int64)).to(found.device)
            first += found.shape[0]
            known = truth != self._ignored
            for row, values in enumerate((found[known], truth[known], truth[known & (found == truth)])):
                counts[row] += torch.bincount(values, minlength=counts.shape[1]).to(self.device)
        self._overlaps.append(counts)

    def on_validation_epoch_end(self) -> None:
        """Log val/dice and val/dice_<label>, means over the cases that have the label."""
        if not self._overlaps:
            return
        found_NK, truth_NK, both_NK = torch.stack(self._overlaps, dim=1)[..., 1:].double()
        dice_NK = 2 * both_NK / (found_NK + truth_NK)  # NaN where a label is in neither
        means = dict(zip(self._plan.classes[1:], dice_NK.nanmean(dim=0), strict=True))
        known = {label: value for label, value in means.items() if not value.isnan()}
        for label, value in known.items():
            self.log(f"val/dice_{label}", value.float(), sync_dist=True)
        if known:
            mean = torch.stack(list(known.values())).mean().float()
            self.log("val/dice", mean, sync_dist=True, prog_bar=True)
            if self.trainer.state.fn == "fit":
                self._curve.append((self.trainer.global_step, float(mean)))

    def on_test_epoch_start(self) -> None:
        """Forget the cases of an earlier test, and refuse a folder for scores that they could not be written to.

        Raises:
            UserError: If it is none.
        """
        self._results = Results(self._plan, self.tolerance)
        self._folder = output_folder(self.trainer, "scores", self.scores)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Score a held-out case on the grid of its files."""
        case = self._data.held_out[int(batch)]
        image, truth = self._data.held_out_files(case)
        self._results.add(case, self._test_predictor().segment(image), truth)

    def on_test_epoch_end(self) -> None:
        """Log the means of Dice, NSD and HD95, and write the table and the page."""
        if self.trainer.world_size > 1:
            self._results.gather()
        for name, value in self._results.means().items():
            self.log(f"test/{name}", value, sync_dist=True)
        if self._folder is not None:
            facts = [self._data.describe(), f"network {self.label}, {self._plan.configuration}"]
            written = self._results.write(self._folder, f"{self.label} on {self._plan.dataset}", facts, self._look)
            print(f"scores: {written[0]}\npage:   {written[-1]}", file=sys.stderr)

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Return the mask of a held-out case, on the grid of its files, by its name."""
        case = self._data.held_out[int(batch)]
        image, _ = self._data.held_out_files(case)
        return {case: torch.from_numpy(self._test_predictor().segment(image))}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, and its rate over the run's budget."""
        optimizer = make_optimiser(self.network, self.optimiser, self.lr, self.weight_decay)
        return over_budget(self.trainer, optimizer, lambda spent: poly_factor(spent, self.warmup, POWER))

    def model_card(self, data: VolumeData, metrics: Mapping[str, float]) -> ModelCard:
        """Return the card of the trained model, by which `Segmenter.load` reads its weights."""
        return segmenter_card(
            self.label,
            data.plan,
            options=self.network_options,
            overlap=self.overlap,
            mirror=self.mirror and data.mirror,
            metrics=metrics,
        )

    def plots(self, data: VolumeData) -> list[CurvePanel]:
        """Return the learning curve of the training that was run."""
        return learning_curve(self.label, self._curve, "mean Dice")

    @property
    def _plan(self) -> Plan:
        if self.plan is None:
            raise UserError("the plan is not known", "call prepare_for with the data first")
        return self.plan

    @property
    def _ignored(self) -> int:
        label = self._plan.ignore_label
        return NOBODY if label is None else label

    @property
    def _data(self) -> VolumeData:
        data: VolumeData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def _look(self, case: str) -> tuple[Volume, np.ndarray, np.ndarray]:
        image, truth = self._data.held_out_files(case)
        return image, truth.array[0], self._test_predictor().segment(image)

    def _test_predictor(self) -> Predictor:
        return self._predictor(mirror=self.mirror and self._data.mirror)

    def _predictor(self, *, mirror: bool) -> Predictor:
        return Predictor(
            [self.network], self._plan, device=self.device, overlap=self.overlap, mirror=mirror, autocast=False
        )
