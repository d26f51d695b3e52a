"""`ImageClassifier`: the classes of images, by a model that training saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.trained import Trained
from mamba_apps.training import load_card, saved_folder
from mamba_apps.vision.classification.preprocessing import Preprocessing
from mamba_apps.vision.pictures import as_picture
from mamba_apps.vision.weights import create_model, saved_weights
from mamba_datasets.errors import DataError
from mamba_datasets.images.read import SUFFIXES

_BATCH = 64

Images = str | Path | Image.Image | Sequence[str | Path | Image.Image]


class BadImagesError(UserError):
    """Images that cannot be read.

    Args:
        problems: What is wrong with each of them.
    """

    def __init__(self, problems: Sequence[DataError]) -> None:
        self.problems = list(problems)
        first = problems[0]
        if len(problems) == 1:
            super().__init__(f"{first.path}: {first.where}: {first.expected}", first.remedy)
        else:
            super().__init__(f"{len(problems)} images cannot be read, the first is {first.path}", "mend or remove them")


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the likeliest first.

    Args:
        image: Its path; empty for an image in memory.
        labels: The classes' names.
        probabilities: Of these classes; those of all classes sum to 1.
    """

    image: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def classes(self) -> list[tuple[str, float]]:
        """Each of these classes with its probability."""
        return list(zip(self.labels, self.probabilities, strict=True))

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """That class's probability."""
        return self.probabilities[0]


class ImageClassifier(metaclass=Trained):
    """A trained classifier of images; `ImageClassifier.load` makes one.

    Args:
        model: The model's name.
        network: The model.
        preprocessing: How images are brought to its input.
        labels: The names of its classes.
        metrics: Its scores.
        device: Where it runs; None takes a GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        network: nn.Module,
        preprocessing: Preprocessing,
        labels: Sequence[str],
        *,
        metrics: dict[str, float] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.model = model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device).eval()
        self.preprocessing, self.labels = preprocessing, list(labels)
        self.metrics = dict(metrics or {})

    @classmethod
    def load(cls, directory: str | Path, *, device: str | torch.device | None = None) -> ImageClassifier:
        """Load a classifier that the training of a recipe saved.

        Args:
            directory: The saved model's folder, or the folder of the run.
            device: Where it runs; None takes a GPU where there is one.

        Raises:
            UserError: There is none, it is damaged, or it does not classify images.
        """
        folder = saved_folder(directory)
        card = load_card(folder)
        if (card.task, card.domain) != ("classification", "image"):
            raise UserError(f"{folder} holds a model for {card.task} of {card.domain}", "give an image classifier's")
        weights = saved_weights(folder)
        try:
            network = create_model(card.model, card.arguments)
            network.load_state_dict(weights)
            preprocessing = Preprocessing(**card.preprocessing)
        except (RuntimeError, TypeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: the card and the weights do not fit together ({text})", "save the model again"
            ) from None
        return cls(card.model, network, preprocessing, card.labels or [], metrics=card.metrics, device=device)

    def predict(self, images: Images, *, top: int = 5) -> list[Prediction]:
        """Return the likeliest classes of images.

        Args:
            images: A file, a folder (all images in it and below, sorted), a PIL image, or a sequence of files and
                images.
            top: How many classes of each to return, at most all.

        Returns:
            One prediction an image, in order.

        Raises:
            BadImagesError: Images cannot be read; it names all of them.
            UserError: There is no image, one is an array, or ``top`` is out of range.
        """
        if top < 1:
            raise UserError(f"top is {top}", "give at least 1")
        chosen = _listed(images)
        found: list[Prediction] = []
        problems: list[DataError] = []
        for start in range(0, len(chosen), _BATCH):
            names, batch = self._read(chosen[start : start + _BATCH], problems)
            if not problems:
                found.extend(self._predict(names, torch.stack(batch), min(top, len(self.labels))))
        if problems:
            raise BadImagesError(problems)
        return found

    def _read(
        self, chosen: Sequence[str | Path | Image.Image], problems: list[DataError]
    ) -> tuple[list[str], list[Tensor]]:
        transform = self.preprocessing.transform()
        names, batch = [], []
        for one in chosen:
            name = "" if isinstance(one, Image.Image) else str(one)
            try:
                image = as_picture(one)
            except DataError as error:
                problems.append(error)
                continue
            names.append(name)
            batch.append(transform(image))
        return names, batch

    @torch.inference_mode()
    def _predict(self, names: Sequence[str], x_BCHW: Tensor, top: int) -> Iterator[Prediction]:
        scores_BK = self.network(self.preprocessing.normalise(x_BCHW.to(self.device).float()))
        probabilities_BT, classes_BT = scores_BK.float().softmax(dim=-1).topk(top)
        for name, probabilities, classes in zip(names, probabilities_BT.tolist(), classes_BT.tolist(), strict=True):
            yield Prediction(name, tuple(self.labels[number] for number in classes), tuple(probabilities))


def _listed(images: Images) -> list[str | Path | Image.Image]:
    if isinstance(images, (str, Path)):
        folder = Path(images)
        if not folder.is_dir():
            return [folder]
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"{folder} holds no images", f"give a folder with {', '.join(SUFFIXES)} in it")
        return list(found)
    chosen: list[str | Path | Image.Image] = [images] if isinstance(images, Image.Image) else list(images)
    if not chosen:
        raise UserError("there are no images", "give at least one")
    return chosen
