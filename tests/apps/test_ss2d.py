"""SS2D against the recurrence itself, for everything a forward type can say, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.mixers import SS2D, no_weight_decay
from mamba_apps.mixers.ss2d import ForwardType
from mamba_kernels import Route

D = 6
BASES = ["v0", "v01", "v02", "v03", "v04", "v05", "v051d", "v052d", "v052dc"]
VARIANTS: list[dict[str, Any]] = [
    *({"forward_type": base, "conv_bias": True} for base in BASES),
    {"forward_type": "v05_noz", "d_state": 3},
    {"forward_type": "v052dc_noz", "d_state": 2, "expand": 1},
    {"forward_type": "v05_nozact", "d_conv": 1},
    {"forward_type": "v05_noz", "d_conv": 5, "conv_bias": True},
    {"forward_type": "v05_noz_oact_no32", "bias": True},
    *({"forward_type": f"v05_{norm}_noz"} for norm in ("onnone", "oncnorm", "ondwconv3", "onsoftmax", "onsigmoid")),
    {"forward_type": "v05_noz", "route": "snake"},
    {"forward_type": "v051d_noz", "route": Route("cross", merge="mean")},
]


def build(seed: int = 0, **options: Any) -> SS2D:
    """A mixer in float64 whose every parameter is away from its start, so that none of them can be left out."""
    torch.manual_seed(seed)
    mixer = SS2D(D, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def sample(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scan_line(mixer: SS2D, u_BLE: Tensor, k: int) -> Tensor:
    """The recurrence of parameter set k along L, step by step."""
    rank, state, _ = mixer._widths
    A_EN = -mixer.A_logs.unflatten(0, (-1, mixer.d_inner))[k].exp()
    D_E = mixer.Ds.unflatten(0, (-1, mixer.d_inner))[k]
    dt_BLR, B_BLN, C_BLN = (u_BLE @ mixer.x_proj_weight[k].T).split([rank, state, state], -1)
    dt_BLE = F.softplus(dt_BLR @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
    h_BEN, ys = torch.zeros(len(u_BLE), mixer.d_inner, state, dtype=u_BLE.dtype), []
    for t in range(u_BLE.shape[1]):
        dt_BE1 = dt_BLE[:, t, :, None]
        h_BEN = (dt_BE1 * A_EN).exp() * h_BEN + dt_BE1 * B_BLN[:, t, None] * u_BLE[:, t, :, None]
        ys.append((h_BEN * C_BLN[:, t, None]).sum(-1) + D_E * u_BLE[:, t])
    return torch.stack(ys, 1)


def merged_scans(mixer: SS2D, u: Tensor, options: dict[str, Any]) -> Tensor:
    height, width = u.shape[1:3]
    rows = torch.arange(height * width)
    columns = rows.view(height, width).T.flatten()
    base = options["forward_type"].split("_")[0]
    if base == "v052dc":
        return cascade(mixer, u)
    if options.get("route") == "snake":
        back = rows.view(height, width).clone()
        back[1::2] = back[1::2].flip(1)
        orders = [back.flatten()]
    elif base == "v051d" and "route" not in options:
        orders = [rows] * 4
    elif base == "v052d":
        orders = [rows, rows, rows.flip(0), rows.flip(0)]
    else:
        orders = [rows, columns, rows.flip(0), columns.flip(0)]
    merged = torch.zeros_like(u.flatten(1, 2))
    for k, order in enumerate(orders):
        merged[:, order] += scan_line(mixer, u.flatten(1, 2)[:, order], k)
    mean = isinstance(options.get("route"), Route)
    return (merged / len(orders) if mean else merged).view(u.shape)


def cascade(mixer: SS2D, u: Tensor) -> Tensor:
    """Rows, then columns; the way back is added in the order of its reading, as VMamba's code does."""
    for sets, turned in (((0, 1), False), ((2, 3), True)):
        u = F.layer_norm(u, u.shape[-1:])
        lines = u.transpose(1, 2) if turned else u
        flat = lines.flatten(0, 1)
        flat = scan_line(mixer, flat, sets[0]) + scan_line(mixer, flat.flip(1), sets[1])
        u = flat.view(lines.shape)
        u = u.transpose(1, 2) if turned else u
    return u


def expected(mixer: SS2D, x: Tensor, options: dict[str, Any]) -> Tensor:
    tags = options["forward_type"].split("_")[1:]
    u, z = mixer.in_proj(x), None
    if "noz" not in tags:
        u, z = u.chunk(2, -1)
        z = z if "nozact" in tags else F.silu(z)
    if mixer.conv2d is not None:
        u = mixer.conv2d(u.movedim(-1, 1)).movedim(1, -1)
    y = merged_scans(mixer, F.silu(u), options)
    norm = next((tag for tag in tags if tag.startswith("on")), "layer")
    if norm in ("layer", "oncnorm"):
        layer = mixer.out_norm if norm == "layer" else mixer.out_norm[0]
        y = F.layer_norm(y, y.shape[-1:], layer.weight, layer.bias, 1e-5)
    if norm in ("oncnorm", "ondwconv3"):
        conv = mixer.out_norm[2 if norm == "oncnorm" else 1]
        y = F.conv2d(y.movedim(-1, 1), conv.weight, padding=1, groups=mixer.d_inner).movedim(1, -1)
    if norm == "onsoftmax":
        y = y.exp() / y.exp().sum((1, 2), keepdim=True)
    if norm == "onsigmoid":
        y = 1 / (1 + (-y).exp())
    if "oact" in tags:
        y = F.gelu(y)
    return mixer.out_proj(y if z is None else y * z)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("grid", [(3, 4), (1, 5)], ids=str)
def test_output_and_gradients_are_the_recurrences(options: dict[str, Any], grid: tuple[int, int]) -> None:
    mixer = build(**options)
    x = sample(2, *grid, D).requires_grad_()
    inputs = [x, *mixer.parameters()]
    y, wanted = mixer(x), expected(mixer, x, options)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-11)
    slope = sample(*y.shape)
    found = torch.autograd.grad(y, inputs, slope)
    for mine, theirs in zip(found, torch.autograd.grad(wanted, inputs, slope), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "expected_type"),
    [
        ("v05_noz", ("cross", None, "layer", False)),
        ("v0", ("cross", "silu", "layer", False)),
        ("v051d_oncnorm_nozact_oact_no32", ("forward", "identity", "oncnorm", True)),
    ],
)
def test_forward_types_are_read(text: str, expected_type: tuple[Any, ...]) -> None:
    assert ForwardType.parse(text) == expected_type


@pytest.mark.parametrize("text", ["", "v6", "v05noz", "v05_noz_nozact", "v05_onnone_onsigmoid", "v0_noz", "m0_noz"])
def test_unknown_forward_types_are_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match=f"no forward type {text!r}"):
        SS2D(D, forward_type=text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_past_half_precision_stay_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer = SS2D(D, conv_bias=True)
    with torch.no_grad():
        mixer.Ds.fill_(4e4)
        assert mixer.conv2d is not None
        mixer.conv2d.bias.fill_(3.0)
        mixer.in_proj.weight.mul_(50.0)
    x = torch.randn(2, 4, 5, D)
    with torch.autocast("cpu", dtype):
        y = mixer(x)
    assert y.dtype == dtype
    assert y.isfinite().all()
    torch.testing.assert_close(y.float(), mixer(x), rtol=0.1, atol=0.02)


def test_a_channel_first_grid_gives_the_same() -> None:
    mixer = build(forward_type="v05")
    x = sample(2, 5, 4, D)
    strided = x.movedim(-1, 1).contiguous().movedim(1, -1)
    torch.testing.assert_close(mixer(strided), mixer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mixer", "options", "route"),
    [
        ("attention", {"heads": 2}, "cross"),
        ("attention", {"causal": False}, Route("windowed", window=2)),
        ("mambavision", {}, "bidirectional"),
    ],
)
def test_another_mixer_takes_the_scans_place(mixer: str, options: dict[str, Any], route: Route | str) -> None:
    swapped = build(mixer=mixer, mixer_options=options, route=route)
    x = sample(2, 3, 4, D).requires_grad_()
    y = swapped(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in swapped.parameters())
    assert "A_logs" not in swapped.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state is 0"),
        ({"expand": 0.1}, r"expand \* d_model is 0"),
        ({"d_conv": 2}, "d_conv is 2"),
        ({"mixer_options": {"heads": 2}}, "mixer_options go with another mixer"),
        ({"route": Route("cross", merge="concat")}, "adds its readings"),
        ({"mixer": "attention", "forward_type": "v052dc"}, "cascade is no route for 'attention'"),
        ({"mixer": "attention", "mixer_options": {"causal": False}}, "does not accept the route 'cross'"),
        ({"mixer": "atention"}, "unknown mixer 'atention'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SS2D(D, **options)


def test_other_inputs_are_refused() -> None:
    mixer = SS2D(D)
    for shape in [(2, 12, D), (2, 3, 4, D + 1), (2, 0, 4, D)]:
        with pytest.raises(UserError, match="SS2D got an input of shape"):
            mixer(torch.zeros(shape))
    with pytest.raises(UserError, match="packed"):
        mixer(torch.zeros(1, 2, 2, D), seq_idx_BL=torch.zeros(1, 2, 2))


def test_step_sizes_start_as_mambas_and_decay_spares_the_scan() -> None:
    torch.manual_seed(0)
    mixer = SS2D(64, d_state=4)
    steps = F.softplus(mixer.dt_projs_bias)
    assert steps.min() >= 1e-3 - 1e-6
    assert steps.max() <= 0.1 + 1e-6
    torch.testing.assert_close(mixer.A_logs.exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(4 * 128, 4))
    assert no_weight_decay(mixer) == {"A_logs", "Ds"}


@pytest.mark.parametrize("forward_type", ["v05", "v052dc"])
def test_forward_and_backward_compile_whole(forward_type: str) -> None:
    torch._dynamo.reset()
    mixer = build(forward_type=forward_type)
    x = sample(2, 3, 4, D).requires_grad_()
    inputs = [x, *mixer.parameters()]
    y, wanted = torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x)
    torch.testing.assert_close(y, wanted)
    slopes = torch.autograd.grad(wanted.square().sum(), inputs)
    for mine, theirs in zip(torch.autograd.grad(y.square().sum(), inputs), slopes, strict=True):
        torch.testing.assert_close(mine, theirs)
