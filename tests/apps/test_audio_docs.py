"""The page on sound says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mamba_apps.audio import create_model, model_names

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


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102  (the project's own page)
    assert scope["lengths"] == [11025, 11025, 7950]
