"""A trained segmenter in a person's hands: volumes in, masks out that line up with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mamba_apps.errors import UserError
from mamba_apps.medical.segmentation.inputs import find_cases
from mamba_apps.medical.segmentation.predictor import Predictor
from mamba_apps.medical.segmentation.saving import load_segmenter, plan_digest
from mamba_apps.trained import Trained
from mamba_datasets.volumes import Plan, Volume, read_case, write_mask
from mamba_datasets.volumes.read import check_mask_path

Image = str | Path | Sequence[str | Path] | Volume


class Segmenter(metaclass=Trained):
    """A trained segmenter of volumes; `Segmenter.load` makes one. This is research software, no medical device.

    Args:
        predictor: The networks and how volumes are read for them.
        name: What the network is called.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor, self.name = predictor, name

    @classmethod
    def load(
        cls,
        directory: str | Path | Sequence[str | Path],
        *,
        device: torch.device | str | None = None,
        mirror: bool | None = None,
    ) -> Segmenter:
        """Load a model that training saved, or several folds of one.

        Args:
            directory: The saved model's folder or its run's; several make an ensemble.
            device: Where it runs; None takes a GPU where there is one.
            mirror: Whether to average over mirrored windows, which takes 8 times as long (4 in 2-D) and is a little
                better; None does as the model's card says.

        Raises:
            UserError: There is no such model, it is damaged, does not segment volumes, or follows another plan than
                the first.
        """
        directories = [directory] if isinstance(directory, (str, Path)) else list(directory)
        if not directories:
            raise UserError("no model is given", "give the folder of a run or of a saved model")
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        loaded = [load_segmenter(each) for each in directories]
        _, plan, card = loaded[0]
        for each, (_, other, _) in zip(directories, loaded, strict=True):
            if plan_digest(other) != plan_digest(plan):
                raise UserError(
                    f"{each} was trained with another plan than {directories[0]}",
                    "give models of one plan, such as the folds of one recipe",
                )
        predictor = Predictor(
            [network.to(target) for network, _, _ in loaded],
            plan,
            device=target,
            overlap=float(card.preprocessing["overlap"]),
            mirror=bool(card.preprocessing["mirror"]) if mirror is None else mirror,
        )
        return cls(predictor, card.model)

    @property
    def plan(self) -> Plan:
        """How volumes are prepared, and what the labels are called."""
        return self.predictor.plan

    @property
    def labels(self) -> dict[str, int]:
        """The value of each label in a mask."""
        return {name: self.plan.labels[name] for name in self.plan.classes}

    def predict(self, image: Image, *, on_window: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Return the label of each voxel of an image, at its own size and in its own orientation.

        Args:
            image: A file; of several channels the first one's (CASE_0000), or a list of all; or a volume that was read.
            on_window: Called with how many windows are done, and of how many.

        Returns:
            Labels (z, y, x), the file's axes in reverse order (``.T`` has the file's own); (y, x) of a picture.

        Raises:
            UserError: A channel's file is missing, or the image is an array: how large its voxels are stands in a file.
            DataError: A file is broken, or it is not of the kind that the model was trained on.
        """
        return self.predictor.segment(self.read(image), on_window)

    def predict_with_probabilities(
        self, image: Image, *, on_window: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return labels as `predict` does, and the probability of each class (K, z, y, x), float32."""
        return self.predictor.segment_with_probabilities(self.read(image), on_window)

    def write(self, image: Image, out: str | Path) -> Path:
        """Write the mask of an image in its geometry, with its affine and header, whole or not at all.

        Args:
            image: As `predict` takes it.
            out: The mask's file, such as mask.nii.gz.

        Raises:
            DataError: As `predict`, or the mask cannot be written.
        """
        volume = self.read(image)
        check_mask_path(out, volume)
        write_mask(out, self.predict(volume), volume)
        return Path(out)

    def read(self, image: Image) -> Volume:
        """Return an image's volume, with all its channels; arguments and errors as in `predict`."""
        if isinstance(image, Volume):
            return image
        if isinstance(image, (list, tuple)) and image and all(isinstance(one, (str, Path)) for one in image):
            return read_case(image)
        if not isinstance(image, (str, Path)):
            raise UserError(
                f"an image is a {type(image).__name__}, no file: what it measures is not known",
                'give its file, as in predict("ct.nii.gz"), a list of its channels\' files, or a Volume',
            )
        path = Path(image)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file", "check the path; for a folder use mamba-apps segment")
        (files,) = find_cases(path, self.plan).values()
        return read_case(files)
