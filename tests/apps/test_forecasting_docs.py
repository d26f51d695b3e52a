"""The page on forecasting says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mamba_apps.forecasting.baselines import BASELINES
from mamba_apps.forecasting.models import names, spec
from mamba_apps.forecasting.models.base import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "forecasting.md").read_text(encoding="utf-8")


def table() -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[2:] for row in rows}


def test_the_table_has_every_model() -> None:
    assert set(table()) == {*names(), *BASELINES}


@pytest.mark.parametrize("name", names())
def test_the_table_says_what_each_model_takes(name: str) -> None:
    cls = spec(name).cls
    expected = ["yes" if kind in cls.covariates else "effect" if kind in cls.through_effect else "no" for kind in KINDS]
    assert table()[name] == expected


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102  (the project's own page)
    columns = ["unique_id", "ds", "patch", "patch-lo-80", "patch-hi-80", "patch-lo-95", "patch-hi-95"]
    assert list(scope["forecast"].columns) == columns  # type: ignore[attr-defined]
