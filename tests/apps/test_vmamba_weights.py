"""Published weights of VMamba: what the adapter takes, in which forms, and what it refuses by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.vision import VMamba
from mamba_apps.vision.vmamba_checkpoint import adapt_checkpoint

SIZES: dict[str, Any] = {"depths": (1, 1), "dims": (8, 12)}


def build(seed: int = 0, **options: Any) -> VMamba:
    torch.manual_seed(seed)
    return VMamba(**{**SIZES, "num_classes": 5, **options})


def load(checkpoint: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Load a checkpoint the way a person does, into a registered model."""
    given = {"state_dict": checkpoint, "num_classes": 5}
    options = {"num_classes": 5, **SIZES, **options}
    return timm.create_model("vmamba_tiny_s1l8", pretrained=True, pretrained_cfg_overlay=given, **options).state_dict()


def legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first releases' names."""
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in (
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
            ("classifier.", ""),
            (".0.norm.", ".0.ln_1."),
            (".op.", ".self_attention."),
        ):
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projections as 1 x 1 convolutions, as channel-first models once stored them."""
    wide = (".in_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight")
    return {name: tensor[..., None, None] if name.endswith(wide) else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
        convolutions,
    ],
    ids=["plain", "model", "module", "backbone", "convolutions"],
)
def test_every_value_arrives_whatever_the_container(form: Any) -> None:
    state = build(1).state_dict()
    loaded = load(form(dict(state)))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_first_releases_names_are_known() -> None:
    vanilla = {"forward_type": "v0", "mlp_ratio": 0.0, "patch_version": "v1", "downsample_version": "v1"}
    state = build(1, **vanilla).state_dict()
    old = legacy(state)
    assert {"patch_embed.proj.weight", "norm.weight", "head.bias", "layers.1.blocks.0.ln_1.weight"} <= old.keys()
    assert "layers.0.blocks.0.self_attention.A_logs" in old
    loaded = load({"model": old}, **vanilla)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"num_classes": 0}, {"features_only": True}], ids=str)
def test_other_classes_keep_the_rest(options: dict[str, Any]) -> None:
    state = build(1).state_dict()
    loaded = load(dict(state), **options)
    kept = [name for name in loaded if not name.split("model.")[-1].startswith("classifier.head")]
    assert len(kept) > 30
    assert all(torch.equal(loaded[name], state[name.removeprefix("model.")]) for name in kept)


def test_other_channels_adapt_the_first_convolution() -> None:
    state = build(1).state_dict()
    loaded = load(dict(state), in_chans=1)
    torch.testing.assert_close(loaded["patch_embed.0.weight"], state["patch_embed.0.weight"].sum(1, keepdim=True))


def test_positions_are_resized() -> None:
    state = build(1, pos_embed=True, img_size=(16, 24)).state_dict()
    loaded = load(dict(state), pos_embed=True, img_size=(32, 20))
    wanted = F.interpolate(state["pos_embed"], size=(8, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(loaded["pos_embed"], wanted)


def test_a_dense_backbone_starts_from_a_classifier() -> None:
    state = build(1).state_dict()
    loaded = load(dict(state), feature_norms=(0, 1))
    assert torch.equal(loaded["outnorm1.weight"], torch.ones(12))
    assert torch.equal(loaded["layers.1.blocks.0.op.Ds"], state["layers.1.blocks.0.op.Ds"])


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}], ids=["same classes", "other classes"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.0.blocks.0.op.A_logs"), r"missing .*: layers\.0\.blocks\.0\.op\.A_logs;"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 8, 2, 2)), r"unexpected .*: pos_embed;"),
        (lambda state: state.update({"layers.0.blocks.0.op.Ds": torch.zeros(3)}), r"op\.Ds has shape \(3,\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], change: Any, message: str) -> None:
    state = dict(build(1).state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        load(state, **options)


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    state = build(1).state_dict()
    torch.save({"model": state}, tmp_path / "vssm.pth")
    given = {"file": str(tmp_path / "vssm.pth"), "num_classes": 5}
    model = timm.create_model("vmamba_tiny_s1l8", pretrained=True, pretrained_cfg_overlay=given, num_classes=5, **SIZES)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), build(1).eval()(x))


def test_the_adapter_leaves_the_checkpoint_as_it_was() -> None:
    model = build()
    state = convolutions(build(1).state_dict())
    before = {name: tensor.shape for name, tensor in state.items()}
    adapt_checkpoint({"model": state}, model)
    assert {name: tensor.shape for name, tensor in state.items()} == before
