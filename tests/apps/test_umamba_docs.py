"""The page on medical images says what is so about the networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mamba_apps.medical import build_network, network_names
from mamba_apps.medical.zoo import network_options
from mamba_apps.mixers import names
from mamba_apps.mixers.base import ROUTE_NAMES
from mamba_datasets.volumes import NetworkPlan

PAGE = (Path(__file__).parents[2] / "docs" / "medical.md").read_text(encoding="utf-8")
MODELS = re.search(r"^## Models$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
STRIDES = ((1, 1, 1), (1, 2, 2), *((2, 2, 2),) * 3, (1, 2, 2))
PLANS = {
    "2-D": NetworkPlan(
        (320, 320), (32, 64, 128, 256, *(512,) * 3), ((3, 3),) * 7, ((1, 1), *((2, 2),) * 6), (2,) * 7, (2,) * 6
    ),
    "3-D": NetworkPlan(
        (40, 224, 192), (32, 64, 128, 256, 320, 320), ((1, 3, 3), *((3, 3, 3),) * 5), STRIDES, (2,) * 6, (2,) * 5
    ),
}


def section() -> str:
    assert MODELS is not None
    return MODELS.group(1)


def test_the_table_has_every_network_with_its_size() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d.]+) \| ([\d.]+) \|$", section(), flags=re.MULTILINE)
    counts = {}
    for name in network_names():
        # SwinUNETR computes numbers while it is built.
        with torch.device("cpu" if name == "swin_unetr" else "meta"):
            networks = [build_network(name, plan, 1, 14) for plan in PLANS.values()]
        counts[name] = tuple(f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}" for network in networks)
    assert {name: (flat, deep) for name, flat, deep in rows} == counts


def test_the_table_has_every_option_and_its_values() -> None:
    cells = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*) \|$", section(), flags=re.MULTILINE))
    listed = {option for key in cells for option in re.findall(r"\w+", key)} - set(network_names())
    assert listed == set(network_options("umamba_enc"))
    assert set(re.findall(r'`"(\w+)"`', cells["`mixer`, `mixer_options`"])) == set(names())
    routes = set(re.findall(r'`"(\w+)"`', cells["`route`, `window`, `merge`"]))
    assert routes == ROUTE_NAMES | {"sum", "mean", "concat"}


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", section(), flags=re.DOTALL)
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102  (the project's own page)
    assert scope["logits"].shape == (2, 3, 8, 32, 32)  # type: ignore[attr-defined]
