"""The selective scan along a route: its reference against plain scans, the operator against its reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels import decompositions
from mamba_kernels.errors import BackendError, KernelInputError
from mamba_kernels.layout import dimension_order
from mamba_kernels.routes import Route, route_scan, selective_scan_route
from mamba_kernels.selective_scan.reference import selective_scan_reference

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

ROUTES = [
    Route("forward"),
    Route("bidirectional"),
    Route("bidirectional", merge="mean"),
    Route("axes"),
    Route("cross"),
    Route("cross", merge="concat"),
    Route("snake"),
    Route("windowed", window=2),
    Route("windowed", merge="concat", window=3),
]
GRIDS = [(1,), (63,), (1, 1), (1, 7), (5, 3), (4, 4), (2, 3, 5), (3, 1, 4)]


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What an operator leaves unwritten shows: PyTorch fills empty tensors with NaN in its deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _inputs(
    route: Route,
    grid: tuple[int, ...],
    *,
    shared: bool = True,
    rank: int | None = None,
    bare: bool = False,
    dtype: torch.dtype = torch.float32,
    wide: torch.dtype | None = None,
    batch: int = 2,
    channels: int = 5,
    state: int = 3,
) -> dict[str, Any]:
    """Draw inputs; ``wide`` is the dtype of A, D and delta_bias, ``bare`` leaves the optional ones out."""
    generator = torch.Generator().manual_seed(len(grid) * 100 + sum(grid))
    count = route.count(len(grid))
    merged = count * channels if route.merge == "concat" else channels

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    wide = wide or dtype
    inputs = {
        "x": draw(batch, *grid, channels) if shared else draw(batch, count, *grid, channels),
        "delta": draw(batch, count, *grid, rank or channels),
        "A": -draw(count * channels, state, dtype=wide).abs() - 0.1,
        "B": draw(batch, count, *grid, state),
        "C": draw(batch, count, *grid, state),
    }
    if not bare:
        inputs["D"] = draw(count * channels, dtype=wide)
        inputs["z"] = draw(batch, *grid, merged)
        inputs["delta_bias"] = draw(count * channels, dtype=wide)
    if rank is not None:
        inputs["delta_weight"] = draw(count, channels, rank)
    return {name: x.requires_grad_() for name, x in inputs.items()}


def _result_and_gradients(run: Any, inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    out = run(**inputs, delta_softplus=True, **options)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out.dtype)
    gradients = torch.autograd.grad(out, list(inputs.values()), cotangent)
    return {"out": out} | dict(zip(inputs, gradients, strict=True))


def _assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(got) == set(expected)
    for name, x in expected.items():
        assert got[name].dtype == x.dtype, name
        scale = max(float(x.detach().abs().max()), 1e-3)
        torch.testing.assert_close(
            got[name], x, atol=tolerance * scale, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# The reference against plain scans of sequences permuted by hand.


def _by_hand(inputs: dict[str, Any], sequences: list[Any], restore: list[Any]) -> Tensor:
    """Scan each reading's sequence, cut out by ``sequences[k]`` and put back on the grid by ``restore[k]``; sum."""
    channels = inputs["x"].shape[-1]
    merged = 0
    for k, (cut, put) in enumerate(zip(sequences, restore, strict=True)):
        rows = slice(k * channels, (k + 1) * channels)
        y, _ = selective_scan_reference(
            cut(inputs["x"]).mT,
            cut(inputs["delta"][:, k]).mT,
            inputs["A"][rows],
            cut(inputs["B"][:, k]).mT,
            cut(inputs["C"][:, k]).mT,
            inputs["D"][rows],
            None,
            inputs["delta_bias"][rows],
            True,
        )
        merged = merged + put(y.mT)
    return merged * F.silu(inputs["z"])


def test_the_reference_of_forward_is_a_scan_of_the_flat_grid() -> None:
    inputs = _inputs(Route("forward"), (3, 4), dtype=torch.float64)
    expected = _by_hand(inputs, [lambda x: x.flatten(1, 2)], [lambda y: y.unflatten(1, (3, 4))])
    torch.testing.assert_close(route_scan(**inputs, delta_softplus=True, route=Route("forward")), expected)


def test_the_reference_of_cross_is_four_scans_of_rows_and_columns() -> None:
    inputs = _inputs(Route("cross"), (3, 4), dtype=torch.float64)

    def rows(x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def columns(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(1, 2)

    def from_rows(y: Tensor) -> Tensor:
        return y.unflatten(1, (3, 4))

    def from_columns(y: Tensor) -> Tensor:
        return y.unflatten(1, (4, 3)).transpose(1, 2)

    cut = [rows, columns, lambda x: rows(x).flip(1), lambda x: columns(x).flip(1)]
    put = [from_rows, from_columns, lambda y: from_rows(y.flip(1)), lambda y: from_columns(y.flip(1))]
    torch.testing.assert_close(
        route_scan(**inputs, delta_softplus=True, route=Route("cross")), _by_hand(inputs, cut, put)
    )


def test_windows_are_scanned_on_their_own() -> None:
    route = Route("windowed", window=(2, 3))
    inputs = _inputs(route, (3, 4), dtype=torch.float64)
    out = route_scan(**inputs, delta_softplus=True, route=route)
    for rows, columns in [(slice(0, 2), slice(0, 3)), (slice(0, 2), slice(3, 4)), (slice(2, 3), slice(0, 3))]:
        window = {
            name: x[..., rows, columns, :] if name in ("x", "delta", "B", "C", "z") else x for name, x in inputs.items()
        }
        alone = route_scan(**window, delta_softplus=True, route=Route("forward"))
        torch.testing.assert_close(out[:, rows, columns], alone)


# The operator against the reference.


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=repr)
@pytest.mark.parametrize(("shared", "rank"), [(True, None), (True, 2), (False, None), (False, 2)])
def test_operator_equals_reference(route: Route, grid: tuple[int, ...], shared: bool, rank: int | None) -> None:
    inputs = _inputs(route, grid, shared=shared, rank=rank)
    got = _result_and_gradients(selective_scan_route, inputs, route=route)
    _assert_same(got, _result_and_gradients(route_scan, inputs, route=route), 2e-5)


@pytest.mark.parametrize("route", [ROUTES[3], ROUTES[6]], ids=repr)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("dtype", "wide", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-11),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.float16, torch.float32, 3e-3),
        (torch.float32, torch.float64, 1e-6),
    ],
    ids=str,
)
def test_dtypes(route: Route, bare: bool, dtype: torch.dtype, wide: torch.dtype, tolerance: float) -> None:
    inputs = _inputs(route, (3, 5), dtype=dtype, wide=wide, bare=bare, rank=2)
    got = _result_and_gradients(selective_scan_route, inputs, route=route)
    _assert_same(got, _result_and_gradients(route_scan, inputs, route=route), tolerance)
    assert got["out"].dtype == dtype


@pytest.mark.parametrize("grid", [(2000,), (40, 25)], ids=str)
def test_long_readings_use_checkpoints(grid: tuple[int, ...]) -> None:
    route = Route("cross")
    inputs = _inputs(route, grid, channels=17, state=16, batch=1)
    got = _result_and_gradients(selective_scan_route, inputs, route=route)
    _assert_same(got, _result_and_gradients(route_scan, inputs, route=route), 1e-4)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_out_dtype(out_dtype: torch.dtype) -> None:
    route = Route("cross")
    inputs = _inputs(route, (3, 4), dtype=torch.bfloat16, wide=torch.float32)
    got = _result_and_gradients(selective_scan_route, inputs, route=route, out_dtype=out_dtype)
    assert got["out"].dtype == out_dtype
    _assert_same(got, _result_and_gradients(route_scan, inputs, route=route, out_dtype=out_dtype), 2e-2)


def test_float32_output_is_not_rounded_on_the_way() -> None:
    inputs = _inputs(Route("cross"), (3, 4), dtype=torch.bfloat16, wide=torch.float32)
    wide = {name: x.detach().float() for name, x in inputs.items()}
    got = selective_scan_route(**inputs, route=Route("cross"), out_dtype=torch.float32)
    torch.testing.assert_close(got, selective_scan_route(**wide, route=Route("cross")), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_rounds_the_activations_and_keeps_the_rest(backend: str) -> None:
    route = Route("cross")
    inputs = _inputs(route, (3, 4), rank=2)
    rounded = ("x", "delta", "B", "C", "z", "delta_weight")
    by_hand = {name: x.detach().bfloat16() if name in rounded else x.detach() for name, x in inputs.items()}
    expected = selective_scan_route(**by_hand, delta_softplus=True, route=route, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = _result_and_gradients(selective_scan_route, inputs, route=route, backend=backend)
    assert got["out"].dtype == torch.bfloat16
    torch.testing.assert_close(got["out"], expected, atol=0, rtol=0)
    assert all(got[name].dtype == torch.float32 for name in inputs)


def _channel_first(x: Tensor) -> Tensor:
    return x.movedim(-1, -3).contiguous().movedim(-3, -1)


def _sliced(x: Tensor) -> Tensor:
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


@pytest.mark.parametrize("layout", [_channel_first, _sliced, _expanded])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("route", [ROUTES[3], ROUTES[4], ROUTES[5]], ids=repr)
@pytest.mark.parametrize("shared", [True, False])
def test_any_strides(layout: Any, backend: str, route: Route, shared: bool) -> None:
    plain = _inputs(route, (3, 4), shared=shared, dtype=torch.float64)
    grids = ("x", "delta", "B", "C", "z")
    inputs = {n: layout(x.detach()).requires_grad_() if n in grids else x for n, x in plain.items()}
    dense = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in inputs.items()}
    dense = {name: x.requires_grad_() for name, x in dense.items()}
    got = _result_and_gradients(selective_scan_route, inputs, route=route, backend=backend)
    _assert_same(got, _result_and_gradients(route_scan, dense, route=route), 1e-10)
    one_grid = inputs["x"] if shared else inputs["x"][:, 0]
    assert dimension_order(got["out"]) == dimension_order(one_grid)
    if backend == "cpu":
        for name, x in inputs.items():
            assert dimension_order(got[name]) == dimension_order(x), name
            assert got[name].untyped_storage().nbytes() == got[name].numel() * 8, name


def test_only_what_needs_a_gradient_gets_one() -> None:
    inputs = _inputs(Route("cross"), (3, 4))
    some = {name: x if name == "C" else x.detach() for name, x in inputs.items()}
    out = selective_scan_route(**some, route=Route("cross"))
    (gradient,) = torch.autograd.grad(out.sum(), some["C"])
    (expected,) = torch.autograd.grad(route_scan(**some, route=Route("cross")).sum(), some["C"])
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


def test_inference_equals_training() -> None:
    inputs = _inputs(Route("cross"), (30, 20))
    with torch.no_grad():
        inference = selective_scan_route(**inputs, delta_softplus=True, route=Route("cross"))
    assert torch.equal(inference, selective_scan_route(**inputs, delta_softplus=True, route=Route("cross")))


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    inputs = _inputs(Route("cross"), (9, 20), channels=40)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(_result_and_gradients(selective_scan_route, inputs, route=Route("cross")))
    finally:
        torch.set_num_threads(threads)
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]), name


# Derivatives, tracing and exporting.


@pytest.mark.parametrize("route", [ROUTES[3], ROUTES[4], ROUTES[7]], ids=repr)
def test_derivatives(route: Route) -> None:
    inputs = _inputs(route, (2, 2), rank=1, dtype=torch.float64, batch=1, channels=2, state=1)

    def run(backend: str) -> Any:
        return lambda *tensors: selective_scan_route(
            **dict(zip(inputs, tensors, strict=True)), delta_softplus=True, route=route, backend=backend
        )

    tensors = tuple(inputs.values())
    assert torch.autograd.gradcheck(run("reference"), tensors)
    assert torch.autograd.gradgradcheck(run("reference"), tensors)
    assert torch.autograd.gradcheck(run("cpu"), tensors)


def test_the_second_derivative_of_the_operator_names_the_switch() -> None:
    inputs = _inputs(Route("cross"), (2, 3))
    out = selective_scan_route(**inputs, route=Route("cross"), backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(BackendError, match="backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("route", [ROUTES[1], ROUTES[4], ROUTES[6]], ids=repr)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("save", [False, True])
def test_opcheck(route: Route, bare: bool, save: bool) -> None:
    inputs = _inputs(route, (13, 11), bare=bare, rank=None if bare else 2)
    names = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight")
    tensors = [inputs.get(name) for name in names]
    options = (True, route.name, route.merge, route.widths(2))
    operators = torch.ops.mamba_kernels
    torch.library.opcheck(operators.selective_scan_route.default, (*tensors, *options, torch.float32, save))
    with torch.no_grad():
        out, merged, kept = operators.selective_scan_route(*tensors, *options, torch.float32, save)
        torch.library.opcheck(
            operators.selective_scan_route_backward.default,
            (torch.randn_like(out), *tensors, merged, kept, *options, save),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


class _Scan(torch.nn.Module):
    def __init__(self, route: Route, backend: str | None = None) -> None:
        super().__init__()
        self.route, self.backend = route, backend

    def forward(self, **inputs: Tensor) -> Tensor:
        return selective_scan_route(**inputs, delta_softplus=True, route=self.route, backend=self.backend) * 2


@pytest.mark.parametrize("layout", [_channel_first, _sliced, _expanded])
def test_compiled_without_a_break_and_with_the_true_strides(layout: Any) -> None:
    route = Route("cross")
    inputs = _inputs(route, (3, 4), dtype=torch.float64)
    inputs = {n: layout(x.detach()).requires_grad_() if x.dim() > 3 else x for n, x in inputs.items()}
    model = _Scan(route)
    # Inductor asserts that an operator's outputs have the strides its fake kernel gave.
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    expected = model(**inputs)
    out = compiled(**inputs)
    assert out.stride() == expected.stride()
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, list(inputs.values()), cotangent),
        torch.autograd.grad(expected, list(inputs.values()), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_compiled_with_sizes_that_change() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_Scan(Route("cross")), fullgraph=True, backend="aot_eager", dynamic=True)
    for grid in [(3, 4), (5, 4), (6, 7)]:
        inputs = _inputs(Route("cross"), grid)
        torch.testing.assert_close(compiled(**inputs), _Scan(Route("cross"))(**inputs))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("route", [ROUTES[3], ROUTES[6]], ids=repr)
def test_exported(route: Route, backend: str | None) -> None:
    inputs = {name: x.detach() for name, x in _inputs(route, (3, 4), rank=2).items()}
    model = _Scan(route, backend)
    exported = torch.export.export(model, (), inputs)
    torch.testing.assert_close(exported.module()(**inputs), model(**inputs))
    if backend == "reference":
        targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert not any("mamba_kernels" in target for target in targets)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize(("route", "shared"), [*((route, True) for route in ROUTES), (ROUTES[3], False)], ids=repr)
def test_decomposes_into_pytorchs_own_operators(route: Route, shared: bool) -> None:
    inputs = {name: x.detach() for name, x in _inputs(route, (3, 4), shared=shared, rank=2 if shared else None).items()}
    model = _Scan(route)
    program = torch.export.export(model, (), inputs).run_decompositions(decompositions())
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert all(target.startswith(("aten.", "<built-in function")) for target in targets), targets
    torch.testing.assert_close(program.module()(**inputs), model(**inputs))


# What is refused.


def _change(inputs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {name: x for name, x in (inputs | changed).items() if x is not None}


@pytest.mark.parametrize("run", [selective_scan_route, route_scan])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.randn(2, 3, 5, 5)}, r"delta must have shape \(B, K, \*grid, D\)"),
        ({"x": torch.randn(2, 12, 5)}, "x must be .* with the 2 grid axes of delta"),
        ({"x": torch.randn(2, 4, 3, 4, 6)}, "A must have shape"),
        ({"x": torch.randn(2, 2, 3, 4, 5)}, r"x must have shape \(B, K, \*grid, D\)"),
        ({"x": torch.randn(2, 0, 4, 5)}, "is empty"),
        ({"x": torch.randn(2, 3, 4, 5).int()}, "x must be a real floating point tensor"),
        ({"delta": torch.randn(2, 3, 3, 4, 5)}, "reads a grid of 2 axes in 4 ways, delta has 3"),
        ({"delta": torch.randn(2, 5)}, "with a grid of 1 to 3 axes"),
        ({"delta": torch.randn(2, 4, 3, 4, 2)}, r"delta must have shape \(B, K, \*grid, D\)"),
        ({"delta_weight": torch.randn(4, 5, 2)}, r"delta_weight must have shape \(K, D, R\)"),
        ({"A": torch.randn(5, 3)}, r"A must have shape \(K\*D, N\) = \(20, 3\)"),
        ({"A": torch.randn(20)}, r"A must be \(K\*D, N\)"),
        ({"A": torch.randn(20, 3).to(torch.complex64)}, "real"),
        ({"B": torch.randn(2, 4, 3, 4, 2)}, r"B must have shape \(B, K, \*grid, N\)"),
        ({"C": torch.randn(2, 1, 3, 4, 3)}, r"C must have shape \(B, K, \*grid, N\)"),
        ({"D": torch.randn(5)}, r"D must have shape \(K\*D,\)"),
        ({"delta_bias": torch.randn(4, 5)}, r"delta_bias must have shape \(K\*D,\)"),
        ({"z": torch.randn(2, 3, 4, 20)}, r"z must have shape \(B, \*grid, D\)"),
        ({"z": torch.randn(2, 3, 4, 5, device="meta")}, "must be on cpu"),
        ({"route": "cross"}, "route must be a Route"),
        ({"out_dtype": torch.int32}, "out_dtype must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_input(run: Any, changed: dict[str, Any], message: str) -> None:
    arguments = {"route": Route("cross"), **_inputs(Route("cross"), (3, 4))}
    with pytest.raises(KernelInputError, match=message) as error:
        run(**_change(arguments, **changed))
    assert error.value.remedy


def test_autocast_does_not_hide_bad_input() -> None:
    inputs = _inputs(Route("cross"), (3, 4))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(KernelInputError, match="x must be a real floating point"),
    ):
        selective_scan_route(**inputs | {"x": torch.ones(2, 3, 4, 5, dtype=torch.int32)}, route=Route("cross"))


def test_a_window_of_another_rank_is_refused() -> None:
    route = Route("windowed", window=(2, 2, 2))
    inputs = _inputs(Route("windowed", window=2), (3, 4))
    with pytest.raises(KernelInputError, match="has 3 axes, the grid has 2"):
        selective_scan_route(**inputs, route=route)


def test_nothing_falls_back_silently() -> None:
    inputs = _inputs(Route("cross"), (3, 4))
    with pytest.raises(BackendError, match="tensors on the CPU"):
        selective_scan_route(**inputs, route=Route("cross"), backend="triton")
    with pytest.raises(BackendError, match="unknown backend 'gpu'"):
        selective_scan_route(**inputs, route=Route("cross"), backend="gpu")


def test_meta_tensors_give_shapes() -> None:
    inputs = {name: x.to("meta") for name, x in _inputs(Route("cross"), (3, 4)).items()}
    out = selective_scan_route(**inputs, route=Route("cross"))
    assert out.device.type == "meta"
    assert out.shape == (2, 3, 4, 5)
