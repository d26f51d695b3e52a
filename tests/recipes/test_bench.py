"""`mamba-apps bench`: what is compared with what, without a GPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_datasets.volumes import NetworkPlan
from mamba_recipes import bench
from mamba_recipes.bench import against, gpu
from mamba_recipes.bench.gpu import audio, cases, models, stack, volumes
from mamba_recipes.bench.gpu.each import chosen
from mamba_recipes.bench.gpu.measure import TOLERANCE, worst_error
from mamba_recipes.bench.gpu.problem import Problem

SMALL = {
    "scan": partial(cases._scan, "channel last", 3, 6, 9, 4),
    "scan, length last": partial(cases._scan, "length last", 3, 6, 9, 4),
    "ssd": partial(cases._ssd, 3, 9, 6, 4, 5),
    "attention": partial(cases._attention, 3, 9, 6, 4),
    "cross scan": partial(cases._cross_scan, 3, 4, 6, 2),
    "convolution": partial(cases._convolution, "channel last", 3, 6, 9),
    "scan from both ends": partial(cases._scan_from_both_ends, 3, 6, 9, 4, 2),
    "both convolutions": partial(cases._both_convolutions, 3, 6, 9),
    "depthwise": partial(cases._depthwise, 3, 4, 5, 6),
    "depthwise in 3-D": partial(cases._depthwise, 3, 4, 5, 4, 6),
    "rms norm": partial(cases._rms_norm, 7, 6),
    "layer norm": partial(cases._layer_norm, 7, 6),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SMALL)
def test_operators_and_rivals_agree_with_the_reference(name: str) -> None:
    problem = SMALL[name]()
    for by, operator in {"ours": problem.operator, **problem.rivals}.items():
        error, where = worst_error(problem, operator)
        assert error <= TOLERANCE, (by, where)
    moved = sum(x.nbytes for x in problem.inputs.values())
    outputs = problem.operator(**problem.inputs)
    moved += sum(y.nbytes for y in ((outputs,) if isinstance(outputs, Tensor) else outputs))
    assert problem.bytes_moved == moved
    assert moved <= problem.backward_bytes <= 2 * moved


def test_the_associative_form_of_a_long_scan_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "LONGEST_STEPWISE", 8)
    problem = SMALL["scan"]()
    assert problem.reference is cases._scan_at_once
    assert worst_error(problem, problem.operator)[0] <= TOLERANCE


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1.05 * gradient


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda problem, **x: problem.operator(**x) * 1.05, "output 0"),
        (lambda problem, **x: problem.operator(**{**x, "D": _ScaledGradient.apply(x["D"])}), "dD"),
        (lambda problem, **x: problem.operator(**x).masked_fill(torch.arange(9) == 5, torch.nan), "output 0"),
    ],
    ids=["output", "gradient", "not finite"],
)
def test_a_wrong_result_is_found(spoil: Any, where: str) -> None:
    problem = SMALL["scan"]()
    error, found = worst_error(problem, partial(spoil, problem))
    assert error > 4 * TOLERANCE
    assert found == where or error == float("inf")


def test_every_case_has_a_name_of_its_own_and_can_be_asked_for() -> None:
    labels = [case.label() for case in cases.all_cases()]
    assert len(set(labels)) == len(labels)
    named = {case.label(): case for case in cases.all_cases()}
    found = chosen(named, ["SELECTIVE_SCAN vim channel"])
    assert {case.name for case in found.values()} == {"Vim-S, 224 px", "Vim-Ti, 1248 px"}
    found = chosen(named, ["8,2048,2048 width length last", "401408,96 layer"])
    assert [case.op for case in found.values()] == ["causal_conv1d", "layer_norm"]
    assert chosen(named, []) == named
    for run in (
        lambda: gpu.run(print, ["nothing"]),
        lambda: stack.run(print, ["nothing"]),
        lambda: models.run(print, ["nothing"]),
        lambda: audio.run(print, ["nothing"]),
        lambda: volumes.run(print, ["nothing"]),
    ):
        with pytest.raises(UserError, match="--only nothing matches no case; there is "):
            run()


def test_rows_of_wrong_results_have_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> Problem:
        problem = SMALL["layer norm"]()
        right = problem.operator
        problem.operator = lambda **x: right(**x) * 1.05
        problem.rivals["broken"] = lambda **x: 1 / 0
        return problem

    monkeypatch.setattr(gpu, "measure", lambda *_: dict.fromkeys(against.FIGURES, 1.0))
    case = cases.Case("layer_norm", "plain", (7, 6), "rows", build)
    said: list[str] = []
    ours, torchs, broken = gpu._rows(case, torch.device("cpu"), gpu.Ceilings(4e12, 4e12), said.append)
    assert "forward_ms" not in ours
    assert "forward_ms" in torchs
    assert broken["failure"] == "ZeroDivisionError: division by zero"
    (line,) = gpu.wrong([ours, torchs, broken])
    assert line.startswith("layer_norm plain [7, 6] rows: ")
    table = gpu.render([ours, torchs, broken]).splitlines()
    assert {row.count("|") for row in table} == {14}


def test_every_timed_model_is_in_the_registry_and_shown() -> None:
    for setting in models.SETTINGS:
        assert timm.is_model(setting.model)
    kernel = {"kernel": "a kernel", "calls": 3, "ms": 2.0}
    figures = {"ms": 10.0, "in_graphs_ms": 8.0, "peak_mib": 2048.0, "gpu_ms": 8.0, "kernels": [kernel]}
    row = {"case": "vim", "shape": [128, 224], "parameters": 7_000_000}
    row |= {f"{mode}_{name}": value for mode in ("training", "inference") for name, value in figures.items()}
    text = models.render([row])
    assert "| vim | 128, 224 | 7.0 | 12,800 | 80% | 16,000 | 12,800 | 80% | 16,000 | 2.0 |" in text
    assert "25.0%     2.00 ms     3 x  a kernel" in text


def test_every_timed_network_of_volumes_trains_and_is_shown() -> None:
    plan = NetworkPlan((4, 8, 8), (4, 8), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,))
    for setting in volumes.SETTINGS:
        train, parameters = volumes.training(setting, plan, torch.device("cpu"))
        first = float(train().detach())
        assert parameters > 0
        assert float(train().detach()) != first
    kernel = {"kernel": "scan_backward", "calls": 12, "ms": 2.0}
    figures = {"ms": 10.0, "peak_mib": 2048.0, "gpu_ms": 8.0, "scans_ms": 3.0, "kernels": [kernel]}
    row = {"case": "umamba_enc", "shape": [2, 4, 8, 8], "parameters": 7_000_000}
    text = volumes.render([row | {f"training_{name}": value for name, value in figures.items()}])
    assert "| umamba_enc | 2, 4 x 8 x 8 | 7.0 | 10.0 | 80% | 3.0 | 2.0 |" in text
    assert "umamba_enc, a training step: 8.0 ms on the GPU" in text


def test_sound_models_are_timed_over_clip_lengths_shown_and_drawn(tmp_path: Path) -> None:
    sizes = audio.Sizes(("aum_nano_fobi", "ast_nano"), (0.5, 2), 2, (2,), (2, 1), 0.0)
    said: list[str] = []
    rows = audio.run(said.append, ["front end", "2 s"], sizes, device="cpu")
    assert said == ["aum_nano_fobi front end", "ast_nano front end", "aum_nano_fobi 2 s", "ast_nano 2 s"]
    assert rows[0]["max_abs_difference"] == 0
    assert all(row["training_ms"] > 0 for row in rows)
    figures = {"training_ms": 100.0, "training_peak_mib": 2048.0, "inference_ms": 50.0, "inference_peak_mib": 1024.0}
    kernels = {"training_gpu_ms": 80.0, "training_kernels": [{"kernel": "a kernel", "calls": 3, "ms": 20.0}]}
    rows[2] |= {"shape": [32, 10], **figures, **kernels}
    rows[3] = {key: rows[3][key] for key in ("op", "case", "shape")} | {"failure": "out of memory"}
    text = audio.render(rows)
    assert "| 10 s | 32 | aum_nano_fobi | 320.0 | 2.0 | 640.0 | 1.0 |" in text
    assert "| 2 s | 1 | ast_nano | out of memory |  | out of memory |  |" in text
    assert "25.0%    20.00 ms     3 x  a kernel" in text
    assert "of a training step of aum_nano_fobi; off the CPU's by 0.0e+00 at most" in text
    audio.draw(rows, tmp_path / "deep" / "audio.png")
    assert (tmp_path / "deep" / "audio.png").stat().st_size > 0


def test_stacks_run_forward_and_backward() -> None:
    for model, shape in ((stack.Vim(32, 2), (2, 9, 32)), (stack.VMamba(16, (1, 1)), (2, 4, 4, 16))):
        y = model(torch.randn(shape).bfloat16())
        gradients = torch.autograd.grad(y.float().sum(), list(model.parameters()))
        assert y.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)
    figures = dict.fromkeys(against.FIGURES, 2.0)
    row = {"case": "x", "shape": [128, 2], "target_inference": 1, "target_training": 2, **figures}
    assert "| 64000 |" in stack.render([row])


ROW = {
    "op": "scan",
    "case": "a",
    "shape": [2, 3],
    "layout": "rows",
    "by": "ours",
    "forward_ms": 1.0,
    "peak_extra_mib": 8,
}


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({}, []),
        ({"forward_ms": 1.09}, []),
        ({"forward_ms": 0.2, "peak_extra_mib": 2}, []),
        ({"forward_ms": 1.2}, ["forward_ms was 1, is 1.2"]),
        ({"peak_extra_mib": 20, "forward_ms": 2.0}, ["forward_ms was 1, is 2", "peak_extra_mib was 8, is 20"]),
        ({"by": "torch", "forward_ms": 9.0}, None),
        ({"shape": [2, 4]}, None),
    ],
)
def test_figures_are_held_against_saved_ones(change: dict[str, Any], worse: list[str] | None) -> None:
    if worse is None:
        with pytest.raises(UserError, match="none of these cases"):
            against.regressions([{**ROW, **change}], [ROW], 0.1)
        return
    lines = against.regressions([{**ROW, **change}], [ROW, {**ROW, "op": "other"}], 0.1)
    assert [line.split(": ", 1)[1] for line in lines] == worse


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_tolerances_are_parts_or_percentages(text: str, value: float) -> None:
    assert against.fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "ten", ""])
def test_other_tolerances_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--tolerance"):
        bench.main(["ops", "--tolerance", text])


DOCUMENT = {"bench": "ops", "device": "cpu", "environment": {"gpus": []}, "rows": [ROW]}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the next benchmark measures."""
    figures: dict[str, Any] = {"rows": [ROW], "wrong": []}

    def run(arguments: Any, document: dict[str, Any]) -> tuple[str, list[str]]:
        document["rows"] = figures["rows"]
        return "the table", figures["wrong"]

    monkeypatch.setattr(bench, "_run", run)
    return figures


def test_a_regression_and_a_wrong_result_are_exit_codes(
    measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "deep" / "saved.json"
    assert bench.main(["ops", "--out", str(saved)]) == 0
    assert bench.main(["ops", "--against", str(saved)]) == 0
    measured["rows"] = [{**ROW, "forward_ms": 1.2}]
    assert bench.main(["ops", "--against", str(saved), "--tolerance", "25%"]) == 0
    capsys.readouterr()
    assert bench.main(["ops", "--against", str(saved), "--json"]) == against.REGRESSION == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"] == measured["rows"]
    assert "forward_ms was 1, is 1.2" in err
    measured["wrong"] = ["scan: dA is off"]
    assert bench.main(["ops", "--against", str(saved)]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no saved benchmark"),
        ("[]", "is no saved benchmark"),
        ('{"rows": []}', "is no saved benchmark"),
        (json.dumps({**DOCUMENT, "bench": "stack"}), "is of `bench stack`"),
        (json.dumps({**DOCUMENT, "device": "cuda"}), "on cuda"),
    ],
)
def test_files_that_cannot_be_compared_with_are_refused_before_the_work(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_run", None)
    file = tmp_path / "saved.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        bench.main(["ops", "--against", str(file)])


def test_another_gpus_figures_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    document = {**DOCUMENT, "device": "cuda", "environment": {"gpus": ["A"]}}
    file.write_text(json.dumps(document))
    assert against.read_saved(file, document) == [ROW]
    with pytest.raises(UserError, match="measured on"):
        against.read_saved(file, {**document, "environment": {"gpus": ["B"]}})


@pytest.mark.parametrize(
    "words",
    [
        ["stack"],
        ["models"],
        ["audio"],
        ["volumes"],
        ["ops", "--only", "scan"],
        ["ops", "--threads", "0"],
        ["ops", "--device", "cuda"],
    ],
)
def test_what_cannot_run_here_is_refused(words: list[str]) -> None:
    if words[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="mamba-apps bench"):
        bench.main(words)
