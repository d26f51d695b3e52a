"""SSD: the chunked form against the recurrence, and what its arguments mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_kernels import BackendError, KernelInputError, ssd
from mamba_kernels.ssd import cpu

B, H, P, G, N = 2, 4, 3, 2, 5
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")


def inputs(length: int, dtype: torch.dtype = torch.float64, groups: int = G, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    return {
        "x": draw(B, length, H, P),
        "dt": draw(B, length, H),
        "A": -draw(H).abs() - 0.01,
        "B": draw(B, length, groups, N),
        "C": draw(B, length, groups, N),
        "D": draw(H, P),
        "z": draw(B, length, H, P),
        "dt_bias": draw(H),
        "initial_states": draw(B, H, P, N),
    }


def segments(length: int) -> Tensor:
    """Three segments with padding between and in the middle of them, where there is room for them."""
    ids = torch.zeros(B, length, dtype=torch.int32)
    ids[:, length // 5 : length // 2] = 1
    ids[:, length // 2 :] = 7
    ids[1, length // 3 : length // 3 + 4] = -1
    ids[0, length - length // 8 :] = -1
    return ids


def results(given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Return the output, the final states and every gradient for fixed cotangents."""
    tracked = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y, final = ssd(**tracked, return_final_states=True, **options)
    random = torch.Generator().manual_seed(9)
    cotangents = [torch.randn(out.shape, generator=random, dtype=torch.float64).to(out.dtype) for out in (y, final)]
    gradients = torch.autograd.grad([y, final], list(tracked.values()), cotangents)
    return {"y": y, "final_states": final, **{f"grad.{n}": g for n, g in zip(tracked, gradients, strict=True)}}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], part: float) -> None:
    for name, wanted in expected.items():
        assert found[name].dtype == wanted.dtype, name
        error = float((found[name] - wanted).detach().abs().max())
        # What is smaller than any float32 with all its digits counts as nothing.
        assert error <= part * float(wanted.detach().abs().max()) + 1e-30, f"{name}: off by {error:.2g}"


@pytest.mark.parametrize("length", [1, 63, 100, 300])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "part"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_chunks_equal_the_recurrence(length: int, packed: bool, reverse: bool, dtype: torch.dtype, part: float) -> None:
    given = inputs(length, dtype)
    options = {"seq_idx": segments(length) if packed else None, "reverse": reverse, "dt_softplus": True}
    expected = results(given, backend="reference", **options)
    for chunk_size in (None, 17) if length > 1 else (None,):
        assert_same(results(given, chunk_size=chunk_size, **options), expected, part)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.3, 1.0)])
@pytest.mark.parametrize("softplus", [False, True])
def test_groups_and_limits(groups: int, limit: tuple[float, float], softplus: bool) -> None:
    given = inputs(70, groups=groups)
    del given["z"], given["initial_states"]
    given["D"] = given["D"][:, 0]
    options = {"dt_softplus": softplus, "dt_limit": limit}
    assert_same(results(given, **options), results(given, backend="reference", **options), 1e-11)


@pytest.mark.parametrize("chunk_size", [1, 2, 64, 99, 100, 10_000])
def test_the_chunk_size_does_not_matter(chunk_size: int) -> None:
    given = inputs(100)
    assert_same(results(given, chunk_size=chunk_size), results(given), 1e-11)


@pytest.mark.parametrize(("dtype", "part"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_huge_steps_amid_ordinary_ones_are_resets(dtype: torch.dtype, part: float) -> None:
    given = inputs(150, dtype)
    given["A"][:2] = -1e4
    given["A"][2] = -1.5
    # Under those rates the other steps are small enough for the state to last.
    given["dt"][..., :2] = given["dt"][..., :2].abs() * 1e-5
    del given["dt_bias"]
    given["dt"][:, ::9] = 50.0
    expected = results(given, backend="reference")
    assert all(x.isfinite().all() for x in expected.values())
    assert_same(results(given), expected, part)


def test_steps_just_above_a_reset_cost_no_precision() -> None:
    given = inputs(64, torch.float32)
    given["A"].fill_(-1.0)
    given["dt"][:, :40] = 79.0
    given["dt"][:, 40:] = 1e-3
    exact = results({name: x.double() for name, x in given.items()}, backend="reference")
    assert_same({name: x.double() for name, x in results(given).items()}, exact, 1e-6)


def test_a_state_carries_the_sequence_on() -> None:
    given = inputs(90)
    whole, final = ssd(**given, return_final_states=True)
    parts, state = [], given.pop("initial_states")
    for part in (slice(0, 41), slice(41, 42), slice(42, 90)):
        cut = {name: x[:, part] if name in ("x", "dt", "B", "C", "z") else x for name, x in given.items()}
        y, state = ssd(**cut, initial_states=state, return_final_states=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_padding_reaches_nothing(backend: str) -> None:
    given = inputs(30)
    ids = segments(30)
    clean = results(given, backend=backend, seq_idx=ids, dt_softplus=True)
    for name in ("x", "dt", "B", "C", "z"):
        given[name][ids < 0] = float("nan")
    found = results(given, backend=backend, seq_idx=ids, dt_softplus=True)
    for name, x in found.items():
        assert torch.equal(x, clean[name]), name
    for name in ("y", "grad.x", "grad.dt", "grad.B", "grad.C", "grad.z"):
        assert not found[name][ids < 0].any(), name


def test_long_sequences_compute_chunks_anew_for_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    given, saved = inputs(200), []

    def stored() -> int:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            saved.clear()
            tracked = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
            ssd(**tracked, chunk_size=50)
            return sum(saved)

    expected, all_of_it = results(given, chunk_size=50), stored()
    monkeypatch.setattr(cpu, "STORED_PAIRS", 100)
    assert_same(results(given, chunk_size=50), expected, 1e-13)
    assert stored() < all_of_it / 3


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_derivatives_are_right_to_second_order(backend: str) -> None:
    given = inputs(5)
    tensors = [given[name].requires_grad_() for name in NAMES]

    def run(*tensors: Tensor) -> Any:
        named = dict(zip(NAMES, tensors, strict=True))
        return ssd(**named, chunk_size=2, dt_softplus=True, return_final_states=True, backend=backend)

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_layouts_and_dtypes() -> None:
    given = inputs(20, torch.float32)
    expected = ssd(**given)
    x = given.pop("x").permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    given["B"] = given["B"][:, :1].expand(-1, 20, -1, -1)
    given["C"] = torch.cat([given["C"]] * 2, dim=-1)[..., :N]
    y = ssd(x, **given)
    assert y.stride() == x.stride()
    assert y.shape == expected.shape
    half, final = ssd(x.bfloat16(), **given, return_final_states=True)
    assert half.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert ssd(x.bfloat16(), **given, out_dtype=torch.float32).dtype == torch.float32
    torch.testing.assert_close(half.float(), y, rtol=0.05, atol=0.05)


def test_autocast_rounds_the_inputs_and_nothing_else() -> None:
    given = inputs(40, torch.float32)
    rounded = {name: x.bfloat16() if name in ("x", "dt", "B", "C", "z") else x for name, x in given.items()}
    for backend in ("cpu", "reference"):
        expected = ssd(**rounded, dt_softplus=True, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ssd(**given, dt_softplus=True, backend=backend), expected)


def test_compiled_and_exported() -> None:
    given = inputs(20, torch.float32)

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            named = dict(zip(NAMES, tensors, strict=True))
            return ssd(**named, chunk_size=8, dt_softplus=True, return_final_states=True)

    tensors = tuple(given[name] for name in NAMES)
    expected = Module()(*tensors)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Module(), tensors).module()
    for found in (compiled(*tensors), exported(*tensors)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(B, 6, H)}, r"x must have shape \(B, L, H, P\), got"),
        ({"x": torch.zeros(B, 0, H, P)}, "L, H and P must be at least 1"),
        ({"dt": torch.zeros(B, 6, H + 1)}, r"dt must have shape \(B, L, H\)"),
        ({"A": torch.zeros(H, N)}, r"A must have shape \(H,\)"),
        ({"B": torch.zeros(B, 6, N)}, r"B must have shape \(B, L, G, N\)"),
        ({"C": torch.zeros(B, 6, G, N + 1)}, r"C must have shape \(B, L, G, N\)"),
        ({"B": torch.zeros(B, 6, 3, N), "C": torch.zeros(B, 6, 3, N)}, "must divide the H = 4 heads"),
        ({"D": torch.zeros(P)}, r"D must have shape \(H,\)"),
        ({"D": torch.zeros(H, P + 1)}, r"D must have shape \(H, P\)"),
        ({"z": torch.zeros(B, 6, H)}, r"z must have shape \(B, L, H, P\)"),
        ({"dt_bias": torch.zeros(H, P)}, r"dt_bias must have shape \(H,\)"),
        ({"initial_states": torch.zeros(B, H, N, P)}, r"initial_states must have shape \(B, H, P, N\)"),
        ({"seq_idx": torch.zeros(B, 6)}, "seq_idx must be int32"),
        ({"seq_idx": torch.zeros(B, 5, dtype=torch.int32)}, r"seq_idx must have shape \(B, L\)"),
        ({"x": torch.zeros(B, 6, H, P, dtype=torch.int64)}, "x must be a real floating point tensor"),
        ({"dt": torch.zeros(B, 6, H, device="meta")}, "dt must be on cpu"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"dt_limit": (1.0, 0.5)}, "dt_limit must be"),
        ({"dt_limit": (-1.0, 0.5)}, "dt_limit must be"),
        ({"out_dtype": torch.int32}, "out_dtype must be a real floating point dtype"),
    ],
    ids=str,
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        ssd(**{**inputs(6, torch.float32), **change})


def test_gpu_kernels_are_refused_on_a_cpu_with_the_remedy() -> None:
    with pytest.raises(BackendError, match=r"'triton' was asked for tensors on the CPU; move them to a GPU"):
        ssd(**inputs(6), backend="triton")
