"""The plan of a segmentation: how volumes become a network's input, and the sizes of the network; readable JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.files import write_whole
from mamba_datasets.volumes.json_files import indented, read_json

Scheme = Literal["zscore", "ct", "rescale", "rgb", "none"]

FORMAT_VERSION = 1
IGNORE = "ignore"
_REMEDY = "write it with Plan.to_json, or make it anew with make_plan"


def _require(holds: bool, where: str, found: str) -> None:
    if not holds:
        raise DataError("plan", where, found, _REMEDY)


@dataclass(frozen=True)
class NetworkPlan:
    """The sizes of an encoder-decoder network; stages run from full resolution to the bottleneck.

    Args:
        patch_size: Voxels along each of the 2 or 3 axes that the network sees at a time.
        features: Channels of each stage.
        kernel_sizes: Of each stage's convolutions, an entry an axis.
        strides: With which each stage begins, an entry an axis; the first stage's are usually 1.
        encoder_blocks: Convolutions (or residual blocks) of each stage of the encoder.
        decoder_blocks: The same for the decoder, from full resolution down; one entry less, as the bottleneck has none.
    """

    patch_size: tuple[int, ...]
    features: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        stages, dim = len(self.features), len(self.patch_size)
        _require(dim in (2, 3), "network.patch_size", f"expected 2 or 3 axes, found {dim}")
        _require(stages >= 2, "network.features", f"expected at least 2 stages, found {stages}")
        for name, length in (("kernel_sizes", stages), ("strides", stages), ("encoder_blocks", stages)):
            found = len(getattr(self, name))
            _require(found == length, f"network.{name}", f"expected {length} stages, found {found}")
        found = len(self.decoder_blocks)
        _require(found == stages - 1, "network.decoder_blocks", f"expected {stages - 1} stages, found {found}")
        for name in ("kernel_sizes", "strides"):
            lengths = {len(entry) for entry in getattr(self, name)}
            _require(lengths == {dim}, f"network.{name}", f"expected {dim} axes a stage, found {sorted(lengths)}")
        numbers = np.concatenate([np.ravel(value) for value in dataclasses.astuple(self)])
        _require(bool((numbers >= 1).all()), "network", f"expected sizes of at least 1, found {numbers.min()}")
        for axis, (size, divisor) in enumerate(zip(self.patch_size, self.divisors, strict=True)):
            found_text = f"expected a multiple of its strides' product {divisor}, found {size}"
            _require(size % divisor == 0, f"network.patch_size, axis {axis}", found_text)

    @property
    def dim(self) -> int:
        """How many axes the network sees: 2 or 3."""
        return len(self.patch_size)

    @property
    def stages(self) -> int:
        """How many resolutions there are, the bottleneck's included."""
        return len(self.features)

    @property
    def divisors(self) -> tuple[int, ...]:
        """What an input's size along each axis must be a multiple of: the product of the strides."""
        return tuple(int(factor) for factor in np.prod(np.array(self.strides, np.int64), axis=0))


@dataclass(frozen=True)
class Normalisation:
    """How one channel's values become the network's.

    Args:
        scheme: "zscore" subtracts the image's mean and divides by its standard deviation; "ct" clips to `low` and
            `high`, then uses `mean` and `std`; "rescale" maps the image's range to 0 to 1; "rgb" divides by 255;
            "none" leaves values as they are.
        inside: For "zscore": take only voxels of the image's body, and leave the others as they are.
        mean: Over the labelled structures of the training set.
        std: The same.
        low: Their percentile 0.5.
        high: Their percentile 99.5.
    """

    scheme: Scheme = "zscore"
    inside: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        _require(self.scheme in get_args(Scheme), "normalisation", f"knows {get_args(Scheme)}, found {self.scheme!r}")


@dataclass(frozen=True)
class Resampling:
    """How voxels are interpolated between grids.

    Args:
        order: Of the spline: 0 is nearest, 1 linear, 3 cubic.
        order_z: The same along the axis of low resolution, where that is resampled separately.
        separate_z: Resample slices first, then across them; None does so where one spacing is over 3 times another's.
    """

    order: int
    order_z: int = 0
    separate_z: bool | None = None

    def __post_init__(self) -> None:
        orders = (self.order, self.order_z)
        _require({0, 1, 3}.issuperset(orders), "resampling", f"expected orders 0, 1 or 3, found {orders}")


@dataclass(frozen=True)
class Plan:
    """How a data set's volumes become the network's input and its output a mask; what the network looks like.

    An array of a volume has its axes in reverse order of the file's: (C, z, y, x). `axes` permutes z, y, x; `spacing`,
    `network.patch_size` and `median_shape` count the permuted axes. Where the network is 2-D and the volumes are 3-D,
    it sees slices across the first permuted axis, which is not resampled.

    Args:
        dataset: The data set's name.
        configuration: The plan's name, such as "3d_fullres".
        network: Its sizes.
        batch_size: Patches a step.
        spacing: Of the resampled grid along each axis that the network sees, in the files' unit (mm).
        axes: The order in which a volume's axes are taken; as many as a volume has.
        orientation: The axes' directions to which volumes are turned first ("RAS": right, anterior, superior); None
            leaves them as stored.
        normalisation: For each channel.
        labels: The value of each label; "background" is 0, and "ignore", where there is one, the highest.
        channel_names: The name of each channel.
        image_resampling: For images.
        label_resampling: For training labels; a label at a time.
        probability_resampling: For the network's output, on its way back.
        batch_dice: Whether the Dice loss sums over the batch.
        median_shape: Of the resampled training images.
        file_ending: Of the data set's files, such as ".nii.gz".
    """

    dataset: str
    configuration: str
    network: NetworkPlan
    batch_size: int
    spacing: tuple[float, ...]
    axes: tuple[int, ...]
    orientation: Literal["RAS"] | None
    normalisation: tuple[Normalisation, ...]
    labels: dict[str, int]
    channel_names: dict[int, str]
    image_resampling: Resampling = Resampling(3)
    label_resampling: Resampling = Resampling(1)
    probability_resampling: Resampling = Resampling(1)
    batch_dice: bool = False
    median_shape: tuple[float, ...] = ()
    file_ending: str = ".nii.gz"

    def __post_init__(self) -> None:
        dim = self.network.dim
        _require(sorted(self.axes) == list(range(len(self.axes))), "axes", f"expected an order, found {self.axes}")
        _require(len(self.axes) in (dim, 3), "axes", f"expected {dim} or 3, found {len(self.axes)}")
        _require(len(self.spacing) == dim, "spacing", f"expected {dim} axes, found {len(self.spacing)}")
        _require(all(0 < step < np.inf for step in self.spacing), "spacing", f"is {self.spacing}")
        _require(self.batch_size >= 1, "batch_size", f"expected at least 1, found {self.batch_size}")
        _require(self.orientation in (None, "RAS"), "orientation", f"knows RAS and none, found {self.orientation!r}")
        _require(
            len(self.normalisation) == len(self.channel_names) >= 1,
            "normalisation",
            f"expected one for each of {len(self.channel_names)} channels, found {len(self.normalisation)}",
        )
        values = sorted(self.labels.values())
        _require(values == list(range(len(values))), "labels", f"expected the values 0, 1, 2, …, found {values}")
        _require(len(self.classes) >= 2, "labels", f"expected background and another, found {list(self.labels)}")

    @property
    def ignore_label(self) -> int | None:
        """The value of voxels that belong to no known class, where the data set has one."""
        return self.labels.get(IGNORE)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the network's classes by their value, background first; "ignore" is none."""
        by_value = sorted(self.labels.items(), key=lambda item: item[1])
        return tuple(name for name, _ in by_value if name != IGNORE)

    @property
    def in_channels(self) -> int:
        """How many channels the network takes."""
        return len(self.channel_names)

    @property
    def num_classes(self) -> int:
        """How many classes the network tells apart, background included."""
        return len(self.classes)

    @property
    def by_slices(self) -> bool:
        """Whether a 2-D network sees slices of 3-D volumes."""
        return len(self.axes) > self.network.dim

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, which `from_dict` reads."""
        return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(dataclasses.asdict(self)))}

    @classmethod
    def from_dict(cls, content: dict[str, Any], name: str | Path = "plan") -> Plan:
        """Return the plan that `to_dict` told.

        Args:
            content: The plain values.
            name: Where they come from, for errors.

        Raises:
            DataError: Something is missing, unknown or contradicts the rest.
        """
        with Reading(name):
            version = content.get("format_version")
            _require(version == FORMAT_VERSION, "format_version", f"expected {FORMAT_VERSION}, found {version!r}")
            fields = {key: value for key, value in content.items() if key != "format_version"}
            network = {key: _tuples(value) for key, value in fields.pop("network").items()}
            fields["network"] = NetworkPlan(**network)
            fields["normalisation"] = tuple(Normalisation(**entry) for entry in fields["normalisation"])
            for key in ("image_resampling", "label_resampling", "probability_resampling"):
                if key in fields:
                    fields[key] = Resampling(**fields[key])
            fields["channel_names"] = {int(key): value for key, value in fields["channel_names"].items()}
            return cls(**{key: _tuples(value) for key, value in fields.items()})

    def to_json(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            DataError: It cannot be written there.
        """
        write_whole(path, lambda file: file.write((indented(self.to_dict()) + "\n").encode()))

    @classmethod
    def from_json(cls, path: str | Path) -> Plan:
        """Read a plan that `to_json` wrote, perhaps edited by hand.

        Raises:
            DataError: It cannot be read, or something in it is missing, unknown or contradicts the rest.
        """
        return cls.from_dict(read_json(path, _REMEDY), path)

    @classmethod
    def from_nnunet(cls, path: str | Path, configuration: str, dataset_json: str | Path | None = None) -> Plan:
        """Read one configuration of nnU-Net v2's `plans.json`.

        Args:
            path: The file.
            configuration: Its name there, such as "3d_fullres" or "2d".
            dataset_json: The data set's description, which names channels and labels; None takes the one beside.

        Raises:
            DataError: It is no such file, or asks for what is not built here, such as a cascade.
        """
        from mamba_datasets.volumes.nnunet_plans import read_nnunet_plan

        return read_nnunet_plan(path, configuration, dataset_json)


class Reading:
    """Turns what goes wrong while a plan is put together into errors that name its file."""

    def __init__(self, name: str | Path) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            raise DataError(self.name, error.where, error.expected, error.remedy) from None
        if isinstance(error, KeyError):
            raise DataError(self.name, f"entry {error.args[0]!r}", "is missing", _REMEDY) from None
        if isinstance(error, (TypeError, ValueError, AttributeError)):
            raise DataError(self.name, "plan", f"is not laid out as a plan ({error})", _REMEDY) from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
