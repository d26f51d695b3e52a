"""What a test found: each case's scores, written as a table, a page and pictures of the best, median and worst case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch import distributed

from mamba_apps.medical.segmentation.page import case_picture, ranked_cases, write_csv, write_page
from mamba_apps.medical.segmentation.scores import LabelScore, mean_scores, score_case
from mamba_apps.training.files import make_directory, storage_error
from mamba_datasets.volumes import Plan, Volume

CSV_NAME, PAGE_NAME = "scores.csv", "index.html"
Look = Callable[[str], tuple[Volume, np.ndarray, np.ndarray]]


class Results:
    """The scores of cases, gathered one by one.

    Args:
        plan: Names the labels.
        tolerance: Up to which distance in mm surfaces agree.
    """

    def __init__(self, plan: Plan, tolerance: float) -> None:
        self.labels = {name: plan.labels[name] for name in plan.classes[1:]}
        self.ignored, self.tolerance = plan.ignore_label, tolerance
        self.scores: dict[str, Mapping[str, LabelScore]] = {}

    def add(self, case: str, found: np.ndarray, truth: Volume) -> None:
        """Score a case's mask, with the axes of the truth's array."""
        self.scores[case] = score_case(
            found, truth.array[0], self.labels, truth.spacing, tolerance=self.tolerance, ignored=self.ignored
        )

    def gather(self) -> None:
        """Take in what the other processes of a group have scored."""
        parts: list[dict[str, Mapping[str, LabelScore]]] = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(parts, self.scores)
        self.scores = {case: part[case] for part in parts for case in part}

    def means(self) -> dict[str, float]:
        """Return the means over the cases, as `mean_scores` does."""
        return mean_scores(list(self.scores.values()))

    def write(self, folder: Path, title: str, facts: list[str], look: Look) -> list[Path]:
        """Write scores.csv, index.html and a picture each of the best, the median and the worst case.

        Args:
            folder: Where to; created where missing.
            title: The page's heading.
            facts: Lines on the model and the data.
            look: Returns a case's image, true mask and mask.

        Returns:
            The files.

        Raises:
            UserError: The folder cannot be written to.
        """
        make_directory(folder, "folder of scores")
        written = [folder / CSV_NAME]
        write_csv(written[0], self.scores)
        pictures = {}
        for rank, case in ranked_cases(self.scores).items():
            dice = float(np.nanmean([score.dice for score in self.scores[case].values()]))
            caption = f"{rank} of {len(self.scores)}: {case}, mean Dice {dice:.3f}"
            image, truth, found = look(case)
            steps = (1.0,) * (3 - len(image.spacing)) + image.spacing
            layers = [array[None] if array.ndim == 2 else array for array in (image.array[0], truth, found)]
            pictures[caption] = case_picture(caption, layers[0], layers[1], layers[2], self.labels, steps)
            written.append(folder / f"{rank}.png")
            try:
                written[-1].write_bytes(pictures[caption])
            except OSError as error:
                raise storage_error("write", written[-1], error) from error
        facts = [
            *facts,
            f"NSD counts surface voxels within {self.tolerance:g} mm; HD95 is in mm, and the volume's diagonal where a "
            "label is found or true alone. Means leave out cases where a label is neither.",
        ]
        written.append(folder / PAGE_NAME)
        write_page(written[-1], title, facts, self.scores, pictures)
        return written
