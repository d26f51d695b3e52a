"""`ImageClassifier`: saved, loaded and asked; images of every kind, and those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mamba_apps import ImageClassifier
from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard, save_model
from mamba_apps.vision.classification import BadImagesError, ClassificationTask, SmallImageData
from mamba_datasets.samples import load_digits

LABELS = tuple(str(digit) for digit in range(10))


def save_classifier(folder: Path, name: str = "mambavision_nano_8") -> Path:
    torch.manual_seed(0)
    data = SmallImageData("digits", train=None, val=0.5, size=8)
    module = ClassificationTask(name)
    module.prepare_for(data)
    return save_model(folder, module, module.model_card(data, {"val/top1": 12.5}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    images, _ = load_digits()
    for number in range(3):
        Image.fromarray(images[number]).save(folder / f"{number}.png")
    Image.fromarray(images[3]).resize((50, 40)).convert("RGB").save(folder / "more" / "3.JPG", format="JPEG")
    (folder / "notes.txt").write_text("no image, and not named like one", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "vmamba_nano_8", "mambavision_nano_8", "deit_nano_patch2_8"])
def test_a_saved_classifier_says_what_the_task_said(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = SmallImageData("digits", train=None, val=0.01, size=8)
    module = ClassificationTask(name).eval()
    module.prepare_for(data)
    save_model(tmp_path / "model", module, module.model_card(data, {"val/top1": 12.5}))
    classifier = ImageClassifier.load(tmp_path)  # the run's folder holds the model
    assert classifier.metrics == {"val/top1": 12.5}
    bytes_CHW, _ = data.val[0]
    module.network.eval()
    with torch.no_grad():
        expected = module(data.preprocessing.normalise(bytes_CHW[None].float())).softmax(-1)[0]
    (found,) = classifier.predict(Image.fromarray(bytes_CHW.permute(1, 2, 0).numpy()), top=10)
    assert sorted(found.labels) == list(LABELS)
    for label, probability in found.classes:
        assert probability == pytest.approx(expected[int(label)].item(), abs=1e-5)


def test_a_file_a_folder_and_a_list(saved: Path, pictures: Path) -> None:
    classifier = ImageClassifier.load(saved, device="cpu")
    (one,) = classifier.predict(pictures / "1.png", top=2)
    assert one.image == str(pictures / "1.png")
    assert len(one.labels) == len(one.probabilities) == 2
    assert one.label == one.labels[0]
    assert one.probability == max(one.probabilities)
    found = classifier.predict(pictures)
    names = ["0.png", "1.png", "2.png", "more/3.JPG"]
    assert [each.image for each in found] == [str(pictures / name) for name in names]
    assert found[1].probabilities[:2] == pytest.approx(one.probabilities, abs=1e-6)
    images = [str(pictures / "0.png"), Image.open(pictures / "1.png")]
    assert [each.label for each in classifier.predict(images)] == [found[0].label, found[1].label]


def test_more_images_than_a_batch(saved: Path) -> None:
    images = [Image.fromarray(image) for image in load_digits()[0][:70]]
    classifier = ImageClassifier.load(saved, device="cpu")
    found = classifier.predict(images, top=1)
    assert len(found) == 70
    assert found[69].probabilities == pytest.approx(classifier.predict(images[69], top=1)[0].probabilities, abs=1e-5)


def test_every_bad_image_of_a_folder_is_named(saved: Path, pictures: Path) -> None:
    (pictures / "a.jpg").write_text("hello", encoding="utf-8")
    whole = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(whole[: len(whole) // 2])
    classifier = ImageClassifier.load(saved)
    with pytest.raises(BadImagesError) as caught:
        classifier.predict(pictures)
    assert [Path(problem.path).name for problem in caught.value.problems] == ["2.png", "a.jpg"]
    assert str(caught.value).startswith("2 images cannot be read")
    with pytest.raises(BadImagesError, match=r"a\.jpg: file: is no image"):
        classifier.predict(pictures / "a.jpg")
    with pytest.raises(BadImagesError, match="no such file"):
        classifier.predict(pictures / "none.jpg")


def test_an_image_in_memory_goes_by_the_files_rules(saved: Path) -> None:
    classifier = ImageClassifier.load(saved)
    grey = np.full((9, 9), 200, np.uint8)
    clear = Image.fromarray(np.dstack([grey, grey, grey, np.zeros_like(grey)]))
    white = Image.new("RGB", (9, 9), "white")
    assert classifier.predict(clear)[0].probabilities == classifier.predict(white)[0].probabilities
    with pytest.raises(BadImagesError, match="the image: mode"):
        classifier.predict(Image.new("F", (9, 9)))


def test_what_cannot_be_asked(saved: Path, tmp_path: Path) -> None:
    classifier = ImageClassifier.load(saved)
    array = np.zeros((9, 9, 3), np.uint8)
    for images, says in (
        (tmp_path, "holds no images"),
        ([], "there are no images"),
        (array, "an image is a ndarray.*fromarray"),
    ):
        with pytest.raises(UserError, match=says):
            classifier.predict(images)
    with pytest.raises(UserError, match="top is 0"):
        classifier.predict(Image.new("RGB", (8, 8)), top=0)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no saved model"):
        ImageClassifier.load(tmp_path)
    save_model(tmp_path / "other", torch.nn.Linear(1, 1), ModelCard("forecasting", "series", "patch"))
    with pytest.raises(UserError, match="a model for forecasting of series"):
        ImageClassifier.load(tmp_path / "other")


def test_a_card_for_other_weights_is_refused(tmp_path: Path) -> None:
    saved = save_classifier(tmp_path / "model")
    card = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    card["model"]["arguments"]["num_classes"] = 3
    (saved / "model.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(UserError, match="do not fit together"):
        ImageClassifier.load(saved)
