"""Sixteen numbers at a time inside numba functions, whatever vectors the processor has.

A value of type ``Lanes`` is an LLVM vector of 16 float32 or float64. LLVM splits it into the registers there are, so
one source gives AVX-512, AVX2, SSE or NEON code, and no loop depends on the auto-vectoriser's mood. Inside a function
compiled by `compile_kernel`: ``+ - *`` work on lanes, and `load`, `store`, `splat`, `fma`, `exp2`, `softplus`,
`sigmoid`, `total` and `row_totals` are called as if they were plain functions. `load` and `store` check no bounds.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16

_LN2 = math.log(2.0)

# 2**f = 1 + f q(f) on [-1/2, 1/2], where q's error is least relative to the result; float64 takes the Taylor series.
_EXP2_32 = (0.69314718246, 0.24022649229, 0.055503573268, 0.0096182376146, 0.0013390735257, 0.00015403512225)
_EXP2_64 = tuple(_LN2**k / math.factorial(k) for k in range(1, 14))
# atanh(s) = s q(s**2) for s**2 on [0, 1/9].
_ATANH_32 = (1.0, 0.33333158493, 0.20012454689, 0.13980300724, 0.14089167118)
_ATANH_64 = tuple(1.0 / (2 * k + 1) for k in range(18))


def compile_kernel(*sources: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function with numba, releasing the interpreter's lock and caching on disk.

    Numba's cache notices a change of the function's own file only, so its file name here carries a hash of the other
    files that are compiled into it. Where no directory can be written, the function is compiled in every process.

    Args:
        sources: Paths of the modules, besides this one and the function's own, whose functions it calls.
    """
    text = b"".join(Path(path).read_bytes() for path in (__file__, *sources))
    stamp = hashlib.sha256(text).hexdigest()[:12]

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ = f"{function.__qualname__}_{stamp}"
        try:
            return numba.njit(nogil=True, cache=True)(function)
        except RuntimeError:  # numba's "no locator available": nowhere to write
            return numba.njit(nogil=True)(function)

    return decorate


class LanesType(types.Type):
    """The numba type of `LANES` numbers of one dtype."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        element = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(element, LANES))


class _Emitter:
    """Emits LLVM instructions on vectors of one dtype."""

    def __init__(self, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.builder = builder
        self.single = dtype == types.float32
        self.mantissa, self.bias = (23, 127) if self.single else (52, 1023)
        self.element = ir.FloatType() if self.single else ir.DoubleType()
        self.vector = ir.VectorType(self.element, LANES)
        self.integer = ir.VectorType(ir.IntType(32 if self.single else 64), LANES)

    def constant(self, value: float) -> ir.Constant:
        return ir.Constant(self.vector, [value] * LANES)

    def call(self, name: str, *operands: ir.Value) -> ir.Value:
        kind = ir.FunctionType(self.vector, [self.vector] * len(operands))
        suffix = f"v{LANES}{'f32' if self.single else 'f64'}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.{suffix}")
        return self.builder.call(function, operands)

    def splat(self, value: ir.Value) -> ir.Value:
        empty = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, empty, [0] * LANES)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.call("fmuladd", a, b, c)

    def polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        result = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, self.constant(coefficient))
        return result

    def smaller(self, x: ir.Value, bound: float) -> ir.Value:
        limit = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered("<", limit, x), limit, x)  # keeps NaN

    def larger(self, x: ir.Value, bound: float) -> ir.Value:
        limit = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered(">", limit, x), limit, x)  # keeps NaN

    def _power(self, shifted: ir.Value, fraction: ir.Value) -> ir.Value:
        """2**fraction times the power of two whose exponent stands in the lowest bits of ``shifted``."""
        builder = self.builder
        power = builder.shl(builder.bitcast(shifted, self.integer), ir.Constant(self.integer, [self.mantissa] * LANES))
        power = builder.add(power, ir.Constant(self.integer, [self.bias << self.mantissa] * LANES))
        series = self.polynomial(fraction, _EXP2_32 if self.single else _EXP2_64)
        return builder.fmul(self.fma(series, fraction, self.constant(1.0)), builder.bitcast(power, self.vector))

    def exp2(self, x: ir.Value) -> ir.Value:
        """2**x: infinite from about 2**128 (2**1024) on, 0 where the result would be denormal."""
        x = self.larger(self.smaller(x, self.bias + 1.0), -self.bias)
        # Adding 1.5 * 2**mantissa rounds to an integer that then stands in the lowest bits.
        magic = self.constant(1.5 * 2.0**self.mantissa)
        shifted = self.builder.fadd(x, magic)
        return self._power(shifted, self.builder.fsub(x, self.builder.fsub(shifted, magic)))

    def exp(self, x: ir.Value) -> ir.Value:
        """e**x with a relative error that does not grow with x."""
        x = self.larger(self.smaller(x, (self.bias + 1) * _LN2), -self.bias * _LN2)
        magic = self.constant(1.5 * 2.0**self.mantissa)
        high = float(np.float32(1 / _LN2)) if self.single else 1 / _LN2
        shifted = self.fma(x, self.constant(high), magic)
        fraction = self.fma(x, self.constant(high), self.builder.fsub(magic, shifted))
        return self._power(shifted, self.fma(x, self.constant(1 / _LN2 - high), fraction))

    def softplus(self, x: ir.Value) -> ir.Value:
        """log(1 + e**x) = max(x, 0) + log1p(e**-|x|); the identity above 20."""
        builder = self.builder
        small = self.exp(builder.fsub(self.constant(-0.0), self.call("fabs", x)))
        ratio = builder.fdiv(small, builder.fadd(small, self.constant(2.0)))
        series = self.polynomial(builder.fmul(ratio, ratio), _ATANH_32 if self.single else _ATANH_64)
        logarithm = builder.fmul(builder.fadd(ratio, ratio), series)
        soft = builder.fadd(self.larger(x, 0.0), logarithm)
        return builder.select(builder.fcmp_ordered(">", x, self.constant(20.0)), x, soft)

    def softplus_slope(self, x: ir.Value) -> ir.Value:
        one = self.constant(1.0)
        return self.builder.select(self.builder.fcmp_ordered(">", x, self.constant(20.0)), one, self.sigmoid(x))

    def sigmoid(self, x: ir.Value) -> ir.Value:
        one = self.constant(1.0)
        return self.builder.fdiv(one, self.builder.fadd(one, self.exp(self.builder.fsub(self.constant(-0.0), x))))

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(lanes)))

    def row_totals(self, rows: list[ir.Value]) -> ir.Value:
        """The totals of 16 vectors, lane k that of row k: each step halves the rows and keeps the lanes full."""
        for width in (1, 2, 4, 8):
            # Add the lanes whose numbers differ in this bit, and let the bit choose the row instead.
            low = [(lane & ~width) + (LANES if lane & width else 0) for lane in range(LANES)]
            high = [place + width for place in low]
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [self.builder.fadd(self.shuffle(a, b, low), self.shuffle(a, b, high)) for a, b in pairs]
        return rows[0]


def _pointer(context: Any, builder: ir.IRBuilder, kind: types.Array, array: ir.Value, index: ir.Value) -> ir.Value:
    data = context.make_array(kind)(context, builder, value=array).data
    return builder.gep(data, [index])


def _is_flat(kind: types.Type) -> bool:
    return isinstance(kind, types.Array) and kind.ndim == 1 and kind.layout == "C"


@intrinsic
def load(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Return the lanes array[index : index + 16] of a contiguous vector."""
    if not (_is_flat(array) and isinstance(index, types.Integer)):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        emitter = _Emitter(builder, array.dtype)
        pointer = _pointer(context, builder, array, *arguments)
        pointer = builder.bitcast(pointer, emitter.vector.as_pointer())
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return LanesType(array.dtype)(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, lanes):  # type: ignore[no-untyped-def]
    """Write the lanes to array[index : index + 16] of a contiguous vector."""
    if not (_is_flat(array) and isinstance(lanes, LanesType) and lanes.dtype == array.dtype):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        emitter = _Emitter(builder, array.dtype)
        pointer = _pointer(context, builder, array, *arguments[:2])
        pointer = builder.bitcast(pointer, emitter.vector.as_pointer())
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic
def splat(typingctx, value):  # type: ignore[no-untyped-def]
    """Return lanes that all hold the value."""
    if value not in (types.float32, types.float64):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _Emitter(builder, value).splat(arguments[0])

    return LanesType(value)(value), generate


@intrinsic
def splat_at(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Return lanes that all hold array[index] of a contiguous vector."""
    if not (_is_flat(array) and isinstance(index, types.Integer)):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        value = builder.load(_pointer(context, builder, array, *arguments), align=array.dtype.bitwidth // 8)
        return _Emitter(builder, array.dtype).splat(value)

    return LanesType(array.dtype)(array, types.intp), generate


@intrinsic
def take(typingctx, counter):  # type: ignore[no-untyped-def]
    """Return counter[0] and add one to it, as one step for all threads."""
    if counter != types.Array(types.int64, 1, "C"):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(counter)(context, builder, value=arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def fma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """Return a * b + c, rounded once where the processor can."""
    if not (isinstance(a, LanesType) and a == b == c):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return _Emitter(builder, a.dtype).fma(*arguments)

    return a(a, b, c), generate


def _unary(name: str) -> Any:
    @intrinsic
    def function(typingctx, x):  # type: ignore[no-untyped-def]
        if not isinstance(x, LanesType):
            return None

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return getattr(_Emitter(builder, x.dtype), name)(*arguments)

        return x(x), generate

    return function


exp2 = _unary("exp2")
softplus = _unary("softplus")
softplus_slope = _unary("softplus_slope")
sigmoid = _unary("sigmoid")


@intrinsic
def total(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Return the sum of the lanes."""
    if not isinstance(lanes, LanesType):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        emitter = _Emitter(builder, lanes.dtype)
        x = arguments[0]
        for width in (8, 4, 2, 1):
            x = builder.fadd(x, emitter.shuffle(x, x, [lane ^ width for lane in range(LANES)]))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return lanes.dtype(lanes), generate


@intrinsic
def row_totals(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Return lanes whose k-th is the sum of array[index + 16 * k : index + 16 * (k + 1)]."""
    if not (_is_flat(array) and isinstance(index, types.Integer)):
        return None

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        emitter = _Emitter(builder, array.dtype)
        pointer = _pointer(context, builder, array, *arguments)
        pointer = builder.bitcast(pointer, emitter.vector.as_pointer())
        rows = []
        for k in range(LANES):
            row = builder.gep(pointer, [ir.Constant(ir.IntType(64), k)])
            rows.append(builder.load(row, align=array.dtype.bitwidth // 8))
        return emitter.row_totals(rows)

    return LanesType(array.dtype)(array, types.intp), generate


def _operator(function: Callable[..., Any], instruction: str) -> None:
    @type_callable(function)
    def typer(context):  # type: ignore[no-untyped-def]
        def result(a, b):  # type: ignore[no-untyped-def]
            return a if isinstance(a, LanesType) and a == b else None

        return result

    @lower_builtin(function, LanesType, LanesType)
    def lower(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return getattr(builder, instruction)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
