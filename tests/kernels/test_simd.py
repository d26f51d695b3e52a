"""The vector instructions the CPU kernels are made of."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from mamba_kernels import simd
from mamba_kernels.simd import (
    LANES,
    exp2,
    fma,
    load,
    pointer,
    row_totals,
    sigmoid,
    softplus,
    softplus_slope,
    store,
    total,
)
from mamba_kernels.tiles import aligned


@numba.njit
def _each(x: np.ndarray, results: np.ndarray) -> None:
    """Write one function's values to each row of ``results``, flat."""
    size = x.size
    y = pointer(results)
    for i in range(0, size, LANES):
        v = load(x, i)
        store(y, i, exp2(v))
        store(y, size + i, softplus(v))
        store(y, 2 * size + i, sigmoid(v))
        store(y, 3 * size + i, softplus_slope(v))
        store(y, 4 * size + i, fma(v, v, v) - v * v + v)


@numba.njit
def _sums(x: np.ndarray, results: np.ndarray) -> None:
    store(results, 0, row_totals(x, 0))
    for k in range(LANES):
        results[LANES + k] = total(load(x, k * LANES))


@numba.njit
def _start(size: int, like: np.ndarray) -> tuple[int, int]:
    memory = aligned(size, like)
    memory[:] = 1
    return memory.ctypes.data, memory.size


def _values(x: np.ndarray) -> np.ndarray:
    results = np.empty(5 * x.size, x.dtype)
    _each(x, results)
    return results.reshape(5, x.size)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 2e-15)])
def test_functions_are_right_to_a_few_roundings(dtype: type, tolerance: float) -> None:
    x = np.linspace(-80, 80, 1 << 14).astype(dtype)
    exact = x.astype(np.longdouble)
    wanted = [
        np.exp2(exact),
        np.where(exact > 20, exact, np.log1p(np.exp(exact))),
        1 / (1 + np.exp(-exact)),
        np.where(exact > 20, 1, 1 / (1 + np.exp(-exact))),
    ]
    for got, true in zip(_values(x)[:4], wanted, strict=True):
        assert np.abs(got / true - 1).max() < tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extremes_and_nan(dtype: type) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0] + 9 * [1e-30], dtype)
    powers, soft, logistic, slope, _ = _values(x)
    assert np.isnan([powers[0], soft[0], logistic[0], slope[0]]).all()
    assert powers[1:7].tolist() == [np.inf, 0, np.inf, 0, 1, 1]
    assert soft[1:5].tolist() == [np.inf, soft[2], dtype(1e30), soft[4]]
    assert 0 <= soft[2] < 1e-37
    assert logistic[[1, 3, 5]].tolist() == [1, 1, 0.5]
    assert 0 <= logistic[2] < 1e-37
    assert slope[[1, 3]].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_over_lanes(dtype: type) -> None:
    x = np.arange(LANES * LANES, dtype=dtype) ** 2
    results = np.empty(2 * LANES, dtype)
    _sums(x, results)
    assert results.reshape(2, LANES).tolist() == [x.reshape(LANES, LANES).sum(1).tolist()] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_buffers_start_on_a_cache_line(dtype: type) -> None:
    for size in (1, 16, 1000):
        start, length = _start(size, np.zeros(1, dtype))
        assert (start % 64, length) == (0, size)


def test_a_kernel_is_compiled_even_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = numba.njit

    def njit(**options: bool) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return plain(**options)

    monkeypatch.setattr(simd.numba, "njit", njit)

    @simd.compile_kernel()
    def double(x: float) -> float:
        return 2 * x

    assert double(2.0) == 4.0


def test_the_cache_notices_a_change_of_the_files_compiled_in(tmp_path: object) -> None:
    source = tmp_path / "helper.py"  # type: ignore[operator]
    names = []
    for text in ("a", "b"):
        source.write_text(text)

        @simd.compile_kernel(str(source))
        def kernel(x: float) -> float:
            return x

        names.append(kernel.py_func.__qualname__)
    assert names[0] != names[1]
