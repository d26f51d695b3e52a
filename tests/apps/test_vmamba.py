"""VMamba: its sizes and parts, its features, and how it runs."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.vision import VMamba
from mamba_apps.vision.vmamba_parts import PatchMerging

SMALL: dict[str, Any] = {"depths": (1, 2), "dims": (8, 12), "patch_size": 2, "num_classes": 5}
VANILLA: dict[str, Any] = {
    "d_state": 4, "expand": 2.0, "conv_bias": True, "forward_type": "v0", "mlp_ratio": 0.0, "patch_version": "v1",
    "downsample_version": "v1",
}  # fmt: skip


def build(seed: int = 0, **options: Any) -> VMamba:
    torch.manual_seed(seed)
    return VMamba(**{**SMALL, **options})


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vmamba_tiny_s1l8", 30_249_064),
        ("vmamba_tiny_s2l5", 30_705_832),
        ("vmamba_small_s2l15", 50_147_752),
        ("vmamba_small_s1l20", 49_012_840),
        ("vmamba_base_s2l15", 88_557_800),
        ("vmamba_base_s1l20", 86_614_504),
        ("vmamba_v0_tiny", 22_893_448),
        ("vmamba_v0_small", 44_417_416),
        ("vmamba_v0_base", 76_254_056),
        ("vmamba_micro_32", 6_746_314),
        ("vmamba_nano_8", 139_786),
    ],
)
def test_parameters_are_as_many_as_published(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    "options",
    [
        {},
        VANILLA,
        {"gated_mlp": True, "downsample_version": "v2", "d_conv": 1},
        {"patch_norm": False, "pos_embed": True, "img_size": (16, 12), "mlp_ratio": 2.0},
        {"mixer": "attention", "mixer_options": {"heads": 2}, "route": "bidirectional"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(16, 12), (7, 9), (5, 16)], ids=str)
def test_any_size_and_every_parameter_takes_part(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = build(**options)
    logits = model(images(2, 3, *size))
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_small_images_of_one_channel() -> None:
    assert timm.create_model("vmamba_nano_8", in_chans=1)(images(2, 1, 1, 1)).shape == (2, 10)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)], ids=str)
def test_patch_merging_reads_squares_column_by_column(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    merging = PatchMerging(3, 4)
    x = images(2, *size, 3)
    padded = nn.functional.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    corners = [padded[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(torch.cat(corners, -1))))


def test_the_stem_halves_as_often_as_the_patch_says() -> None:
    for patch, stride in ((1, 1), (2, 2), (4, 4)):
        assert build(patch_size=patch).patch_embed(images(1, 3, 8, 12)).shape == (1, 8 // stride, 12 // stride, 8)
    assert build(patch_size=3, patch_version="v1").patch_embed(images(1, 3, 9, 12)).shape == (1, 3, 4, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1,)}, r"depths are \(1,\), dims \(8, 12\)"),
        ({"feature_norms": (2,)}, r"feature_norms are \(2,\)"),
        ({"patch_version": "v3"}, "no patch embedding 'v3'"),
        ({"patch_size": 8}, "of 8 pixels"),
        ({"downsample_version": "v9"}, "no down-sampling 'v9'"),
        ({"forward_type": "m0_noz"}, "no forward type 'm0_noz'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_features_stand_before_the_grid_is_halved() -> None:
    model = build().eval()
    x = images(2, 3, 12, 20)
    last, (first, second) = model.forward_intermediates(x)
    torch.testing.assert_close(first.permute(0, 2, 3, 1), model.layers[0].blocks(model.patch_embed(x)))
    torch.testing.assert_close(last, model.forward_features(x))
    torch.testing.assert_close(model.classifier.norm(second.permute(0, 2, 3, 1)), last)
    normed = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(normed[0], last)
    early, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
    torch.testing.assert_close(early, first.permute(0, 2, 3, 1))
    with pytest.raises(UserError, match="format 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_a_dense_backbone_normalises_the_features_it_gives_and_keeps_no_more() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vmamba_micro_32", features_only=True, out_indices=(0, 1), feature_norms=(0, 1, 2), dims=(8, 16, 24)
    )
    features = backbone(images(2, 3, 17, 40))
    assert [tuple(feature.shape) for feature in features] == [(2, 8, 9, 20), (2, 16, 5, 10)]
    assert backbone.feature_info.reduction() == [2, 4]
    for feature in features:
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature.mean(1)), rtol=0, atol=1e-5)
    sum(feature.square().sum() for feature in features).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("pool", ["avg", "max", "catavgmax", ""])
def test_the_classifier_is_reset_in_the_models_dtype(pool: str) -> None:
    model = build().double()
    model.reset_classifier(7, pool)
    x = images(2, 3, 8, 8).double()
    logits, pooled = model(x), model.forward_head(model.forward_features(x), pre_logits=True)
    assert logits.shape == ((2, 7) if pool else (2, 2, 2, 7))
    assert logits.dtype == torch.float64
    assert pooled.shape[-1] == model.head_hidden_size
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)


def test_groups_go_from_the_stem_to_the_head_and_cover_every_parameter_once() -> None:
    model = build(feature_norms=(0, 1), pos_embed=True, img_size=8)
    names = {name for name, _ in model.named_parameters()}
    for coarse, count in ((False, 5), (True, 4)):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert sorted(groups) == list(range(count))
        assert sorted(name for group in groups.values() for name in group) == sorted(names)
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    assert fine["pos_embed"] == fine["patch_embed.0.weight"] == 0
    assert fine["layers.0.downsample.1.weight"] == fine["outnorm0.weight"] == fine["layers.0.blocks.0.op.Ds"] == 1
    assert fine["classifier.norm.weight"] == fine["layers.1.blocks.1.norm.weight"] == 3
    assert fine["classifier.head.weight"] == 4


def test_decay_spares_the_scans_and_the_positions() -> None:
    spared = build(pos_embed=True, img_size=8).no_weight_decay()
    blocks = ("layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1")
    assert spared == {"pos_embed", *(f"{block}.op.{name}" for block in blocks for name in ("A_logs", "Ds"))}


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    model, x = build(), images(2, 3, 8, 8)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_a_pruned_model_can_classify_again() -> None:
    model = build().double()
    assert model.prune_intermediate_layers([0]) == [0]
    model.reset_classifier(3, "avg")
    assert model(images(2, 3, 8, 8).double()).shape == (2, 3)


def test_positions_fit_images_of_any_size() -> None:
    model = build(pos_embed=True, img_size=(8, 12))
    assert model.pos_embed is not None
    assert model.pos_embed.shape == (1, 8, 4, 6)
    with torch.no_grad():
        model.pos_embed.fill_(2.0)
    x = images(1, 3, 10, 6)
    torch.testing.assert_close(model._embed(x) - model.patch_embed(x), torch.full((1, 5, 3, 8), 2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_residual_wide(dtype: torch.dtype) -> None:
    model = build().eval()
    x = images(2, 3, 9, 12)
    residuals: list[torch.Tensor] = []
    model.layers[1].blocks.register_forward_hook(lambda module, inputs, output: residuals.append(output))
    with torch.autocast("cpu", dtype):
        logits = model(x)
    assert logits.dtype == dtype
    assert residuals[0].dtype == torch.float32
    torch.testing.assert_close(logits.float(), model(x), rtol=3e-2, atol=3e-2)
    assert build().to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("options", [{}, VANILLA], ids=["v05_noz", "v0"])
def test_it_compiles_whole(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = build(**options, depths=(1, 1))
    x = images(2, 3, 9, 12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for mine, theirs in zip(
        torch.autograd.grad(compiled(x).square().sum(), list(model.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_inductor_agrees_for_any_batch() -> None:
    torch._dynamo.reset()
    model = build(depths=(1, 1)).eval()
    compiled = torch.compile(model, fullgraph=True)
    for batch in (2, 3, 5):
        x = images(batch, 3, 9, 12)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_exported_model_takes_any_batch_and_size() -> None:
    model = build(depths=(1, 1), pos_embed=True, img_size=16).eval()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(model, (images(2, 3, 16, 20),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    x = images(3, 3, 11, 26)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize("name", ["vmamba_micro_32", "deit_micro_patch4_32"])
def test_small_variants_begin_as_wide_as_their_channels_ask(name: str) -> None:
    import mamba_apps.vision.classification.baselines  # noqa: F401 - registers the DeiT

    layers = [layer for layer in timm.create_model(name).modules() if isinstance(layer, nn.Linear)]
    large = [layer for layer in layers if layer.weight.numel() > 10_000]
    spread = [float(layer.weight.detach().std()) * layer.in_features**0.5 for layer in large]
    assert len(spread) > 10
    assert all(0.95 < one < 1.05 for one in spread)
