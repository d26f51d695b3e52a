"""From a volume to its mask: the plan's preparation, windows through one network or several, and the way back.

What is held in memory is a few volumes of one channel; scores of all classes are held for the layers of one window, and
where masks have to be resampled, in a file that the system may page out.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mamba_apps.medical.segmentation.sliding import OVERLAP, mirrored, slide
from mamba_apps.training.files import storage_error
from mamba_datasets.volumes import Plan, Volume, prepare_case, restore_case, restore_probabilities
from mamba_datasets.volumes.prepare import Geometry, PreparedCase, label_type

_IN_MEMORY = 2 * 2**30  # bytes of scores that are held without a file


class Predictor:
    """Segment volumes with networks that were made for one plan; the mean of their scores decides.

    Args:
        networks: One, or the folds of an ensemble, on ``device``.
        plan: The plan that all were made for.
        device: Where they run.
        overlap: The part of a window that the next one covers again.
        mirror: Whether to average over mirrored windows, 2 to the power of the window's axes of them.
        batch_size: Windows a call; None takes the plan's.
        autocast: Whether networks run in bfloat16 on a GPU; a trainer decides that by itself.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        *,
        device: torch.device | str,
        overlap: float = OVERLAP,
        mirror: bool = True,
        batch_size: int | None = None,
        autocast: bool = True,
    ) -> None:
        self.networks, self.plan, self.device = list(networks), plan, torch.device(device)
        self.overlap, self.mirror = overlap, mirror
        self.autocast = autocast and self.device.type == "cuda"
        self.batch_size = batch_size or plan.batch_size

    def scores(self, image: np.ndarray, on_window: Callable[[int, int], None] | None = None) -> Iterator[Tensor]:
        """Yield the scores (K, layers, ...) of a prepared image (C, ...) from its first layer to its last.

        A flat picture is one layer, and its scores are (K, rows, columns) at once.
        """
        flat = image.ndim == 3
        window = self.plan.network.patch_size
        if len(window) == 2:
            window = (1, *window)
        predict = mirrored(self._predict, self._mirror_axes()) if self.mirror else self._predict
        layers = slide(
            predict,
            image[:, None] if flat else image,
            window,
            classes=self.plan.num_classes,
            overlap=self.overlap,
            batch_size=self.batch_size,
            device=self.device,
            on_window=on_window,
        )
        return (scores[:, 0] if flat else scores for scores in layers)

    def segment(self, volume: Volume, on_window: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Return the label of each voxel, with the axes of the volume's array.

        Args:
            volume: The image with all its channels.
            on_window: Called with how many windows are done, and of how many.

        Raises:
            DataError: Its channels or axes are not those of the plan.
        """
        case = prepare_case(volume, self.plan)
        if _keeps_grid(case.geometry):
            labels = np.empty(case.image.shape[1:], label_type(self.plan))
            for at, scores in _placed(self.scores(case.image, on_window)):
                labels[at] = scores.argmax(dim=0).cpu().numpy()
            return restore_case(labels, case.geometry, self.plan)
        with self._held_scores(case, on_window) as held:
            return restore_case(held, case.geometry, self.plan)

    def segment_with_probabilities(
        self, volume: Volume, on_window: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the label of each voxel, and the probability of each class (K, ...), float32; they need K volumes.

        Args:
            volume: The image with all its channels.
            on_window: Called with how many windows are done, and of how many.

        Raises:
            DataError: Its channels or axes are not those of the plan.
        """
        case = prepare_case(volume, self.plan)
        with self._held_scores(case, on_window) as scores:
            labels = restore_case(scores, case.geometry, self.plan)
            for layer in range(scores.shape[1]):
                scores[:, layer] = torch.from_numpy(scores[:, layer]).float().softmax(dim=0).half().numpy()
            return labels, restore_probabilities(scores, case.geometry, self.plan)

    @contextmanager
    def _held_scores(self, case: PreparedCase, on_window: Callable[[int, int], None] | None) -> Iterator[np.ndarray]:
        """Yield the scores (K, ...) of a prepared case, float16."""
        with _held((self.plan.num_classes, *case.image.shape[1:])) as held:
            for at, scores in _placed(self.scores(case.image, on_window)):
                held[:, at] = scores.half().cpu().numpy()
            yield held

    def _mirror_axes(self) -> list[int]:
        return [1, 2] if self.plan.network.dim == 2 else [0, 1, 2]

    @torch.no_grad()
    def _predict(self, windows: Tensor) -> Tensor:
        """Return the networks' mean scores (B, K, d, h, w) of windows (B, C, d, h, w)."""
        flat = self.plan.network.dim == 2
        inputs = windows.squeeze(2) if flat else windows
        total = torch.zeros((), device=windows.device)
        with torch.autocast("cuda", torch.bfloat16) if self.autocast else nullcontext():
            for network in self.networks:
                outputs = network(inputs)
                scores = outputs if isinstance(outputs, Tensor) else outputs[0]
                total = total + scores.float()
        mean = total / len(self.networks)
        return mean.unsqueeze(2) if flat else mean


@contextmanager
def _held(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield room for float16 numbers, in memory or, where they are many, in a file that vanishes with the block."""
    size = 2 * math.prod(shape)
    if size <= _IN_MEMORY:
        yield np.empty(shape, np.float16)
        return
    with tempfile.TemporaryFile(prefix="mamba-apps-") as file:
        try:
            # taken now: a disk found full later, through the map, would end the process instead of raising an error
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            raise storage_error("hold the scores of a volume in", Path(tempfile.gettempdir(), "."), error) from error
        yield np.memmap(file, np.float16, "r+", shape=shape)


def _placed(layers: Iterator[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Yield scores with the place of their layers in the volume."""
    first = 0
    for scores in layers:
        yield slice(first, first + scores.shape[1]), scores
        first += scores.shape[1]


def _keeps_grid(geometry: Geometry) -> bool:
    """Tell whether a volume's own voxels were kept, so that its mask need not be resampled."""
    return geometry.resampled == tuple(stop - start for start, stop in geometry.crop)
