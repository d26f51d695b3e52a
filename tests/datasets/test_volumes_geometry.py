"""A mask comes back where the volume lies: however its axes are stored and resampled, in world coordinates."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from nibabel.processing import conform
from scipy import ndimage

from mamba_datasets.errors import DataError
from mamba_datasets.volumes import (
    NetworkPlan,
    Normalisation,
    Plan,
    Resampling,
    Volume,
    prepare_case,
    read_case,
    read_label,
    read_volume,
    restore_case,
    restore_probabilities,
    write_mask,
)
from mamba_datasets.volumes.prepare import Geometry
from mamba_datasets.volumes.resample import new_shape, resample, resample_labels, separate_axis

NETWORK = NetworkPlan((16, 16, 16), (8, 16), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (2, 2), (2,))
PLAN = Plan(
    dataset="toy",
    configuration="3d_fullres",
    network=NETWORK,
    batch_size=2,
    spacing=(1.0, 1.0, 1.0),
    axes=(0, 1, 2),
    orientation="RAS",
    normalisation=(Normalisation("none"),) * 3,
    labels={"background": 0, "body": 1, "left": 2, "front": 3},
    channel_names={0: "body", 1: "left", 2: "front"},
)
ONE_CHANNEL = replace(PLAN, normalisation=(Normalisation("none"),), channel_names={0: "MR"})
# Centre and radii in millimetres right, anterior, superior: no symmetry maps the object to itself.
OBJECT = [((2.0, -3.0, 4.0), (18.0, 22.0, 26.0), 1), ((-7.0, 2.0, 9.0), (6.0, 5.0, 7.0), 2), ((5, 8, -5), (5, 7, 4), 3)]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out fsync, which matters to a power cut only and is slow on a busy disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def object_at(world: np.ndarray) -> np.ndarray:
    """Return the object's label at points (..., 3) of the world."""
    label = np.zeros(world.shape[:-1], np.uint8)
    for centre, radii, value in OBJECT:
        label[(((world - centre) / radii) ** 2).sum(-1) <= 1] = value
    return label


def grid(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return the world coordinates of a file's voxels (x, y, z, 3)."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return places @ affine[:3, :3].T + affine[:3, 3]


def centred(shape: tuple[int, ...], steps: np.ndarray) -> np.ndarray:
    """Return the affine that puts the middle of a grid with these steps into the middle of the object."""
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = np.array([2.0, -3.0, 4.0]) - steps @ ((np.array(shape) - 1) / 2)
    return affine


def save(folder: Path, shape: tuple[int, int, int], affine: np.ndarray) -> tuple[Volume, np.ndarray]:
    """Write the object on a grid, a channel a label, and return the volume that is read and the labels (z, y, x)."""
    label = object_at(grid(shape, affine))
    files = [folder / f"object_{value}.nii.gz" for value in (1, 2, 3)]
    for value, file in enumerate(files, 1):
        nibabel.save(nibabel.Nifti1Image((label == value).astype(np.uint8), affine), file)
    return read_case(files), label.transpose()


def segment(volume: Volume, plan: Plan, *, scores: bool = True) -> np.ndarray:
    """Take the channels for the labels' scores, as a network that always hits would, there and back."""
    case = prepare_case(volume, plan)
    output = np.concatenate([np.full_like(case.image[:1], 0.5), case.image])
    return restore_case(output if scores else output.argmax(0), case.geometry, plan)


def far_off(mask: np.ndarray, truth: np.ndarray) -> int:
    """Count voxels that are wrong and not beside a border of the truth."""
    inside = np.ones(truth.shape, bool)
    for value in range(4):
        part = truth == value
        inside &= ndimage.binary_erosion(part, np.ones((3,) * 3), border_value=1) | ~part
    return int(((mask != truth) & inside).sum())


FLIPS = list(itertools.product([1, -1], repeat=3))
ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("order", ORDERS)
def test_all_48_ways_of_storing_a_volume_give_the_same_mask(tmp_path: Path, order: tuple[int, int, int]) -> None:
    """Turned back by nibabel, each mask is to the bit the mask of the volume stored as RAS."""
    shape = (20, 23, 27)
    plan = replace(PLAN, spacing=(2.4, 2.0, 2.6), axes=(1, 2, 0))
    volume, _ = save(tmp_path, shape, centred(shape, np.diag([2.0, 2.5, 3.0])))
    expected = segment(volume, plan)
    prepared = prepare_case(volume, plan).image
    files = sorted(tmp_path.iterdir())
    originals = [nibabel.load(file) for file in files]
    for flips in FLIPS:
        turn = np.stack([np.argsort(order), np.array(flips)[np.argsort(order)]], axis=1)
        for number, original in enumerate(originals):
            stored = original.as_reoriented(turn)
            nibabel.save(stored, tmp_path / f"stored_{number}.nii")
        volume = read_case([tmp_path / f"stored_{number}.nii" for number in range(3)])
        np.testing.assert_array_equal(prepare_case(volume, plan).image, prepared)
        write_mask(tmp_path / "mask.nii.gz", segment(volume, plan), volume)
        mask = nibabel.load(tmp_path / "mask.nii.gz")
        assert mask.shape == stored.shape
        np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "stored_0.nii").affine)
        canonical = nibabel.as_closest_canonical(mask)
        np.testing.assert_allclose(canonical.affine, originals[0].affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(canonical.dataobj).transpose(), expected)


@pytest.mark.parametrize(
    ("orientation", "scores", "axes"),
    [("RAS", True, (0, 1, 2)), (None, True, (2, 0, 1)), ("RAS", False, (2, 0, 1))],
)
def test_a_mask_of_any_grid_lies_on_the_object(
    tmp_path: Path, orientation: str | None, scores: bool, axes: tuple[int, int, int]
) -> None:
    """Fine, coarse, anisotropic, oblique: on every grid the mask is the object, but for voxels at its borders."""
    plan = replace(PLAN, orientation=orientation, axes=axes)
    tilt = euler2mat(0.2, -0.15, 0.3)
    grids = {
        "as planned": ((44, 50, 60), np.diag([1.0, 1, 1])),
        "fine": ((70, 80, 80), np.diag([0.6, 0.65, 0.7])),
        "coarse": ((24, 26, 32), np.diag([2.0, 2.0, 2.0])),
        "thick slices": ((60, 64, 12), np.diag([0.8, 0.8, 5.0])),
        "thick slices, sagittal": ((12, 60, 70), np.diag([4.5, 0.9, 0.9])),
        "LPS": ((44, 50, 60), np.diag([-1.0, -1, 1])),
        "permuted and flipped": ((50, 60, 22), np.array([[0, 0, -2.0], [1, 0, 0], [0, 1, 0]])),
        "oblique": ((56, 60, 66), tilt @ np.diag([0.9, 1.0, 1.1])),
        "oblique, turned": ((60, 66, 28), tilt @ np.array([[0, 0, 2.0], [-1.0, 0, 0], [0, 1.1, 0]])),
    }
    for name, (shape, steps) in grids.items():
        volume, truth = save(tmp_path, shape, centred(shape, steps))
        write_mask(tmp_path / "m.nii.gz", segment(volume, plan, scores=scores), volume)
        mask = nibabel.load(tmp_path / "m.nii.gz")
        found = np.asarray(mask.dataobj).transpose()
        assert far_off(found, truth) == 0, name
        world = grid(shape, mask.affine)
        for value in (1, 2, 3):
            centre = world[found.transpose() == value].mean(0)
            expected = world[truth.transpose() == value].mean(0)
            assert np.abs(centre - expected).max() < 0.2 * max(volume.spacing), (name, value)


def test_a_volume_resampled_anisotropically_by_another_program(tmp_path: Path) -> None:
    """nibabel resamples and turns the volume; masks of both are the same place in the world."""
    shape = (50, 56, 64)
    volume, truth = save(tmp_path, shape, centred(shape, np.eye(3)))
    first = segment(volume, PLAN)
    assert (first == truth).all()
    for file in sorted(tmp_path.iterdir()):
        source = nibabel.load(file)
        image = nibabel.Nifti1Image(source.get_fdata(), source.affine)
        other = conform(image, (60, 36, 40), (0.9, 1.7, 1.9), order=1, orientation="PIR")
        nibabel.save(other, tmp_path / f"other_{file.name}")
    volume = read_case(sorted(tmp_path.glob("other*")))
    assert volume.orientation == "PIR"
    mask = segment(volume, PLAN)
    there = object_at(grid(other.shape, other.affine)).transpose()
    assert far_off(mask, there) == 0
    assert (mask == there).mean() > 0.97
    # the voxels of one mask, looked up in the other by the world
    places = grid(shape, np.linalg.inv(other.affine) @ source.affine)
    looked_up = ndimage.map_coordinates(mask.transpose(), np.moveaxis(places, -1, 0), order=0).transpose()
    assert far_off(looked_up, first) <= 0.001 * first.size


def test_what_is_zero_is_cropped_and_comes_back(tmp_path: Path) -> None:
    values = np.zeros((20, 30, 40), np.int16)
    values[3:9, 5:20, 30:40] = 100
    values[5, 10, 35] = 0  # a hole
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1, 1, 1])), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    case = prepare_case(volume, ONE_CHANNEL)
    assert case.image.shape == (1, 10, 15, 6)
    assert case.geometry.crop == ((30, 40), (5, 20), (3, 9))
    ones = np.ones(case.image.shape[1:], np.uint8)
    mask = restore_case(ones, case.geometry, ONE_CHANNEL)
    expected = np.zeros((40, 30, 20), np.uint8)
    expected[30:40, 5:20, 3:9] = 1
    np.testing.assert_array_equal(mask, expected)
    probabilities = restore_probabilities(np.full((4, *ones.shape), 0.25, np.float32), case.geometry, ONE_CHANNEL)
    assert probabilities.shape == (4, 40, 30, 20)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    assert (probabilities[0] == np.where(expected == 1, 0.25, 1)).all()

    nibabel.save(nibabel.Nifti1Image(values * 0, np.eye(4)), tmp_path / "b.nii.gz")
    assert prepare_case(read_volume(tmp_path / "b.nii.gz"), ONE_CHANNEL).image.shape == (1, 40, 30, 20)


def test_geometry_as_json(tmp_path: Path) -> None:
    shape = (20, 24, 28)
    volume, _ = save(tmp_path, shape, centred(shape, np.diag([-2.0, 2.1, 2.2])))
    geometry = prepare_case(volume, PLAN).geometry
    assert Geometry.from_dict(geometry.to_dict()) == geometry
    assert geometry.flips == (False, False, True)


def test_training_labels_take_the_same_way(tmp_path: Path) -> None:
    shape = (30, 26, 40)
    affine = centred(shape, np.array([[0, 0, -1.2], [2.0, 0, 0], [0, 2.0, 0]]))
    volume, _ = save(tmp_path, shape, affine)
    nibabel.save(nibabel.Nifti1Image(object_at(grid(shape, affine)), affine), tmp_path / "label.nii.gz")
    label = read_label(tmp_path / "label.nii.gz")
    case = prepare_case(volume, replace(PLAN, spacing=(1.5, 1.0, 1.0)), label)
    assert case.label.shape == case.image.shape[1:]
    assert case.label.dtype == np.uint8
    for value, channel in enumerate(case.image, 1):
        assert channel[case.label == value].mean() > 0.9
        assert abs(channel[case.label != value].mean()) < 0.02
    moved = replace(label, affine=label.affine + np.eye(4)[:, ::-1] * 3)
    with pytest.raises(DataError, match=r"label.nii.gz: \w+: expected"):
        prepare_case(volume, PLAN, moved)


def test_slices_of_a_volume_and_pictures(tmp_path: Path) -> None:
    """A plan of two axes leaves the first axis as it is."""
    network = NetworkPlan((16, 16), (8, 16), ((3, 3),) * 2, ((1, 1), (2, 2)), (2, 2), (2,))
    plan = replace(PLAN, network=network, spacing=(1.0, 1.0), axes=(2, 0, 1))
    assert plan.by_slices
    shape = (20, 40, 30)
    volume, truth = save(tmp_path, shape, centred(shape, np.diag([2.0, 1.5, 1.8])))
    case = prepare_case(volume, plan)
    kept = [stop - start for start, stop in case.geometry.crop]
    assert case.image.shape == (3, kept[0], round(kept[1] * 1.8), round(kept[2] * 1.5))
    assert far_off(segment(volume, plan), truth) == 0

    flat = replace(plan, axes=(0, 1), orientation=None, spacing=(2.0, 2.0))
    picture = Volume(np.ones((3, 20, 30), np.float32) * [[[1]], [[0]], [[0]]], np.eye(4), "memory")
    assert prepare_case(picture, flat).image.shape == (3, 10, 15)
    assert (segment(picture, flat) == 1).all()
    with pytest.raises(DataError, match="memory: shape: expected a volume of 3 axes, found 2; give what"):
        prepare_case(picture, plan)


def test_wrong_channels_at_prediction() -> None:
    volume = Volume(np.ones((2, 9, 9, 9), np.float32), np.eye(4), "scan.nii.gz")
    with pytest.raises(DataError, match=r"scan.nii.gz: channels: expected 1 \(MR\), found 2; give a file a channel"):
        prepare_case(volume, ONE_CHANNEL)


def test_a_volume_of_one_voxel_and_one_smaller_than_the_patch() -> None:
    for shape in [(1, 1, 1), (3, 5, 2)]:
        volume = Volume(np.zeros((3, *shape), np.float32), np.diag([0.5, 3, 2, 1]), "memory")
        volume.array[1] = 1
        assert (segment(volume, PLAN) == 2).all()


# ---- normalisation


def normalised(values: np.ndarray, rule: Normalisation) -> np.ndarray:
    volume = Volume(values[None].astype(np.float32), np.eye(4), "memory")
    return prepare_case(volume, replace(ONE_CHANNEL, normalisation=(rule,))).image[0]


def test_normalisation() -> None:
    values = np.random.default_rng(0).normal(50, 20, (8, 9, 10)).astype(np.float32)
    np.testing.assert_allclose(
        normalised(values, Normalisation("zscore")), (values - values.mean()) / values.std(), atol=1e-5
    )
    np.testing.assert_allclose(
        normalised(values, Normalisation("ct", mean=40, std=8, low=30, high=60)),
        (np.clip(values, 30, 60) - 40) / 8,
        atol=1e-5,
    )
    rescaled = normalised(values, Normalisation("rescale"))
    assert (rescaled.min(), rescaled.max()) == (0, 1)
    np.testing.assert_allclose(normalised(np.abs(values), Normalisation("rgb")), np.abs(values) / 255, rtol=1e-6)
    np.testing.assert_array_equal(normalised(values, Normalisation("none")), values)
    assert (normalised(np.full((4, 4, 4), 7.0), Normalisation("zscore")) == 0).all()
    with pytest.raises(DataError, match=r"expected colours from 0 to 255, found -?[0-9.]+ to"):
        normalised(values * 100, Normalisation("rgb"))


def test_normalisation_inside_of_the_body() -> None:
    values = np.zeros((10, 10, 10), np.float32)
    body = np.zeros(values.shape, bool)
    body[2:8, 3:9, 1] = body[0, 0, 0] = body[9, 9, 9] = True
    values[body] = np.random.default_rng(0).normal(100, 10, body.sum())
    result = normalised(values, Normalisation("zscore", inside=True))
    np.testing.assert_allclose(result[body], (values[body] - values[body].mean()) / values[body].std(), atol=1e-5)
    assert (result[~body] == 0).all()


# ---- resampling


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(9, 9, 9), (20, 7, 13), (5, 30, 12)])
def test_resampling_against_scipy(order: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(12, 9, 11)).astype(np.float32)
    factors = np.array(shape) / values.shape
    expected = ndimage.zoom(values.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    result = resample(values, shape, (1, 1, 1), (1, 1, 1), Resampling(order))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spacing", "target", "separate", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None, None),
        ((3.0, 1, 1), (1, 1, 1), None, None),
        ((3.1, 1, 1), (1, 1, 1), None, 0),
        ((1, 1, 4.0), (1, 1, 1), None, 2),
        ((1, 1, 1), (1, 5, 1), None, 1),
        ((0.2, 1.25, 1.25), (1, 1, 1), None, None),
        ((4, 1, 1), (1, 1, 1), False, None),
        ((2, 1, 1), (1, 1, 1), True, 0),
        ((1, 1), (1, 5), None, None),
    ],
)
def test_which_axis_is_separate(
    spacing: tuple[float, ...], target: tuple[float, ...], separate: bool | None, axis: int | None
) -> None:
    assert separate_axis(spacing, target, separate) == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_low_resolution_are_not_mixed(axis: int) -> None:
    values = np.moveaxis(np.random.default_rng(0).normal(size=(4, 9, 11)).astype(np.float32), 0, axis)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    shape = np.insert([13, 7], axis, 8)
    result = resample(values, shape, spacing, (1, 1, 1), Resampling(3))
    planes = [
        ndimage.zoom(plane, (13 / 9, 7 / 11), order=3, mode="nearest", grid_mode=True)
        for plane in np.moveaxis(values, axis, 0)
    ]
    np.testing.assert_allclose(np.moveaxis(result, axis, 0), np.repeat(planes, 2, axis=0), atol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_large_volumes_are_resampled_alike_by_several_threads(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(9, 7, 11)).astype(np.float32)
    alone = resample(values, (13, 5, 20), (1, 1, 1), (1, 1, 1), Resampling(order))
    monkeypatch.setattr("mamba_datasets.volumes.resample._LARGE", 1)
    monkeypatch.setattr("mamba_datasets.volumes.resample.usable_cores", lambda: 3)
    threads = resample(values, (13, 5, 20), (1, 1, 1), (1, 1, 1), Resampling(order))
    assert np.array_equal(alone, threads)


def test_labels_stay_labels() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 200], (9, 8, 7)).astype(np.uint8)
    result = resample_labels(labels, (15, 6, 20), (1, 1, 1), (1, 1, 1), Resampling(1))
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 3, 200}
    halves = np.repeat([0, 3], 6)[:, None, None] * np.ones((1, 5, 5), np.uint8)
    bigger = resample_labels(halves.astype(np.uint8), (24, 5, 5), (1, 1, 1), (0.5, 1, 1), Resampling(1))
    np.testing.assert_array_equal(bigger, np.repeat(halves, 2, axis=0))


def test_shapes_after_resampling() -> None:
    assert new_shape((10, 20, 3), (1, 0.5, 2), (0.5, 1, 100)) == (20, 10, 1)
