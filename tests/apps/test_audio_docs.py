"""The page on sound says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soundfile
import torch

from mamba_apps.audio import create_model, model_names
from mamba_apps.audio.tagging import AudioData, AudioTask
from mamba_apps.training import save_model
from mamba_datasets.samples.sounds import make_sound
from mamba_recipes import recipe as recipes

PAGE = (Path(__file__).parents[2] / "docs" / "audio.md").read_text(encoding="utf-8")


def test_the_table_has_every_model_with_its_size() -> None:
    header = re.search(r"^\| size \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert header is not None
    found = {}
    for size, cells in re.findall(r"^\| (\w+) \| ([\d.| ]+) \|$", PAGE, flags=re.MULTILINE):
        for column, cell in zip(header.group(1).split(" | "), cells.split(" | "), strict=True):
            family, *variant = column.split(" ")
            found["_".join([family, size, *variant])] = cell
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in create_model(name).parameters()) for name in model_names()}
    assert found == {name: f"{count / 1e6:.1f}" for name, count in counts.items()}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the run and the clip that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    task = AudioTask("aum_nano_bibi", model_options={"depth": 1})
    data = AudioData("sounds", seconds=0.5, statistics="audioset")
    task.prepare_for(data)
    save_model("runs/sounds/model", task, task.model_card(data, {}))
    soundfile.write("clip.wav", make_sound("tone", 0), 16000)


@pytest.mark.usefixtures("run")
def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102  (the project's own page)
    assert "followed by silence" in capsys.readouterr().out
    assert Path("clip.csv").is_file()
    assert Path("clip.png").is_file()


def test_every_recipe_of_sound_is_on_the_page() -> None:
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", PAGE, flags=re.MULTILINE))))
    assert {name for name, path in recipes.shipped().items() if path.parent.name == "audio"} <= rows
