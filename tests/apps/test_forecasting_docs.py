"""The page on forecasting says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting.baselines import BASELINES
from mamba_apps.forecasting.capability import Capability, capabilities, capability_table
from mamba_apps.forecasting.models import Sizes, names
from mamba_apps.forecasting.models.base import KINDS
from mamba_apps.forecasting.saving import make_network

PAGE = (Path(__file__).parents[2] / "docs" / "forecasting.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_code_says() -> None:
    assert capability_table() in PAGE, f"put this into docs/forecasting.md:\n{capability_table()}"


def test_every_model_and_baseline_is_in_the_table() -> None:
    assert [one.name for one in capabilities()] == [*names(), *BASELINES]


@pytest.mark.parametrize("one", capabilities(), ids=lambda one: one.name)
def test_what_the_table_says_is_so(one: Capability) -> None:
    sizes = dict(zip(KINDS, ("n_past", "n_future", "n_static"), strict=True))
    for kind, size in sizes.items():
        # Through the effect a static covariate says how much the others count, and nothing by itself.
        beside = 2 if (kind, getattr(one, kind)) == ("static", "effect") else 0
        counts = {"n_past": 0, "n_future": beside, "n_static": 0, size: 2}
        options = {"season": 7} if one.name.startswith("seasonal") else {}
        if getattr(one, kind) == "no":
            with pytest.raises(UserError, match=f"takes no {kind}"):
                make_network(one.name, Sizes(14, 7, **counts), options)
            continue
        torch.manual_seed(0)
        network = make_network(one.name, Sizes(14, 7, **counts), options).eval()
        with torch.no_grad():
            for parameter in [*network.parameters(), *network.buffers()]:
                if parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        batch = {
            "past_y": torch.randn(3, 14, 1),
            "past_observed": torch.ones(3, 14, 1, dtype=torch.bool),
            "past_x": torch.randn(3, 14, counts["n_past"] + counts["n_future"]),
            "future_x": torch.randn(3, 7, counts["n_future"]),
            "static": torch.randn(3, counts["n_static"]),
        }
        key = {"past": "past_x", "future": "future_x", "static": "static"}[kind]
        changed = network({**batch, key: batch[key] + 1.0})
        same = torch.allclose(network(batch), changed)
        assert same == (getattr(one, kind) == "ignored"), kind


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)  # noqa: S102  (the project's own page)
    columns = ["unique_id", "ds", "patch", "patch-lo-80", "patch-hi-80", "patch-lo-95", "patch-hi-95"]
    assert list(scope["forecast"].columns) == columns  # type: ignore[attr-defined]
    assert str(scope["forecast"]["ds"].iloc[0]) == "2024-01-29 02:00:00"  # type: ignore[index]
