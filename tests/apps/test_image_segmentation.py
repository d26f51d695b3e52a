"""Segmentation's parts: the pyramid and head over timm's backbones, sliding windows, augmentation, losses, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision import tv_tensors

from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard, save_model
from mamba_apps.training.schedule import poly_factor
from mamba_apps.vision.classification import ClassificationTask
from mamba_apps.vision.segmentation import ImageSegmenter, SegmentationData, SegmentationTask, Segmenter
from mamba_apps.vision.segmentation.augment import IGNORED, PADDING, RandomCrop, scaled_size, training_transform
from mamba_apps.vision.segmentation.losses import cross_entropy, dice
from mamba_apps.vision.segmentation.optimiser import parameter_groups
from mamba_apps.vision.segmentation.overlay import mask_image, overlay, palette
from mamba_apps.vision.segmentation.pyramid import Pyramid
from mamba_apps.vision.segmentation.scores import MaskScores, mask_iou
from mamba_apps.vision.segmentation.sliding import resized_labels, slide
from mamba_apps.vision.weights import create_model
from mamba_datasets.errors import DataError

CONV, PLAIN = "test_convnext", "test_vit"
# NCHW, NHWC and features of its own kind; constant resolution; our families; resolutions above and below the usual
BACKBONES = {
    CONV: (4, 8, 16, 32),
    "swin_tiny_patch4_window7_224": (4, 8, 16, 32),
    "mobilenetv3_small_050": (4, 8, 16, 32),
    PLAIN: (4, 8, 16, 32),
    "vmamba_nano_8": (1, 2),
    "mambavision_nano_8": None,
    "vim_nano_patch2_8": None,
}


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def small(backbone: str = CONV, classes: int = 3, window: tuple[int, int] = (64, 64), **options: object) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(backbone, classes, window=window, width=16, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_gives_a_pyramid_and_scores_at_the_pictures_size(name: str) -> None:
    window = (32, 64)
    network = small(name, window=window, backbone_options={"drop_path_rate": 0.1}).train()
    maps = network.backbone(torch.rand(2, 3, *window))
    assert [found.shape[1] for found in maps] == network.backbone.channels
    heights = [found.shape[2] for found in maps]
    assert heights == sorted(heights, reverse=True)
    for found in maps:
        assert found.shape[3] == 2 * found.shape[2]
    if strides := BACKBONES[name]:
        assert heights == [window[0] // stride for stride in strides]
    scores = network.scores(torch.stack([image(*window), image(*window, 1)]))
    assert [tuple(found.shape) for found in scores] == [(2, 3, *window)] * 2
    sum(found.square().mean() for found in scores).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_features_are_the_backbones_own() -> None:
    torch.manual_seed(3)
    pyramid = Pyramid("swin_tiny_patch4_window7_224", (64, 64)).eval()
    body = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, img_size=(64, 64)).eval()
    body.load_state_dict(pyramid.body.state_dict())
    x = torch.rand(1, 3, 64, 64)
    for found, theirs in zip(pyramid(x), body(x), strict=True):
        expected = F.layer_norm(theirs, theirs.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_one_resolution_are_tapped_at_quarters_of_the_depth() -> None:
    assert list(Pyramid("deit_tiny_patch16_224", (32, 32)).body.out_indices) == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backbone": "resnet_nobody"}, "there is no image model 'resnet_nobody'"),
        ({"backbone_options": {"depthh": 3}}, "unexpected keyword argument 'depthh'"),
        ({"window": (100, 64)}, "the window is 100 x 64; give multiples of 32"),
        ({"classes": 1}, "there are 1 classes"),
        ({"classes": 256}, "give 2 to 255"),
    ],
)
def test_wrong_networks_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        small(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "vmamba_nano_8", "mambavision_nano_8", "deit_nano_patch2_8"])
def test_backbones_start_from_a_file_or_a_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    task = ClassificationTask(name, classes=4, size=8)
    trained = {key: value.clone() for key, value in task.network.state_dict().items()}
    card = ModelCard("classification", "image", name, arguments=task.arguments or {}, labels=list("abcd"))
    folder = save_model(tmp_path / "classifier", task, card)
    # A file does not say how many classes it has: those of the release, which the small models count as ten.
    released = create_model(name, {"num_classes": 10}).state_dict()
    save_file(released, tmp_path / "w.safetensors")
    for weights, expected in ((str(folder), trained), (str(tmp_path / "w.safetensors"), released)):
        found = small(name, window=(32, 64), weights=weights).backbone.body.state_dict()
        for key, value in found.items():
            if "pos_embed" not in key:  # resized
                assert torch.equal(value, expected[key.removeprefix("model.")]), key
    with pytest.raises(UserError, match="name that model, or other weights"):
        small("vmamba_micro_32", weights=str(folder))


def test_a_network_reads_its_window_only() -> None:
    with pytest.raises(UserError, match="reads 64 x 64 pixels, not 64 x 96"):
        small()(image(64, 96)[None])


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", [CONV, PLAIN, "vmamba_nano_8", "swin_tiny_patch4_window7_224"])
def test_parameter_groups_hold_each_parameter_once(name: str, layer_decay: float) -> None:
    network = small(name)
    groups = parameter_groups(network, 1e-3, 0.05, layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(network.head.classifier[-1].weight)] == 1e-3
    first = next(network.backbone.body.parameters())
    assert rates[id(first)] == 1e-3 if layer_decay == 1 else rates[id(first)] < 1e-4
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert not any(decays[id(p)] for p in network.parameters() if p.dim() < 2)
    spared = [p for key, p in network.named_parameters() if key.endswith(("A_logs", "pos_embed"))]
    assert bool(spared) == (name in (PLAIN, "vmamba_nano_8"))
    assert not any(decays[id(p)] for p in spared)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [poly_factor(spent / 100, 0.1) for spent in range(101)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[10] == pytest.approx(0.9)
    assert rates[55] == pytest.approx(0.45)
    assert rates[-1] == 0
    assert poly_factor(0.5, 0.0, power=2) == 0.25


@torch.no_grad()
def test_one_window_is_the_whole_image_exactly() -> None:
    network, picture = small(), image(64, 64)
    (band,) = slide(network, picture, network.window)
    assert torch.equal(band, network(picture[None])[0])
    assert torch.equal(network.segment(picture), network(picture[None])[0].argmax(0).byte())


@pytest.mark.gpu
@pytest.mark.parametrize("name", [CONV, "swin_tiny_patch4_window7_224", "vmamba_nano_8", "vim_nano_patch2_8"])
@torch.no_grad()
def test_the_gpu_segments_as_the_cpu_does(name: str) -> None:
    network, picture = small(name), image(90, 150)
    expected = torch.cat(list(slide(network, picture, network.window)), dim=1)
    network.cuda()
    found = torch.cat(list(slide(lambda x: network(x.cuda()), picture, network.window)), dim=1).cpu()
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert network.segment(picture).device.type == "cuda"


@torch.no_grad()
def test_a_small_picture_is_padded_to_one_window() -> None:
    network, picture = small(), image(40, 50)
    padded = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].repeat(1, 64, 64)
    padded[:, :40, :50] = picture
    (band,) = slide(network, picture, network.window, fill=PADDING)
    assert torch.equal(band, network(padded[None])[0, :, :40, :50])


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.9])
@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 257), (300, 70), (1, 200)])
def test_windows_cover_every_pixel_and_are_averaged(size: tuple[int, int], overlap: float) -> None:
    """A network that returns its input, and the same plus what differs by window, must give the picture back."""
    picture = image(*size)
    calls: list[int] = []

    def predict(windows: Tensor) -> Tensor:
        calls.append(len(windows))
        return windows.float()

    bands = list(slide(predict, picture, (64, 64), overlap=overlap, batch_size=3))
    torch.testing.assert_close(torch.cat(bands, dim=1), picture.float())
    assert max(calls) <= 3
    assert all(band.shape[1] <= 64 for band in bands)  # never more than a band of windows is held


def test_overlapping_scores_are_averaged() -> None:
    places = iter(range(10))

    def predict(windows: Tensor) -> Tensor:
        return torch.stack([torch.full((1, 64, 64), float(next(places))) for _ in windows])

    scores = torch.cat(list(slide(predict, image(64, 96), (64, 64), overlap=0.5)), dim=1)[0, 0]
    assert scores[:32].eq(0).all()
    assert scores[32:64].eq(0.5).all()
    assert scores[64:].eq(1).all()


def test_an_overlap_of_everything_is_refused() -> None:
    with pytest.raises(UserError, match="overlap is 1"):
        next(slide(lambda x: x, image(64, 64), (64, 64), overlap=1))


@torch.no_grad()
def test_resizing_class_by_class_equals_resizing_all_scores() -> None:
    scores = torch.randn(5, 13, 17)
    whole = F.interpolate(scores[None], size=(40, 31), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(resized_labels(scores, (40, 31)), whole)
    network, picture = small(), image(50, 90)
    mask = network.segment(picture, short_side=64)
    assert mask.shape == (50, 90)
    assert mask.dtype == torch.uint8


def test_losses_count_labelled_pixels_only() -> None:
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5))
    assert cross_entropy(scores, labels, IGNORED).item() == pytest.approx(F.cross_entropy(scores, labels).item())
    sure = 50.0 * F.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert dice(sure, labels, IGNORED).item() == pytest.approx(0, abs=1e-6)
    assert dice(-sure, labels, IGNORED).item() > 0.9
    labels[:, :2] = IGNORED
    other = scores.detach().clone()
    other[:, :, :2] += torch.randn(2, 3, 2, 5)
    for loss in (cross_entropy, dice):
        assert loss(scores, labels, IGNORED).item() == pytest.approx(loss(other, labels, IGNORED).item())
        nothing = loss(scores, torch.full_like(labels, IGNORED), IGNORED)
        nothing.backward()  # type: ignore[no-untyped-call]
        assert nothing.item() == 0
    assert scores.grad is not None
    assert scores.grad.eq(0).all()


def test_scores_are_intersections_over_unions() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, IGNORED]])
    predicted = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    scores = MaskScores(["ground", "a thing", "absent"])
    scores.update(predicted, truth)
    found = {name: value.item() for name, value in scores.scores().items()}
    assert found == pytest.approx(
        {"miou": (3 / 5 + 2 / 4) / 2, "accuracy": 5 / 7, "iou_ground": 3 / 5, "iou_a_thing": 0.5}
    )
    assert mask_iou(predicted, truth, 3) == pytest.approx(0.55)


def test_image_and_mask_change_together() -> None:
    """The mask is read off the picture, before and after."""
    torch.manual_seed(0)
    values = torch.arange(6, dtype=torch.uint8).view(2, 3).repeat_interleave(40, 0).repeat_interleave(40, 1)
    picture = (values * 30 + 20).expand(3, -1, -1)
    change = training_transform((96, 64), scale=(0.5, 2.0), vertical_flip=True, turn=True, photometric=False)
    fill = torch.tensor(PADDING)[:, None]
    for _ in range(20):
        found, mask = change(tv_tensors.Image(picture), tv_tensors.Mask(values))
        assert found.shape == (3, 96, 64)
        assert mask.shape == (96, 64)
        assert torch.equal(found[:, mask == IGNORED].long(), fill.expand(-1, int((mask == IGNORED).sum())))
        known = mask != IGNORED
        near = (found[0].float() - mask * 30.0 - 20).abs()[known] < 1
        assert near.float().mean() > 0.85  # edges between classes are interpolated in the picture alone


def test_turns_and_flips_give_every_orientation() -> None:
    torch.manual_seed(0)
    values = torch.arange(4, dtype=torch.uint8).view(2, 2)
    for turn, count in ((False, 4), (True, 8)):
        change = training_transform((2, 2), scale=(1.0, 1.0), vertical_flip=True, turn=turn, photometric=False)
        pairs = [change(tv_tensors.Image(values.expand(3, -1, -1)), tv_tensors.Mask(values)) for _ in range(80)]
        assert all(torch.equal(found[0], mask) for found, mask in pairs)
        assert len({tuple(mask.flatten().tolist()) for _, mask in pairs}) == count


def test_photometric_changes_leave_the_mask() -> None:
    torch.manual_seed(0)
    picture, values = image(64, 64), torch.randint(0, 3, (64, 64), dtype=torch.uint8)
    crop = training_transform((64, 64), scale=(1.0, 1.0))
    results = [crop(tv_tensors.Image(picture), tv_tensors.Mask(values)) for _ in range(12)]
    assert all(torch.equal(mask, values) or torch.equal(mask, values.flip(1)) for _, mask in results)
    assert len({int(found.sum()) for found, _ in results}) > 3


def test_crops_avoid_one_class_filling_them() -> None:
    torch.manual_seed(0)
    values = torch.zeros(64, 640, dtype=torch.uint8)
    values[:, 560:] = 1
    pair = tv_tensors.Image(image(64, 640)), tv_tensors.Mask(values)
    shares = [
        RandomCrop((64, 64), most=most)(*pair)[1].float().mean().item() for most in (1.0, 0.75) for _ in range(40)
    ]
    mixed = [sum(0.25 < share < 0.75 for share in shares[:40]), sum(0.25 < share < 0.75 for share in shares[40:])]
    assert mixed[1] > mixed[0] + 5


@pytest.mark.parametrize(("size", "short", "result"), [((30, 60), None, [45, 90]), ((30, 60), 10, [15, 30])])
def test_the_short_side_is_what_is_scaled(size: tuple[int, int], short: int | None, result: list[int]) -> None:
    assert scaled_size(size, short, 1.5) == result


def write_pairs(root: Path, count: int = 20) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((40, 50, 3), number, np.uint8)).save(root / f"images/{number:02}.png")
        Image.fromarray(np.full((40, 50), number * 20, np.uint16)).save(root / f"labels/{number:02}.png")
    return root


def test_parts_follow_the_names(tmp_path: Path) -> None:
    data = SegmentationData(
        str(write_pairs(tmp_path)), ["ground", "thing"], foreground=True, val_every=4, crop=(32, 32)
    )
    assert data.test.numbers == [0, 5, 10, 15]
    assert data.val.numbers == [1, 6, 11, 16]
    assert sorted([*data.train.numbers, *data.test.numbers, *data.val.numbers]) == list(range(20))
    assert data.describe() == f"{tmp_path.name}: 12 train, 4 val, 4 test pictures, 2 classes"
    picture, mask, number = data.test[1]
    assert (tuple(picture.shape), tuple(mask.shape), number, data.test.name(1)) == ((3, 40, 50), (40, 50), 1, "05.png")
    assert mask.eq(1).all()  # the value 100 numbers an instance
    assert data.test[0][1].eq(0).all()
    data.batch_size = 4
    batches = list(data.train_dataloader())
    assert [tuple(part.shape) for part in batches[0]] == [(4, 3, 32, 32), (4, 32, 32)]
    assert batches[0][1].dtype == torch.int64


def test_parts_may_be_folders(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write_pairs(tmp_path / split, 10)
    data = SegmentationData(
        str(tmp_path), ["a", "b"], foreground=True, train_split="training", test_split="validation", val_every=5
    )
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 2, 10]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": ["a", "b"]}, "row 0, column 0: expected 0 to 1 or 255"),
        ({"labels": ["a", "b"], "masks": "mask"}, "there is no folder 'mask'"),
    ],
)
def test_data_that_does_not_fit_is_named(options: dict[str, object], says: str, tmp_path: Path) -> None:
    data = SegmentationData(str(write_pairs(tmp_path)), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=says):
        list(data.test_dataloader())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": ["a", "a"]}, "labels name a class twice"),
        ({"labels": ["a", "b", "c"], "foreground": True}, "foreground makes 2 classes, labels has 3"),
        ({"test_every": 1}, "test_every is 1"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"workers": -1}, "workers is -1"),
        ({"scale": (2.0, 0.5)}, r"scale is \[2.0, 0.5\]"),
        ({"short_side": 0}, "short_side is 0"),
        ({"most": 0.0}, "most is 0"),
    ],
)
def test_wrong_data_settings_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SegmentationData("nowhere", **{"labels": ["a", "b"], **options})  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    data = SegmentationData(str(write_pairs(tmp_path)), ["a", "b"], foreground=True)
    with pytest.raises(UserError, match="batch_size is 16, but there are 14 training pictures"):
        data.train_dataloader()


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"warmup": 1.0}, {"overlap": 1.0}, {"layer_decay": 0.0}, {"dice": -1.0}, {"auxiliary": -1.0}],
)
def test_wrong_task_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} is"):
        SegmentationTask(CONV, **options)  # type: ignore[arg-type]


def test_a_graph_captures_what_training_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SegmentationTask("vmamba_nano_8")
    task.network = small("vmamba_nano_8")
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    passes, forward = [], task.captured.forward
    task.captured.forward = lambda x: passes.append(x.shape) or forward(x)  # type: ignore[assignment, func-returns-value]
    task.training_step((torch.stack([image(64, 64)]), torch.zeros(1, 64, 64, dtype=torch.long)), 0)
    assert passes == [(1, 3, 64, 64)]
    assert task.label == "vmamba_nano_8"


def test_masks_keep_their_classes_as_pictures() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    written = mask_image(mask, 12)
    assert written.mode == "P"
    assert np.array_equal(np.asarray(written), mask)
    assert len({tuple(colour) for colour in palette(150)[:150]}) == 150
    picture = np.full((16, 16, 3), 100, np.uint8)
    laid = overlay(picture, mask, 12)
    assert np.array_equal(laid[0, 0], picture[0, 0])
    assert not np.array_equal(laid[0, 1], picture[0, 1])


def test_a_segmenter_takes_pictures_by_the_files_rules_and_no_arrays() -> None:
    segmenter = ImageSegmenter(small("vmamba_nano_8"), ["a", "b"], overlap=0.5, device="cpu")
    clear = Image.fromarray(np.zeros((64, 64, 4), np.uint8))
    assert np.array_equal(segmenter.predict(clear), segmenter.predict(Image.new("RGB", (64, 64), "white")))
    with pytest.raises(UserError, match=r"an image is a ndarray.*fromarray"):
        segmenter.predict(np.zeros((64, 64, 3), np.uint8))  # type: ignore[arg-type]
