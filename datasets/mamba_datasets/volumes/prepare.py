"""One case on its way to the network and back: turned, cropped, normalised, resampled, and all of it undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.body import body_of, box_of
from mamba_datasets.volumes.normalise import normalise
from mamba_datasets.volumes.plan import Plan
from mamba_datasets.volumes.raw import check_channels
from mamba_datasets.volumes.resample import keep_best, new_shape, resample, resample_labels
from mamba_datasets.volumes.volume import Volume, mismatch, nearest_axes


@dataclass(frozen=True)
class Geometry:
    """What was done to a volume's axes, in order; enough to undo it.

    Args:
        shape: Of the volume's array as read, without channels.
        order: The array's axis that each axis of the network's input was taken from.
        flips: Whether it was turned round then.
        crop: First voxel and the one behind the last of what was kept of each.
        spacing: Millimetres between voxels of each, before resampling.
        resampled: Voxels along each afterwards.
        target: Millimetres between them.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    flips: tuple[bool, ...]
    crop: tuple[tuple[int, int], ...]
    spacing: tuple[float, ...]
    resampled: tuple[int, ...]
    target: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, which `from_dict` reads."""
        return {key: list(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Geometry:
        """Return the geometry that `to_dict` told."""
        crop = tuple((int(start), int(stop)) for start, stop in content["crop"])
        return cls(**{key: tuple(value) for key, value in content.items() if key != "crop"}, crop=crop)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case as the network takes it.

    Args:
        image: float32 (C, *axes).
        label: Labels (*axes); None where there are none.
        geometry: The way back.
    """

    image: np.ndarray
    label: np.ndarray | None
    geometry: Geometry


def prepare_case(volume: Volume, plan: Plan, label: Volume | None = None) -> PreparedCase:
    """Bring a volume to the network's input: turn its axes, crop to what is not zero, normalise, resample.

    Args:
        volume: The image with all its channels.
        plan: How.
        label: Its mask, for training.

    Returns:
        The network's input and the way back.

    Raises:
        DataError: Channels or axes are not those of the plan, or the mask lies on another grid.
    """
    check_channels(volume.path, volume.channels, plan.channel_names)
    axes = len(plan.axes)
    if len(volume.shape) != axes:
        found = f"expected a volume of {axes} axes, found {len(volume.shape)}"
        raise DataError(volume.path, "shape", found, "give what the model was trained on")
    order, flips = turns(volume, plan.axes, plan.orientation)
    image = turned(volume.array, order, flips)
    body = body_of(image)
    crop = box_of(body)
    inside = tuple(slice(start, stop) for start, stop in crop)
    body = body[inside]
    spacing = tuple(volume.spacing[axis] for axis in order)
    target = (spacing[0], *plan.spacing) if plan.by_slices else plan.spacing
    resampled = new_shape(body.shape, spacing, target)
    geometry = Geometry(volume.shape, order, flips, crop, spacing, resampled, target)

    channels = np.empty((len(image), *resampled), np.float32)
    for number, (channel, rule) in enumerate(zip(image, plan.normalisation, strict=True)):
        values = normalise(channel[inside], body, rule, volume.path)
        channels[number] = resample(values, resampled, spacing, target, plan.image_resampling)
    if label is None:
        return PreparedCase(channels, None, geometry)
    error = mismatch(label, volume)
    if error is not None:
        raise error
    labels = turned(label.array, order, flips)[0][inside].astype(label_type(plan), copy=False)
    labels = resample_labels(labels, resampled, spacing, target, plan.label_resampling)
    return PreparedCase(channels, labels, geometry)


def restore_case(output: np.ndarray, geometry: Geometry, plan: Plan) -> np.ndarray:
    """Bring the network's output back to the volume that it was made from, as a mask.

    Args:
        output: Scores of each class (K, *axes), floating-point: logits or probabilities, resampled a class at a time
            before the highest is taken; or labels (*axes), integers.
        geometry: Of the prepared case.
        plan: The plan it was prepared by.

    Returns:
        Labels (*axes) with the axes of the volume's array, for `write_mask`; background outside of the crop.
    """
    kept = tuple(stop - start for start, stop in geometry.crop)
    if output.dtype.kind == "f":
        labels = np.zeros(kept, label_type(plan))
        best = np.full(kept, -np.inf, np.float32)
        for number, scores in enumerate(output):
            values = resample(scores, kept, geometry.target, geometry.spacing, plan.probability_resampling)
            keep_best(values, number, best, labels)
    else:
        labels = output.astype(label_type(plan), copy=False)
        labels = resample_labels(labels, kept, geometry.target, geometry.spacing, plan.label_resampling)
    return _placed(labels, geometry, 0)


def restore_probabilities(probabilities: np.ndarray, geometry: Geometry, plan: Plan) -> np.ndarray:
    """Bring the probabilities of all classes back to the volume that they were made from.

    Args:
        probabilities: Of each class (K, *axes).
        geometry: Of the prepared case.
        plan: The plan it was prepared by.

    Returns:
        float32 (K, *axes) with the axes of the volume's array; outside of the crop the background has all.
    """
    kept = tuple(stop - start for start, stop in geometry.crop)
    restored = np.empty((len(probabilities), *geometry.shape), np.float32)
    for number, values in enumerate(probabilities):
        resized = resample(values, kept, geometry.target, geometry.spacing, plan.probability_resampling)
        restored[number] = _placed(resized, geometry, float(number == 0))
    return restored


def turns(volume: Volume, axes: Sequence[int], orientation: str | None) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Tell how a volume's array is turned.

    Args:
        volume: The volume.
        axes: The order in which its axes are taken, once it is oriented.
        orientation: "RAS", or None to leave it as stored.

    Returns:
        The array's axis that each axis is taken from, and whether that is flipped.
    """
    count = len(volume.shape)
    order, flips = list(range(count)), [False] * count
    if orientation is not None:
        nearest = nearest_axes(volume.affine, count)
        # the file's axes sorted by the world's, then reversed as the array has them
        in_file = sorted(range(count), key=lambda axis: nearest[axis][0])
        order = [count - 1 - axis for axis in in_file[::-1]]
        flips = [not nearest[axis][1] for axis in in_file[::-1]]
    return tuple(order[axis] for axis in axes), tuple(flips[axis] for axis in axes)


def turned(array: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    """Return a view of an array (C, *axes) with its axes taken in this order, and some turned round."""
    view = array.transpose(0, *(axis + 1 for axis in order))
    return view[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]


def label_type(plan: Plan) -> type[np.unsignedinteger[Any]]:
    """Return the smallest type that holds a plan's labels; all masks by one plan have it."""
    return np.uint8 if max(plan.labels.values()) < 256 else np.uint16


def _placed(values: np.ndarray, geometry: Geometry, outside: float) -> np.ndarray:
    """Put a crop back into its volume, in the order of its array's axes."""
    whole = np.full(geometry.shape, outside, values.dtype)
    view = turned(whole[None], geometry.order, geometry.flips)[0]
    view[tuple(slice(start, stop) for start, stop in geometry.crop)] = values
    return whole
