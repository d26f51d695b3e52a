"""What the page on sound data shows, runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_datasets.audio.layouts.known import LAYOUTS
from mamba_datasets.audio.layouts.table import COLUMNS
from mamba_datasets.samples import write_sounds
from mamba_recipes.cli.check import main

PAGE = (Path(__file__).parents[2] / "docs" / "audio_data.md").read_text(encoding="utf-8")


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_sounds("sounds", train=8, test=2)
    (tmp_path / "sounds" / "train" / "tone" / "000.wav").write_bytes(b"")
    soundfile.write("clip.flac", np.sin(np.arange(16000) / 9) / 2, 16000)
    rows = [f"clip.flac,{'even' if index % 2 else 'odd'},{index / 10},{index / 10 + 0.1}" for index in range(8)]
    rows += [f"sounds/test/tone/{name}.wav,{label},," for name, label in (("008", "odd"), ("009", "even"))]
    Path("clips.csv").write_text("\n".join(["path,label,start,end", *rows]) + "\n")

    commands = re.findall(r"^mamba-apps check (.*?) *#", PAGE, re.MULTILINE)
    assert [main(command.split()) for command in commands] == [2, 2, 0]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102  (the project's own page)
    assert [len(names[name]) for name in ("data", "train", "val", "test")] == [39, 23, 8, 8]  # type: ignore[arg-type]
    assert len(names["rest"]) + len(names["fold"]) == 10  # type: ignore[arg-type]
    assert names["lengths"] == [6400, 6400, 3200]
    assert names["wave"].shape == (8000,)  # type: ignore[attr-defined]


def test_the_tables_have_every_layout_and_column() -> None:
    layouts = PAGE[PAGE.index("## Layouts") : PAGE.index("## Tables")]
    assert re.findall(r"^\| `(\w+)` \|", layouts, re.MULTILINE) == [*LAYOUTS]
    columns = PAGE[PAGE.index("## Tables") : PAGE.index("## Folds")]
    first = ", ".join(re.findall(r"^\| ([a-z, ]+) \|", columns, re.MULTILINE))
    assert first.split(", ")[1:] == [*COLUMNS]
