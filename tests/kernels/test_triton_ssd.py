"""SSD's GPU kernels against the recurrence: on a GPU, or interpreted on the CPU in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_comparison import (
    DESIGN,
    DEVICE,
    GPU,
    INTERPRETED,
    MARKS,
    TOLERANCE,
    TOLERANCE_OF_FEW,
    Inputs,
    compare,
    draw,
    segments,
)

from mamba_kernels import ssd
from mamba_kernels.errors import BackendError, KernelInputError

# Where kernels are interpreted chunks have 16 positions, and a sequence of this length is cut into parts.
IN_PARTS = 140
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if GPU else [torch.float32, torch.bfloat16]


@pytest.mark.skipif(INTERPRETED or GPU, reason="the kernels run in this very process")
def test_the_interpreted_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    files = [Path(__file__), Path(__file__).with_name("test_triton_ssd_route.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture(autouse=True)
def _small_problems_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU there is one processor, and only problems of a program or two would be cut into parts."""
    if INTERPRETED:
        from mamba_kernels.ssd import triton_plan

        monkeypatch.setattr(triton_plan, "PROGRAMS_WANTED", 8)
        monkeypatch.setattr(triton_plan, "SHORTEST_PART", 48)


def ssd_case(
    dtype: torch.dtype,
    *,
    batch: int = 2,
    length: int = 21,
    heads: int = 4,
    width: int = 8,
    groups: int = 2,
    states: int = 5,
    softplus: bool = True,
    D: int = 2,
    z: bool = True,
    bias: bool = True,
    state: bool = True,
    last_state: bool = True,
    seq_idx: bool = False,
    reverse: bool = False,
    dt_limit: tuple[float, float] = (0.05, 1.5),
) -> tuple[Inputs, dict[str, Any]]:
    """Return SSD's tensors, and its other arguments; ``D`` is the number of the skip weights' dimensions."""
    dt = draw(dtype, batch, length, heads) * 0.5
    inputs = {
        "x": draw(dtype, batch, length, heads, width),
        "dt": dt - 1 if softplus else dt.abs(),
        "A": -draw(torch.float32, heads).abs() - 0.1,
        "B": draw(dtype, batch, length, groups, states),
        "C": draw(dtype, batch, length, groups, states),
        "D": draw(torch.float32, *(heads, width)[:D]) if D else None,
        "z": draw(dtype, batch, length, heads, width) if z else None,
        "dt_bias": draw(torch.float32, heads) * 0.1 if bias else None,
        "initial_states": draw(torch.float32, batch, heads, width, states) if state else None,
    }
    ids = segments(batch, length, reverse) if seq_idx else None
    options = {"dt_softplus": softplus, "dt_limit": dt_limit, "return_final_states": last_state}
    return inputs, {**options, "reverse": reverse, "seq_idx": ids}


CASES: dict[str, dict[str, Any]] = {
    "plain": {"D": 0, "z": False, "bias": False, "state": False, "softplus": False, "last_state": False},
    "everything": {"seq_idx": True, "reverse": True},
    "one_step": {"length": 1},
    "odd": {"length": 63, "heads": 2, "groups": 1},
    "one_group": {"groups": 1, "D": 1, "length": 19},
    "group_each": {"groups": 4, "length": 16},
    "wide_heads": {"width": 70, "states": 20, "heads": 2, "length": 17, "D": 1},
    "wide_heads_D": {"width": 70, "states": 40, "heads": 2, "length": 5},
    "parts": {"length": IN_PARTS, "batch": 1, "heads": 2, "groups": 1, "seq_idx": True, "reverse": True},
}
LARGE_CASES: dict[str, dict[str, Any]] = {
    "mamba": {"length": 300, "heads": 8, "width": 64, "groups": 1, "states": 128, "D": 1, "z": False},
    "mamba_gated": {"length": 100, "heads": 6, "width": 64, "groups": 2, "states": 64, "seq_idx": True},
    "small": {"length": 63, "heads": 24, "width": 32, "groups": 1, "states": 16, "state": False, "last_state": False},
    "large_state": {"length": 300, "heads": 4, "width": 64, "groups": 1, "states": 256},
    "large_head": {"length": 150, "heads": 2, "width": 128, "groups": 1, "states": 128, "reverse": True},
    "long": {"length": 4096, "heads": 8, "width": 64, "groups": 1, "states": 128, "seq_idx": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", {**CASES, **(LARGE_CASES if GPU else {})})
@pytest.mark.usefixtures("_seed")
class TestSsd:
    pytestmark = MARKS

    def test_output_states_and_every_gradient(self, case: str, dtype: torch.dtype) -> None:
        if INTERPRETED and dtype == torch.bfloat16 and case != "everything":
            pytest.skip("interpreted, half precision differs in its loads and stores alone")
        inputs, options = ssd_case(dtype, **{**CASES, **LARGE_CASES}[case])
        tolerance = (TOLERANCE_OF_FEW if case in ("one_step", "large_head") else TOLERANCE)[dtype]
        compare(ssd, inputs, dtype, tolerance=tolerance, **options)


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("parts", [2, 8, 19])
@pytest.mark.usefixtures("_seed")
class TestCarriedStates:
    pytestmark = MARKS

    def test_states_are_carried_over_parts_both_ways(self, parts: int, starts: bool) -> None:
        from mamba_kernels.ssd.triton_states import carry_states

        batch, heads, blocks, states, width = 2, 3, 2, 5, 20
        first, last = (torch.randn(batch, heads, width, states, device=DEVICE) for _ in range(2))
        decays = torch.rand(batch, parts, heads, device=DEVICE)
        ends = torch.zeros(2, batch, parts, heads, blocks * 16, 16, device=DEVICE)
        ends[..., :width, :states] = torch.randn(2, batch, parts, heads, width, states, device=DEVICE)
        # A block of channels at a time, each (states, channels).
        ends = ends.unflatten(-2, (blocks, 16)).mT.contiguous()
        true = ends.double()
        for direction, state in enumerate((first, last)):
            running = torch.zeros_like(true[0, :, 0])
            if starts:
                padded = torch.zeros(batch, heads, blocks * 16, 16, dtype=torch.float64, device=DEVICE)
                padded[..., :width, :states] = state
                running = padded.unflatten(-2, (blocks, 16)).mT
            for part in range(parts)[:: -1 if direction else 1]:
                added, decay = true[direction, :, part].clone(), decays[:, part, :, None, None, None]
                true[direction, :, part] = running
                running = decay * running + added
        carry_states[(batch * heads * blocks, 1, 2)](
            first, last, ends, decays, heads, width, states, parts, ends[0].numel(), HAS_ENTERING=starts,
            HAS_DLEAVING=starts, N_PAD=16, BLOCK=16, BLOCKS=blocks, ROWS=16, num_warps=1,
        )  # fmt: skip
        torch.testing.assert_close(ends.double(), true, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("_seed")
class TestOptions:
    pytestmark = MARKS

    @pytest.mark.parametrize("row", range(len(DESIGN)))
    def test_options_in_pairs(self, row: int) -> None:
        chosen = dict(DESIGN[row])
        sizes = {"batch": 1, "heads": 2, "width": 3, "states": 4}
        length = IN_PARTS if chosen.pop("in_parts") else 21
        groups, D = 2 if chosen.pop("B_differs") else 1, 1 + chosen.pop("C_differs")
        inputs, options = ssd_case(
            torch.float32, length=length, groups=groups, **{**sizes, **chosen, "D": D * chosen["D"]}
        )
        compare(ssd, inputs, torch.float32, **options)

    def test_gradients_of_the_final_states_alone(self) -> None:
        inputs, arguments = ssd_case(torch.float32, z=False, D=0, seq_idx=True)

        def final_states(**tensors: Any) -> Tensor:
            # The states do not depend on C, whose gradient this keeps in the graph.
            return ssd(**tensors, **arguments)[1] + 0 * tensors["C"].sum()

        compare(final_states, inputs, torch.float32)

    def test_huge_steps_amid_ordinary_ones_are_resets(self) -> None:
        inputs, options = ssd_case(torch.float32, length=35, softplus=False, bias=False, dt_limit=(0.0, 100.0))
        inputs["A"][:2] = -1e4
        inputs["A"][2] = -1.7
        inputs["dt"] *= 0.2
        inputs["dt"][..., :2] *= 1e-4
        inputs["dt"][:, ::9] = 50.0
        compare(ssd, inputs, torch.float32, **options)

    def test_steps_just_above_a_reset_cost_no_precision(self) -> None:
        inputs, options = ssd_case(torch.float32, length=32, heads=2, softplus=False, bias=False, dt_limit=(0.0, 100.0))
        inputs["A"].fill_(-1.0)
        inputs["dt"][:, :20] = 79.0
        inputs["dt"][:, 20:] = 1e-3
        compare(ssd, inputs, torch.float32, **options)

    def test_any_strides(self) -> None:
        inputs, options = ssd_case(torch.float32, length=20, groups=2)
        inputs["x"] = inputs["x"].permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
        inputs["dt"] = inputs["dt"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
        inputs["B"] = torch.cat([inputs["B"]] * 2, dim=-1)[..., ::2]
        inputs["C"] = inputs["C"][:, :1].expand_as(inputs["C"])
        inputs["z"] = inputs["z"].flip(0).mT.contiguous().mT
        inputs["D"] = inputs["D"].t().contiguous().t()
        inputs["initial_states"] = inputs["initial_states"].mT.contiguous().mT
        compare(ssd, inputs, torch.float32, **options)

    def test_gradients_of_any_layout_come_in(self) -> None:
        inputs, options = ssd_case(torch.float32, length=9, last_state=False)
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}
        y = ssd(**leaves, **options, backend="triton")

        def gradients(dy: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, [*leaves.values()], dy, retain_graph=True)

        for dy in (torch.ones((), device=DEVICE).expand(y.shape), draw(torch.float32, *y.shape).mT.contiguous().mT):
            assert all(map(torch.equal, gradients(dy), gradients(dy.contiguous())))

    def test_what_stands_in_padding_reaches_nothing(self) -> None:
        inputs, options = ssd_case(torch.float32, reverse=True, seq_idx=True)
        padding = options["seq_idx"] < 0
        wanted = ssd(**inputs, **options, backend="triton")
        for name in ("x", "dt", "z", "B", "C"):
            inputs[name][padding] = float("nan")
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}
        y, state = ssd(**leaves, **options, backend="triton")
        assert torch.equal(y, wanted[0])
        assert torch.equal(state, wanted[1])
        dy = torch.ones_like(y)
        dy[padding] = float("nan")
        gradients = dict(zip(leaves, torch.autograd.grad([y, state], [*leaves.values()], [dy, state]), strict=True))
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert not any(gradients[name][padding].any() for name in ("x", "dt", "z", "B", "C"))

    def test_mixed_dtypes_and_outputs_of_others(self) -> None:
        inputs, options = ssd_case(torch.float32, length=12, last_state=False)
        for name, dtype in {"x": torch.bfloat16, "dt": torch.bfloat16, "A": torch.float16, "C": torch.bfloat16}.items():
            inputs[name] = inputs[name].to(dtype)
        inputs["initial_states"] = inputs["initial_states"].bfloat16()
        compare(ssd, inputs, torch.bfloat16, **options)
        exact = {name: x.double() for name, x in inputs.items()}
        wanted = ssd(**exact, **options, backend="reference")
        for out_dtype in (torch.float32, torch.float64):
            y = ssd(**inputs, **options, out_dtype=out_dtype, backend="triton")
            assert y.dtype == out_dtype
            torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))

    def test_results_repeat_bit_for_bit(self) -> None:
        inputs, options = ssd_case(torch.bfloat16, length=IN_PARTS if GPU else 21, seq_idx=True)
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}

        def run() -> tuple[Tensor, ...]:
            y, state = ssd(**leaves, **options, backend="triton")
            return y, state, *torch.autograd.grad(y.float().sum() + state.sum(), [*leaves.values()])

        assert all(map(torch.equal, run(), run()))

    def test_registered_operators_keep_pytorchs_rules(self) -> None:
        from mamba_kernels.ssd.registered import registered_backward, registered_ssd

        inputs, options = ssd_case(torch.float32, length=3, heads=2, seq_idx=True)
        inputs["x"] = inputs["x"].mT.contiguous().mT
        *tensors, initial = inputs.values()
        arguments = (*tensors, True, 0.05, 1.5, initial, options["seq_idx"], False, torch.float32, True)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(registered_ssd, arguments, test_utils=checks)
        y, final, ungated = registered_ssd(*arguments)
        for dfinal in (final, None):
            torch.library.opcheck(
                registered_backward, (y.mT.contiguous().mT, dfinal, *arguments[:14], ungated), test_utils=checks
            )

    def test_compiled_whole_it_gives_the_same(self) -> None:
        inputs, options = ssd_case(torch.float32, length=9, heads=2)
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}

        def run(**tensors: Tensor) -> tuple[Tensor, ...]:
            y, state = ssd(**{**tensors, "x": tensors["x"] * 2}, **options, backend="triton")
            return y.sin(), state

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for found, wanted in zip(
            *((y, s, *torch.autograd.grad(y.sum() + s.sum(), [*leaves.values()]))
              for y, s in (compiled(**leaves), run(**leaves))), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(found, wanted)

    @pytest.mark.parametrize("half", [False, True])
    def test_configurations_are_checked_and_wrong_results_found(
        self, half: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mamba_kernels.ssd import triton_choices, triton_launch

        inputs, _ = ssd_case(torch.float32, length=3, heads=2, seq_idx=True, reverse=True)
        x, *rest, _ = inputs.values()
        shapes = triton_choices._class(x, x, *rest, True, True, True, True, True, torch.float32)
        if half:
            shapes = shapes._replace(
                wide=True, layouts="aodoa", **dict.fromkeys(("A", "D", "z", "bias"), "torch.bfloat16")
            )
        device, chosen = torch.device(DEVICE), (triton_choices.INTERPRETED,) * 3
        checks = {
            "forward": lambda: triton_choices._check_forward(shapes, chosen[:2], device),
            "backward": lambda: triton_choices._check_backward(shapes, chosen, device),
        }
        for name, check in checks.items():
            with torch.no_grad():  # As whoever chooses calls it.
                assert check()
            right = getattr(triton_launch, name)

            def wrong(*arguments: Any, right: Any = right) -> tuple[Tensor, ...]:
                return tuple(x * 1.001 for x in right(*arguments))

            monkeypatch.setattr(triton_launch, name, wrong)
            assert not check()

    def test_the_second_derivative_names_the_switch(self) -> None:
        inputs, options = ssd_case(torch.float32, length=3, last_state=False)
        x = inputs["x"].requires_grad_()
        (dx,) = torch.autograd.grad(ssd(**inputs, **options, backend="triton").sum(), x, create_graph=True)
        with pytest.raises(BackendError, match="backend='reference'"):
            torch.autograd.grad(dx.sum(), x)

    def test_an_empty_batch_is_empty(self) -> None:
        inputs, options = ssd_case(torch.float32, length=3, heads=2)
        leaves = {
            name: (x[:0] if name in ("x", "dt", "B", "C", "z", "initial_states") else x).detach().requires_grad_()
            for name, x in inputs.items()
        }
        y, state = ssd(**leaves, **options, backend="triton")
        assert (y.shape[0], state.shape[0]) == (0, 0)
        gradients = torch.autograd.grad(y.sum() + state.sum(), [*leaves.values()])
        assert not any(gradient.any() for gradient in gradients)

    def test_what_the_kernels_cannot_do_is_refused(self) -> None:
        inputs, options = ssd_case(torch.float32, length=3, states=257, state=False)
        with pytest.raises(KernelInputError, match="states N up to 256, got 257"):
            ssd(**inputs, **options, backend="triton")
        inputs, options = ssd_case(torch.float64, length=3)
        with pytest.raises(KernelInputError, match="computes in float32"):
            ssd(**inputs, **options, backend="triton")
