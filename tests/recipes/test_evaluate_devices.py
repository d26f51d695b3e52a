"""Measuring and predicting with a model that several devices trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mamba_recipes.cli import main


@pytest.fixture
def trained(toy_recipe: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return a run as two processes leave one."""
    assert main(["fit", str(toy_recipe), "--out", "run"]) == 0
    path = Path("run/recipe.yaml")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["trainer"].update(devices=2, strategy="ddp", accelerator="cpu")
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    capsys.readouterr()
    return Path("run")


def test_one_process_tests_and_predicts(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "run", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert main(["test", "toy.yaml", "--model", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == metrics
    assert main(["predict", "run"]) == 0
    assert capsys.readouterr().out == "predictions.safetensors: prediction 64 x 1\n"


def test_predictions_of_several_devices_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "--trainer.devices", "2"]) == 2
    assert "one process writes; leave out --trainer.devices" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("predictions.safetensors").exists()


@pytest.mark.slow
def test_several_devices_that_are_asked_for_print_once(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mamba_recipes.cli", *words, "--trainer.accelerator", "cpu"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)

    done = run("fit", "digits", "--trainer.max_steps", "2", "--out", "run")
    assert done.returncode == 0, done.stderr[-2000:]
    done = run("test", "run", "--json", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(json.loads(done.stdout)["metrics"]) == {"test/loss", "test/top1", "test/top5"}
    assert len(done.stderr.splitlines()) < 4
