"""A plan made from a fingerprint for a memory budget, by nnU-Net v2's rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.fingerprints import Fingerprint
from mamba_datasets.volumes.plan import NetworkPlan, Normalisation, Plan, Scheme
from mamba_datasets.volumes.resample import ANISOTROPY, new_shape
from mamba_datasets.volumes.topology import Topology, topology, values_held

# What nnU-Net's reference networks hold at this budget and batch: the yardstick for all others.
_REFERENCE_GIB = 8.0
_REFERENCE_VALUES = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
# A patch is first sought as large as this in voxels, then shrunk to the budget.
_FIRST_VOXELS = {2: 2048**2, 3: 256**3}
_LEAST_BATCH = 2
# A step sees at most this share of the data set.
_MOST_SEEN = 0.05
# If cropping leaves less than this, images are normalised within their body.
_SMALL_BODY = 0.75
# Where a patch is a smaller part of the median image, the Dice loss sums over the batch.
_SMALL_PATCH = 0.25
_SCHEMES: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale",
    "rgb_to_0_1": "rgb",
}


def make_plan(fingerprint: Fingerprint, memory_gib: float = 8.0, dim: int | None = None) -> Plan:
    """Make a plan for a data set.

    Args:
        fingerprint: Of the data set.
        memory_gib: The GPU memory that patch and batch are made for, on nnU-Net's scale: 8 trains a plain U-Net on a
            GPU of about 10 GiB. Other networks take more or less with the same plan.
        dim: Axes that the network sees; 2 for volumes takes their slices. None takes 3, or 2 for pictures.

    Returns:
        The plan "3d_fullres" or "2d".

    Raises:
        DataError: The volumes have fewer axes, are too small for two stages, or nothing fits the budget.
    """
    axes = len(fingerprint.shapes[0])
    spacing = target_spacing(fingerprint.spacings, fingerprint.shapes)
    # the axis of the lowest resolution first: slices are taken across it
    order = [int(np.argmax(spacing))] if axes == 3 else []
    order += [axis for axis in range(axes) if axis not in order]
    shapes = [
        new_shape(shape, steps, spacing) for shape, steps in zip(fingerprint.shapes, fingerprint.spacings, strict=True)
    ]
    median = [float(np.median([shape[axis] for shape in shapes])) for axis in order]
    steps = [spacing[axis] for axis in order]
    if dim is None:
        dim = 3 if axes == 3 and median[0] > 1 else 2
    if dim not in (2, 3) or dim > axes:
        found = f"expected {' or '.join(map(str, range(2, axes + 1)))} for images of {axes} axes, found {dim}"
        raise DataError(fingerprint.dataset, "dim", found, "choose another")
    steps, extent = steps[-dim:], median[-dim:]
    voxels = float(np.prod(median)) * len(shapes)
    network, batch_size = fit_network(steps, extent, voxels, len(fingerprint.labels), memory_gib, fingerprint.dataset)
    small = np.prod(network.patch_size) / np.prod(median) < _SMALL_PATCH
    return Plan(
        dataset=fingerprint.dataset,
        configuration="3d_fullres" if dim == 3 else "2d",
        network=network,
        batch_size=batch_size,
        spacing=tuple(steps),
        axes=tuple(order),
        orientation="RAS" if fingerprint.orientation == "RAS" else None,
        normalisation=_normalisation(fingerprint),
        labels=fingerprint.labels,
        channel_names=fingerprint.channel_names,
        batch_dice=bool(dim == 2 or small),
        median_shape=tuple(median),
        file_ending=fingerprint.file_ending,
    )


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the spacing to which a data set is resampled: the median.

    Where one axis is over 3 times as coarse as the others and has less than a third of their voxels, it is the
    percentile 10 along that axis, lest fine cases be thinned out; not finer than the other axes.

    Args:
        spacings: Of each case.
        shapes: Of each case.
    """
    target = np.median(np.array(spacings), axis=0)
    sizes = np.median(np.array(shapes), axis=0)
    worst = int(np.argmax(target))
    others = np.delete(target, worst)
    if target[worst] > ANISOTROPY * others.max() and sizes[worst] * ANISOTROPY < np.delete(sizes, worst).min():
        fine = np.percentile(np.array(spacings)[:, worst], 10)
        target[worst] = max(fine, others.max() + 1e-5) if fine < others.max() else fine
    return tuple(float(step) for step in target)


def fit_network(
    spacing: Sequence[float], extent: Sequence[float], voxels: float, num_classes: int, memory_gib: float, name: str
) -> tuple[NetworkPlan, int]:
    """Find the largest patch whose network fits the budget with a batch of two, and the batch that fits then.

    Args:
        spacing: Along each axis that the network sees.
        extent: Voxels of the median image along each.
        voxels: Of the whole data set.
        num_classes: Of the network.
        memory_gib: The budget.
        name: The data set's, for errors.

    Returns:
        The network's sizes and the batch size.
    """
    dim = len(spacing)
    ratio = 1 / np.array(spacing)
    first = np.round(ratio * (_FIRST_VOXELS[dim] / ratio.prod()) ** (1 / dim))
    layout = topology(np.minimum(first, extent).tolist(), spacing)
    budget = _REFERENCE_VALUES[dim] * memory_gib / _REFERENCE_GIB
    batch = _REFERENCE_BATCH[dim]
    while True:
        if len(layout.strides) < 2:
            found = f"patches of {layout.patch_size} voxels leave nothing to halve"
            raise DataError(name, f"plan for {memory_gib:g} GiB", found, "give more memory, or larger images")
        network = layout.network()
        held = values_held(network, num_classes)
        if held / batch * _LEAST_BATCH <= budget:
            break
        layout = _shrunk(layout, extent, spacing)
    fitting = round(budget / held * batch)
    seen = round(voxels * _MOST_SEEN / float(np.prod(layout.patch_size)))
    return network, max(min(fitting, seen), _LEAST_BATCH)


def _shrunk(layout: Topology, extent: Sequence[float], spacing: Sequence[float]) -> Topology:
    """Shorten the axis along which a patch covers most of the median image, by the least step."""
    size = list(layout.patch_size)
    axis = int(np.argsort(np.array(size) / np.array(extent))[-1])
    tried = list(size)
    tried[axis] -= layout.divisors[axis]
    if tried[axis] < 1:
        return Topology(tuple(size), layout.strides[:1], layout.kernel_sizes[:1])
    # the shorter patch may be halved once less, and then a smaller step than the first is possible
    size[axis] -= topology(tried, spacing).divisors[axis]
    return topology(size, spacing)


def _normalisation(fingerprint: Fingerprint) -> tuple[Normalisation, ...]:
    rules = []
    for number, name in sorted(fingerprint.channel_names.items()):
        scheme: Scheme = _SCHEMES.get(name.casefold(), "zscore")
        known = fingerprint.intensities[number]
        if scheme == "ct":
            rules.append(Normalisation(scheme, False, known.mean, known.std, known.low, known.high))
        else:
            rules.append(Normalisation(scheme, scheme == "zscore" and fingerprint.body_share < _SMALL_BODY))
    return tuple(rules)
