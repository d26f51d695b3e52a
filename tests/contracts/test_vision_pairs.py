"""Every mixer on every route, in every family of image models: the page lists those accepted, and each of them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import mamba_apps.vision  # noqa: F401  registers the models
from mamba_apps.errors import UserError
from mamba_apps.mixers import RoutedMixer, create, names
from mamba_apps.mixers.base import ROUTE_NAMES
from mamba_kernels import Route

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"
D = 16


def windowed(name: str) -> dict[str, Any]:
    return {"window": 2} if name == "windowed" else {}


def vim(mixer: str, name: str) -> nn.Module:
    # A class token has no place on a grid.
    options = {"depth": 2, "class_token": "none", "global_pool": "avg", **windowed(name)}
    return timm.create_model("vim_nano_patch2_8", mixer=mixer, route=name, **options)


def vmamba(mixer: str, name: str) -> nn.Module:
    return timm.create_model("vmamba_nano_8", mixer=mixer, route=name, **windowed(name))


def mambavision(mixer: str, name: str) -> nn.Module:
    return timm.create_model("mambavision_nano_8", mixer=mixer, route=name, **windowed(name))


def routed(mixer: str, name: str) -> nn.Module:
    return RoutedMixer(lambda: create(mixer, D), Route(name, **windowed(name)), rank=2)


FAMILIES: dict[str, Callable[[str, str], nn.Module]] = {
    "Vim": vim, "VMamba": vmamba, "MambaVision": mambavision, "`RoutedMixer`": routed
}  # fmt: skip


def accepted(family: str, mixer: str) -> list[str]:
    """Return the routes that a family takes a mixer along."""
    refused = {}
    for name in sorted(ROUTE_NAMES):
        try:
            FAMILIES[family](mixer, name)
        except UserError as error:
            refused[name] = str(error)
    assert all(repr(name) in message for name, message in refused.items()), refused
    return sorted(ROUTE_NAMES - set(refused))


def table() -> list[str]:
    rows = [["mixer", *FAMILIES], ["---"] * (1 + len(FAMILIES))]
    for mixer in names():
        rows.append([f"`{mixer}`", *(", ".join(accepted(family, mixer)) or "none" for family in FAMILIES)])
    return ["| " + " | ".join(cells) + " |" for cells in rows]


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "vmamba_nano_8", "mambavision_nano_8"])
def test_a_window_goes_with_its_route_alone(name: str) -> None:
    with pytest.raises(ValueError, match="window") as caught:
        timm.create_model(name, window=2)
    assert hasattr(caught.value, "remedy")


def test_the_page_lists_the_accepted_pairs() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index("<!-- mixers and routes -->") + 1
    expected = table()
    assert lines[start : start + len(expected)] == expected, "put this into docs/vision.md:\n" + "\n".join(expected)


@pytest.mark.parametrize("mixer", names())
@pytest.mark.parametrize("family", FAMILIES)
def test_accepted_pairs_learn(family: str, mixer: str) -> None:
    for name in accepted(family, mixer):
        torch.manual_seed(0)
        module = FAMILIES[family](mixer, name)
        x = torch.randn(2, 4, 6, D) if family == "`RoutedMixer`" else torch.randn(2, 3, 8, 8)
        y = module(x)
        assert y.isfinite().all()
        y.square().sum().backward()
        without = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not without, name
