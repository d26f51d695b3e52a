"""Sixteen numbers at a time inside numba functions, whatever vectors the processor has.

A value of type ``Lanes`` is an LLVM vector of 16 float32 or float64. LLVM splits it into the registers there are, so
one source gives AVX-512, AVX2, SSE or NEON code, and no loop depends on the auto-vectoriser's mood. Inside a function
compiled by `compile_kernel`, ``+ - *`` work on lanes, and the functions of this module are called as if they were
plain ones. Nothing checks bounds.

Numba counts references to arrays whenever one is read from a tuple or passed on, with an atomic instruction each time:
inside hot loops use arrays bound outside them, or pointers.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model, type_callable

LANES = 16

# What numba makes of a function decorated with it is called with one argument less than the function itself has.
intrinsic: Any = numba_intrinsic

_LN2 = math.log(2.0)
# ln 2 in two parts, the first of so few bits that its product with an exponent is exact.
_LN2_32 = (0.693359375, -2.1219444005469057e-4)
_LN2_64 = (6.93147180369123816490e-1, 1.90821492927058770002e-10)

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
        shifted = self.fma(x, self.constant(1 / _LN2), magic)
        whole = self.builder.fsub(magic, shifted)
        high, low = _LN2_32 if self.single else _LN2_64
        rest = self.fma(whole, self.constant(low), self.fma(whole, self.constant(high), x))
        return self._power(shifted, self.builder.fmul(rest, self.constant(1 / _LN2)))

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

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """The 16 columns of 16 vectors: each step swaps one bit of the row's number with the lane's."""
        for width in (1, 2, 4, 8):
            low = [lane if not lane & width else LANES + lane - width for lane in range(LANES)]
            high = [lane + width if not lane & width else LANES + lane for lane in range(LANES)]
            swapped = list(rows)
            for k in range(LANES):
                if not k & width:
                    a, b = rows[k], rows[k + width]
                    swapped[k], swapped[k + width] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            rows = swapped
        return rows


def _element(kind: types.Type) -> Any:
    """Return the dtype of a contiguous vector or of what a pointer points at, None for other types."""
    if isinstance(kind, types.CPointer):
        return kind.dtype
    return kind.dtype if isinstance(kind, types.Array) and kind.ndim == 1 and kind.layout == "C" else None


def _address(context: Any, builder: ir.IRBuilder, kind: types.Type, memory: ir.Value, index: ir.Value) -> ir.Value:
    if isinstance(kind, types.Array):
        memory = context.make_array(kind)(context, builder, value=memory).data
    return builder.gep(memory, [index])


@intrinsic
def pointer(typingctx: Any, array: types.Type) -> Any:
    """Return where a contiguous vector starts. A pointer keeps nothing alive, and costs no reference counting."""
    if _element(array) is None:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _address(context, builder, array, arguments[0], ir.Constant(ir.IntType(64), 0))

    return types.CPointer(_element(array))(array), generate


@intrinsic
def moved(typingctx: Any, memory: types.Type, count: types.Type) -> Any:
    """Return a pointer moved on by ``count`` numbers."""
    if not isinstance(memory, types.CPointer):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _address(context, builder, memory, *arguments)

    return memory(memory, types.intp), generate


@intrinsic
def keep(typingctx: Any, array: types.Type) -> Any:
    """Do nothing, but let the array live until here."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return context.get_dummy_value()

    return types.none(array), generate


@intrinsic
def load(typingctx: Any, memory: types.Type, index: types.Type) -> Any:
    """Return the lanes memory[index : index + 16] of a contiguous vector or pointer."""
    dtype = _element(memory)
    if dtype is None:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address = builder.bitcast(
            _address(context, builder, memory, *arguments), _Emitter(builder, dtype).vector.as_pointer()
        )
        return builder.load(address, align=dtype.bitwidth // 8)

    return LanesType(dtype)(memory, types.intp), generate


@intrinsic
def store(typingctx: Any, memory: types.Type, index: types.Type, lanes: types.Type) -> Any:
    """Write the lanes to memory[index : index + 16] of a contiguous vector or pointer."""
    dtype = _element(memory)
    if dtype is None or lanes != LanesType(dtype):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address = builder.bitcast(
            _address(context, builder, memory, *arguments[:2]), _Emitter(builder, dtype).vector.as_pointer()
        )
        builder.store(arguments[2], address, align=dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(memory, types.intp, lanes), generate


@intrinsic
def splat(typingctx: Any, value: types.Type) -> Any:
    """Return lanes that all hold the value."""
    if value not in (types.float32, types.float64):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _Emitter(builder, value).splat(arguments[0])

    return LanesType(value)(value), generate


@intrinsic
def splat_at(typingctx: Any, memory: types.Type, index: types.Type) -> Any:
    """Return lanes that all hold memory[index] of a contiguous vector or pointer."""
    dtype = _element(memory)
    if dtype is None:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address = _address(context, builder, memory, *arguments)
        return _Emitter(builder, dtype).splat(builder.load(address, align=dtype.bitwidth // 8))

    return LanesType(dtype)(memory, types.intp), generate


@intrinsic
def splat_as(typingctx: Any, memory: types.Type, value: types.Type) -> Any:
    """Return lanes of the dtype of ``memory``, a contiguous vector or pointer, that all hold the value."""
    dtype = _element(memory)
    if dtype is None:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        value = context.cast(builder, arguments[1], types.float64, dtype)
        return _Emitter(builder, dtype).splat(value)

    return LanesType(dtype)(memory, types.float64), generate


@intrinsic
def take(typingctx: Any, counter: types.Type) -> Any:
    """Return counter[0] and add one to it, as one step for all threads."""
    if _element(counter) != types.int64:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address = _address(context, builder, counter, arguments[0], ir.Constant(ir.IntType(64), 0))
        return builder.atomic_rmw("add", address, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def fma(typingctx: Any, a: types.Type, b: types.Type, c: types.Type) -> Any:
    """Return a * b + c, rounded once where the processor can."""
    if not (isinstance(a, LanesType) and a == b == c):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _Emitter(builder, a.dtype).fma(*arguments)

    return a(a, b, c), generate


def _unary(name: str) -> Any:
    @intrinsic
    def function(typingctx: Any, x: types.Type) -> Any:
        if not isinstance(x, LanesType):
            return None

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            return getattr(_Emitter(builder, x.dtype), name)(*arguments)

        return x(x), generate

    return function


exp2 = _unary("exp2")
softplus = _unary("softplus")
softplus_slope = _unary("softplus_slope")
sigmoid = _unary("sigmoid")


@intrinsic
def total(typingctx: Any, lanes: types.Type) -> Any:
    """Return the sum of the lanes."""
    if not isinstance(lanes, LanesType):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        emitter = _Emitter(builder, lanes.dtype)
        x = arguments[0]
        for width in (8, 4, 2, 1):
            x = builder.fadd(x, emitter.shuffle(x, x, [lane ^ width for lane in range(LANES)]))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return lanes.dtype(lanes), generate


@intrinsic
def row_totals(typingctx: Any, memory: types.Type, index: types.Type) -> Any:
    """Return lanes whose k-th is the sum of memory[index + 16 * k : index + 16 * (k + 1)]."""
    dtype = _element(memory)
    if dtype is None:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        emitter = _Emitter(builder, dtype)
        address = _address(context, builder, memory, *arguments)
        address = builder.bitcast(address, emitter.vector.as_pointer())
        rows = []
        for k in range(LANES):
            row = builder.gep(address, [ir.Constant(ir.IntType(64), k)])
            rows.append(builder.load(row, align=dtype.bitwidth // 8))
        return emitter.row_totals(rows)

    return LanesType(dtype)(memory, types.intp), generate


@intrinsic
def transpose(
    typingctx: Any,
    source: types.Type,
    place: types.Type,
    stride: types.Type,
    target: types.Type,
    at: types.Type,
    step: types.Type,
) -> Any:
    """Copy a block of 16 x 16 numbers to its transpose: source[place + i * stride + j] to target[at + j * step + i]."""
    dtype = _element(source)
    if dtype is None or _element(target) != dtype:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        emitter = _Emitter(builder, dtype)
        source_value, place_value, stride_value, target_value, at_value, step_value = arguments

        def addresses(kind: types.Type, memory: ir.Value, first: ir.Value, distance: ir.Value) -> list[ir.Value]:
            indices = [builder.add(first, builder.mul(distance, ir.Constant(ir.IntType(64), k))) for k in range(LANES)]
            places = [_address(context, builder, kind, memory, index) for index in indices]
            return [builder.bitcast(place, emitter.vector.as_pointer()) for place in places]

        align = dtype.bitwidth // 8
        rows = [builder.load(a, align=align) for a in addresses(source, source_value, place_value, stride_value)]
        columns = addresses(target, target_value, at_value, step_value)
        for column, address in zip(emitter.transposed(rows), columns, strict=True):
            builder.store(column, address, align=align)
        return context.get_dummy_value()

    integers = (types.intp, types.intp)
    return types.none(source, *integers, target, *integers), generate


def _operator(function: Callable[..., Any], instruction: str) -> None:
    @type_callable(function)
    def typer(context: Any) -> Any:
        def result(a: types.Type, b: types.Type) -> types.Type | None:
            return a if isinstance(a, LanesType) and a == b else None

        return result

    @lower_builtin(function, LanesType, LanesType)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return getattr(builder, instruction)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
