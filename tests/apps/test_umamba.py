"""U-Mamba and its twin: sizes, places, mixers and routes, precision, deep supervision, export, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.medical import MambaLayer, ResidualUNet, UMamba, build_network, network_names
from mamba_apps.medical.parts import ConvNorm, NearestUp
from mamba_apps.medical.zoo import network_options
from mamba_apps.mixers import Mamba1Mixer, RoutedMixer, names
from mamba_apps.mixers.base import ROUTE_NAMES
from mamba_datasets.volumes import NetworkPlan
from mamba_kernels.errors import KernelInputError

# At the bottleneck both have no more cells than channels: 2 x 3 of 12, and 2 x 2 x 1 of 8.
FLAT = NetworkPlan((8, 12), (4, 8, 12), ((3, 3),) * 3, ((1, 1), (2, 2), (2, 2)), (2, 2, 2), (2, 2))
DEEP = NetworkPlan(
    (4, 8, 4), (4, 6, 8), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), (2, 1, 1), (1, 2)
)
PLANS = {2: FLAT, 3: DEEP}
over_plans = pytest.mark.parametrize("plan", [FLAT, DEEP], ids=["2d", "3d"])


def build(plan: NetworkPlan, name: str = "umamba_enc", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return build_network(name, plan, 2, 3, **options)


def images(plan: NetworkPlan, batch: int = 1, factor: int = 1, seed: int = 1) -> Tensor:
    sizes = (size * factor for size in plan.patch_size)
    return torch.randn(batch, 2, *sizes, generator=torch.Generator().manual_seed(seed))


def layers(network: UMamba) -> dict[int, MambaLayer]:
    return {int(stage): layer for stage, layer in network.encoder.mamba_layers.items()}  # type: ignore[misc]


def released(dim: int, patch: tuple[int, ...]) -> NetworkPlan:
    """A plan of the released models: MR of the abdomen, endoscopy."""
    if dim == 2:
        strides, features = ((1, 1), *((2, 2),) * 6), (32, 64, 128, 256, 512, 512, 512)
        return NetworkPlan(patch, features, ((3, 3),) * 7, strides, (2,) * 7, (2,) * 6)
    strides = ((1, 1, 1), (1, 2, 2), *((2, 2, 2),) * 3, (1, 2, 2))
    features = (32, 64, 128, 256, 320, 320)
    return NetworkPlan(patch, features, ((1, 3, 3), *((3, 3, 3),) * 5), strides, (2,) * 6, (2,) * 5)


@pytest.mark.parametrize(
    ("name", "patch", "channels", "classes", "count"),
    [
        ("umamba_bot", (320, 320), 1, 14, 47_533_012),
        ("umamba_bot", (384, 640), 3, 8, 47_524_592),
        ("umamba_bot", (48, 160, 224), 1, 14, 41_945_158),
        ("umamba_enc", (320, 320), 1, 14, 47_015_538),
        ("umamba_enc", (384, 640), 3, 8, 47_680_592),
        ("umamba_enc", (48, 160, 224), 1, 14, 42_842_798),
    ],
)
def test_parameters_are_as_many_as_published(
    name: str, patch: tuple[int, ...], channels: int, classes: int, count: int
) -> None:
    with torch.device("meta"):
        network = build_network(name, released(len(patch), patch), channels, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_plain_network_is_made_of_what_nnunet_is_made_of() -> None:
    def stage(into: int, out: int, kernel: int, count: int) -> int:
        # Weights and biases of the convolutions, scales and shifts of the norms.
        return (kernel * into + 3) * out + (count - 1) * (kernel * out + 3) * out

    encoder = stage(2, 4, 9, 2) + stage(4, 6, 27, 1) + stage(6, 8, 27, 1)
    up = (8 * 8 + 1) * 6 + (4 * 6 + 1) * 4
    decoder = stage(12, 6, 27, 2) + stage(8, 4, 9, 1)
    logits = (6 + 1) * 3 + (4 + 1) * 3
    network = build(DEEP, "plain_unet")
    assert sum(parameter.numel() for parameter in network.parameters()) == encoder + up + decoder + logits


@over_plans
@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, {2: [0, 2], 3: [0, 1, 2]}),
        ({"place": "bottleneck"}, {2: [2], 3: [2]}),
        ({"place": "alternate"}, {2: [0, 2], 3: [0, 2]}),
        ({"place": "every"}, {2: [0, 1, 2], 3: [0, 1, 2]}),
        ({"place": [1, 0, 1]}, {2: [0, 1], 3: [0, 1]}),
    ],
    ids=str,
)
def test_layers_stand_where_they_are_put(
    plan: NetworkPlan, options: dict[str, Any], stages: dict[int, list[int]]
) -> None:
    network = build(plan, **options)
    assert sorted(layers(network)) == stages[plan.dim]
    assert network.bound_stages == ((2,) if 2 in stages[plan.dim] else ())
    assert sorted(layers(build(plan, channel_tokens=False, **options))) == stages[plan.dim]


def test_the_bottleneck_of_an_even_number_of_stages_has_a_layer() -> None:
    even = NetworkPlan((8, 8), (4, 4), ((3, 3),) * 2, ((1, 1), (2, 2)), (1, 1), (1,))
    assert sorted(layers(build(even))) == [1]


def accepted(mixer: str) -> list[str]:
    routes = []
    for route in sorted(ROUTE_NAMES):
        try:
            build(FLAT, mixer=mixer, route=route, window=2 if route == "windowed" else None)
        except UserError as error:
            assert repr(route) in str(error)  # noqa: PT017
        else:
            routes.append(route)
    return routes


@over_plans
@pytest.mark.parametrize("mixer", names())
def test_every_accepted_route_runs_at_every_place(mixer: str, plan: NetworkPlan) -> None:
    routes = accepted(mixer)
    assert {"forward", "bidirectional", "axes", "cross"} <= set(routes)
    twin = {name for name, _ in build(plan, "residual_unet").named_parameters()}
    for route in routes:
        for place in ("bottleneck", "alternate", "every"):
            window = 2 if route == "windowed" else None
            network = build(plan, place=place, mixer=mixer, route=route, window=window, deep_supervision=True)
            outputs = network(images(plan))
            sum(y.square().mean() for y in outputs).backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, (route, place, name)
                assert parameter.grad.isfinite().all(), (route, place, name)
            assert twin == {name for name, _ in network.named_parameters() if ".mamba_layers." not in name}


@over_plans
def test_along_three_axes_each_has_its_own_scan_and_all_share_the_projections(plan: NetworkPlan) -> None:
    network = build(plan, route="axes", place="every")
    for stage, layer in layers(network).items():
        assert isinstance(layer.mamba, RoutedMixer)
        # Channels stand in a line, which has one axis.
        assert layer.mamba.count == (1 if stage in network.bound_stages else plan.dim)
        assert layer.mamba.share == "projections"
    other = build(plan, route="axes", place="every", share="none", merge="concat")
    assert layers(other)[0].mamba.merge_proj is not None  # type: ignore[union-attr]


def test_attention_that_looks_both_ways_refuses_routes_by_name() -> None:
    options: dict[str, Any] = {"mixer": "attention", "mixer_options": {"causal": False}}
    assert build(DEEP, **options)(images(DEEP)).shape == (1, 3, 4, 8, 4)
    with pytest.raises(UserError, match="does not accept the route 'cross'"):
        build(DEEP, route="cross", **options)


@over_plans
@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc", "residual_unet", "plain_unet"])
def test_deep_supervision_gives_a_list_from_the_finest_on(name: str, plan: NetworkPlan) -> None:
    network = build(plan, name, deep_supervision=True).eval()
    every = network(images(plan))
    half = tuple(size // step for size, step in zip(plan.patch_size, plan.strides[1], strict=True))
    assert [tuple(y.shape) for y in every] == [(1, 3, *plan.patch_size), (1, 3, *half)]
    network.deep_supervision = False
    torch.testing.assert_close(network(images(plan)), every[0])
    build(plan, name)(images(plan)).sum().backward()


def test_only_the_finest_logits_are_computed_without_it() -> None:
    network = build(FLAT)
    network(images(FLAT)).square().sum().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == ["decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"]


@over_plans
def test_the_twin_is_the_network_without_its_layers(plan: NetworkPlan) -> None:
    network, bot = build(plan, seed=3), build(plan, "umamba_bot", seed=3)
    twin = build(plan, "residual_unet", seed=3)
    for other in (network, bot):
        shared = {name: x for name, x in other.state_dict().items() if ".mamba_layers." not in name}
        assert list(shared) == list(twin.state_dict())
        assert all(torch.equal(shared[name], x) for name, x in twin.state_dict().items())
        x = images(plan)
        assert not torch.allclose(other(x), twin(x))
        other.encoder.mamba_layers = nn.ModuleDict()
        assert torch.equal(other(x), twin(x))


def test_only_volumes_have_a_skip_at_the_finest_stage() -> None:
    assert build(FLAT).decoder.stages[-1][0].conv1.in_channels == 4
    assert build(DEEP).decoder.stages[-1][0].conv1.in_channels == 8
    assert build(FLAT, "plain_unet").decoder.stages[-1][0].conv.in_channels == 8


def test_the_published_code_takes_one_block_where_it_overrides_the_plan() -> None:
    plan = NetworkPlan((32, 32), (4,) * 5, ((3, 3),) * 5, ((1, 1), *((2, 2),) * 4), (3, 2, 2, 2, 2), (2, 3, 3, 4))
    network = build(plan)
    assert [len(network.encoder.stem), *map(len, network.encoder.stages)] == [3, 3, 2, 2, 1, 1]
    # From the bottleneck on; the plan's begin at full resolution.
    assert [len(stage) for stage in network.decoder.stages] == [4, 3, 3, 1]
    plain = build(plan, "plain_unet")
    assert [len(stage) for stage in plain.encoder] == [3, 2, 2, 2, 2]
    assert [len(stage) for stage in plain.decoder.stages] == [4, 3, 3, 2]


@pytest.mark.parametrize("sizes", [(8, 4, 8), (2, 12, 4), (6, 20, 8)], ids=str)
def test_volumes_of_any_multiple_of_the_strides(sizes: tuple[int, ...]) -> None:
    network = build(DEEP, channel_tokens=False, route="axes")
    y = network(torch.randn(2, 2, *sizes))
    assert y.shape == (2, 3, *sizes)
    y.sum().backward()


@pytest.mark.parametrize("sizes", [(6, 10), (4, 6, 5)], ids=str)
def test_a_norm_takes_the_bias_before_it_away(sizes: tuple[int, ...]) -> None:
    unit = ConvNorm(2, 3, (3,) * len(sizes)).double()
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
    x, there = (torch.randn(2, channels, *sizes, dtype=torch.float64, requires_grad=True) for channels in (2, 3))
    inputs = (x, *unit.parameters())
    expected = F.leaky_relu(unit.norm(unit.conv(x)), 0.01)
    found = unit(x, activated=True)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y, inputs, there) for y in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    assert not grads[0][2].any()


@pytest.mark.parametrize("name", ["umamba_enc", "plain_unet"])
def test_activations_are_not_in_place_on_a_view(name: str) -> None:
    nodes, seen = [build(DEEP, name)(images(DEEP)).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "LeakyReluBackward1" in names
    # autograd takes the gradient of such a one through four copies of the map
    assert not any("CopySlices" in each for each in names)


def test_up_sampling_first_is_the_same() -> None:
    up = NearestUp(3, 5, (1, 2, 3)).double()
    x = torch.randn(2, 3, 4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(up(x), up.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 3.0), mode="nearest")))


def test_a_layer_replaces_the_map_cell_by_cell_in_raster_order() -> None:
    layer = MambaLayer(Mamba1Mixer(6)).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    tokens_BLC = F.layer_norm(x.flatten(2).mT, (6,), layer.norm.weight, layer.norm.bias)
    expected = layer.mamba(tokens_BLC).mT.reshape(2, 6, 3, 4)
    torch.testing.assert_close(layer(x), expected)


def test_channel_tokens_are_the_maps_of_channels() -> None:
    layer = MambaLayer(Mamba1Mixer(12), channel_tokens=True).double()
    x = torch.randn(2, 20, 3, 4, dtype=torch.float64)
    tokens_BCL = F.layer_norm(x.flatten(2), (12,), layer.norm.weight, layer.norm.bias)
    torch.testing.assert_close(layer(x), layer.mamba(tokens_BCL).reshape(x.shape))
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


@pytest.mark.parametrize("route", ["forward", "axes"])
def test_channels_that_lie_last_are_read_without_a_copy(route: str) -> None:
    layer = layers(build(DEEP, place=[0], route=route))[0]
    seen: list[Tensor] = []
    layer.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 4, 4, 8, 6).contiguous(memory_format=torch.channels_last_3d)
    y = layer(x)
    assert seen[0].data_ptr() == x.data_ptr()
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    other = layer(x.contiguous())
    assert other.is_contiguous()
    torch.testing.assert_close(other, y)


@pytest.mark.parametrize(("precision", "inside"), [("float32", torch.float32), ("autocast", torch.bfloat16)])
def test_layers_leave_autocast_unless_told_otherwise(precision: Any, inside: torch.dtype) -> None:
    network = build(DEEP, precision=precision)
    projected: list[torch.dtype] = []
    for layer in layers(network).values():
        layer.mamba.in_proj.register_forward_hook(lambda module, inputs, y: projected.append(y.dtype))
    full = network(images(DEEP))
    assert set(projected) == {torch.float32}
    projected.clear()
    maps: list[torch.dtype] = []
    for layer in layers(network).values():
        layer.register_forward_hook(lambda module, inputs, y: maps.append((inputs[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        half = network(images(DEEP))
    assert set(projected) == {inside}
    assert all(before == after for before, after in maps)
    assert (half.float() - full).abs().max() < 0.2 * full.abs().max()


@pytest.mark.parametrize("precision", ["float32", "autocast"])
@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc"])
def test_bfloat16_trains_without_nan(name: str, precision: str) -> None:
    network = build(DEEP, name, deep_supervision=True, precision=precision)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    x = 30 * images(DEEP, batch=2)
    target = (x[:, 0] > 0).long() + (x[:, 0] > 20).long()
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(x)[0].float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@over_plans
@torch.no_grad()
def test_networks_compile_and_export(plan: NetworkPlan) -> None:
    route = "axes" if plan.dim == 3 else "forward"
    network, x = build(plan, place=[0, 2], deep_supervision=True, route=route).eval(), images(plan)
    assert network.bound_stages == (2,)
    expected = network(x)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


def test_a_network_in_double_precision_or_half() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        assert build(DEEP).to(dtype)(images(DEEP).to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": "middle"}, "is 'middle'; choose bottleneck, alternate, every, or stages"),
        ({"place": [0, 3]}, r"are the stages \[0, 3\]; give stages from 0 to 2"),
        ({"place": []}, "residual_unet is the network without such layers"),
        ({"mixer": "mamba3"}, "unknown mixer 'mamba3'; did you mean"),
        ({"mixer_options": {"states": 3}}, "mixer 'mamba1' has no option 'states'; did you mean 'd_state'"),
        ({"share": "some"}, "share is 'some'; choose one of"),
        ({"precision": "half"}, "the precision of a Mamba layer is 'half'; choose one of"),
        ({"route": "windowed", "window": (2, 2)}, "give the window as one number, or channel_tokens=False"),
        ({"routes": "cross"}, "'umamba_enc' has no option 'routes'; did you mean 'route'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(FLAT, **options)
    assert error.value.remedy


def test_wrong_routes_are_refused() -> None:
    with pytest.raises(KernelInputError, match="unknown route 'axis'; did you mean 'axes'"):
        build(DEEP, route="axis")


def test_names_and_options_are_told() -> None:
    assert network_names() == ["plain_unet", "residual_unet", "segresnet", "swin_unetr", "umamba_bot", "umamba_enc"]
    assert network_options("umamba_bot")["place"] == "bottleneck"
    assert network_options("umamba_enc")["place"] is None
    assert network_options("residual_unet") == {}
    with pytest.raises(UserError, match="unknown medical network 'umamba'; did you mean 'umamba_"):
        build(FLAT, "umamba")
    with pytest.raises(UserError, match="'residual_unet' has no option 'place'; it has none"):
        build(FLAT, "residual_unet", place="every")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 8), r"got an input of shape \(1, 2, 8\); give \(batch, 2, height, width\)"),
        ((1, 2, 8, 12, 4), r"give \(batch, 2, height, width\)"),
        ((1, 1, 8, 12), r"give \(batch, 2, height, width\)"),
        ((1, 2, 8, 10), "8 x 10, whose sizes its strides do not divide; pad each axis to a multiple of 4 x 4"),
        ((1, 2, 12, 8), "at stage 2 takes each channel as a token, with weights for patches of 8 x 12; .*windows of 8"),
        ((1, 2, 4, 4), "one voxel is left at its bottleneck, where there is nothing to normalise"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(FLAT)(torch.zeros(shape))
    assert error.value.remedy


@pytest.mark.parametrize(
    ("plan", "channels", "classes", "message"),
    [
        (FLAT, 0, 3, "in_channels is 0"),
        (FLAT, 1, 0, "num_classes is 0"),
        (NetworkPlan((8, 8), (4, 4), ((2, 3), (3, 3)), ((1, 1), (2, 2)), (1, 1), (1,)), 1, 3, r"\(2, 3\) are even"),
    ],
    ids=["channels", "classes", "kernels"],
)
@pytest.mark.parametrize("network", [ResidualUNet, UMamba])
def test_impossible_sizes_are_refused(
    network: Any, plan: NetworkPlan, channels: int, classes: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        network(plan, channels, classes)


def test_networks_are_built_without_importing_monai() -> None:
    code = (
        "import sys; import mamba_apps.medical as medical; before = 'torch' in sys.modules; medical.UMamba, "
        "medical.build_network; sys.exit(before or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
