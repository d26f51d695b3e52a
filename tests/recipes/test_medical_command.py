"""Volumes from the command: a short training on made-up data, its scores and page, masks for files and folders."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mamba_apps import Segmenter
from mamba_apps.medical.segmentation import VolumeData, VolumeSegmentationTask
from mamba_datasets.volumes import NetworkPlan, read_label, read_volume
from mamba_datasets.volumes.synthetic import write_synthetic
from mamba_recipes.cli import main
from mamba_recipes.recipe import shipped

NETWORK = NetworkPlan((16, 16, 16), (8, 16, 32), ((3, 3, 3),) * 3, ((1, 1, 1), (2, 2, 2), (2, 2, 2)), (1, 1, 1), (1, 1))
ON_CPU = [
    *("--data.workers", "0", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu"),
    *("--trainer.check_val_every_n_epoch", "1"),
]


@pytest.fixture(scope="module")
def ellipsoids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small dataset with a plan beside it for a network that a CPU trains in seconds."""
    root = write_synthetic(tmp_path_factory.mktemp("ellipsoids"), 7, (28, 26, 24))
    made = VolumeData(str(root)).plan
    dataclasses.replace(made, network=NETWORK, batch_size=2).to_json(root / "tiny.json")
    return root


def fit(root: Path, out: Path, steps: int, network: str, **settings: Any) -> None:
    words = ["--data.root", str(root), "--data.plan", str(root / "tiny.json"), "--data.steps", str(min(steps, 50))]
    words += ["--trainer.max_steps", str(steps), "--model.network", network, "--out", str(out), *ON_CPU]
    words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert main(["fit", "umamba_enc_3d", *words]) == 0


@pytest.fixture(scope="module")
def run(ellipsoids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(ellipsoids, folder, 80, "plain_unet")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_test_writes_a_table_a_page_and_pictures(
    run: Path, ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)["metrics"]
    kinds = [f"{kind}{label}" for kind in ("dice", "nsd", "hd95") for label in ("", "_organ", "_lesion")]
    assert set(metrics) == {f"test/{kind}" for kind in kinds}
    assert metrics["test/dice_organ"] > 0.5
    folder = run / "scores"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.png", "index.html", "median.png", "scores.csv", "worst.png"
    ]  # fmt: skip
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held_out = VolumeData(str(ellipsoids), plan=str(run)).held_out
    assert [(row["case"], row["label"]) for row in rows] == [
        (case, label) for case in held_out for label in ("organ", "lesion")
    ]
    # the table says what the masks of the saved model are worth
    segmenter = Segmenter.load(run, device="cpu")
    found = segmenter.predict(ellipsoids / f"imagesTr/{held_out[0]}_0000.nii.gz")
    truth = read_label(ellipsoids / f"labelsTr/{held_out[0]}.nii.gz").array[0]
    dice = 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum())
    assert float(rows[0]["dice"]) == pytest.approx(dice, abs=1e-4)
    assert int(rows[0]["true_voxels"]) == (truth == 1).sum()
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "no medical device" in page
    assert page.count("data:image/png;base64,") == 3
    assert "worst of 2" in page
    assert f"page:   {folder}/index.html" in captured.err
    assert not list(here.iterdir())


def test_a_file_becomes_a_mask_on_its_own_grid(
    run: Path, ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image: Any = nib.load(ellipsoids / "imagesTr/case_tr_000_0000.nii.gz")
    affine = np.array([[0, -1.5, 0, 11], [1, 0, 0, -3], [0, 0, -1, 40], [0, 0, 0, 1.0]])
    nib.Nifti1Image(np.asarray(image.dataobj), affine).to_filename("image.nii.gz")
    assert main(["segment", "image.nii.gz", "--model", str(run), "--out", "mask.nii.gz", "--no-mirror"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("mask.nii.gz  organ ")
    assert captured.err.startswith("segment image.nii.gz · plain_unet from ")
    assert "no medical device" in captured.err
    mask: Any = nib.load("mask.nii.gz")
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, affine)
    assert mask.get_data_dtype() == np.uint8
    expected = Segmenter.load(run, device="cpu", mirror=False).predict("image.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), expected.T)


def test_a_folder_goes_on_past_a_broken_file(
    run: Path, ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("scans").mkdir()
    for number in (0, 1, 2):
        shutil.copy(ellipsoids / f"imagesTr/case_tr_00{number}_0000.nii.gz", "scans")
    broken = Path("scans/case_tr_001_0000.nii.gz")
    broken.write_bytes(broken.read_bytes()[:3000])
    Path("scans/notes.txt").write_text("no volume", encoding="utf-8")
    words = ["segment", "scans", "--model", str(run), "--model", str(run / "model"), "--json", "--probabilities"]
    assert main(words) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["labels"] == {"background": 0, "organ": 1, "lesion": 2}
    assert document["broken"] == ["case_tr_001"]
    assert [row["mask"] for row in document["masks"]] == [
        "scans_masks/case_tr_000.nii.gz", "scans_masks/case_tr_002.nii.gz"
    ]  # fmt: skip
    assert "passed over scans/case_tr_001_0000.nii.gz: " in captured.err
    assert captured.err.splitlines()[-1].startswith("mamba-apps: error: 1 of 3 cases were passed over (case_tr_001);")
    chances = np.load(document["masks"][0]["probabilities"])
    mask = read_label(document["masks"][0]["mask"]).array[0]
    assert chances.shape == (3, *mask.shape)
    assert (chances.argmax(0) == mask).mean() > 0.99
    # two times the same model is that model
    alone = Segmenter.load(run, device="cpu").predict("scans/case_tr_000_0000.nii.gz")
    assert np.array_equal(alone, mask)
    assert sorted(path.name for path in Path("scans_masks").iterdir()) == [
        f"case_tr_00{number}{ending}" for number in (0, 2) for ending in (".nii.gz", "_probabilities.npy")
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.nii.gz"], "none.nii.gz: there is no such file or folder"),
        (["empty"], "empty: holds no volume"),
        (["notes.txt"], "notes.txt: format: knows "),
        (["good.nii.gz", "--overlay"], "--overlay is for images"),
        (["good.nii.gz", "--out", "mask.jpg"], "mask.jpg: format: knows "),
        (["good.nii.gz", "--out", "mask.png"], "mask.png: mask: has 3 axes, this format 2"),
        (["good.nii.gz", "--out", "empty.nii.gz"], "--out empty.nii.gz is a folder"),
        (["good.nii.gz", "--out", "empty"], "empty is a folder; name a file, such as empty/good_mask.nii.gz"),
        (["good.nii.gz", "--out", "good.nii.gz"], "good.nii.gz would overwrite an image"),
        (["cuts", "--out", "cuts/"], "--out cuts is the folder that is read, where masks would pass for images"),
        (["channels"], "the model reads 1 channel, good has _0000, _0001"),
        (["cut.nii.gz"], "cut.nii.gz: "),
        (["cut.nii.gz", "--out", "new/masks/mask.nii.gz"], "cut.nii.gz: "),
        (["cuts"], "2 of 2 cases were passed over (a, b)"),
        (["good.nii.gz", "--model", "nowhere"], "no saved model in nowhere"),
    ],
)
def test_wrong_words_leave_nothing(
    words: list[str], says: str, run: Path, ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("empty", "empty.nii.gz", "channels", "cuts"):
        Path(folder).mkdir()
    good = ellipsoids / "imagesTr/case_tr_000_0000.nii.gz"
    for copy in ("good.nii.gz", "channels/good_0000.nii.gz", "channels/good_0001.nii.gz"):
        shutil.copy(good, copy)
    for cut in ("cut.nii.gz", "cuts/a.nii.gz", "cuts/b.nii.gz"):
        Path(cut).write_bytes(good.read_bytes()[:2000])
    Path("notes.txt").write_text("no volume", encoding="utf-8")
    before = sorted(here.rglob("*"))
    model = [] if "--model" in words else ["--model", str(run)]
    assert main(["segment", *words, *model]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err.splitlines()[-1]
    assert sorted(here.rglob("*")) == before


def test_training_stops_at_a_broken_case(ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ellipsoids, "data", ignore=shutil.ignore_patterns(".mamba-apps"))
    label = Path("data/labelsTr/case_tr_003.nii.gz")
    image: Any = nib.load(label)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 7
    nib.Nifti1Image(values, image.affine).to_filename(label)
    words = ["--data.root", "data", "--data.plan", "data/tiny.json", "--trainer.max_steps", "2", "--out", "run"]
    assert main(["fit", "umamba_enc_3d", *words, *ON_CPU]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "data/labelsTr/case_tr_003.nii.gz: labels: expected the labels 0, 1, 2, found 7 in 1 voxel" in last
    assert not Path("run/model").exists()
    label.unlink()
    assert main(["fit", "umamba_enc_3d", *words, *ON_CPU, "--out", "again"]) == 2
    assert "labelsTr has no case_tr_003.nii.gz" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_scores_cannot_go_to_is_refused_before_a_case_is_segmented(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(VolumeSegmentationTask, "test_step", lambda *_: pytest.fail("a case was segmented"))
    Path("taken").touch()
    assert main(["test", str(run), "--model.scores", "taken"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write to the folder of scores taken: " in last
    assert last.endswith("choose another folder: --model.scores DIR, or null for none")


def test_a_folder_for_prepared_cases_is_asked_for(
    ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    for plan in ([], ["--data.plan", str(ellipsoids / "tiny.json")]):
        words = ["--data.root", str(ellipsoids), "--data.cache", "taken/cache", "--trainer.max_steps", "1", *plan]
        assert main(["fit", "umamba_enc_3d", *words, *ON_CPU, "--out", "run"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "taken/cache: folder of prepared cases: cannot be written: Not a directory; " in last
        assert last.endswith("or choose another: --data.cache DIR")
        assert not Path("run").exists()


def test_other_data_than_it_was_trained_on_is_refused(
    run: Path, ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = VolumeData(str(ellipsoids), plan=str(run)).plan
    dataclasses.replace(plan, spacing=(2.0, 1.0, 1.0)).to_json("other.json")
    assert main(["test", str(run), "--data.plan", "other.json"]) == 2
    assert "the model was trained with another plan than this data has" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_hippocampus_candidates_are_compared(ellipsoids: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.root", str(ellipsoids), "--data.plan", str(ellipsoids / "tiny.json"), "--data.steps", "2"]
    words += ["--candidates", "umamba_bot,residual_unet", "--budget", "2steps", "--model.mirror", "false", "--json"]
    assert main(["compare", "hippocampus", *words, *ON_CPU]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["umamba_bot", "residual_unet"]
    assert rows[0]["parameters"] > rows[1]["parameters"] > 0
    for row in rows:
        assert 0 <= row["dice"] <= 1
        assert row["samples_per_second"] > 0
        assert Path(f"report_tests/{row['model']}-seed1/scores/scores.csv").is_file()


@pytest.fixture
def spheres(tmp_path: Path) -> Path:
    """Return a dataset of volumes that MONAI makes, spheres of two kinds in noise, each cropped to what it holds."""
    from monai.data.synthetic import create_test_image_3d

    root = tmp_path / "hippocampus"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    random = np.random.RandomState(7)
    for number in range(8):
        image, label = create_test_image_3d(40, 38, 36, 8, 10, 6, 0.3, num_seg_classes=2, random_state=random)
        box = tuple(slice(max(int(found.min()) - 3, 0), int(found.max()) + 4) for found in np.nonzero(label))
        for part, values in (("imagesTr", image.astype(np.float32)), ("labelsTr", label.astype(np.uint8))):
            name = f"sphere_{number}_0000" if part == "imagesTr" else f"sphere_{number}"
            nib.Nifti1Image(values[box], np.diag([1.0, 1.0, 1.2, 1.0])).to_filename(root / part / f"{name}.nii.gz")
    labels = {"background": 0, "faint": 1, "bright": 2}
    description = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 8, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


@pytest.mark.slow
def test_the_readmes_commands_train_umamba_on_volumes_of_monai_within_two_minutes(spheres: Path, here: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) if "umamba_enc_3d" in code]
    lines = [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("mamba-apps ")]
    assert [line[0] for line in lines] == ["check", "fit", "test", "segment"]
    made = VolumeData("hippocampus").plan
    dataclasses.replace(made, network=NETWORK, batch_size=2).to_json("tiny.json")
    held_out = VolumeData("hippocampus").held_out[0]
    shutil.copy(f"hippocampus/imagesTr/{held_out}_0000.nii.gz", "t1.nii.gz")
    # the same lines with a network and a budget of a CPU's size
    smaller = ["--data.plan", "tiny.json", "--data.steps", "50", "--trainer.max_steps", "200", *ON_CPU]
    smaller += ["--model.optimiser", "adamw", "--model.lr", "3e-3"]
    start = time.process_time()  # of this process, for machines that others share
    for line in lines:
        assert main(line + smaller if line[0] == "fit" else line) == 0
    assert time.process_time() - start < 120
    with Path("runs/hippo/scores/scores.csv").open(encoding="utf-8") as file:
        scores = [float(row["dice"]) for row in csv.DictReader(file)]
    assert np.nanmean(scores) > 0.75
    truth, mask = read_label(f"hippocampus/labelsTr/{held_out}.nii.gz"), read_label("mask.nii.gz")
    assert mask.shape == read_volume("t1.nii.gz").shape
    assert np.array_equal(mask.affine, truth.affine)
    assert ((mask.array[0] > 0) == (truth.array[0] > 0)).mean() > 0.95


def test_the_page_says_what_is_so(run: Path, ellipsoids: Path, here: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/medical.md").read_text(encoding="utf-8")
    ours = page.partition("## Models")[0]
    (code,) = re.findall(r"```python\n(.*?)```", ours, re.DOTALL)
    shutil.copytree(run / "model", "runs/hippo/model")
    shutil.copy(ellipsoids / "imagesTr/case_tr_000_0000.nii.gz", "t1.nii.gz")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (our own page)
    assert np.array_equal(read_label("mask.nii.gz").array[0], names["mask"])
    for block, kind in (("data", VolumeData), ("model", VolumeSegmentationTask)):
        known = set(inspect.signature(kind).parameters)
        for cell in re.findall(rf"`{block}\.(\w+)`((?:, `\w+`)*)", ours):
            assert {cell[0], *re.findall(r"`(\w+)`", cell[1])} <= known
    for name in re.findall(r"`(umamba_\w+_[23]d)`", ours):
        assert name in shipped()
