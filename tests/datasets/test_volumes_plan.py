"""Plans: made by nnU-Net's published rules, readable JSON, nnU-Net's own plans read in both layouts."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.volumes import Fingerprint, NetworkPlan, Plan, RawDataset, fingerprint, make_plan, write_synthetic
from mamba_datasets.volumes.fingerprints import Intensities
from mamba_datasets.volumes.planning import fit_network, target_spacing
from mamba_datasets.volumes.topology import topology, values_held

KNOWN = Intensities(90.0, 40.0, 85.0, -150.0, 220.0, -1000.0, 2000.0)


def described(shape: tuple[int, ...], spacing: tuple[float, ...], cases: int = 50, **changes: Any) -> Fingerprint:
    fields: dict[str, Any] = {
        "dataset": "toy",
        "file_ending": ".nii.gz",
        "channel_names": {0: "CT"},
        "labels": {"background": 0, "liver": 1},
        "orientation": "RAS",
        "shapes": (shape,) * cases,
        "spacings": (spacing,) * cases,
        "intensities": (KNOWN,) * len(changes.get("channel_names", (0,))),
        "body_share": 1.0,
    }
    return Fingerprint(**{**fields, **changes})


# Spacing, median shape, classes -> patch, batch, strides: as nnU-Net v2 planned public data sets at its 8 GB.
PUBLISHED = {
    "hippocampus 3d": ((1, 1, 1), (36, 50, 35), 3, 260 * 36 * 50 * 35, (40, 56, 40), 9, (8, 8, 8)),
    "hippocampus 2d": ((1, 1), (50, 35), 3, 260 * 36 * 50 * 35, (56, 40), 366, (8, 8)),
    "bones 3d": ((1.5, 0.9765625, 0.9765625), (1323, 512, 512), 60, 1e12, (192, 96, 96), 2, (32, 16, 16)),
    "bones 3d, coarse": ((5.5072, 3.5854, 3.5854), (360, 139, 139), 60, 1e12, (192, 96, 96), 2, (32, 16, 16)),
    "abdomen 3d, coarse": ((2.3566, 1.8411, 1.8411), (177, 217, 217), 3, 1e12, (128,) * 3, 2, (32,) * 3),
    "liver 3d, coarse": ((1.6391, 0.8558, 0.8558), (131, 469, 469), 3, 1e12, (56, 224, 192), 2, (8, 32, 32)),
    "tumour 2d": ((1, 1), (170, 138), 4, 1e12, (192, 160), 105, (32, 32)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patches_and_batches_that_nnunet_published(name: str) -> None:
    spacing, shape, classes, voxels, patch, batch, divisors = PUBLISHED[name]
    network, batch_size = fit_network(spacing, shape, voxels, classes, 8.0, name)
    assert (network.patch_size, batch_size, network.divisors) == (patch, batch, divisors)


def test_the_hippocampus_itself(tmp_path: Path) -> None:
    root = Path(os.environ.get("MAMBA_APPS_DATA", ""), "hippocampus")
    if not (root / "dataset.json").is_file():
        pytest.skip("the folder hippocampus is not in the folder that MAMBA_APPS_DATA names")
    known = fingerprint(RawDataset(root), tmp_path)
    plan = make_plan(known)
    assert (plan.network.patch_size, plan.batch_size, plan.median_shape) == ((40, 56, 40), 9, (36, 50, 35))
    assert plan.network.features == (32, 64, 128, 256)
    flat = make_plan(known, dim=2)
    assert (flat.network.patch_size, flat.batch_size) == ((56, 40), 366)
    assert fingerprint(RawDataset(root), tmp_path) == known


def test_anisotropic_data() -> None:
    """The thick axis comes first, is halved late, and its kernels are 1 until then."""
    plan = make_plan(described((512, 512, 30), (0.8, 0.8, 5.0)))
    assert plan.axes == (2, 0, 1)
    assert plan.spacing == (5.0, 0.8, 0.8)
    assert plan.median_shape == (30, 512, 512)
    assert plan.network.kernel_sizes[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert plan.network.strides[:3] == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert plan.network.patch_size[0] < plan.network.patch_size[1]
    assert plan.batch_dice  # the patch is a small part of the image
    assert plan.normalisation[0].scheme == "ct"
    assert (plan.normalisation[0].low, plan.normalisation[0].high) == (-150.0, 220.0)
    flat = make_plan(described((512, 512, 30), (0.8, 0.8, 5.0)), dim=2)
    assert (flat.axes, flat.spacing, flat.by_slices) == ((2, 0, 1), (0.8, 0.8), True)


@pytest.mark.parametrize(
    ("spacings", "shapes", "expected"),
    [
        ([(1, 1, 1), (2, 1, 1), (3, 1, 1)], [(10, 10, 10)] * 3, (2, 1, 1)),
        # coarse along one axis, and few voxels there: a finer spacing than the median
        ([(5, 1, 1)] * 9 + [(2, 1, 1)] * 2, [(20, 100, 100)] * 11, (2, 1, 1)),
        ([(5, 1, 1)] * 9 + [(0.5, 1, 1)] * 2, [(20, 100, 100)] * 11, (1.00001, 1, 1)),
        # coarse, but as many voxels as the others
        ([(5, 1, 1)] * 9 + [(2, 1, 1)] * 2, [(90, 100, 100)] * 11, (5, 1, 1)),
    ],
)
def test_target_spacing(spacings: list[Any], shapes: list[Any], expected: tuple[float, ...]) -> None:
    assert target_spacing(spacings, shapes) == pytest.approx(expected)


def test_a_smaller_budget_gives_smaller_patches_and_a_tiny_one_none() -> None:
    data = described((160, 300, 300), (2.0, 1.0, 1.0))
    sizes = [int(np.prod(make_plan(data, gib).network.patch_size)) for gib in (1, 4, 8, 24)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    for gib in (1, 4, 8, 24):
        network = make_plan(data, gib).network
        assert values_held(network, 2) <= 560e6 * gib / 8
    with pytest.raises(DataError, match=r"toy: plan for 1e-05 GiB: patches of .* leave nothing to halve; give more"):
        make_plan(data, 1e-5)
    with pytest.raises(DataError, match="leave nothing to halve"):
        make_plan(described((5, 5, 5), (1.0, 1.0, 1.0)))


def test_normalisation_by_channel_names_and_the_body() -> None:
    names = {0: "ct", 1: "T1", 2: "noNorm", 3: "rescale_to_0_1", 4: "rgb_to_0_1"}
    plan = make_plan(described((64, 64, 64), (1.0, 1.0, 1.0), channel_names=names, body_share=0.5))
    assert [rule.scheme for rule in plan.normalisation] == ["ct", "zscore", "none", "rescale", "rgb"]
    assert [rule.inside for rule in plan.normalisation] == [False, True, False, False, False]
    plan = make_plan(described((64, 64, 64), (1.0, 1.0, 1.0), channel_names=names, body_share=0.8))
    assert not any(rule.inside for rule in plan.normalisation)


def test_pictures_and_single_slices_are_planned_in_two_axes() -> None:
    flat = make_plan(described((300, 400), (1.0, 1.0), orientation=None, file_ending=".png"))
    assert (flat.configuration, flat.axes, flat.orientation, flat.by_slices) == ("2d", (0, 1), None, False)
    assert make_plan(described((1, 300, 400), (5.0, 1.0, 1.0))).configuration == "2d"
    with pytest.raises(DataError, match="dim: expected 2 for images of 2 axes, found 3"):
        make_plan(described((300, 400), (1.0, 1.0)), dim=3)


def test_values_held_by_hand() -> None:
    """Two stages: counted on fingers."""
    network = NetworkPlan((8, 8), (4, 6), ((3, 3),) * 2, ((1, 1), (2, 2)), (2, 3), (2,))
    encoder = 64 * 2 * 4 + 16 * 3 * 6
    decoder = 64 * (4 + 2 * 4 + 5)
    assert values_held(network, 5) == encoder + decoder


@pytest.mark.parametrize("size", [(8, 8, 8), (40, 56, 40), (16, 256, 256), (9, 100, 37)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (1.0, 3.0, 2.0)])
def test_topologies_are_sound(size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    found = topology(size, spacing)
    assert len(found.kernel_sizes) == len(found.strides)
    assert all(
        0 <= new - old < divisor for new, old, divisor in zip(found.patch_size, size, found.divisors, strict=True)
    )
    bottleneck = np.array(found.patch_size) // found.divisors
    assert (bottleneck >= 4).all()
    assert found.strides[0] == (1, 1, 1)


# ---- JSON


@pytest.fixture
def plan() -> Plan:
    return make_plan(described((160, 300, 300), (2.0, 1.0, 1.0), channel_names={0: "CT", 1: "PET"}))


def test_json_there_and_back(tmp_path: Path, plan: Plan) -> None:
    plan.to_json(tmp_path / "plan.json")
    assert Plan.from_json(tmp_path / "plan.json") == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    text = (tmp_path / "plan.json").read_text()
    assert '"patch_size": [' in text
    assert len(text.splitlines()) < 100
    assert (plan.in_channels, plan.num_classes, plan.classes, plan.ignore_label) == (
        2,
        2,
        ("background", "liver"),
        None,
    )
    ignoring = replace(plan, labels={"background": 0, "liver": 1, "ignore": 2})
    assert (ignoring.num_classes, ignoring.ignore_label) == (2, 2)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("format_version",), 2, "format_version: expected 1, found 2"),
        (("network", "patch_size"), [31, 32, 32], "network.patch_size, axis 0: expected a multiple of its strides'"),
        (("network", "patch_size"), [32], "expected 2 or 3 axes, found 1"),
        (("network", "features"), [32, 64], "network.kernel_sizes: expected 2 stages, found"),
        (("network", "strides", 0), [1, 1], "network.strides: expected 3 axes a stage"),
        (("network", "features", 0), 0, "network: expected sizes of at least 1, found 0"),
        (("network", "width"), 3, "is not laid out as a plan .*unexpected keyword argument 'width'"),
        (("network", "patch_size"), "large", "is not laid out as a plan|expected 2 or 3 axes"),
        (("axes",), [0, 1, 1], r"axes: expected an order, found \(0, 1, 1\)"),
        (("spacing",), [1.0, 1.0], "spacing: expected 3 axes, found 2"),
        (("spacing",), [1.0, 1.0, -1.0], "spacing: is "),
        (("batch_size",), 0, "batch_size: expected at least 1, found 0"),
        (("orientation",), "LPS", "orientation: knows RAS and none, found 'LPS'"),
        (("labels",), {"background": 0, "liver": 2}, r"labels: expected the values 0, 1, 2, …, found \[0, 2\]"),
        (("labels",), {"background": 0}, "labels: expected background and another"),
        (("normalisation", 0, "scheme"), "minmax", "normalisation: knows .* found 'minmax'"),
        (("channel_names",), {"0": "CT"}, "normalisation: expected one for each of 1 channels, found 2"),
        (("image_resampling", "order"), 9, "resampling: expected orders 0, 1 or 3, found "),
        (("color",), 1, "unexpected keyword argument 'color'"),
        (("labels",), None, "is not laid out as a plan|entry"),
    ],
)
def test_plans_that_contradict_themselves(
    tmp_path: Path, plan: Plan, path: tuple[Any, ...], value: object, match: str
) -> None:
    content = plan.to_dict()
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=match) as caught:
        Plan.from_json(tmp_path / "plan.json")
    assert str(caught.value).startswith(f"{tmp_path / 'plan.json'}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_plans(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Plan.from_json(tmp_path / "plan.json")
    for text, match in [("{", "is no JSON"), ("[1]", "expected a JSON object, found a list"), ("{}", "format_version")]:
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(DataError, match=match):
            Plan.from_json(tmp_path / "plan.json")
    content = plan.to_dict()
    del content["batch_size"], content["network"]
    with pytest.raises(DataError, match="entry 'network': is missing"):
        Plan.from_dict(content)


def test_fingerprint_there_and_back(tmp_path: Path) -> None:
    dataset = RawDataset(write_synthetic(tmp_path / "data", 3, (24, 20, 16), spacing=(1.0, 1.5, 2.0), channels=2))
    known = fingerprint(dataset, tmp_path / "cache")
    assert known.spacings == ((2.0, 1.5, 1.0),) * 3
    assert len(known.intensities) == 2
    assert 250 < known.intensities[0].median < 520
    assert known.intensities[1].mean == pytest.approx(2 * known.intensities[0].mean, rel=0.05)
    known.to_json(tmp_path / "known.json")
    assert Fingerprint.from_json(tmp_path / "known.json") == known
    kept = list((tmp_path / "cache").glob("fingerprint-*.json"))
    assert len(kept) == 1
    assert fingerprint(dataset, tmp_path / "cache") == known
    (tmp_path / "known.json").write_text('{"format_version": 1, "shapes": 3}')
    with pytest.raises(DataError, match="is not laid out as one"):
        Fingerprint.from_json(tmp_path / "known.json")


def test_a_data_set_without_a_labelled_voxel(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, 2, (12, 12, 12))
    for image in (root / "imagesTr").iterdir():
        empty_label(image, root / "labelsTr" / image.name.replace("_0000", ""))
    with pytest.raises(DataError, match="no voxel of any case is labelled"):
        fingerprint(RawDataset(root))


def empty_label(image: Path, label: Path) -> None:
    from mamba_datasets.volumes import read_volume, write_mask

    volume = read_volume(image)
    write_mask(label, np.zeros(volume.shape, np.uint8), volume)


# ---- nnU-Net's plans.json

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 1}, "file_ending": ".nii.gz"}
RESAMPLING = {
    f"resampling_fn_{part}{end}": value
    for part, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    for end, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": part == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
    )
}
COMMON = {
    "batch_size": 2,
    "patch_size": [64, 32, 32],
    "median_image_size_in_voxels": [662.0, 167.0, 167.0],
    "spacing": [3.0, 1.5, 1.5],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "batch_dice": True,
    **RESAMPLING,
}
OLD = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 32,
    "n_conv_per_stage_encoder": [2, 3, 4, 5],
    "n_conv_per_stage_decoder": [3, 2, 1],
    "num_pool_per_axis": [3, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 1, 1]],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "unet_max_num_features": 100,
}
NEW = {
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [32, 64, 100, 100],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": OLD["conv_kernel_sizes"],
            "strides": OLD["pool_op_kernel_sizes"],
            "n_conv_per_stage": OLD["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": OLD["n_conv_per_stage_decoder"],
            "conv_bias": True,
        },
    }
}


def nnunet(folder: Path, network: dict[str, Any] = NEW, dataset: dict[str, Any] = DATASET, **changes: Any) -> Path:
    content = {
        "dataset_name": "Dataset106_Bone",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "configurations": {
            "3d_fullres": {**COMMON, **network},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            "mine": {"inherits_from": "3d_fullres", "batch_size": 7},
        },
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 435.5, "std": 422.6, "percentile_00_5": -80.0, "percentile_99_5": 1629.0, "max": 1, "min": 0}
        },
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(content))
    return folder / "plans.json"


@pytest.mark.parametrize("network", [OLD, NEW], ids=["before 2.4", "since 2.4"])
def test_a_configuration_of_nnunet(tmp_path: Path, network: dict[str, Any]) -> None:
    plan = Plan.from_nnunet(nnunet(tmp_path, network), "3d_fullres")
    assert plan.network == NetworkPlan(
        patch_size=(64, 32, 32),
        features=(32, 64, 100, 100),
        kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 1, 1)),
        encoder_blocks=(2, 3, 4, 5),
        decoder_blocks=(1, 2, 3),
    )
    assert (plan.dataset, plan.configuration, plan.batch_size) == ("Dataset106_Bone", "3d_fullres", 2)
    assert (plan.spacing, plan.axes, plan.orientation) == ((3.0, 1.5, 1.5), (1, 0, 2), None)
    rule = plan.normalisation[0]
    assert (rule.scheme, rule.mean, rule.std, rule.low, rule.high) == ("ct", 435.5, 422.6, -80.0, 1629.0)
    assert (plan.image_resampling.order, plan.label_resampling.order, plan.batch_dice) == (3, 1, True)
    assert (plan.labels, plan.channel_names) == ({"background": 0, "bone": 1}, {0: "CT"})
    plan.to_json(tmp_path / "ours.json")
    assert Plan.from_json(tmp_path / "ours.json") == plan
    assert Plan.from_nnunet(tmp_path / "plans.json", "mine").batch_size == 7


def test_readers_of_nnunet_decide_on_axes_and_orientation(tmp_path: Path) -> None:
    turned = Plan.from_nnunet(nnunet(tmp_path, image_reader_writer="NibabelIOWithReorient"), "3d_fullres")
    assert turned.orientation == "RAS"
    flat = copy.deepcopy({**COMMON, **OLD, "patch_size": [64, 32], "spacing": [1.0, 1.0]})
    for key in ("pool_op_kernel_sizes", "conv_kernel_sizes"):
        flat[key] = [row[1:] for row in flat[key]]
    flat["pool_op_kernel_sizes"][-1] = [2, 2]
    path = nnunet(
        tmp_path,
        dataset={**DATASET, "file_ending": ".png"},
        image_reader_writer="NaturalImage2DIO",
        transpose_forward=[0, 1, 2],
        configurations={"2d": flat},
    )
    plan = Plan.from_nnunet(path, "2d")
    assert (plan.axes, plan.by_slices, plan.network.dim) == ((0, 1), False, 2)


@pytest.mark.parametrize(
    ("changes", "configuration", "match"),
    [
        ({}, "3d_lowres", "configuration '3d_lowres': there is none; there is 3d_fullres, 3d_cascade_fullres, mine"),
        ({}, "3d_cascade_fullres", "second stage of a cascade, after '3d_lowres': cascades are not supported"),
        (
            {"configurations": {"3d_fullres": {**COMMON}}},
            "3d_fullres",
            "entry '.*' is missing|'UNet.*': is missing|is missing",
        ),
        ({"transpose_forward": [0, 0, 1]}, "3d_fullres", "axes: expected an order"),
        ({"foreground_intensity_properties_per_channel": {}}, "3d_fullres", "entry '0': is missing"),
        (
            {"configurations": {"x": {**COMMON, **NEW, "normalization_schemes": ["Mine"]}}},
            "x",
            "channel 0: knows ZScoreNormalization, .* found Mine",
        ),
        (
            {"configurations": {"x": {**COMMON, **NEW, "resampling_fn_data": "resample_torch_fornnunet"}}},
            "x",
            "resampling_fn_data: knows resample_data_or_seg_to_shape, found resample_torch",
        ),
        (
            {"dataset": {**DATASET, "labels": {"background": 0, "whole": [1, 2], "core": 2}}},
            "3d_fullres",
            "dataset.json: labels: 'whole' is a region, made of several labels: regions are not supported",
        ),
        ({"dataset": {**DATASET, "channel_names": {"0": "A", "1": "B"}}}, "3d_fullres", "for each of 2 channels"),
    ],
)
def test_what_of_nnunet_is_refused(tmp_path: Path, changes: dict[str, Any], configuration: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        Plan.from_nnunet(nnunet(tmp_path, **changes), configuration)
    assert str(caught.value).startswith(str(tmp_path))


def test_nnunets_plans_need_the_description(tmp_path: Path) -> None:
    path = nnunet(tmp_path)
    (tmp_path / "dataset.json").rename(tmp_path / "other.json")
    with pytest.raises(DataError, match=r"labels: they stand in dataset.json, and there is no .*; copy the data set's"):
        Plan.from_nnunet(path, "3d_fullres")
    assert Plan.from_nnunet(path, "3d_fullres", tmp_path / "other.json").labels["bone"] == 1
