"""`mamba-apps bench decode` and `scaling`, at toy sizes and without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_apps.errors import UserError
from mamba_recipes import bench
from mamba_recipes.bench import against
from mamba_recipes.bench.gpu import decode, language, scaling

TOY = decode.Sizes(16, 4, (1, 3), (2,), 12, 10, 200_000, 3)
SHORT = scaling.Sizes((32, 64), 2, 8, (32,))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2", "attention"])
def test_models_read_at_once_and_step_by_step(mixer: str) -> None:
    model = language.language_model(mixer, 32, 4)
    ids = torch.randint(256, (2, 9))
    with torch.no_grad():
        whole = model(ids).float()
        logits, states = model.prefill(ids[:, :6], model.init_state(2, max_length=9))
        found = [logits]
        for t in range(6, 8):
            logits, states = model.step(ids[:, t], states)
            found.append(logits)
    torch.testing.assert_close(
        torch.stack(found, 1).float(), whole[:, 5:8], rtol=0, atol=0.05 * float(whole.abs().max())
    )
    kinds = {name.rsplit(".", 1)[1]: p.dtype for name, p in model.named_parameters()}
    assert kinds["weight"] == torch.bfloat16
    assert kinds.get("A_log", torch.float32) == torch.float32


def test_the_transformer_is_as_large_as_mamba() -> None:
    sizes = {}
    with torch.device("meta"):
        for mixer in ("mamba1", "mamba2", "attention"):
            sizes[mixer] = sum(p.numel() for p in language.language_model(mixer, 768, 24).parameters())
    assert sizes["attention"] / sizes["mamba1"] == pytest.approx(1, abs=0.1)
    assert sizes["attention"] / sizes["mamba2"] == pytest.approx(1, abs=0.1)


def test_decoding_is_measured_and_checked() -> None:
    said: list[str] = []
    rows = decode.run(said.append, [], TOY, "cpu")
    assert len(said) == len(rows) == 3 * 2 + 3
    assert not decode.wrong(rows)
    assert len({(row["op"], row["case"], *row["shape"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["step_ms"] > 0
        assert not against.regressions([row], [row], 0.0) if row["by"] == "ours" else True
        if row["op"] == "decode":
            assert row["blocks"] * row["least_mb"] * 1e6 >= TOY.cache_bytes
        else:
            batch, prompt, new = row["shape"]
            assert (batch, prompt, new) == (2, 12, 10)
            total = row["prefill_ms"] + (new - 1) * row["step_ms"]
            assert row["tokens_per_second"] == pytest.approx(1e3 * batch * new / total)
    text = decode.render(rows)
    assert text.count("Mamba-2 block, 128 states") == 2
    assert text.count("\n| Transformer |") == 1
    assert [decode.run(print, ["TRANSFORMER"], TOY, "cpu")[0]["case"]] == ["Transformer"]
    (line,) = decode.wrong([{**rows[0], "error": float("inf")}, *rows[1:]])
    assert "Mamba-1 block" in line
    assert decode.wrong([{**rows[0], "error": float("nan")}])


def test_steps_that_forget_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = language.MambaLM.step

    def forget(self: Any, ids_B: torch.Tensor, states: Any) -> Any:
        logits, _ = right(self, ids_B, states)
        return logits, self.init_state(len(ids_B), max_length=99)

    monkeypatch.setattr(language.MambaLM, "step", forget)
    rows = decode.run(lambda _: None, ["generate mamba-1"], TOY, "cpu")
    assert decode.wrong(rows)


def test_a_block_whose_state_is_not_advanced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_apps.mixers import mamba1

    right = mamba1.selective_state_update
    monkeypatch.setattr(mamba1, "selective_state_update", lambda state, *a, **how: right(state.clone(), *a, **how))
    rows = decode.run(lambda _: None, ["decode mamba-1 1"], TOY, "cpu")
    assert decode.wrong(rows)


def test_lengths_are_measured_checked_and_drawn(tmp_path: Path) -> None:
    said: list[str] = []
    rows = scaling.run(said.append, [], SHORT, "cpu")
    assert len(rows) == len(said) == 10
    assert not scaling.wrong(rows)
    assert sum("error" in row for row in rows) == 5
    assert all(row["forward_ms"] > 0 and row["forward_backward_ms"] > 0 for row in rows)
    table = scaling.render([*rows, {"case": "scan", "shape": [1, 9, 2], "by": "ours", "failure": "out of memory"}])
    assert {line.count("|") for line in table.splitlines()} == {11}
    assert "out of memory" in table
    assert table.splitlines()[2].split("|")[4].strip() == "1.00"
    scaling.draw(rows, tmp_path / "deep" / "scaling.png")
    assert (tmp_path / "deep" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert [row["shape"][1] for row in scaling.run(print, ["ssd 64 128"], SHORT, "cpu")] == [64]
    assert scaling.wrong([{**rows[0], "error": 0.5, "error_in": "dA"}])
    assert not scaling.wrong([{**rows[4], "error": 0.5, "error_in": "dA"}]), "PyTorch's own"


def test_a_length_that_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scaling, "_measure", full)
    rows = scaling.run(lambda _: None, ["attention 64"], SHORT, "cpu")
    assert [row["failure"] for row in rows] == ["out of memory"]
    assert "inputs_mib" in rows[0]


def test_results_that_are_not_finite_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scaling.cases._attention

    def spoiled(*shape: int) -> Any:
        problem = made(*shape)
        problem.operator = lambda **x: x["query"] * float("nan")
        return problem

    monkeypatch.setattr(scaling.cases, "_attention", spoiled)
    rows = scaling.run(lambda _: None, ["attention 64"], SHORT, "cpu")
    assert "forward_ms" not in rows[0]
    assert "not finite" in scaling.wrong(rows)[0]


@pytest.mark.parametrize("module", [decode, scaling])
def test_what_matches_nothing_is_refused(module: Any) -> None:
    with pytest.raises(UserError, match="--only nothing matches no case"):
        module.run(print, ["nothing"])


@pytest.mark.parametrize(
    "words", [["decode"], ["scaling"], ["scaling", "--figure", "x.png"], ["ops", "--figure", "x.png"]]
)
def test_what_cannot_run_here_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="mamba-apps bench"):
        bench.main(words)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_run_on_a_gpu() -> None:
    sizes = TOY._replace(d_model=64)
    rows = decode.run(lambda _: None, [], sizes)
    assert not decode.wrong(rows)
    assert all(row["kernels"] > 0 for row in rows)
    lengths = scaling.run(lambda _: None, [], scaling.Sizes((1024,), 2, 64, (1024,)))
    assert not scaling.wrong(lengths)
    assert all(row["forward_backward_extra_mib"] > 0 for row in lengths)
