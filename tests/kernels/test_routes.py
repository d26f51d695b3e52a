"""Routes and their readings: orders, inverses, segments, gathering and merging, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mamba_kernels.errors import KernelInputError
from mamba_kernels.routes import Readings, Route

SHAPES = [
    (1,),
    (2,),
    (63,),
    (1, 1),
    (1, 7),
    (7, 1),
    (4, 4),
    (3, 5),
    (8, 6),
    (1, 1, 1),
    (2, 3, 5),
    (4, 1, 3),
    (1, 6, 1),
    (3, 3, 4),
]
ROUTES = [
    Route("forward"),
    Route("bidirectional"),
    Route("axes"),
    Route("cross"),
    Route("snake"),
    Route("windowed", window=1),
    Route("windowed", window=2),
    Route("windowed", window=3),
    Route("windowed", window=100),
]


def _coordinates(readings: Readings, k: int = 0) -> np.ndarray:
    return np.stack(np.unravel_index(readings.order[k].numpy(), readings.shape), 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_every_reading_is_a_permutation_and_inverse_undoes_it(route: Route, shape: tuple[int, ...]) -> None:
    readings = route.readings(shape)
    length = math.prod(shape)
    assert (readings.K, readings.L) == (route.count(len(shape)), length)
    assert readings.order.dtype == readings.inverse.dtype == torch.int32
    assert readings.order.shape == readings.inverse.shape == (readings.K, length)
    steps = torch.arange(length)
    for order, inverse in zip(readings.order.long(), readings.inverse.long(), strict=True):
        assert torch.equal(order.sort().values, steps)
        assert torch.equal(order[inverse], steps)
        assert torch.equal(inverse[order], steps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["bidirectional", "cross"])
def test_the_second_half_of_the_readings_are_the_first_reversed(name: str, shape: tuple[int, ...]) -> None:
    readings = Route(name).readings(shape)
    assert readings.mirrored
    half = readings.K // 2
    assert torch.equal(readings.order[half:], readings.order[:half].flip(1))


@pytest.mark.parametrize("route", ROUTES[:6], ids=repr)
def test_readings_say_whether_the_first_is_row_major(route: Route) -> None:
    readings = route.readings((3, 4))
    assert readings.row_major == (route.name in ("forward", "bidirectional", "axes", "cross"))
    if readings.row_major:
        assert torch.equal(readings.order[0], torch.arange(12, dtype=torch.int32))


@pytest.mark.parametrize("name", ["forward", "axes", "snake"])
def test_readings_that_go_one_way_have_no_mirror(name: str) -> None:
    assert not Route(name).readings((3, 4)).mirrored


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_row_major(shape: tuple[int, ...]) -> None:
    assert Route("forward").readings(shape).order.tolist() == [list(range(math.prod(shape)))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["axes", "cross"])
def test_each_axis_in_turn_is_the_fastest(shape: tuple[int, ...], name: str) -> None:
    readings = Route(name).readings(shape)
    rank = len(shape)
    for k, fastest in enumerate(reversed(range(rank))):
        slow = [axis for axis in range(rank) if axis != fastest]
        expected = sorted(itertools.product(*map(range, shape)), key=lambda c: ([c[a] for a in slow], c[fastest]))
        assert _coordinates(readings, k).tolist() == [list(c) for c in expected]


def test_cross_in_two_dimensions_is_rows_columns_and_their_reverses() -> None:
    assert Route("cross").readings((2, 3)).order.tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_cross_in_one_dimension_is_bidirectional() -> None:
    assert torch.equal(Route("cross").readings((5,)).order, Route("bidirectional").readings((5,)).order)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_snake_only_steps_to_neighbours(shape: tuple[int, ...]) -> None:
    path = _coordinates(Route("snake").readings(shape))
    assert path[0].tolist() == [0] * len(shape)
    assert (np.abs(np.diff(path, axis=0)).sum(1) == 1).all()


def test_snake_turns_at_the_end_of_each_row() -> None:
    assert Route("snake").readings((3, 3)).order.tolist() == [[0, 1, 2, 5, 4, 3, 6, 7, 8]]


@pytest.mark.parametrize(
    ("shape", "window"),
    [((7,), 3), ((4, 6), 2), ((4, 6), (4, 3)), ((5, 7), (2, 3)), ((3, 5), 1), ((3, 4), (9, 2)), ((3, 4, 5), (2, 4, 3))],
    ids=str,
)
def test_windows_are_read_one_after_another_and_reset(shape: tuple[int, ...], window: tuple[int, ...] | int) -> None:
    readings = Route("windowed", window=window).readings(shape)
    sizes = (window,) * len(shape) if isinstance(window, int) else window
    assert readings.segment is not None
    assert readings.segment.dtype == torch.int32
    expected_cells, expected_segments = [], []
    corners = itertools.product(*[range(0, size, width) for size, width in zip(shape, sizes, strict=True)])
    for number, corner in enumerate(corners):
        ranges = [range(c, min(c + w, s)) for c, w, s in zip(corner, sizes, shape, strict=True)]
        cells = [list(cell) for cell in itertools.product(*ranges)]
        expected_cells += cells
        expected_segments += [number] * len(cells)
    assert _coordinates(readings).tolist() == expected_cells
    assert readings.segment[0].tolist() == expected_segments


@pytest.mark.parametrize("route", ROUTES[:5], ids=repr)
def test_only_windows_have_segments(route: Route) -> None:
    assert route.readings((3, 4)).segment is None


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("merge", ["sum", "mean", "concat"])
@pytest.mark.parametrize("name", ["forward", "bidirectional", "axes", "cross", "snake", "windowed"])
def test_gather_then_merge_returns_the_grid(name: str, merge: str, shape: tuple[int, ...]) -> None:
    route = Route(name, merge=merge, window=2 if name == "windowed" else None)
    readings = route.readings(shape)
    x = torch.randn(2, *shape, 3, dtype=torch.float64, requires_grad=True)
    read = readings.gather(x)
    assert read.shape == (2, readings.K, readings.L, 3)
    assert torch.equal(read[:, -1], x.reshape(2, -1, 3)[:, readings.order[-1].long()])
    merged = readings.scatter_merge(read)
    expected = {"sum": x * readings.K, "mean": x, "concat": torch.cat([x] * readings.K, -1)}[merge]
    torch.testing.assert_close(merged, expected)
    (gradient,) = torch.autograd.grad(merged.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 1.0 if merge == "mean" else readings.K))


def test_each_reading_gathers_its_own_grid() -> None:
    readings = Route("cross").readings((3, 5))
    x = torch.randn(2, 4, 3, 5, 6)
    read = readings.gather_each(x)
    for k in range(4):
        assert torch.equal(read[:, k], readings.gather(x[:, k])[:, k])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("route", [Route("cross"), Route("windowed", merge="mean", window=2)], ids=str)
def test_derivatives_of_gathering_and_merging(route: Route) -> None:
    readings = route.readings((2, 3))
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def through(x: torch.Tensor) -> torch.Tensor:
        return readings.scatter_merge(readings.gather(x).sin())

    assert torch.autograd.gradcheck(through, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(through, x)
    dy = torch.randn(2, readings.K, 6, 2, dtype=torch.float64)
    (dx,) = torch.autograd.grad(readings.gather(x), x, dy)
    torch.testing.assert_close(dx, sum(dy[:, k][:, readings.inverse[k]] for k in range(readings.K)).view(x.shape))


def test_concat_keeps_the_order_of_the_readings() -> None:
    readings = Route("bidirectional", merge="concat").readings((4,))
    y = torch.stack([torch.zeros(1, 4, 2), torch.ones(1, 4, 2)], 1)
    assert readings.scatter_merge(y)[0, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_readings_are_built_once_for_a_shape() -> None:
    assert Route("cross").readings((5, 6)) is Route("cross").readings([5, 6], "cpu")
    assert Route("cross").readings((5, 6)) is not Route("cross").readings((6, 5))
    assert Route("cross", merge="mean").readings((5, 6)).merge == "mean"


def test_readings_made_in_inference_mode_serve_training() -> None:
    route = Route("cross", merge="mean")
    with torch.inference_mode():
        route.readings((3, 11))
    x = torch.zeros(1, 3, 11, 2, requires_grad=True)
    route.readings((3, 11)).gather(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 4))


def test_readings_made_under_a_tracer_do_not_outlive_it() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = Route("snake").readings((11, 3))
    real = Route("snake").readings((11, 3))
    assert type(real.order) is torch.Tensor
    assert fake.order.shape == real.order.shape


def test_routes_are_values() -> None:
    assert Route("windowed", window=[2, 3]) == Route("windowed", window=(2, 3))
    assert len({Route("cross"), Route("cross"), Route("cross", merge="mean")}) == 2
    assert repr(Route("cross", merge="mean")) == "Route('cross', merge='mean')"
    assert repr(Route("windowed", window=(2, 3))) == "Route('windowed', merge='sum', window=(2, 3))"
    assert [Route("axes").count(rank) for rank in (1, 2, 3)] == [1, 2, 3]
    assert [Route("cross").count(rank) for rank in (1, 2, 3)] == [2, 4, 6]
    assert [Route("windowed", window=2).count(rank) for rank in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "crosss"}, "unknown route 'crosss'; did you mean 'cross'"),
        ({"name": "zigzag"}, "unknown route 'zigzag'; "),
        ({"name": "cross", "merge": "mena"}, "unknown merge of a route 'mena'; did you mean 'mean'"),
        ({"name": "windowed"}, "needs its window"),
        ({"name": "cross", "window": 2}, "has no window"),
        ({"name": "windowed", "window": 0}, "whole numbers from 1"),
        ({"name": "windowed", "window": (2, -1)}, "whole numbers from 1"),
        ({"name": "windowed", "window": ()}, "whole numbers from 1"),
        ({"name": "windowed", "window": 2.5}, "whole numbers from 1"),
        ({"name": "windowed", "window": True}, "whole numbers from 1"),
        ({"name": "windowed", "window": (1, 1, 1, 1)}, "4 axes"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_routes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(KernelInputError, match=message) as error:
        Route(**arguments)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("route", "shape", "message"),
    [
        (Route("forward"), (), "1 to 3 axes, got 0"),
        (Route("forward"), (2, 2, 2, 2), "1 to 3 axes, got 4"),
        (Route("forward"), (0, 4), "at least one cell"),
        (Route("windowed", window=(2, 2)), (4, 4, 4), "has 2 axes, the grid has 3"),
        (Route("forward"), (2**16, 2**16), "past int32"),
    ],
    ids=str,
)
def test_wrong_grids_are_refused(route: Route, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        route.readings(shape)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("route", [Route("cross"), Route("snake"), Route("windowed", window=2)], ids=repr)
def test_readings_compile_and_export_without_a_break(route: Route) -> None:
    class Reread(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            readings = route.readings(x.shape[1:-1], x.device)
            read = readings.gather(x).sin().cumsum(2)
            return readings.scatter_merge(read if readings.segment is None else read + readings.segment[..., None])

    compiled = torch.compile(Reread(), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Reread(), (torch.randn(2, 3, 4, 5),)).module()
    for shape in [(2, 3, 4, 5), (2, 7, 3, 5)]:
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), Reread()(x))
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(exported(x), Reread()(x))


@pytest.mark.parametrize(("name", "widths"), [("cross", ()), ("windowed", (2, 3))])
def test_the_operator_behind_compiled_readings_is_sound(name: str, widths: tuple[int, ...]) -> None:
    torch.library.opcheck(
        torch.ops.mamba_kernels.route_index_tensors.default, (name, widths, (5, 4), torch.device("cpu"))
    )


def test_the_marks_of_segments_are_made_once() -> None:
    readings = Route("windowed", window=2).readings((4, 4))
    assert readings.marks is readings.marks
    assert readings.marks is not None
    assert readings.marks[0].tolist() == [1, 1, 1, 1] + [3, 1, 1, 1] * 3
    assert Route("cross").readings((4, 4)).marks is None
