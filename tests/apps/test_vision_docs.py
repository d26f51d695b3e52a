"""The page on images says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models import model_entrypoint

import mamba_apps.vision  # noqa: F401  registers the models

PAGE = (Path(__file__).parents[2] / "docs" / "vision.md").read_text(encoding="utf-8")
NAMES = [name for family in ("vim", "vmamba", "mambavision") for name in timm.list_models(module=family)]


def test_the_table_has_every_model_with_its_size_and_licence() -> None:
    rows = re.findall(r"^\| `(\w+_\w+)` \| ([\d.]+) \| (\d+) \| (\S+) \|$", PAGE, flags=re.MULTILINE)
    found = {name: (millions, pixels, licence) for name, millions, pixels, licence in rows}
    expected = {}
    for name in NAMES:
        with torch.device("meta"):
            model = timm.create_model(name)
        cfg = model.pretrained_cfg
        released = bool(cfg.get("hf_hub_id") or cfg.get("url"))
        licence = cfg["license"].upper().replace("APACHE", "Apache") if released else "none"
        millions = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}"
        expected[name] = (millions, str(cfg["input_size"][-1]), licence)
        assert f" {millions} M parameters" in (model_entrypoint(name).__doc__ or ""), name
    assert found == expected


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 6
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102  (the project's own page)
    assert scope["logits"].shape == (1, 10)  # type: ignore[attr-defined]
