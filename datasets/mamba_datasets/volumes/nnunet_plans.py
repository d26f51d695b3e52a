"""nnU-Net v2's own `plans.json`: one configuration of it as a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.json_files import read_json
from mamba_datasets.volumes.plan import NetworkPlan, Normalisation, Plan, Reading, Resampling, Scheme
from mamba_datasets.volumes.raw import DESCRIPTION, description_of

_SCHEMES: dict[str, Scheme] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
    "NoNormalization": "none",
}
_RESAMPLING = "resample_data_or_seg_to_shape"
_FLAT_READER = "NaturalImage2DIO"
_TURNING_READER = "NibabelIOWithReorient"


def read_nnunet_plan(path: str | Path, configuration: str, dataset_json: str | Path | None = None) -> Plan:
    """Read one configuration, in the layout of any nnU-Net v2.

    Args:
        path: The `plans.json`.
        configuration: Its name there.
        dataset_json: Names channels and labels; None takes the one beside the plans.

    Returns:
        The plan; volumes are taken as stored, as nnU-Net does, unless its reader turned them.

    Raises:
        DataError: The file is none, the configuration is missing, a cascade, or uses what is not built here.
    """
    content = read_json(path, "give nnU-Net v2's plans.json")
    beside = Path(path).with_name(DESCRIPTION) if dataset_json is None else Path(dataset_json)
    remedy = f"copy the data set's {DESCRIPTION} beside the plans, or name it: dataset_json=..."
    if not beside.is_file():
        raise DataError(path, "labels", f"they stand in {DESCRIPTION}, and there is no {beside}", remedy)
    with Reading(path):
        name = str(content["dataset_name"])
        chosen = _configuration(content["configurations"], configuration, path)
        reader = content.get("image_reader_writer", "")
        axes = tuple(int(axis) for axis in content["transpose_forward"])
        if reader == _FLAT_READER:
            # pictures are volumes of one slice there
            axes = tuple(axis - 1 for axis in axes if axis > 0)
        normalisation = _normalisation(chosen, content.get("foreground_intensity_properties_per_channel", {}), path)
        network = _network(chosen, path)
        resampling = [_resampling(chosen, part, path) for part in ("data", "seg", "probabilities")]
        median = tuple(map(float, chosen.get("median_image_size_in_voxels", ())))
    description = description_of(read_json(beside, remedy), beside, name)
    with Reading(path):
        return Plan(
            dataset=name,
            configuration=configuration,
            network=network,
            batch_size=int(chosen["batch_size"]),
            spacing=tuple(map(float, chosen["spacing"])),
            axes=axes,
            orientation="RAS" if reader == _TURNING_READER else None,
            normalisation=normalisation,
            labels=description.labels,
            channel_names=description.channel_names,
            image_resampling=resampling[0],
            label_resampling=resampling[1],
            probability_resampling=resampling[2],
            batch_dice=bool(chosen.get("batch_dice", False)),
            median_shape=median,
            file_ending=description.file_ending,
        )


def _configuration(known: dict[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """Return a configuration with all that it inherits."""
    seen: list[str] = []
    merged: dict[str, Any] = {}
    parent: str | None = name
    while parent is not None:
        if parent not in known or parent in seen:
            found = f"there is none; there is {', '.join(known)}" if parent not in known else "inherits from itself"
            raise DataError(path, f"configuration {parent!r}", found, "name one of them")
        seen.append(parent)
        merged = {**known[parent], **merged}
        parent = known[parent].get("inherits_from")
    if merged.get("previous_stage"):
        found = f"is the second stage of a cascade, after {merged['previous_stage']!r}: cascades are not supported"
        raise DataError(path, f"configuration {name!r}", found, "take 3d_fullres or 3d_lowres")
    return merged


def _network(chosen: dict[str, Any], path: str | Path) -> NetworkPlan:
    patch = tuple(int(size) for size in chosen["patch_size"])
    if "architecture" not in chosen:  # as in versions before 2.4, and in forks of these
        strides, kernels = chosen["pool_op_kernel_sizes"], chosen["conv_kernel_sizes"]
        base, most = int(chosen["UNet_base_num_features"]), int(chosen["unet_max_num_features"])
        features = tuple(min(most, base * 2**stage) for stage in range(len(strides)))
        encoder, decoder = chosen["n_conv_per_stage_encoder"], chosen["n_conv_per_stage_decoder"]
    else:
        sizes = chosen["architecture"]["arch_kwargs"]
        strides, kernels = sizes["strides"], sizes["kernel_sizes"]
        features = tuple(int(count) for count in sizes["features_per_stage"])
        encoder = sizes["n_blocks_per_stage"] if "n_blocks_per_stage" in sizes else sizes["n_conv_per_stage"]
        decoder = sizes["n_conv_per_stage_decoder"]
    stages = len(features)
    return NetworkPlan(
        patch,
        features,
        _per_axis(kernels, stages, len(patch)),
        _per_axis(strides, stages, len(patch)),
        _per_stage(encoder, stages),
        _per_stage(decoder, stages - 1)[::-1],  # nnU-Net's begin at the coarsest
    )


def _per_axis(entries: Any, stages: int, dim: int) -> tuple[tuple[int, ...], ...]:
    """Return an entry a stage and axis, where one number may stand for all."""
    rows = entries if isinstance(entries, list) else [entries] * stages
    return tuple(tuple(map(int, row)) if isinstance(row, list) else (int(row),) * dim for row in rows)


def _per_stage(entries: Any, stages: int) -> tuple[int, ...]:
    return tuple(map(int, entries)) if isinstance(entries, list) else (int(entries),) * stages


def _normalisation(chosen: dict[str, Any], known: dict[str, Any], path: str | Path) -> tuple[Normalisation, ...]:
    rules = []
    for number, name in enumerate(chosen["normalization_schemes"]):
        if name not in _SCHEMES:
            raise DataError(path, f"channel {number}", f"knows {', '.join(_SCHEMES)}, found {name}", "plan with these")
        inside = bool(chosen["use_mask_for_norm"][number]) and name == "ZScoreNormalization"
        if name == "CTNormalization":
            values = known[str(number)]
            keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
            rules.append(Normalisation("ct", False, *(float(values[key]) for key in keys)))
        else:
            rules.append(Normalisation(_SCHEMES[name], inside))
    return tuple(rules)


def _resampling(chosen: dict[str, Any], part: str, path: str | Path) -> Resampling:
    function = chosen.get(f"resampling_fn_{part}", _RESAMPLING)
    if function != _RESAMPLING:
        raise DataError(path, f"resampling_fn_{part}", f"knows {_RESAMPLING}, found {function}", "plan with this one")
    settings = chosen[f"resampling_fn_{part}_kwargs"]
    forced = settings.get("force_separate_z")
    return Resampling(int(settings["order"]), int(settings["order_z"]), None if forced is None else bool(forced))
