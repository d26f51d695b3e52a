"""Launching Triton kernels again and again: what a call's shapes decide is worked out once.

Triton examines and classifies every argument at every call, which costs more than many of our kernels run. A `Launch`
is a kernel with its grid, its numbers and its constants; a call gives it the tensors, whose addresses are all that
changes::

    @per_layout
    def plan(x: Tensor, silu: bool) -> Launch:  # reads shapes, strides and dtypes alone
        return Launch(kernel, (x.shape[0],), x.shape[1], *x.stride(), SILU=silu, num_warps=4)

    plan(x, silu)(x, out)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

# Addresses that are multiples of it are what Triton compiles another kernel for.
ALIGNMENT = 16


class _Compiled(NamedTuple):
    """A compiled kernel as Triton's own launcher takes it, and what it was compiled for."""

    device: int
    dtypes: list[torch.dtype]
    misaligned: int
    run: Any
    function: Any
    metadata: Any
    rest: tuple[Any, ...]


@dataclass(frozen=True)
class _Standin:
    """What Triton looks at of a tensor to compile for it, so that the tensor need not be kept meanwhile."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class Launch:
    """A kernel with its grid and all arguments but the tensors, to be called with these.

    The first call for each GPU, dtypes and alignment of the tensors goes through Triton, which compiles; later ones
    hand the addresses to the compiled kernel. It runs on the current GPU's current stream, in a captured graph as well,
    and goes through Triton each time where kernels are interpreted or somebody's hooks watch launches. Triton's debug
    settings and globals that kernels read are looked at by the first call alone.

    Args:
        kernel: The kernel, made by ``triton.jit`` or Gluon's; its parameters are tensors, then numbers, then constants.
        grid: Programs along 1 to 3 axes.
        *numbers: The arguments after the tensors, in order: sizes, strides, other integers and floats.
        **constants: Compile-time constants, and Triton's options such as ``num_warps``.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *numbers: float, **constants: Any) -> None:
        self.kernel, self.grid, self.numbers, self.constants = kernel, grid, numbers, constants
        self._axes = (*grid, 1, 1)[:3]
        self._is_compiled = isinstance(kernel, JITFunction)
        self._ready: list[_Compiled] = []

    def __call__(self, *tensors: Tensor) -> None:
        """Launch the kernel on tensors, all on the current GPU."""
        if _gathered and (launches := _gathered.get(threading.get_ident())) is not None:
            like = tuple([_Standin(x.dtype, x.data_ptr() % ALIGNMENT) for x in tensors])
            launches.setdefault((self._kind(), like), (self, tensors[0].device))
            return
        if not self._is_compiled or _is_watched(self.kernel):
            self._through_triton(tensors)
            return
        gpus = driver.active
        device, dtypes = gpus.get_current_device(), [x.dtype for x in tensors]
        addresses = [x.data_ptr() for x in tensors]
        misaligned = 0
        for address in addresses:
            misaligned |= address
        misaligned %= ALIGNMENT
        if misaligned:  # One bit for each tensor that is.
            misaligned = sum(1 << i for i, address in enumerate(addresses) if address % ALIGNMENT)
        for on, of, at, run, function, metadata, rest in self._ready:
            if at == misaligned and on == device and of == dtypes:
                stream = gpus.get_current_stream(device)
                run(*self._axes, stream, function, metadata, None, None, None, *addresses, *rest)
                return
        made = self._through_triton(tensors)
        if made is not None:
            rest = self._rest(len(tensors))
            self._ready.append(
                _Compiled(device, dtypes, misaligned, made.run, made.function, made.packed_metadata, rest)
            )

    def compile(self, device: torch.device, *tensors: _Standin) -> None:
        """Compile the kernel for tensors like these, without launching it."""
        if self._is_compiled:
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                self.kernel.warmup(*tensors, *self.numbers, grid=self.grid, **self.constants)

    def _kind(self) -> tuple[Any, ...]:
        """Return what Triton compiles a kernel for, but for its tensors."""
        numbers = tuple((type(x), x == 1, x % ALIGNMENT == 0, abs(x) < 2**31) for x in self.numbers)
        return (self.kernel, numbers, *self.constants.items())

    def _through_triton(self, tensors: tuple[Tensor, ...]) -> Any:
        return self.kernel[self.grid](*tensors, *self.numbers, **self.constants)

    def _rest(self, tensors: int) -> tuple[Any, ...]:
        """Return what the compiled kernel takes after the tensors: the numbers, and a value for every constant."""
        names = self.kernel.arg_names[tensors + len(self.numbers) :]
        defaults = self.kernel.signature.parameters
        return (*self.numbers, *(self.constants.get(name, defaults[name].default) for name in names))


# By threads' numbers, what a thread would have launched while it goes through launches to compile them: by what each is
# compiled for, a launch and its GPU.
_gathered: dict[int, dict[tuple[Any, tuple[_Standin, ...]], tuple[Launch, torch.device]]] = {}


def compile_together(run: Callable[[], object]) -> None:
    """Compile all kernels that ``run`` launches at the same time, where its launches would do so one after the other.

    Nothing is launched, so that what ``run`` returns here means nothing; it must not read numbers back.
    """
    thread = threading.get_ident()
    launches = _gathered[thread] = {}
    try:
        run()
    finally:
        del _gathered[thread]
    if launches:
        if any(launch._is_compiled for launch, _ in launches.values()):
            driver.active.get_current_device()  # Or every thread would set Triton up.
        with ThreadPoolExecutor(len(launches)) as threads:
            compiled = [threads.submit(launch.compile, gpu, *like) for (_, like), (launch, gpu) in launches.items()]
        for one in compiled:
            one.result()


def _is_watched(kernel: JITFunction) -> bool:
    """Return whether somebody, such as a profiler, has hooks around launches, which Triton alone knows how to call."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(
        kernel.pre_run_hooks
        or (enter is not None and getattr(enter, "calls", True))
        or (leave is not None and getattr(leave, "calls", True))
    )
