"""The page on mixers says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mamba_apps.mixers import create, names, spec

PAGE = (Path(__file__).parents[2] / "docs" / "mixers.md").read_text(encoding="utf-8")


def test_the_table_has_every_mixer() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| (yes|no) \|", PAGE, flags=re.MULTILINE)
    said = {True: "yes", False: "no"}
    expected = [(n, said[create(n, 8).causal], said[bool(spec(n).cls.shared_projections)]) for n in names()]
    assert rows == expected


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    scope: dict[str, torch.Tensor] = {}
    for block in blocks:
        exec(block, scope)  # type: ignore[arg-type]  # noqa: S102  (the project's own page)
    assert scope["y"].shape == scope["image"].shape
    assert scope["text"].shape == (1, 50)
    model, same = scope["model"], scope["same"]
    assert torch.equal(same(scope["prompt"]), model(scope["prompt"]))  # type: ignore[operator]
