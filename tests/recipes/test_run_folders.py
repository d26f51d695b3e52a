"""The folder of a run: what it is not given for, and that a command that is refused leaves a run as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mamba_recipes.cli import main


@pytest.fixture
def trained(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["fit", str(toy_recipe), "--out", "run", "--trainer.max_epochs", "1"]) == 0
    capsys.readouterr()
    return Path("run")


def test_a_refused_resume_leaves_the_run_as_it_was(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert main(["fit", "--resume", "run", "--model.width", "8", "--trainer.max_epochs", "2"]) == 2
    assert "belongs to another model" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert main(["fit", "--resume", "run", "--trainer.max_epochs", "2", "--model.lr", "0.01"]) == 0
    assert "lr: 0.01" in (trained / "recipe.yaml").read_text(encoding="utf-8")


def test_a_resumed_run_has_no_other_folder(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--resume", "run", "--out", "other"]) == 2
    assert "--out names another; leave one of them out" in capsys.readouterr().err
    assert not Path("other").exists()


@pytest.mark.parametrize("name", ["metrics.csv", "model/weights.bin"])
def test_what_somebody_else_keeps_is_not_written_over(
    name: str, toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("work", name)
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    assert main(["fit", str(toy_recipe), "--out", "work"]) == 2
    assert "is no run's, and would be written over; choose another --out" in capsys.readouterr().err
    assert [found for found in Path("work").rglob("*") if found.is_file()] == [path]
    assert path.read_text(encoding="utf-8") == "mine"


def test_a_run_is_not_put_among_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos/cat").mkdir(parents=True)
    assert main(["fit", "finetune", "--data.root", "photos", "--out", "./photos/"]) == 2
    assert "photos is the folder of the data; choose another --out" in capsys.readouterr().err
    assert list(Path("photos").iterdir()) == [Path("photos/cat")]


def test_a_first_step_that_fails_leaves_the_folder_free(
    toy_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr("toy_candidates.ToyModule.training_step", step)
        assert main(["fit", str(toy_recipe), "--out", "run"]) == 2
    assert "out of memory (20.00 GiB more were needed); make the batches" in capsys.readouterr().err
    assert not Path("run").exists()
    assert main(["fit", str(toy_recipe), "--out", "run", "--data.batch_size", "8"]) == 0


def test_a_run_that_has_not_ended_says_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(trained / "model")
    for words in (["test", "run"], ["classify", "toy.yaml", "--model", "run"]):
        assert main(words) == 2
        says = "mamba-apps: error: the run in run has not ended, and has no saved model yet; go on with it: mamba-apps "
        says += "fit --resume run; or mamba-apps test run --model run/last.ckpt"
        assert capsys.readouterr().err.splitlines()[-1] == says
    assert main(["test", "run", "--model", "run/last.ckpt"]) == 0
