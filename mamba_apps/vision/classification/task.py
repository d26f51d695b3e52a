"""Training an image classifier: cross-entropy on soft targets, rates by layers, a cosine, an average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import timm
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard
from mamba_apps.training.curve import CurvePanel, learning_curve
from mamba_apps.training.ema import Ema
from mamba_apps.training.optimiser import (
    OPTIMISERS,
    check_rates,
    freeze_all_but_head,
    make_optimiser,
    with_rates,
)
from mamba_apps.training.schedule import budget_spent
from mamba_apps.vision.classification.data import ImageData
from mamba_apps.vision.weights import check_name, create_model


class ClassificationTask(pl.LightningModule):
    """A timm model with its loss and optimiser.

    The model is made when its classes are known: from the data, or at once where ``classes`` is given.

    Args:
        model: A model by timm's name; the Mamba families' are among them.
        model_options: Its arguments, such as {"drop_path_rate": 0.1}; ``img_size`` and ``num_classes`` come from the
            data.
        classes: The number of classes; None takes it from the data.
        size: With ``classes``, height and width of the images.
        weights: None for random ones, "released" for timm's download, a file of released weights, or the folder of a
            model saved by us.
        lr: The head's highest learning rate, for the batch that is given.
        optimiser: "adamw"; "lamb" (arXiv 1904.00962), timm's, for large batches; or "muon" (arXiv 2502.16982), which
            learns in fewer steps, at AdamW's rates.
        weight_decay: The optimiser's, on matrices that the model does not name in ``no_weight_decay``.
        layer_decay: What each layer's rate is multiplied by for the layer before it; 1 gives all one rate.
        warmup: The part of the budget in which rates rise; they fall as a cosine over the rest.
        head_warmup: The part of the budget in which the classifier learns alone.
        betas: Of the optimiser's moments.
        label_smoothing: The part of a target that all classes share.
        mixup: The alpha of mixup (arXiv 1710.09412); 0 for none.
        cutmix: The alpha of CutMix (arXiv 1905.04899); 0 for none. With both, each batch draws one of them. A batch of
            one image has nothing to be mixed with.
        mix_prob: The part of the batches that is mixed.
        mix_until: The part of the budget after which no batch is mixed any more.
        ema: The decay of the weights' average, by which the model is validated, tested and saved; None for none.
        linear_probe: Train the classifier alone, on a backbone that stays as it is.
        compile: Whether torch compiles the model.

    Raises:
        UserError: If the model is unknown or a number is out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        model_options: dict[str, Any] | None = None,
        classes: int | None = None,
        size: int = 224,
        weights: str | None = None,
        lr: float = 1e-3,
        optimiser: str = "adamw",
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.05,
        head_warmup: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        mix_until: float = 1.0,
        ema: float | None = None,
        linear_probe: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_name(model)
        check_rates(
            lr=lr,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            warmup=warmup,
            head_warmup=head_warmup,
            label_smoothing=label_smoothing,
        )
        if optimiser not in OPTIMISERS:
            raise UserError(f"optimiser is {optimiser!r}", f"choose one of {', '.join(OPTIMISERS)}")
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise UserError(f"{name} is {alpha}", "give 0 for none, or more")
        for name, part in (("mix_prob", mix_prob), ("mix_until", mix_until)):
            if not 0 <= part <= 1:
                raise UserError(f"{name} is {part}", "give a number in [0, 1]")
        self.model_name, self.model_options, self.weights = model, dict(model_options or {}), weights
        self.lr, self.weight_decay, self.layer_decay, self.betas = lr, weight_decay, layer_decay, betas
        self.optimiser = optimiser
        self.warmup, self.head_warmup = warmup, head_warmup
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.mix_prob, self.mix_until = mix_prob, mix_until
        self.linear_probe, self.compiled = linear_probe, compile
        if ema is not None:
            Ema(ema)  # refuses what is out of range
        self.ema = ema
        self._curve: list[tuple[float, float]] = []
        self.arguments: dict[str, Any] | None = None
        self.network: nn.Module
        if classes is not None:
            self._make_network(classes, size)

    def prepare_for(self, data: ImageData) -> None:
        """Make the model for the data, or check that it was made for such data.

        Raises:
            UserError: If it was made for other classes.
        """
        count = len(data.classes)
        if self.arguments is None:
            self._make_network(count, data.preprocessing.size)
        elif self.arguments["num_classes"] != count:
            raise UserError(
                f"the model was made for {self.arguments['num_classes']} classes, the data has {count}",
                "leave classes out, or give the data they belong to",
            )

    def setup(self, stage: str) -> None:
        """Make the model before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):
            self.prepare_for(data)
        elif self.arguments is None:
            raise UserError("the classes are not known", "train with ImageData, or give classes")
        if stage == "fit" and self.weights is None and (self.linear_probe or self.head_warmup):
            what = "a linear probe" if self.linear_probe else "a warm-up of the head"
            raise UserError(
                f"{what} has no weights to start from", "give --model.weights released, or a run's folder, or a file"
            )
        if self.compiled:
            self.network.compile()

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the average of the weights, where there is one."""
        return [] if self.ema is None else [Ema(self.ema)]

    def on_train_start(self) -> None:
        """Let a backbone that is only probed stay as it is in use: no dropout, no new statistics."""
        if self.linear_probe:
            self.network.eval()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the classes' scores (B, classes) of normalised images."""
        return self.network(x_BCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x_BCHW, labels_B = batch
        if self._mix is None or len(x_BCHW) < 2 or self._mixing_is_over():
            loss = F.cross_entropy(self(x_BCHW), labels_B, label_smoothing=self.label_smoothing)
        else:
            even = len(x_BCHW) // 2 * 2  # timm mixes pairs
            x_BCHW, targets_BK = self._mix(x_BCHW[:even], labels_B[:even])
            loss = F.cross_entropy(self(x_BCHW), targets_BK)
        self.log("train/loss", loss, batch_size=len(x_BCHW))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score a batch of the validation part."""
        self._score("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score a batch of the test part."""
        self._score("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the classes' probabilities (B, classes), and the true classes."""
        return {"probability": self(batch[0]).float().softmax(dim=-1), "class": batch[1]}

    def on_validation_epoch_end(self) -> None:
        """Log val/top1 and val/top5 in per cent."""
        top1 = self._log_scores("val")
        if self.trainer.state.fn == "fit":
            self._curve.append((self.trainer.global_step, top1))

    def on_test_epoch_end(self) -> None:
        """Log test/top1 and test/top5 in per cent."""
        self._log_scores("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, and each group's rate over the run's budget."""
        optimiser, are_head = make_optimiser(
            self.network,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            betas=self.betas,
            name=self.optimiser,
        )
        return with_rates(self.trainer, optimiser, are_head, warmup=self.warmup, head_warmup=self.head_warmup)

    def plots(self, data: ImageData) -> list[CurvePanel]:
        """Return the learning curve of the training that was run."""
        return learning_curve(self.label, self._curve)

    def model_card(self, data: ImageData, metrics: Mapping[str, float]) -> ModelCard:
        """Return the card of the trained model, by which `ImageClassifier.load` reads its weights."""
        return ModelCard(
            task="classification",
            domain="image",
            model=self.model_name,
            arguments=dict(self.arguments or {}),
            preprocessing=asdict(data.preprocessing),
            labels=list(data.classes),
            metrics=dict(metrics),
        )

    @property
    def label(self) -> str:
        """The model's name."""
        return self.model_name

    def _make_network(self, classes: int, size: int) -> None:
        if classes < 2:
            raise UserError(f"there is {classes} class", "give images of at least two classes")
        config = timm.models.get_pretrained_cfg(self.model_name)
        # Models without position embeddings or windows take any size, and no argument for it.
        fixed = {"img_size": size} if config is not None and config.fixed_input_size else {}
        self.arguments = {**fixed, **self.model_options, "num_classes": classes}
        self.network = create_model(self.model_name, self.arguments, self.weights)
        if self.linear_probe:
            freeze_all_but_head(self.network)
        self._mix = None
        if self.mixup or self.cutmix:
            self._mix = Mixup(
                self.mixup,
                self.cutmix,
                prob=self.mix_prob,
                label_smoothing=self.label_smoothing,
                num_classes=classes,
            )
        tops = [k for k in (1, 5) if k < classes]
        self.scores = MetricCollection(
            {f"top{k}": MulticlassAccuracy(classes, top_k=k, average="micro") for k in tops}, compute_groups=False
        )

    def _mixing_is_over(self) -> bool:
        return self.mix_until < 1 and budget_spent(self.trainer, self.trainer.global_step) >= self.mix_until

    def _score(self, part: str, batch: tuple[Tensor, Tensor]) -> None:
        x_BCHW, labels_B = batch
        scores_BK = self(x_BCHW).float()
        self.scores.update(scores_BK, labels_B)
        loss = F.cross_entropy(scores_BK, labels_B)
        self.log(f"{part}/loss", loss, batch_size=len(labels_B), sync_dist=True)

    def _log_scores(self, part: str) -> float:
        found = {name: 100 * value for name, value in self.scores.compute().items()}
        self.scores.reset()
        for name, value in found.items():
            self.log(f"{part}/{name}", value, sync_dist=True)
        return float(found["top1"])
