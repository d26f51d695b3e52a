"""Training a segmenter: cross-entropy, optionally Dice, and the intersection over union of whole pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard
from mamba_apps.training.adamw import make_adamw
from mamba_apps.training.curve import CurvePanel, learning_curve
from mamba_apps.training.outputs import output_folder
from mamba_apps.training.schedule import over_budget, poly_factor
from mamba_apps.vision.segmentation.augment import IGNORED
from mamba_apps.vision.segmentation.data import SegmentationData
from mamba_apps.vision.segmentation.losses import cross_entropy, dice
from mamba_apps.vision.segmentation.network import Segmenter
from mamba_apps.vision.segmentation.optimiser import parameter_groups
from mamba_apps.vision.segmentation.overlay import side_by_side
from mamba_apps.vision.segmentation.saving import segmenter_card
from mamba_apps.vision.segmentation.scores import MaskScores, mask_iou
from mamba_apps.vision.segmentation.sliding import OVERLAP


class SegmentationTask(pl.LightningModule):
    """A backbone with a UPerNet head, its losses and its optimiser; it is made when the classes are known.

    Whole pictures are scored, at their own size, by sliding windows of the size of the training crops.

    Args:
        backbone: A model in timm's registry that gives feature maps, our families among them.
        weights: What the backbone starts from: None for random weights, "released" for its published ones (timm
            downloads them), a file of such, or the folder of a classifier that we saved.
        backbone_options: Further arguments of the backbone, such as `drop_path_rate`.
        width: Channels of the head.
        auxiliary: Weight of the loss of a second head, on the last feature map but one; 0 for no such head.
        dice: Weight of the Dice loss beside the cross-entropy.
        lr: The highest learning rate.
        weight_decay: AdamW's, on matrices alone, but for those that the backbone wants without.
        layer_decay: What the rate is multiplied by from each layer of the backbone to the one before; 1 for none.
        warmup: The part of the budget in which the rate rises; from the beginning it also falls to 0 by the end ...
        power: ... as this power of the budget that is left.
        betas: AdamW's.
        overlap: The part of a window that the next one covers again.
        overlays: Where pictures of the best, the median and the worst test picture go: True for overlays/ in the
            trainer's folder, a folder, or None for none.
        compile: Whether torch compiles the backbone.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        backbone: str = "vmamba_tiny_s1l8",
        *,
        weights: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        width: int = 512,
        auxiliary: float = 0.4,
        dice: float = 0.0,
        lr: float = 6e-5,
        weight_decay: float = 0.01,
        layer_decay: float = 1.0,
        warmup: float = 0.01,
        power: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        overlap: float = OVERLAP,
        overlays: str | bool | None = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise UserError(f"lr is {lr}", "give a positive learning rate")
        for name, value in (("warmup", warmup), ("overlap", overlap)):
            if not 0 <= value < 1:
                raise UserError(f"{name} is {value}", "give a part in [0, 1)")
        if not 0 < layer_decay <= 1:
            raise UserError(f"layer_decay is {layer_decay}", "give a factor in (0, 1]")
        for name, value in (("auxiliary", auxiliary), ("dice", dice), ("power", power)):
            if value < 0:
                raise UserError(f"{name} is {value}", "give 0 or more")
        self.backbone, self.weights, self.backbone_options = backbone, weights, dict(backbone_options or {})
        self.width, self.auxiliary, self.dice = width, auxiliary, dice
        self.lr, self.weight_decay, self.layer_decay, self.betas = lr, weight_decay, layer_decay, betas
        self.warmup, self.power = warmup, power
        self.overlap, self.overlays, self.compiled = overlap, overlays, compile
        self.labels: list[str] | None = None
        self.short_side: int | None = None
        self.network: Segmenter
        self.scores: MaskScores
        self._curve: list[tuple[float, float]] = []

    def prepare_for(self, data: SegmentationData) -> None:
        """Make the network for the data's classes and crops, or check that it was made for them.

        Raises:
            UserError: If it was made for others, or the backbone cannot be used.
        """
        self.short_side = data.short_side
        if self.labels is None:
            self.network = Segmenter(
                self.backbone,
                len(data.labels),
                window=data.crop,
                width=self.width,
                auxiliary=self.auxiliary > 0,
                weights=self.weights,
                backbone_options=self.backbone_options,
            )
            self.scores = MaskScores(data.labels)
            self.labels = data.labels
        elif (self.labels, self.network.window) != (data.labels, data.crop):
            raise UserError("the network was made for other classes or crops", "use the data it was made for")

    def configure_model(self) -> None:
        """Make the network before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SegmentationData):
            self.prepare_for(data)
        elif self.labels is None:
            raise UserError("the classes are not known", "train with SegmentationData")
        if self.compiled:
            self.network.backbone.compile()

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the scores (B, K, H, W) of pictures of the size of the training crops."""
        return self.network(images_B3HW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        weights = (1.0, self.auxiliary)
        loss = torch.zeros((), device=self.device)
        for weight, scores in zip(weights, self.network.scores(images), strict=False):
            loss = loss + weight * cross_entropy(scores, labels, IGNORED)
            if self.dice:
                loss = loss + weight * self.dice * dice(scores, labels, IGNORED)
        self.log("train/loss", loss, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Score a picture of the validation part."""
        self._score(batch)

    def on_test_epoch_start(self) -> None:
        """Forget the pictures of an earlier test, and refuse a folder for overlays that they could not be written to.

        Raises:
            UserError: If it is none.
        """
        self._scored: list[tuple[float, int]] = []
        self._overlays = output_folder(self.trainer, "overlays", self.overlays)

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Score a picture of the test part."""
        predicted = self._score(batch)
        self._scored.append((mask_iou(predicted, batch[1][0], self.network.classes), int(batch[2])))

    def predict_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the mask (H, W), uint8, of a picture of the test part, by its file's name."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return {data.test.name(int(batch[2])): self._segment(batch[0][0])}

    def on_validation_epoch_end(self) -> None:
        """Log val/miou, val/accuracy and val/iou_<label>."""
        found = self._log_scores("val")
        if self.trainer.state.fn == "fit":
            self._curve.append((self.trainer.global_step, float(found["miou"])))

    def on_test_epoch_end(self) -> None:
        """Log test/miou, test/accuracy and test/iou_<label>, and draw pictures."""
        self._log_scores("test")
        if self._overlays is not None:
            self._draw(self._overlays)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, and its rate over the run's budget."""
        groups = parameter_groups(self.network, self.lr, self.weight_decay, self.layer_decay)
        optimizer = make_adamw(groups, lr=self.lr, betas=self.betas)
        return over_budget(self.trainer, optimizer, lambda spent: poly_factor(spent, self.warmup, self.power))

    def plots(self, data: SegmentationData) -> list[CurvePanel]:
        """Return the learning curve of the training that was run."""
        return learning_curve(self.label, self._curve, "mean IoU")

    def model_card(self, data: SegmentationData, metrics: Mapping[str, float]) -> ModelCard:
        """Return the card of the trained model, by which `ImageSegmenter.load` reads its weights."""
        return segmenter_card(
            self.network, data.labels, overlap=self.overlap, short_side=data.short_side, metrics=metrics
        )

    @property
    def label(self) -> str:
        """The backbone's name."""
        return self.backbone

    @property
    def captured(self) -> nn.Module:
        """What a captured graph holds: the backbone, for training calls the network by another way than its forward."""
        return self.network.backbone

    def _segment(self, image_3HW: Tensor) -> Tensor:
        return self.network.segment(image_3HW, overlap=self.overlap, short_side=self.short_side)

    def _score(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        predicted = self._segment(batch[0][0])
        self.scores.update(predicted.long(), batch[1][0])
        return predicted

    def _log_scores(self, part: str) -> dict[str, Tensor]:
        found = self.scores.scores()
        self.scores.reset()
        for name, value in found.items():
            self.log(f"{part}/{name}", value.float(), sync_dist=True)
        return found

    def _draw(self, folder: Path) -> None:
        """Draw the best, the median and the worst picture of the test."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        ranked = sorted((found for found in self._scored if found[0] == found[0]), reverse=True)
        for rank, place in (("best", 0), ("median", len(ranked) // 2), ("worst", -1)) if ranked else ():
            iou, number = ranked[place]
            image, truth, _ = data.test[number]
            path = folder / f"{self.backbone}-{rank}.png"
            side_by_side(
                path,
                image.permute(1, 2, 0).numpy(),
                truth.numpy(),
                self._segment(image).cpu().numpy(),
                data.labels,
                (data.test.name(number), "truth", f"{self.backbone}, mean IoU {iou:.3f}"),
            )
            print(f"overlay: {path}", file=sys.stderr)
