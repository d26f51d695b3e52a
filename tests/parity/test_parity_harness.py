"""The parity harness itself: what it selects, what it refuses, and that it cannot pass a wrong number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import families_operators  # noqa: F401  registers its families
import pytest
import torch
from parity_cards import UnsupportedCardError, find_cards, read_card
from parity_compare import Comparison
from parity_families import check_card
from safetensors.torch import save_file


def _write(folder: Path, name: str, tensors: dict[str, torch.Tensor] | None = None, **entries: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, **entries}))
    if tensors is not None:
        save_file(tensors, path.with_suffix(".safetensors"))
    return path


def _gated_norm(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    x, z = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    y = x * torch.nn.functional.silu(z)
    out = y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return {"in.x": x, "in.z": z, "in.weight": torch.ones(8, dtype=torch.float64), "out.out": out} | changed


_NORM = {"options": {"eps": 1e-5, "group_size": None, "norm_before_gate": False}, "f32_err": {"out.out": 1e-6}}


def test_json_files_that_are_no_cards_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text('{"vectors": []}')
    (tmp_path / "list.json").write_text("[1]")
    _write(tmp_path, "ss_b")
    _write(tmp_path, "conv_a")
    assert [card.name for card in find_cards(tmp_path)] == ["conv_a", "ss_b"]


def test_patterns_select_by_name_and_repeat(tmp_path: Path) -> None:
    for name in ("ss_a", "ss_b", "ssu_a", "conv_a"):
        _write(tmp_path, name)
    assert [card.name for card in find_cards(tmp_path, ["ss_*", "conv_a"])] == ["conv_a", "ss_a", "ss_b"]
    with pytest.raises(FileNotFoundError, match="'wkv_\\*': none of the 4 cards"):
        find_cards(tmp_path, ["ss_*", "wkv_*"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_cards(tmp_path / "nowhere")


def test_a_family_that_is_not_supported_fails_by_name(tmp_path: Path) -> None:
    card = read_card(_write(tmp_path, "hyena_tiny", op="Hyena filter"))
    assert card is not None
    with pytest.raises(UnsupportedCardError, match=r"hyena_tiny: unsupported family \(Hyena filter\)"):
        check_card(card)


def test_an_option_that_is_not_supported_fails_by_name(tmp_path: Path) -> None:
    card = read_card(_write(tmp_path, "ss_new", {}, options={"delta_softplus": True, "complex": True}))
    assert card is not None
    with pytest.raises(UnsupportedCardError, match="ss_new: unsupported option complex=True"):
        check_card(card)


def test_an_input_that_is_not_supported_fails_by_name(tmp_path: Path) -> None:
    card = read_card(_write(tmp_path, "rmsnorm_new", _gated_norm() | {"in.scale": torch.ones(8)}, **_NORM))
    assert card is not None
    with pytest.raises(UnsupportedCardError, match="rmsnorm_new: unsupported input scale"):
        check_card(card)


def test_a_right_card_passes_and_a_wrong_number_fails(tmp_path: Path) -> None:
    torch.manual_seed(0)
    right = read_card(_write(tmp_path, "rmsnorm_right", _gated_norm(), **_NORM))
    assert right is not None
    check_card(right)
    wrong_out = right.tensors["out.out"].clone()
    wrong_out[1, 2, 3] += 1e-3
    wrong = read_card(_write(tmp_path, "rmsnorm_wrong", {**right.tensors, "out.out": wrong_out}, **_NORM))
    assert wrong is not None
    with pytest.raises(AssertionError, match=r"rmsnorm_wrong in torch.float32, backend=None\nout.out: off by 0.001"):
        check_card(wrong)


def test_what_the_card_holds_and_nobody_compared_fails(tmp_path: Path) -> None:
    more = _gated_norm() | {"out.rstd": torch.ones(2, 3)}
    card = read_card(_write(tmp_path, "rmsnorm_more", more, **_NORM))
    assert card is not None
    with pytest.raises(AssertionError, match=r"out\.rstd: held by the card, but never compared"):
        check_card(card)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "out.y: off by nan"),
        (torch.tensor([1.0, 2.0, 3.0]), r"out.y: expected shape \(2,\), got \(3,\)"),
        (None, r"out.y: expected shape \(2,\), got None"),
    ],
)
def test_nan_another_shape_and_nothing_at_all_fail(tmp_path: Path, got: torch.Tensor | None, message: str) -> None:
    card = read_card(_write(tmp_path, "any", {"in.x": torch.ones(1), "out.y": torch.tensor([1.0, 2.0])}))
    assert card is not None
    comparison = Comparison(card)
    comparison.near("out.y", got, atol=1.0)
    with pytest.raises(AssertionError, match=message):
        comparison.finish()


def test_tokens_are_compared_exactly(tmp_path: Path) -> None:
    card = read_card(_write(tmp_path, "any", {"out.greedy": torch.tensor([3, 4, 5])}))
    assert card is not None
    comparison = Comparison(card)
    comparison.same("out.greedy", torch.tensor([3, 4, 6]))
    with pytest.raises(AssertionError, match=r"out\.greedy: 1 elements differ"):
        comparison.finish()


def test_a_run_in_half_precision_is_held_to_a_part_of_the_largest_value(tmp_path: Path) -> None:
    expected = torch.tensor([100.0, 0.0])
    card = read_card(_write(tmp_path, "any", {"in.x": torch.ones(1), "out.y": expected}))
    assert card is not None
    card = replace(card, autocast=torch.bfloat16)
    comparison = Comparison(card)
    comparison.near("out.y", expected + 2.9, atol=1e-5)
    comparison.finish()
    comparison.near("out.y", expected + 3.1, atol=1e-5)
    with pytest.raises(AssertionError, match=r"out\.y: off by 3\.1"):
        comparison.finish()


def test_a_run_in_half_precision_need_be_no_nearer_than_one_in_full(tmp_path: Path) -> None:
    expected = torch.tensor([6e-6])
    card = read_card(_write(tmp_path, "any", {"in.x": torch.ones(1), "grad.b": expected}))
    assert card is not None
    comparison = Comparison(replace(card, autocast=torch.bfloat16))
    comparison.near("grad.b", expected + 9e-5, atol=1e-4)
    comparison.finish()
    comparison.near("grad.b", expected + 1.1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match=r"grad\.b: off by 0\.00011"):
        comparison.finish()


def test_missing_and_exchanged_tensors_fail(tmp_path: Path) -> None:
    missing = read_card(_write(tmp_path, "lone"))
    assert missing is not None
    with pytest.raises(FileNotFoundError, match=r"not beside it \(lone.safetensors\)"):
        _ = missing.tensors
    exchanged = read_card(_write(tmp_path, "other", {"in.x": torch.ones(1)}, sha256="0" * 64))
    assert exchanged is not None
    with pytest.raises(AssertionError, match="not the file that the card describes"):
        _ = exchanged.tensors
