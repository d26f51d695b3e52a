"""The page on classification says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.layers import DropPath

from mamba_apps.training import save_model
from mamba_apps.vision.classification import ClassificationTask, ImageData, SmallImageData
from mamba_apps.vision.weights import create_model
from mamba_datasets.samples import load_digits
from mamba_recipes import recipe as recipes
from mamba_recipes.cli.front import COMMANDS
from mamba_recipes.settings import parse_overrides

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


# What the releases set for each size: drop path, weight decay, images a step on each of eight devices.
SIZES = {
    "vim_small_patch16_224": (0.05, 0.05, 64),
    "vmamba_small_s2l15": (0.3, 0.05, 128),
    "vmamba_base_s2l15": (0.6, 0.05, 128),
    "mambavision_tiny2": (0.2, 0.05, 512),
    "mambavision_small": (0.2, 0.05, 512),
    "mambavision_base": (0.3, 0.075, 512),
    "mambavision_large": (0.3, 0.12, 512),
    "mambavision_large2": (0.3, 0.12, 512),
}


def test_the_commands_for_other_sizes_train_them_as_released() -> None:
    found = {}
    for line in re.findall(r"\| `mamba-apps fit (\w+_imagenet .*?)` \|", PAGE):
        name, *words = line.split()
        config = recipes.load(name).with_overrides(parse_overrides(words))
        task = ClassificationTask(**config["model"]["init_args"])
        data = ImageData(**config["data"]["init_args"])
        with torch.device("meta"):
            network = create_model(task.model_name, task.model_options)
        rates = [float(m.drop_prob) for m in network.modules() if isinstance(m, DropPath) and m.drop_prob]
        found[task.model_name] = (round(max(rates), 6), task.weight_decay, data.batch_size)
    assert found == SIZES


def test_its_commands_are_commands() -> None:
    words = [line.split() for line in PAGE.splitlines() if line.startswith("mamba-apps ")]
    assert words
    for word in words:
        assert word[1] in COMMANDS
        if word[1] in ("fit", "compare"):
            recipes.load(word[2])
