"""Segmentation from the command: a short training on drawn shapes, its saved model, and masks for files and folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from mamba_apps.vision.segmentation import ImageSegmenter
from mamba_datasets.images import ImagePairs
from mamba_recipes.cli import main

LABELS = ["ground", "disc", "square"]
QUICK = [
    *("--model.backbone", "test_convnext", "--model.backbone_options", "{}", "--model.width", "32"),
    *("--model.lr", "5e-3", "--model.dice", "0.5", "--data.labels", f"[{','.join(LABELS)}]"),
    *("--data.crop", "[64, 64]", "--data.scale", "[0.8, 1.25]", "--data.workers", "0"),
    *("--trainer.precision", "32-true", "--trainer.accelerator", "cpu", "--trainer.val_check_interval", "20"),
]


def draw(generator: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (H, W, 3) of discs and squares on a noisy, striped ground, and its mask (H, W), uint8."""
    rows, columns = np.mgrid[:height, :width]
    stripes = 20 * np.sin((rows + 2 * columns) / generator.uniform(3, 6))
    picture = np.repeat((90 + stripes + generator.normal(0, 12, (height, width)))[..., None], 3, axis=-1)
    mask = np.zeros((height, width), np.uint8)
    for kind in (1, 2, int(generator.integers(1, 3))):
        radius = int(generator.integers(9, 15))
        y, x = generator.integers(radius, height - radius), generator.integers(radius, width - radius)
        far_y, far_x = abs(rows - y), abs(columns - x)
        mask[far_y**2 + far_x**2 <= radius**2 if kind == 1 else np.maximum(far_y, far_x) <= radius] = kind
    picture[mask > 0] += 60
    picture[mask == 2, 2] -= 70
    return picture.clip(0, 255).astype(np.uint8), mask


def write_shapes(root: Path, count: int) -> Path:
    """Write so many pairs, each of another size."""
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        picture, mask = draw(generator, *(int(side) for side in generator.integers(64, 97, 2)))
        Image.fromarray(picture).save(root / f"images/{number:03}.png")
        Image.fromarray(mask).save(root / f"masks/{number:03}.png")
    return root


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), 40)


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["--data.root", str(shapes), "--trainer.max_steps", "40", "--out", str(folder)]
    assert main(["fit", "segmentation", *QUICK, *words]) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_short_training_finds_the_shapes(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)["metrics"]
    assert set(metrics) == {"test/miou", "test/accuracy", *(f"test/iou_{label}" for label in LABELS)}
    assert metrics["test/miou"] > 0.8
    drawn = sorted((run / "overlays").iterdir())
    assert [path.name for path in drawn] == [f"test_convnext-{rank}.png" for rank in ("best", "median", "worst")]
    assert all(pixels(path).shape[1] > 1000 for path in drawn)
    assert captured.err.count(f"overlay: {run}/overlays/") == 3
    assert not list(here.iterdir())


def test_test_agrees_with_the_masks_of_the_saved_model(run: Path, shapes: Path, here: Path) -> None:
    segmenter = ImageSegmenter.load(run / "model", device="cpu")
    assert segmenter.labels == LABELS
    pairs = ImagePairs(shapes)
    both = np.zeros(3)
    either = np.zeros(3)
    for image, truth in (pairs[number] for number in range(0, 40, 5)):
        found = segmenter.predict(image)
        assert found.shape == truth.shape
        for kind in range(3):
            both[kind] += ((found == kind) & (truth == kind)).sum()
            either[kind] += ((found == kind) | (truth == kind)).sum()
    shutil.copytree(run, here / "copy")
    shutil.rmtree(here / "copy/overlays", ignore_errors=True)
    assert main(["test", "copy", "--model.overlays", "null"]) == 0
    assert not Path("copy/overlays").exists()
    assert (both / either).mean() > 0.8


def test_predict_writes_the_masks_of_the_test_part(
    run: Path, shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run)]) == 0
    masks = load_file("predictions.safetensors")
    assert sorted(masks) == [f"{number:03}.png" for number in range(0, 40, 5)]
    segmenter = ImageSegmenter.load(run / "model", device="cpu")
    assert np.array_equal(masks["005.png"].numpy(), segmenter.predict(shapes / "images/005.png"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_backbone_scores_the_same(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for compiled in ("false", "true"):
        assert main(["test", str(run), "--model.compile", compiled, "--model.overlays", "null", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"])
    assert found[1] == pytest.approx(found[0], abs=1e-3)


def test_a_file_becomes_a_mask(run: Path, shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = shapes / "images/005.png"
    assert main(["segment", str(picture), "--model", str(run), "--overlay"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("005_mask.png  ground ")
    assert captured.err.startswith("segment 005.png · test_convnext from ")
    assert sorted(path.name for path in here.iterdir()) == ["005_mask.png", "005_mask_overlay.png"]
    assert (pixels("005_mask.png") == pixels(shapes / "masks/005.png")).mean() > 0.9
    assert pixels("005_mask_overlay.png").shape == pixels(picture).shape


def test_a_folder_becomes_a_folder_of_masks(
    run: Path, shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shapes / "images", "photos", ignore=lambda _, names: [name for name in names if name > "003"])
    Path("photos/notes.txt").write_text("not an image", encoding="utf-8")
    assert main(["segment", "photos", "--model", str(run / "model"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["labels"] == LABELS
    assert [row["mask"] for row in document["masks"]] == [f"photos_masks/{number:03}.png" for number in range(3)]
    for row in document["masks"]:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert pixels(row["mask"]).shape == pixels(row["image"]).shape[:2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.png"], "none.png: there is no such file or folder"),
        (["empty"], "empty: holds no image"),
        (["bad.png"], "bad.png: file: is no image: expected JPEG"),
        (["mixed"], "mixed/b.png: file: is no image"),
        (["good.png", "--out", "mask.jpg"], "--out mask.jpg: a mask is written as PNG"),
        (["good.png", "--out", "empty.png"], "--out empty.png is a folder"),
        (["good.png", "--out", "good.png"], "good.png would overwrite what belongs to good.png"),
        (["twins"], "twins_masks/a.png would overwrite what belongs to twins/a.bmp"),
        (["twins", "--out", "./twins"], "--out twins is the folder that is read, where masks would pass for images"),
        (["good.png", "--model", "nowhere"], "no saved model in nowhere"),
        (["good.png", "--model", "forecaster"], "forecaster holds a model for forecasting"),
        (["good.png", "--model", "clouds"], "clouds segments the domain 'cloud'; give a model of image or volume"),
        (["good.png", "--no-mirror"], "--no-mirror is for volumes"),
        (["good.png", "--probabilities"], "--probabilities is for volumes"),
    ],
)
def test_wrong_words_leave_nothing(
    words: list[str], says: str, run: Path, shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("empty", "empty.png", "mixed", "twins"):
        Path(folder).mkdir()
    good = shapes / "images/000.png"
    for copy in ("good.png", "mixed/a.png", "twins/a.png", "twins/a.bmp"):
        shutil.copy(good, copy)
    for broken in ("bad.png", "mixed/b.png"):
        Path(broken).write_text("no picture", encoding="utf-8")
    card = json.loads((run / "model/model.json").read_text(encoding="utf-8"))
    for name, change in (("forecaster", {"task": "forecasting"}), ("clouds", {"domain": "cloud"})):
        Path(name).mkdir()
        Path(name, "model.json").write_text(json.dumps({**card, **change}), encoding="utf-8")
    before = sorted(here.rglob("*"))
    model = [] if "--model" in words else ["--model", str(run)]
    assert main(["segment", *words, *model]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert sorted(here.rglob("*")) == before


def test_weights_that_do_not_fit_their_card_are_refused(
    run: Path, shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "model", "model")
    card = json.loads(Path("model/model.json").read_text(encoding="utf-8"))
    card["model"]["arguments"]["width"] = 16
    Path("model/model.json").write_text(json.dumps(card), encoding="utf-8")
    assert main(["segment", str(shapes / "images/000.png"), "--model", "model"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "model: the card and the weights do not fit together" in err


def remove(path: Path) -> None:
    path.unlink()


def shrink(path: Path) -> None:
    Image.fromarray(pixels(path)[:9, :9]).save(path)


def relabel(path: Path) -> None:
    Image.fromarray(pixels(path) + 1).save(path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove, "images/007.png: mask: "),
        (shrink, "masks/007.png: size: expected"),
        (relabel, "expected 0 to 2 or 255 (ignored), found 3"),
    ],
)
def test_training_stops_at_a_broken_pair(
    damage: Callable[[Path], None], says: str, shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shapes, "data")
    damage(here / "data/masks/007.png")
    assert main(["fit", "segmentation", *QUICK, "--data.root", "data", "--trainer.max_steps", "4", "--out", "run"]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not Path("run/model").exists()


def test_the_pages_python_runs(run: Path, shapes: Path, here: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs/segmentation.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(run / "model", "runs/cells/model")
    shutil.copy(shapes / "images/000.png", "photo.png")
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 (our own page)
    assert isinstance(names["mask"], np.ndarray)
    assert names["mask"].shape == pixels("photo.png").shape[:2]


def test_backbones_are_swept_with_data_loaded_by_processes(
    shapes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shapes, "report")  # as the report is named, and its tests' folder must not lie among the data
    words = ["--data.root", "report", "--data.workers", "1", "--trainer.val_check_interval", "1", "--json"]
    words += ["--sweep", "backbone=test_convnext", "--budget", "2steps"]
    assert main(["compare", "segmentation", *QUICK, *words]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert 0 < row["miou"] < 1
    assert "Learning curve" in Path("report.html").read_text(encoding="utf-8")
    drawn = Path("report_tests/segmentation-backbone=test_convnext-seed1/overlays")
    assert len(list(drawn.iterdir())) == 3
    assert sorted(path.name for path in Path("report").iterdir()) == ["images", "masks"]
