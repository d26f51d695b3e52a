"""The shape of a U-Net for a patch: which axes are halved at which stage, kernels, and how many values it holds.

The rules are nnU-Net v2's (Isensee et al., Nature Methods 2021), so that the same data give the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mamba_datasets.volumes.plan import NetworkPlan

# An axis is halved as long as half of it is at least this long.
_LEAST_EDGE = 4
# Axes whose spacing is below this many times the finest are treated alike.
_ALIKE = 2
BASE_FEATURES = 32
_MOST_FEATURES = {2: 512, 3: 320}
_BLOCKS = 2


@dataclass(frozen=True)
class Topology:
    """Where a network halves which axis.

    Args:
        patch_size: Rounded up to a multiple of the strides.
        strides: Of each stage.
        kernel_sizes: Of each stage.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """The product of the strides along each axis."""
        return tuple(int(factor) for factor in np.prod(np.array(self.strides), axis=0))

    def network(self) -> NetworkPlan:
        """Return the whole network's sizes."""
        stages, dim = len(self.strides), len(self.patch_size)
        features = tuple(min(_MOST_FEATURES[dim], BASE_FEATURES * 2**stage) for stage in range(stages))
        blocks = (_BLOCKS,) * stages
        return NetworkPlan(self.patch_size, features, self.kernel_sizes, self.strides, blocks, blocks[1:])


def topology(patch_size: Sequence[float], spacing: Sequence[float]) -> Topology:
    """Find where a network for a patch halves which axis.

    Each stage halves the axes that are long enough and whose spacing, as halved so far, is within a factor of 2 of
    the finest of these; a kernel is 3 wide along an axis from the stage on where its spacing comes within a factor of
    2 of the finest, and 1 before.

    Args:
        patch_size: Voxels along each axis; halves, as medians have, count as one more.
        spacing: Along each.

    Returns:
        Strides, kernels, and the patch rounded up to what the strides divide.
    """
    dim = len(patch_size)
    size, steps = list(patch_size), list(spacing)
    strides, kernels = [(1,) * dim], []
    kernel = [1] * dim
    while True:
        long = [axis for axis in range(dim) if size[axis] >= 2 * _LEAST_EDGE]
        finest = min((steps[axis] for axis in long), default=0.0)
        halved = [axis for axis in long if steps[axis] < _ALIKE * finest]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * _LEAST_EDGE):
            break
        kernel = [
            3 if width == 3 or step < _ALIKE * min(steps) else 1 for width, step in zip(kernel, steps, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dim)))
        for axis in halved:
            steps[axis] *= 2
            size[axis] = -(-size[axis] // 2)
    kernels.append((3,) * dim)
    divisors = np.prod(np.array(strides), axis=0)
    rounded = tuple(int(-(-extent // divisor) * divisor) for extent, divisor in zip(patch_size, divisors, strict=True))
    return Topology(rounded, tuple(strides), tuple(kernels))


def values_held(network: NetworkPlan, num_classes: int) -> int:
    """Count the values in the feature maps of a plain U-Net with deep supervision, for one patch.

    Args:
        network: Its sizes.
        num_classes: Channels of each of its outputs.

    Returns:
        The outputs of all convolutions, from which nnU-Net estimates memory.
    """
    sizes = np.array(network.patch_size) // np.cumprod(np.array(network.strides), axis=0)
    voxels = [int(count) for count in np.prod(sizes, axis=1, dtype=np.int64)]
    encoder = sum(
        count * blocks * features
        for count, blocks, features in zip(voxels, network.encoder_blocks, network.features, strict=True)
    )
    decoder = sum(
        count * ((blocks + 1) * features + num_classes)  # the transposed convolution is one more
        for count, blocks, features in zip(voxels[:-1], network.decoder_blocks, network.features[:-1], strict=True)
    )
    return encoder + decoder
