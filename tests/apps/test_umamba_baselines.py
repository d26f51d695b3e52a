"""MONAI's networks behind the builder: any plan's patch, one resolution of logits, what is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.medical import build_network
from mamba_datasets.volumes import NetworkPlan

KERNELS = {2: ((3, 3),) * 3, 3: ((1, 3, 3), (3, 3, 3), (3, 3, 3))}
STRIDES = {2: ((1, 1), (2, 2), (2, 2)), 3: ((1, 1, 1), (1, 2, 2), (2, 2, 2))}
SMALL: dict[str, dict[str, Any]] = {
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "swin_unetr": {"feature_size": 12},
}


def plan(*patch: int) -> NetworkPlan:
    dim = len(patch)
    return NetworkPlan(patch, (4, 6, 8), KERNELS[dim], STRIDES[dim], (1, 1, 1), (1, 1))


@pytest.mark.parametrize("patch", [(32, 64), (36, 20), (6, 12, 36), (2, 36, 4)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_any_patch_is_padded_and_cropped(name: str, patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = build_network(name, plan(*patch), 2, 3, **SMALL[name])
    x = torch.randn(1, 2, *patch, requires_grad=True)
    y = network(x)
    assert y.shape == (1, 3, *patch)
    y.square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).flatten(2).any(2).all())
    network.deep_supervision = True
    (alone,) = network(x)
    assert alone.shape == y.shape


def test_padding_is_on_both_sides_and_zero() -> None:
    network = build_network("segresnet", plan(8, 8), 1, 1, init_filters=8)
    network.network = torch.nn.Identity()
    network.multiple = 7
    seen: list[torch.Tensor] = []
    network.network.register_forward_hook(lambda module, inputs, y: seen.append(y))
    x = torch.rand(1, 1, 8, 12) + 1
    assert torch.equal(network(x), x)
    expected = torch.zeros(1, 1, 14, 14)
    expected[..., 3:11, 1:13] = x
    assert torch.equal(seen[0], expected)


def test_sizes_are_those_of_the_published_comparison() -> None:
    counts = {name: sum(p.numel() for p in build_network(name, plan(40, 64, 64), 1, 14).parameters()) for name in SMALL}
    # SwinUNETR with 48 features as in its authors' code.
    assert counts["swin_unetr"] == 62_187_296
    assert counts["segresnet"] == 18_796_398


def test_small_patches_are_refused_when_the_network_is_built() -> None:
    with pytest.raises(UserError, match=r"SwinUNETR got an image of 4 x 32 x 32, .*more than 32 voxels along an axis"):
        build_network("swin_unetr", plan(4, 32, 32), 1, 3, feature_size=12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_unetr", {"feature_size": 13}, "SwinUNETR: .*feature_size"),
        ("segresnet", {"init_filters": 9}, "SegResNet: .*divisible"),
        ("segresnet", {"filters": 9}, "'segresnet' has no option 'filters'; did you mean 'init_filters'"),
    ],
    ids=str,
)
def test_options_that_monai_refuses(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(name, plan(8, 36, 36), 1, 3, **options)


def test_without_monai_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("monai", "monai.networks"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"is not installed; pip install 'mamba-apps\[medical\]'"):
        build_network("segresnet", plan(8, 8), 1, 3)
