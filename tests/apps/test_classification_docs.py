"""The page on classification says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from mamba_apps.training import save_model
from mamba_apps.vision.classification import ClassificationTask, SmallImageData
from mamba_datasets.samples import load_digits
from mamba_recipes import recipe as recipes
from mamba_recipes.cli.front import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "classification.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    data, module = SmallImageData("digits", train=None, val=0.1, size=8), ClassificationTask("mambavision_nano_8")
    module.prepare_for(data)
    save_model("runs/digits/model", module, module.model_card(data, {}))
    Path("pictures").mkdir()
    Image.fromarray(load_digits()[0][0]).save("pictures/0.png")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(block, {})  # noqa: S102  (the project's own page)
    assert capsys.readouterr().out.startswith("pictures/0.png ")


def test_the_table_has_every_recipe() -> None:
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    shipped = set()
    for name in recipes.shipped():
        if ".classification." in recipes.load(name).config["model"]["class_path"]:
            shipped.add(name)
    assert shipped <= named


def test_its_commands_are_commands() -> None:
    words = [line.split() for line in PAGE.splitlines() if line.startswith("mamba-apps ")]
    assert words
    for word in words:
        assert word[1] in COMMANDS
        if word[1] in ("fit", "compare"):
            recipes.load(word[2])
