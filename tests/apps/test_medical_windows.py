"""Sliding windows, losses, augmentation and scores of volumes: each against a plain or a well-known implementation."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.medical.segmentation.augment import Augmentation
from mamba_apps.medical.segmentation.losses import dice_cross_entropy, supervised_loss, supervision_weights
from mamba_apps.medical.segmentation.optimiser import make_optimiser
from mamba_apps.medical.segmentation.scores import mean_scores, score_case, score_label
from mamba_apps.medical.segmentation.sliding import _starts, mirrored, slide, window_weights
from mamba_apps.medical.zoo import build_network
from mamba_datasets.volumes import NetworkPlan


def net(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a convolution from 1 channel to 3 classes, which sees a window's border."""
    torch.manual_seed(seed)
    conv = torch.nn.Conv3d(1, 3, 3, padding=1).requires_grad_(requires_grad=False)
    return conv


def all_at_once(
    predict: Callable[[Tensor], Tensor], image: np.ndarray, window: Sequence[int], overlap: float
) -> Tensor:
    """Return the weighted mean of all windows with everything in memory, each window by itself."""
    size = image.shape[1:]
    whole = [max(side, part) for side, part in zip(size, window, strict=True)]
    inside = tuple(slice((all_ - side) // 2, (all_ - side) // 2 + side) for all_, side in zip(whole, size, strict=True))
    padded = torch.zeros(1, *whole)
    padded[(slice(None), *inside)] = torch.from_numpy(image.copy())
    total, weights = torch.zeros(3, *whole), torch.zeros(whole)
    starts = [_starts(side, part, overlap) for side, part in zip(whole, window, strict=True)]
    for corner in itertools.product(*starts):
        at = tuple(slice(first, first + part) for first, part in zip(corner, window, strict=True))
        total[(slice(None), *at)] += predict(padded[(slice(None), *at)][None])[0] * window_weights(window)
        weights[at] += window_weights(window)
    return (total / weights)[(slice(None), *inside)]


@pytest.mark.parametrize(
    ("size", "window", "batch_size", "overlap"),
    [
        ((9, 14, 11), (4, 6, 5), 1, 0.5),
        ((9, 14, 11), (4, 6, 5), 7, 0.5),
        ((9, 14, 11), (4, 6, 5), 100, 0.25),
        ((3, 4, 5), (4, 6, 5), 2, 0.5),
        ((3, 14, 5), (4, 6, 9), 2, 0.5),
        ((7, 14, 11), (1, 6, 5), 4, 0.5),
        ((1, 8, 8), (1, 8, 8), 4, 0.5),
        ((20, 8, 8), (8, 8, 8), 3, 0.9),
    ],
)
def test_layers_are_those_of_the_whole_volume(
    size: tuple[int, ...], window: tuple[int, ...], batch_size: int, overlap: float
) -> None:
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    image.flags.writeable = False  # as one that is mapped from a file
    seen: list[tuple[int, int]] = []
    layers = list(
        slide(
            net(),
            image,
            window,
            classes=3,
            overlap=overlap,
            batch_size=batch_size,
            on_window=lambda done, of: seen.append((done, of)),
        )
    )
    found = torch.cat(layers, dim=1)
    assert found.shape == (3, *size)
    torch.testing.assert_close(found, all_at_once(net(), image, window, overlap), atol=2e-6, rtol=1e-5)
    assert seen[-1][0] == seen[-1][1] >= len(seen)


def test_a_layer_is_handed_over_as_soon_as_no_window_reaches_it() -> None:
    image = np.zeros((1, 64, 8, 8), np.float32)
    count = 0

    def predict(windows: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return windows

    layers = slide(predict, image, (8, 8, 8), classes=1)
    assert next(layers).shape == (1, 4, 8, 8)
    assert count == 1  # the others wait until their layers are asked for


@pytest.mark.parametrize(("overlap", "batch_size"), [(1.0, 1), (-0.1, 1), (0.5, 0)])
def test_windows_out_of_range_are_refused(overlap: float, batch_size: int) -> None:
    image = np.zeros((1, 4, 4, 4), np.float32)
    with pytest.raises(UserError):
        next(slide(net(), image, (4, 4, 4), classes=3, overlap=overlap, batch_size=batch_size))


def test_mirrored_windows_are_flipped_back() -> None:
    windows = torch.randn(2, 1, 4, 5, 6)
    torch.testing.assert_close(mirrored(lambda x: 2 * x, [0, 1, 2])(windows), 2 * windows)
    predict = net()
    by_hand = torch.stack([predict(windows), predict(windows.flip(3)).flip(3)]).mean(0)
    torch.testing.assert_close(mirrored(predict, [1])(windows), by_hand)


@pytest.mark.parametrize("over_batch", [True, False])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_loss_is_monais(over_batch: bool, dim: int) -> None:
    from monai.losses import DiceLoss

    torch.manual_seed(0)
    scores = torch.randn(2, 4, *(5, 6, 7)[:dim], requires_grad=True)
    labels = torch.randint(4, (2, *(5, 6, 7)[:dim]))
    labels[1][labels[1] == 3] = 0  # a class that one of the two has not
    found = dice_cross_entropy(scores, labels, over_batch=over_batch, dice=0.5)
    dice = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=over_batch, smooth_nr=1e-5, smooth_dr=1e-5
    )
    truth = torch.nn.functional.cross_entropy(scores, labels) + 0.5 * dice(scores, labels[:, None])
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(torch.autograd.grad(found, scores)[0], torch.autograd.grad(truth, scores)[0])


def test_ignored_voxels_count_nowhere() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(1, 3, 4, 6), torch.randint(3, (1, 4, 6))
    whole = dice_cross_entropy(scores[..., :4], labels[..., :4], over_batch=False, ignored=7)
    labels[..., 4:] = 7
    torch.testing.assert_close(dice_cross_entropy(scores, labels, over_batch=False, ignored=7), whole)
    labels[:] = 7
    assert dice_cross_entropy(scores, labels, over_batch=False, ignored=7).isfinite()


def test_coarser_outputs_are_compared_at_their_own_resolution() -> None:
    torch.manual_seed(0)
    assert supervision_weights(1) == [1.0]
    assert supervision_weights(3) == pytest.approx([2 / 3, 1 / 3, 0])
    labels = torch.randint(3, (1, 4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    fine, coarse, last = (torch.randn(1, 3, side, side) for side in (8, 4, 2))
    parts = [dice_cross_entropy(fine, labels, over_batch=False)]
    parts.append(dice_cross_entropy(coarse, labels[:, ::2, ::2], over_batch=False))
    found = supervised_loss([fine, coarse, last], labels, over_batch=False)
    torch.testing.assert_close(found, 2 / 3 * parts[0] + 1 / 3 * parts[1])


def test_bfloat16_scores_give_a_finite_loss() -> None:
    scores = torch.full((1, 3, 4, 4), 80.0, dtype=torch.bfloat16)
    scores[:, 1] = -80.0
    assert dice_cross_entropy(scores, torch.ones(1, 4, 4, dtype=torch.long), over_batch=False).isfinite()


def test_vectors_and_states_do_not_decay() -> None:
    plan = NetworkPlan((8, 8), (4, 8), ((3, 3),) * 2, ((1, 1), (2, 2)), (1, 1), (1,))
    network = build_network("umamba_bot", plan, 1, 2)
    optimiser = make_optimiser(network, "sgd", 0.01, 3e-5)
    decayed, spared = (group["params"] for group in optimiser.param_groups)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [3e-5, 0.0]
    assert len(decayed) + len(spared) == len(list(network.parameters()))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert any(names[id(parameter)].endswith("A_log") for parameter in spared)
    assert all(parameter.dim() > 1 for parameter in decayed)
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        make_optimiser(network, "adamm", 0.01, 0.0)


def blocks(sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image that is its label, off the middle, so that a flip or a shift shows."""
    label = np.zeros(sides, np.uint8)
    label[tuple(slice(side // 4, side // 2) for side in sides)] = 1
    label[tuple(slice(side // 2, side // 2 + 2) for side in sides)] = 2
    return label[None].astype(np.float32), label


@pytest.mark.parametrize("patch", [(12, 16, 10), (16, 14), (6, 24, 24)])
def test_a_patch_follows_its_generator_and_image_and_label_stay_together(patch: tuple[int, ...]) -> None:
    augment = Augmentation(patch, mirror=range(len(patch)))
    for seed in range(12):
        image, label = augment(blocks, np.random.default_rng(seed))
        again = augment(blocks, np.random.default_rng(seed))
        assert type(image) is type(label) is Tensor
        assert (image.dtype, image.shape) == (torch.float32, (1, *patch))
        assert (label.dtype, label.shape) == (torch.int16, patch)
        assert torch.equal(image, again[0])
        assert torch.equal(label, again[1])
        assert set(label.unique().tolist()) <= {0, 1, 2}
    plain = Augmentation(patch, mirror=range(len(patch)), intensity=False)
    for seed in range(12):
        image, label = plain(blocks, np.random.default_rng(seed))
        # interpolated by other orders they differ at corners alone; a flip or a shift of one of them moves far more
        assert ((image[0] - label).abs() > 0.6).float().mean() < 0.025


@pytest.mark.parametrize("patch", [(12, 16, 10), (15, 14), (5, 24, 21)])
def test_resampling_by_nothing_is_the_patch(patch: tuple[int, ...]) -> None:
    augment = Augmentation(patch, mirror=())
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(1, *(3 * side for side in patch))).astype(np.float32)

    def crop(sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        at = tuple(
            slice(own - (side - own) // 2, own - (side - own) // 2 + side)
            for own, side in zip(patch, sides, strict=True)
        )
        part = whole[(slice(None), *at)]
        return part.copy(), (part[0] > 0).astype(np.uint8)

    image, label = augment._resampled(crop, np.eye(len(patch) + 1))
    expected = crop(patch)
    np.testing.assert_allclose(image.numpy(), expected[0], atol=1e-4)
    assert (label.numpy() == expected[1]).all()


def test_flat_patches_are_turned_in_their_plane() -> None:
    augment = Augmentation((4, 32, 32), mirror=())
    matrices = [augment._matrix(np.random.default_rng(seed)) for seed in range(60)]
    drawn = [matrix for matrix in matrices if matrix is not None]
    assert 10 < len(drawn) < 40
    for matrix in drawn:
        assert matrix[0] == pytest.approx([1, 0, 0, 0])
        assert matrix[:, 0] == pytest.approx([1, 0, 0, 0])


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@pytest.mark.parametrize("shape", [(12, 14, 10), (1, 20, 18), (20, 18)])
def test_scores_are_monais(shape: tuple[int, ...]) -> None:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    generator = np.random.default_rng(0)
    centre = np.array(shape) / 2
    far = np.indices(shape).reshape(len(shape), *shape) - centre.reshape(-1, *(1,) * len(shape))
    truth = (far**2).sum(0) < 16
    found = ((far - 1) ** 2).sum(0) < 14
    found ^= generator.random(shape) < 0.01
    spacing = (2.0, 0.8, 1.1)[-len(shape) :]
    score = score_label(found, truth, spacing, tolerance=1.0)
    assert score.dice == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    pair = [torch.from_numpy(mask.squeeze())[None, None].float() for mask in (found, truth)]
    steps = [step for step, side in zip(spacing, shape, strict=True) if side > 1]
    nsd = compute_surface_dice(*pair, class_thresholds=[1.0], include_background=True, spacing=steps)
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=steps)
    assert score.nsd == pytest.approx(float(nsd), abs=1e-6)
    assert score.hd95 == pytest.approx(float(hd95), abs=1e-4)
    assert (score.true_voxels, score.found_voxels) == (truth.sum(), found.sum())


def test_labels_that_are_missing() -> None:
    empty, some = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    some[1:3, 1:3, 1:3] = True
    assert np.isnan(score_label(empty, empty, (1, 1, 1)).dice)
    for found, truth in ((empty, some), (some, empty)):
        score = score_label(found, truth, (1, 1, 2))
        assert (score.dice, score.nsd) == (0, 0)
        assert score.hd95 == pytest.approx(np.sqrt(4**2 + 5**2 + 12**2))
    perfect = score_label(some, some, (1, 1, 1))
    assert (perfect.dice, perfect.nsd, perfect.hd95) == (1, 1, 0)


def test_means_leave_out_what_a_case_has_not() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[:2] = 1
    other = truth.copy()
    other[3] = 2
    cases = [score_case(truth, mask, {"a": 1, "b": 2, "c": 3}, (1, 1, 1)) for mask in (truth, other)]
    means = mean_scores(cases)
    assert means["dice_a"] == 1
    assert means["dice_b"] == 0  # of the one case that has it
    assert means["dice"] == 0.5
    assert "dice_c" not in means
    other[:2] = 9
    (score,) = score_case(truth, other, {"a": 1}, (1, 1, 1), ignored=9).values()
    assert np.isnan(score.dice)


def test_monai_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(UserError, match=r"MONAI, which is not installed; pip install 'mamba-apps\[medical\]'"):
        Augmentation((8, 8), mirror=())
    Augmentation((8, 8), mirror=(), resample=False, intensity=False)  # needs none
