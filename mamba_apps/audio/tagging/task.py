"""Training a model of sound: cross-entropy or class by class, AdamW by layers, a cosine, an average of the weights.

Dimensions in names: N clips, B windows, S samples, T frames, F mel bands, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_apps.audio.filterbank import FilterBank
from mamba_apps.audio.model import AudioModel
from mamba_apps.audio.tagging.augment import SoundAugment
from mamba_apps.audio.tagging.data import AudioData
from mamba_apps.audio.tagging.network import check_name, make_network
from mamba_apps.audio.tagging.page import make_page
from mamba_apps.audio.tagging.policy import SoundBatch, by_clip
from mamba_apps.audio.tagging.scores import ClipScores, clip_loss, one_hot
from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard
from mamba_apps.training.curve import CurvePanel, learning_curve
from mamba_apps.training.ema import Ema
from mamba_apps.training.optimiser import check_rates, freeze_all_but_head, make_optimiser, with_rates

# So many windows at once when scored: a sound of hours has thousands.
_AT_ONCE = 256


class AudioTask(pl.LightningModule):
    """A model of sound with its loss and optimiser.

    The model is made when its classes are known: from the data. Sounds of one class each are scored by their accuracy,
    those that may have several by mAP, mAUC and d'.

    Args:
        model: A model by its name in `mamba_apps.audio.model_names`.
        model_options: Arguments of `create_model`, such as {"mels": 64, "patch_size": 8}; classes, rate, seconds and
            statistics come from the data.
        weights: None for random ones; a file of released Audio Mamba, AST or Vision Mamba weights; the folder of a run;
            or a Vision Mamba by timm's name, whose released weights timm downloads.
        loss: "cross_entropy" over classes, or "binary", class by class; None takes what fits the labels.
        lr: The head's highest learning rate, for the batch that is given.
        weight_decay: AdamW's, on matrices that the model does not name in ``no_weight_decay``.
        layer_decay: What each layer's rate is multiplied by for the layer before it; 1 gives all one rate.
        warmup: The part of the budget in which rates rise; they fall as a cosine over the rest.
        head_warmup: The part of the budget in which the classifier learns alone.
        betas: AdamW's.
        label_smoothing: The part of a target that all classes share; of "cross_entropy" only.
        mixup: The probability that a sound is mixed with another one of its batch, as waveforms and targets.
        mixup_alpha: Of the Beta distribution that the mixture is drawn from.
        mask_frequency: SpecAugment (arXiv 1904.08779): the most mel bands that are masked; 0 for none.
        mask_time: The most frames that are masked; 0 for none.
        shift: The most frames that a spectrogram is moved by, either way, around its ends.
        gain: The most decibels that a sound is made louder or softer by.
        speed: The most that a sound is made faster or slower by, as a part: 0.1 for 0.9 to 1.1 times as fast.
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
        weights: str | None = None,
        loss: Literal["cross_entropy", "binary"] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.05,
        head_warmup: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        mixup_alpha: float = 10.0,
        mask_frequency: int = 0,
        mask_time: int = 0,
        shift: int = 0,
        gain: float = 0.0,
        speed: float = 0.0,
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
        if ema is not None:
            Ema(ema)  # refuses what is out of range
        self.augment = SoundAugment(
            mixup=mixup,
            mixup_alpha=mixup_alpha,
            mask_frequency=mask_frequency,
            mask_time=mask_time,
            shift=shift,
            gain=gain,
            speed=speed,
        )
        self.model_name, self.model_options, self.weights = model, dict(model_options or {}), weights
        self.loss_name = loss
        self.lr, self.weight_decay, self.layer_decay, self.betas = lr, weight_decay, layer_decay, betas
        self.warmup, self.head_warmup, self.label_smoothing = warmup, head_warmup, label_smoothing
        self.ema, self.linear_probe, self.compiled = ema, linear_probe, compile
        self.arguments: dict[str, Any] | None = None
        self.network: AudioModel
        self._curve: list[tuple[float, float]] = []

    def prepare_for(self, data: AudioData) -> None:
        """Make the model for the data, or check that it was made for such data.

        Raises:
            UserError: If it was made for other classes.
        """
        count = len(data.classes)
        if self.arguments is None:
            self._make_network(data)
        elif self.arguments["num_classes"] != count:
            raise UserError(
                f"the model was made for {self.arguments['num_classes']} classes, the data has {count}",
                "give the data they belong to",
            )

    def setup(self, stage: str) -> None:
        """Make the model before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, AudioData):
            raise UserError("the classes are not known", "train with AudioData")
        self.prepare_for(data)
        if stage == "fit" and self.weights is None and (self.linear_probe or self.head_warmup):
            what = "a linear probe" if self.linear_probe else "a warm-up of the head"
            raise UserError(f"{what} has no weights to start from", "give --model.weights, a file or a run's folder")
        if self.compiled:
            self.network.compile()

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the average of the weights, where there is one."""
        return [] if self.ema is None else [Ema(self.ema)]

    def on_train_start(self) -> None:
        """Let a backbone that is only probed stay as it is in use: no dropout."""
        if self.linear_probe:
            self.network.eval()

    def forward(self, wave_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return the classes' scores (B, K) of windows of sound."""
        return self.network(wave_BS, lengths_B)

    @property
    def captured(self) -> nn.Module:
        """What ``trainer.graph`` captures: the network after the augmentation, which draws anew each time."""
        return self.network.backbone

    def training_step(self, batch: SoundBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        target_BK = one_hot(batch.targets_N, self.classes)
        wave_BS, lengths_B, target_BK = self.augment.waves(batch.wave_BS, batch.lengths_B, target_BK)
        frontend = self.network.frontend
        x = frontend(wave_BS, lengths_B)
        if isinstance(frontend, FilterBank):
            x = self.augment.spectrograms(x, frontend.silence)
        loss = self._loss(self.network.backbone(x), target_BK)
        self.log("train/loss", loss, batch_size=len(wave_BS))
        return loss

    def validation_step(self, batch: SoundBatch, batch_idx: int) -> None:
        """Score a batch of the validation part."""
        self._score("val", batch)

    def test_step(self, batch: SoundBatch, batch_idx: int) -> None:
        """Score a batch of the test part."""
        self._score("test", batch)

    def predict_step(self, batch: SoundBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the classes' probabilities (N, K) of clips, and their true classes."""
        return {"probability": self.probabilities(batch), "class": batch.targets_N}

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation part."""
        score = self._log_scores("val")
        if self.trainer.state.fn == "fit":
            self._curve.append((self.trainer.global_step, score))

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test part."""
        self._log_scores("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, and each group's rate over the run's budget."""
        optimiser, are_head = make_optimiser(
            self.network.backbone,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            betas=self.betas,
        )
        return with_rates(self.trainer, optimiser, are_head, warmup=self.warmup, head_warmup=self.head_warmup)

    def probabilities(self, batch: SoundBatch) -> Tensor:
        """Return the classes' probabilities (N, K) of clips, the mean over the windows of each."""
        parts = zip(batch.wave_BS.split(_AT_ONCE), batch.lengths_B.split(_AT_ONCE), strict=True)
        logits_BK = torch.cat([self(wave_BS, lengths_B).float() for wave_BS, lengths_B in parts])
        found_BK = logits_BK.sigmoid() if self.binary else logits_BK.softmax(dim=-1)
        return by_clip(found_BK, batch.clip_B, len(batch.targets_N))

    def plots(self, data: AudioData) -> list[CurvePanel]:
        """Return the learning curve of the training that was run."""
        return learning_curve(self.label, self._curve, "mAP, %" if self.multilabel else "accuracy, %")

    def page(self, data: AudioData, predictions: Sequence[Mapping[str, Tensor]], metrics: Mapping[str, float]) -> str:
        """Return a page on the test: scores a class, what is confused, the hardest sounds.

        Args:
            data: The data.
            predictions: What ``predict_step`` gave, batch by batch.
            metrics: The scores of the test.
        """
        probability_NK, target_N = (
            torch.cat([part[key].cpu() for part in predictions]) for key in ("probability", "class")
        )
        clips = data.parts["test"]
        return make_page(
            f"{self.label} on {data.describe()}", clips, probability_NK, target_N, metrics, binary=self.binary
        )

    def model_card(self, data: AudioData, metrics: Mapping[str, float]) -> ModelCard:
        """Return the card of the trained model, by which `AudioTagger.load` reads its weights."""
        return ModelCard(
            task="classification",
            domain="audio",
            model=self.model_name,
            arguments=dict(self.arguments or {}),
            preprocessing={**asdict(data.policy), "channel": data.channel, "binary": self.binary},
            labels=list(data.classes),
            metrics=dict(metrics),
        )

    @property
    def label(self) -> str:
        """The model's name."""
        return self.model_name

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int((self.arguments or {})["num_classes"])

    def _make_network(self, data: AudioData) -> None:
        if len(data.classes) < 2 and not data.multilabel:
            raise UserError(f"there is {len(data.classes)} class", "give sounds of at least two classes")
        mean, std = data.statistics(int(self.model_options.get("mels", 128)))
        # What reads live sound hears no end, and nothing that would be filled up.
        seconds = None if self.model_name.endswith("_causal") else data.policy.seconds
        self.arguments = {
            "num_classes": len(data.classes),
            "sample_rate": data.policy.rate,
            "seconds": seconds,
            "mean": mean,
            "std": std,
            **self.model_options,
        }
        self.network = make_network(self.model_name, self.arguments, self.weights)
        self.multilabel = data.multilabel
        self.binary = data.multilabel if self.loss_name is None else self.loss_name == "binary"
        if self.multilabel and not self.binary:
            raise UserError("loss is cross_entropy, but sounds have several classes", "give binary")
        if self.linear_probe:
            freeze_all_but_head(self.network.backbone)
        self.scores = ClipScores(data.classes, multilabel=data.multilabel)

    def _loss(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        if self.binary:
            return F.binary_cross_entropy_with_logits(logits_BK, target_BK.to(logits_BK.dtype))
        return F.cross_entropy(logits_BK, target_BK.to(logits_BK.dtype), label_smoothing=self.label_smoothing)

    def _score(self, part: str, batch: SoundBatch) -> None:
        probability_NK = self.probabilities(batch)
        self.scores.update(probability_NK, batch.targets_N)
        with torch.autocast(probability_NK.device.type, enabled=False):
            loss = clip_loss(probability_NK, batch.targets_N, binary=self.binary)
        self.log(f"{part}/loss", loss, batch_size=len(batch.targets_N), sync_dist=True)

    def _log_scores(self, part: str) -> float:
        found = self.scores.compute()
        self.scores.reset()
        for name, value in found.items():
            self.log(f"{part}/{name}", value, sync_dist=True)
        return float(next(iter(found.values())))
