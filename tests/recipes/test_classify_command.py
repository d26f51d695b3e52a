"""`mamba-apps classify`, and the digits recipe from training to a picture's class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mamba_datasets.samples import load_digits
from mamba_recipes import recipe as recipes
from mamba_recipes.cli import main
from mamba_recipes.compare.plan import make_plan

FAMILIES = ("vim_nano_patch2_8", "vmamba_nano_8", "mambavision_nano_8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for an epoch, which is enough to be better than chance."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    words = ["--trainer.max_epochs", "1", "--trainer.devices", "1", "--out", str(run)]
    assert main(["fit", "digits", "--model.model", "mambavision_nano_8", *words]) == 0
    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in (0, 1):
        Image.fromarray(load_digits()[0][number]).save(tmp_path / f"{number}.png")
    return tmp_path


def test_one_image(trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(pictures / "0.png"), "--model", str(trained)]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    name, *classes = line.split()
    assert name == str(pictures / "0.png")
    assert len(classes) == 6
    assert captured.err.startswith(
        f"classify {pictures / '0.png'} · mambavision_nano_8 · 228.6k parameters · 10 classes"
    )
    assert captured.err.count("\n") == 1


def test_a_folder_as_json(trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(pictures), "--model", str(trained / "model"), "--top", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [image["image"] for image in document["images"]] == [str(pictures / f"{n}.png") for n in (0, 1)]
    assert [len(image["classes"]) for image in document["images"]] == [2, 2]
    assert 0 < document["images"][0]["classes"][0]["probability"] <= 1


def test_bad_images_are_all_named_and_nothing_is_printed(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "text.jpg").write_text("hello", encoding="utf-8")
    (pictures / "0.png").write_bytes((pictures / "0.png").read_bytes()[:50])
    assert main(["classify", str(pictures), "--model", str(trained)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    _, first, second = captured.err.splitlines()
    assert first.startswith(f"mamba-apps: error: {pictures / '0.png'}: ")
    assert second.startswith(f"mamba-apps: error: {pictures / 'text.jpg'}: file: is no image")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no.png", "--model", "RUN"], "no.png: file: no such file"),
        (["EMPTY", "--model", "RUN"], "holds no images"),
        (["no.png", "--model", "EMPTY"], "no saved model in"),
        (["no.png"], "required: --model"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], says: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"RUN": str(trained), "EMPTY": str(tmp_path)}
    assert main(["classify", *(named.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err.splitlines()[-1]


def test_swept_models_have_the_families_of_their_candidates() -> None:
    names = ["vim_nano_patch2_8", "deit_nano_patch2_8", "resnet18"]
    plan = make_plan(recipes.load("digits"), sweeps=["model=" + ",".join(names)])
    assert [job.family for job in plan.jobs] == ["mamba", "transformer", "other"]
    assert [job.model for job in plan.jobs] == [f"digits[model={name}]" for name in names]


def test_models_are_swept_and_speed_is_drawn_over_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--measure", "speed", "--budget", "0.2s", "--sweep", "size=4,8", "--candidates", "mambavision"]
    assert main(["compare", "digits", *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["mambavision[size=4]", "mambavision[size=8]"]
    assert all(row["train_samples_per_second"] > 0 for row in rows)
    text = Path("report.html").read_text(encoding="utf-8")
    assert text.count(" over size'") == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_the_digits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "digits", "--model.model", name, "--out", "run"]) == 0
    assert main(["test", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["test/top1"] > 95
    Image.fromarray(load_digits()[0][0]).save("zero.png")
    assert main(["classify", "zero.png", "--model", "run"]) == 0
    assert capsys.readouterr().out.startswith("zero.png  0 ")
