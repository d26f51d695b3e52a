"""Vim's own: class tokens in the sequence, positions on other grids, rotary positions, stochastic depth, its start."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import RoutedMixer, VimMixer
from mamba_apps.vision import Vim
from mamba_apps.vision.vim_checkpoint import adapt_checkpoint
from mamba_apps.vision.vim_tokens import PatchEmbed, Place, TokenLayout, resize_position_embedding, rotary_positions

PLACES = ["middle", "front", "end", "double", "none"]
SMALL: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_classes": 5}
NO_CLASS: dict[str, Any] = {"class_token": "none"}
over_places = pytest.mark.parametrize("place", PLACES)


def build(**options: Any) -> Vim:
    torch.manual_seed(0)
    return Vim(**{**SMALL, **options})


def images(height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("place", "patches", "at"),
    [
        ("middle", 196, [98]),
        ("middle", 15, [7]),
        ("front", 15, [0]),
        ("end", 15, [15]),
        ("double", 15, [0, 16]),
        ("none", 15, []),
    ],
)
def test_class_tokens_stand_where_the_reference_puts_them(place: Place, patches: int, at: list[int]) -> None:
    layout = TokenLayout(place)
    patch_BMD = torch.arange(1, patches + 1).float()[None, :, None]
    class_BTD = -torch.arange(1, len(at) + 1).float()[None, :, None]
    sequence = layout.insert(patch_BMD, class_BTD)
    assert (sequence[0, :, 0] < 0).nonzero()[:, 0].tolist() == at
    assert torch.equal(layout.patches(sequence), patch_BMD)
    assert torch.equal(layout.class_tokens(sequence), class_BTD)


def test_patches_overlap_and_what_is_left_over_is_dropped() -> None:
    embed = PatchEmbed(3, 4, patch_size=16, stride=8)
    assert embed.grid((224, 224)) == (27, 27)
    assert embed.grid((39, 16)) == (3, 1)
    assert embed(torch.randn(1, 3, 39, 16)).shape == (1, 4, 3, 1)
    with pytest.raises(UserError, match="15 x 40 pixels is smaller than a patch of 16"):
        embed.grid((15, 40))


@over_places
def test_resized_positions_stay_where_they_are(place: Place) -> None:
    layout = TokenLayout(place)
    # Each patch knows its row and column, which the interpolation nearly keeps between the outermost ones.
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    patches = torch.stack([rows, columns], dim=-1).flatten(0, 1)[None]
    marks = torch.full((1, layout.count, 2), 50.0)
    resized = resize_position_embedding(layout.insert(patches, marks), layout, (6, 8), (12, 8))
    assert torch.equal(layout.class_tokens(resized), marks)
    found = layout.patches(resized).unflatten(1, (12, 8))
    expected = (torch.arange(4.0, 8.0)[:, None] / 2 - 0.25).expand(4, 8)
    torch.testing.assert_close(found[0, 4:8, :, 0], expected, rtol=0, atol=0.05)
    torch.testing.assert_close(found[0, :, :, 1], torch.arange(8.0).expand(12, 8))


def test_the_official_rule_differs_where_the_class_token_is_not_in_front() -> None:
    embedding = torch.randn(1, 17, 4)
    found = {
        (place, rule): resize_position_embedding(embedding, TokenLayout(place), (4, 4), (6, 6), rule)
        for place in ("front", "middle")
        for rule in ("grid", "official")
    }
    assert torch.equal(found["front", "grid"], found["front", "official"])
    assert torch.equal(found["middle", "official"], found["front", "official"])
    assert not torch.allclose(found["middle", "grid"], found["middle", "official"], atol=0.1)
    assert torch.equal(found["middle", "grid"][:, 18], embedding[:, 8])
    layout = TokenLayout("middle")
    assert resize_position_embedding(embedding, layout, (4, 4), (4, 4), "official") is embedding


@over_places
def test_rotary_positions_turn_pairs_of_channels_by_row_and_column(place: Place) -> None:
    layout, grid, channels = TokenLayout(place), (3, 5), 8
    sin_LD, cos_LD = rotary_positions(layout, grid, channels, torch.device("cpu"))
    # Complex numbers of unit length: two for the row, two for the column, on a grid stretched to 14 x 14.
    speed = 10000.0 ** -torch.tensor([0.0, 0.5])
    row, column = (torch.arange(n) * 14 / n for n in grid)
    angle = torch.stack([row[:, None].expand(grid), column.expand(grid)], dim=-1)[..., None] * speed
    expected = torch.polar(torch.ones(15, 4), angle.reshape(15, 4))
    turns = torch.complex(cos_LD, sin_LD)[None]
    for first in (0, 1):
        torch.testing.assert_close(layout.patches(turns)[0, :, first::2], expected)
    assert torch.equal(layout.class_tokens(turns), torch.ones(1, layout.count, channels, dtype=torch.complex64))


@over_places
def test_rotary_positions_change_what_blocks_see(place: Place) -> None:
    plain, turned, both = (
        build(class_token=place, rope=rope, rope_residual=residual).eval()
        for rope, residual in ((False, False), (True, False), (True, True))
    )
    for model in (turned, both):
        model.load_state_dict(plain.state_dict())
    found = [model(images()) for model in (plain, turned, both)]
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert (found[1] - found[2]).abs().max() > 1e-3


def test_the_class_token_is_what_the_classifier_sees() -> None:
    x = images()
    for place, at in (("middle", [8]), ("front", [0]), ("double", [0, 17])):
        model = build(class_token=place).eval()
        features = model.forward_features(x)
        torch.testing.assert_close(model(x), model.head(features[:, at].mean(1)))
    model = build(**NO_CLASS).eval()
    assert model.global_pool == "avg"
    torch.testing.assert_close(model(x), model.head(model.forward_features(x).mean(1)))
    pooled = build(global_pool="max").eval()
    features = pooled.forward_features(x)
    expected = torch.cat([features[:, :8], features[:, 9:]], dim=1).amax(1)
    torch.testing.assert_close(pooled.forward_head(features, pre_logits=True), expected)


@over_places
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_intermediates_are_the_patches_and_the_class_tokens(place: Place, output_fmt: str) -> None:
    model = build(class_token=place, img_size=(8, 12)).eval()
    last, found = model.forward_intermediates(
        images(8, 12), indices=[2], norm=True, return_prefix_tokens=True, output_fmt=output_fmt
    )
    patches, tokens = found[0]
    if output_fmt == "NCHW":
        assert patches.shape == (2, 16, 4, 6)
        patches = patches.flatten(2).mT
    torch.testing.assert_close(model.layout.insert(patches, tokens), last)


def test_stochastic_depth_drops_as_the_reference_does() -> None:
    model = build(depth=4, drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.layers]
    # The reference drops block i's output where block i + 1 adds it, by the rate at i of a straight line.
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [block.drop_path.drop_prob for block in build(depth=1, drop_path_rate=0.3).layers] == [0.3]
    assert not any(isinstance(module, DropPath) for module in build().modules())


def test_dropped_outputs_leave_the_stream_as_it_was() -> None:
    model = build(depth=2, drop_path_rate=0.999).train()
    hidden, residual = model.layers[1](torch.randn(4, 17, 16), torch.randn(4, 17, 16))
    dropped = (hidden == 0).flatten(1).all(1)
    assert dropped.all()
    assert residual.abs().min() > 0


def test_the_start_is_the_references() -> None:
    shallow, deep = (build(depth=depth, embed_dim=64, patch_size=1, num_classes=50) for depth in (1, 4))
    for model, depth in ((shallow, 1), (deep, 4)):
        weight = model.layers[0].mixer.out_proj.weight
        assert weight.abs().max().item() == pytest.approx((128 * depth) ** -0.5, rel=0.02)
    for tensor in (deep.cls_token, deep.pos_embed, deep.head.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.35)
    assert deep.patch_embed.proj.weight.std().item() == pytest.approx(3**-0.5, rel=0.2)
    for bias in (deep.patch_embed.proj.bias, deep.head.bias, deep.layers[0].mixer.dt_proj_b.bias):
        assert not bias.any()
    assert (deep.layers[3].mixer.dt_proj.bias < 0).all()
    biased = build(mixer_options={"bias": True})
    assert not biased.layers[0].mixer.in_proj.bias.any()


def test_layer_scale_starts_small_and_loads_under_the_references_name() -> None:
    model = build(layer_scale=0.25).eval()
    theirs = {
        name.replace("layer_scale.gamma", "mixer.gamma"): tensor + 0.01 for name, tensor in model.state_dict().items()
    }
    assert theirs["layers.1.mixer.gamma"].unique().tolist() == [pytest.approx(0.26)]
    loaded = build(layer_scale=1e-5).eval()
    loaded.load_state_dict(adapt_checkpoint({"model": theirs}, loaded))
    plain = build().eval()
    plain.load_state_dict(loaded.state_dict(), strict=False)
    with torch.no_grad():
        for block in plain.layers:
            block.mixer.out_proj.weight.mul_(0.26)
    torch.testing.assert_close(loaded(images()), plain(images()), rtol=1e-4, atol=1e-5)


def test_stored_rotary_positions_are_left_out() -> None:
    model = build(rope=True)
    theirs = {**model.state_dict(), "rope.freqs_cos": torch.ones(16, 16), "rope.freqs_sin": torch.ones(16, 16)}
    assert adapt_checkpoint(theirs, model).keys() == model.state_dict().keys()


@pytest.mark.parametrize("rule", ["grid", "official"])
def test_positions_of_a_checkpoint_are_resized_by_the_rule_asked_for(rule: str) -> None:
    source = build().state_dict()
    model = build(img_size=(12, 8), pos_resize=rule)
    found = adapt_checkpoint(source, model)["pos_embed"]
    expected = resize_position_embedding(source["pos_embed"], TokenLayout("middle"), (4, 4), (6, 4), rule)  # type: ignore[arg-type]
    assert torch.equal(found, expected)


def test_positions_of_an_oblong_checkpoint_need_its_image_size() -> None:
    source = build(img_size=(8, 10)).state_dict()
    overlay = {"state_dict": source, "num_classes": 5}
    options = {key: value for key, value in SMALL.items() if key != "img_size"}

    def load(**more: Any) -> Vim:
        cfg = {**overlay, **more}
        return timm.create_model(
            "vim_nano_patch2_8", pretrained=True, pretrained_cfg_overlay=cfg, img_size=(16, 10), **options
        )

    with pytest.raises(UserError, match="20 patches, which are no square grid"):
        load()
    loaded = load(input_size=(3, 8, 10))
    expected = resize_position_embedding(source["pos_embed"], TokenLayout("middle"), (4, 5), (8, 5))
    assert torch.equal(loaded.pos_embed, expected)


@over_places
def test_a_dynamic_model_takes_any_size_and_a_fixed_one_can_be_told_another(place: Place) -> None:
    dynamic = build(class_token=place, dynamic_img_size=True).eval()
    fixed = build(class_token=place).eval()
    x = images(12, 6)
    with pytest.raises(UserError, match="12 x 6 pixels, the model takes 8 x 8"):
        fixed(x)
    fixed.set_input_size((12, 6))
    assert fixed.grid == (6, 3)
    torch.testing.assert_close(dynamic(x), fixed(x))
    assert build(class_token=place, pos_embed=False, dynamic_img_size=True)(x).shape == (2, 5)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_and_streams_keep_float32_under_autocast(norm: str) -> None:
    model = build(norm=norm).eval()
    assert sum("norm" in name and name.endswith("bias") for name in model.state_dict()) == (4 if norm == "layer" else 0)
    streams = []
    model.layers[1].register_forward_hook(lambda block, inputs, outputs: streams.append(outputs))
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert [part.dtype for part in streams[0]] == [torch.bfloat16, torch.float32]


def test_the_inner_operator_and_the_route_are_options() -> None:
    assert [build(divide_out=half).layers[0].mixer.route.merge for half in (True, False)] == ["mean", "sum"]
    assert isinstance(build().layers[0].mixer, VimMixer)
    forward = build(route="forward").layers[0].mixer.state_dict().keys()
    assert forward == {name for name in build().layers[0].mixer.state_dict() if "_b" not in name}
    cross = build(route="cross", **NO_CLASS).layers[0].mixer
    assert isinstance(cross, RoutedMixer)
    assert (cross.rank, cross.share, cross.count, cross.route.merge) == (2, "projections", 4, "mean")
    attention = build(mixer="attention", mixer_options={"heads": 2}, divide_out=False).layers[0].mixer
    assert (attention.rank, attention.share, attention.route.merge) == (1, "all", "sum")


@pytest.mark.parametrize("route", ["cross", "snake"])
def test_on_a_grid_rows_and_columns_are_what_the_route_says(route: str) -> None:
    """Where columns are read like rows, a transposed image has transposed features."""
    model = build(route=route, **NO_CLASS, pos_embed=False, mixer_options={"d_conv": 1}).double().eval()
    with torch.no_grad():
        for block in model.layers if route == "cross" else ():
            for rows, columns in ((0, 1), (2, 3)):
                block.mixer.sets[columns].load_state_dict(block.mixer.sets[rows].state_dict(), strict=False)
        kernel = model.patch_embed.proj.weight
        kernel.copy_((kernel + kernel.mT) / 2)
    x = images(8, 12).double()
    model.set_input_size((8, 12))
    features = model.forward_features(x).unflatten(1, (4, 6))
    model.set_input_size((12, 8))
    transposed = model.forward_features(x.mT).unflatten(1, (6, 4)).transpose(1, 2)
    assert torch.allclose(features, transposed, rtol=0, atol=1e-10) == (route == "cross")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": "back"}, "class_token is 'back'"),
        ({"route": "cross"}, "the route 'cross' reads a grid"),
        ({"route": "forwards"}, "unknown route 'forwards'"),
        ({"mixer": "mambo"}, "unknown mixer 'mambo'"),
        ({"mixer_options": {"d_stat": 4}}, "no option 'd_stat'; did you mean 'd_state'"),
        ({"window": 2}, "route 'bidirectional' has no window"),
        ({"bimamba_type": "v3"}, "bimamba_type is 'v3'"),
        ({"bimamba_type": "v1", "route": "forward"}, "bimamba_type 'v1' is a form of the mixer 'mamba1'"),
        ({"depth": 0}, "depth is 0"),
        ({"rope": True, "embed_dim": 18}, "rope turns channels by fours"),
        ({"pos_resize": "bicubic"}, "pos_resize is 'bicubic'"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"global_pool": "mean"}, "global_pool is 'mean'"),
        ({"global_pool": "token", "class_token": "none"}, "global_pool is 'token'"),
        ({"patch_size": 9}, "smaller than a patch"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(**options)
    assert caught.value.remedy


@pytest.mark.parametrize("place", ["middle", *(pytest.param(place, marks=pytest.mark.slow) for place in PLACES[1:])])
def test_the_whole_model_compiles_without_a_break(place: Place) -> None:
    torch._dynamo.reset()
    model = build(class_token=place, depth=2, rope=True, rope_residual=True)
    x = images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, found = model(x), compiled(x)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), parameters), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_inductor_agrees() -> None:
    torch._dynamo.reset()
    model = build().eval()
    x = images()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)
