"""Launches that are prepared once hand a GPU's launcher what Triton itself would; a stand-in for the driver listens."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is launched where kernels are interpreted", allow_module_level=True)

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from mamba_kernels.ceilings import exponentials
from mamba_kernels.launch import Launch, compile_together


@triton.jit
def scale(x, y, length, start, eps, BLOCK: tl.constexpr, ROUND: tl.constexpr = False, SHIFT: tl.constexpr = None):
    """Write x / (eps + 1), from ``start`` on."""
    i = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + i, mask=i < length) / (eps + 1)
    if ROUND:
        values = tl.floor(values.to(tl.float32))
    tl.store(y + i, values, mask=i < length)


class _Launcher:
    """Stands for the C function that launches: keeps what it is given."""

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        driver.active.launched.append(arguments)


class _Binaries:
    def __init__(self) -> None:
        self.functions = itertools.count(100)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132}

    def load_binary(self, *arguments: Any) -> tuple[int, int, int, int, int]:
        return 0, next(self.functions), 32, 0, 1024


class _Driver(DriverBase):
    """A driver of GPUs of type sm_90 that are not there; tensors of the CPU stand for theirs."""

    launcher_cls = _Launcher

    def __init__(self) -> None:
        self.utils, self.launched, self.device, self.stream = _Binaries(), [], 0, 7

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.stream


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Driver]:
    listening = _Driver()
    monkeypatch.setattr(driver, "_active", listening)
    scale.device_caches.clear()
    yield listening
    scale.device_caches.clear()


def addresses(arguments: tuple[Any, ...]) -> list[Any]:
    """Return what a launcher was given, but for hooks: those that nobody set are left out or empty."""
    seen = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    return [*seen[:6], *seen[9:]]


X, Y = torch.zeros(64), torch.zeros(64)


@pytest.mark.parametrize(
    ("grid", "numbers", "constants"),
    [
        ((3,), (64, 0, 0.5), {"BLOCK": 16}),
        ((3, 2), (1, 17, 1.0), {"BLOCK": 32, "ROUND": True, "num_warps": 2}),
        ((2**31 - 1, 2, 1), (2**40, 16, 0.0), {"BLOCK": 16, "SHIFT": 3, "num_stages": 2}),
        ((0,), (64, 1, 0.5), {"BLOCK": 16}),
    ],
)
def test_every_launch_hands_over_what_triton_does(
    gpu: _Driver, grid: tuple[int, ...], numbers: tuple[float, ...], constants: dict[str, Any]
) -> None:
    launch = Launch(scale, grid, *numbers, **constants)
    for x in (X, X[4:], X[1:], X.bfloat16()):
        for _ in range(3):
            launch(x, Y)
        scale[grid](x, Y, *numbers, **constants)
        first, *later, tritons = [addresses(arguments) for arguments in gpu.launched]
        assert first == tritons
        assert later == [tritons, tritons]
        gpu.launched.clear()


def test_only_the_first_launch_goes_through_triton(gpu: _Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(scale, (1,), 64, 0, 0.5, BLOCK=16)
    launch(X, Y)
    monkeypatch.setattr(triton.JITFunction, "run", None)
    launch(X[8:], Y)
    assert len(gpu.launched) == 2
    assert X[8:].data_ptr() in gpu.launched[1]
    for tensors in ((X[1:], Y), (X, Y[1:]), (X.double(), Y)):
        with pytest.raises(TypeError, match="NoneType"):
            launch(*tensors)


def test_kernels_are_compiled_at_the_same_time_and_none_is_launched(
    gpu: _Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = [Launch(scale, (1,), 64, 0, 0.5, BLOCK=block) for block in (16, 32, 64)]
    alike = Launch(scale, (3,), 128, 0, 0.25, BLOCK=16)
    all_at_once, compile_one = threading.Barrier(len(launches), timeout=30), Launch.compile

    def compile_at_once(launch: Launch, *given: Any) -> None:
        all_at_once.wait()
        compile_one(launch, *given)

    monkeypatch.setattr(Launch, "compile", compile_at_once)
    compile_together(lambda: [launch(X[1:], Y) for launch in (*launches, *launches, alike)])
    assert gpu.launched == []
    with monkeypatch.context() as patched:
        patched.setattr(triton.JITFunction, "_do_compile", None)
        for launch in (*launches, alike):
            launch(X[1:], Y)
    assert len(gpu.launched) == 4
    with pytest.raises(ZeroDivisionError):
        compile_together(lambda: 1 / 0)
    launches[0](X[1:], Y)
    assert len(gpu.launched) == 5


def test_a_kernel_that_does_not_compile_is_told(gpu: _Driver) -> None:
    launches = [Launch(scale, (1,), 64, 0, 0.5, BLOCK=block) for block in (16, 17)]
    with pytest.raises(Exception, match="power of 2"):
        compile_together(lambda: [launch(X, Y) for launch in launches])


def test_launches_elsewhere_go_on_while_kernels_are_gathered(gpu: _Driver) -> None:
    launch = Launch(scale, (1,), 64, 0, 0.5, BLOCK=16)

    def in_another_thread() -> None:
        other = threading.Thread(target=launch, args=(X, Y))
        other.start()
        other.join()

    compile_together(in_another_thread)
    assert len(gpu.launched) == 1


def test_kernels_are_the_current_gpus_and_run_on_its_current_stream(gpu: _Driver) -> None:
    launch = Launch(scale, (1,), 64, 0, 0.5, BLOCK=16)
    for device, stream in ((0, 7), (0, 8), (1, 9), (1, 9), (0, 7)):
        gpu.device, gpu.stream = device, stream
        launch(X, Y)
    streams, functions = zip(*[arguments[3:5] for arguments in gpu.launched], strict=True)
    assert streams == (7, 8, 9, 9, 7)
    assert functions == (100, 100, 101, 101, 100)


def test_hooks_see_every_launch(gpu: _Driver) -> None:
    launch, seen = Launch(scale, (1,), 64, 0, 0.5, BLOCK=16), []

    def watch(*arguments: Any, **options: Any) -> None:
        seen.append(arguments)

    launch(X, Y)
    knobs.runtime.launch_enter_hook.add(watch)
    try:
        launch(X, Y)
        assert gpu.launched[-1][7].calls == [watch]
    finally:
        knobs.runtime.launch_enter_hook.remove(watch)
    scale.add_pre_run_hook(watch)
    try:
        launch(X, Y)
        assert len(seen) == 1
    finally:
        scale.pre_run_hooks.clear()
    launch(X, Y)
    assert (len(seen), len(gpu.launched)) == (1, 4)


def test_what_triton_did_not_compile_is_not_remembered(gpu: _Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(scale, (1,), 64, 0, 0.5, BLOCK=16)
    with monkeypatch.context() as patched:
        patched.setattr(knobs.runtime, "jit_cache_hook", lambda **_: True)
        launch(X, Y)
    assert gpu.launched == []
    launch(X, Y)
    assert len(gpu.launched) == 1


def test_what_triton_does_not_compile_is_called_each_time() -> None:
    class Interpreted:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **constants: self.calls.append((grid, arguments, constants))

    kernel = Interpreted()
    launch = Launch(kernel, (2, 3), 5, BLOCK=16)
    launch(X)
    launch(Y)
    assert kernel.calls == [((2, 3), (X, 5), {"BLOCK": 16}), ((2, 3), (Y, 5), {"BLOCK": 16})]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnTheGpu:
    """The same launches for real: every call scales what it is given, wherever and whenever."""

    launch = Launch(scale, (4,), 64, 0, 1.0, BLOCK=16)

    def scaled(self, x: Tensor) -> Tensor:
        y = torch.full((64,), torch.nan, device=x.device)
        self.launch(x, y)
        return y

    @pytest.mark.parametrize("shift", [0, 1, 2, 4, 7])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_other_tensors_of_any_alignment(self, shift: int, dtype: torch.dtype) -> None:
        for _ in range(3):
            x = torch.randn(80, device="cuda").to(dtype)[shift : shift + 64]
            assert torch.equal(self.scaled(x), x.float() / 2)

    def test_streams_and_threads(self) -> None:
        def work() -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    torch.cuda._sleep(100_000)
                    x = torch.randn(64, device="cuda")
                    right.append(torch.equal(self.scaled(x), x / 2))

        right: list[bool] = []
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 80

    def test_a_captured_graph(self) -> None:
        x = torch.randn(64, device="cuda")
        self.scaled(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = self.scaled(x)
        for _ in range(2):
            x.copy_(torch.randn(64, device="cuda"))
            graph.replay()
            assert torch.equal(y, x / 2)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_another_gpu(self) -> None:
        for device in ("cuda:0", "cuda:1", "cuda:0"):
            x = torch.randn(64, device=device)
            with torch.cuda.device(device):
                assert torch.equal(self.scaled(x), x / 2)


def test_the_kernel_that_measures_exponentials_keeps_them() -> None:
    signature = {"out": "*fp32", "ROUNDS": "constexpr", "BLOCK": "constexpr"}
    source = ASTSource(exponentials, signature, {"ROUNDS": 64, "BLOCK": 1024})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert "ex2.approx" in compiled.asm["ptx"]
