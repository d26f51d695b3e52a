"""The saved-model format."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.training import ModelCard, load_card, load_weights, save_model
from mamba_apps.training.saved import FORMAT_VERSION

CARD = ModelCard(
    task="classification",
    domain="image",
    model="tiny",
    arguments={"width": 4, "mixer": "mamba1"},
    preprocessing={"mean": [0.5], "size": 32},
    labels=["cat", "Hündin"],
    metrics={"accuracy": 0.75},
)


class Tied(nn.Module):
    """A tied head, a transposed and an expanded buffer, views of one storage, several dtypes, an empty one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        base = torch.randn(4, 6)
        self.register_buffer("transposed", base.t())
        self.register_buffer("expanded", torch.randn(1, 3).expand(2, 3))
        self.register_buffer("first", base[:2])
        self.register_buffer("second", base[1:])
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("empty_too", torch.empty(0))
        self.register_buffer("temporary", torch.zeros(1), persistent=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", Tied(), CARD)


def test_round_trip(saved: Path) -> None:
    weights = load_weights(saved)
    module = Tied(seed=1)
    module.load_state_dict(weights, strict=True, assign=True)  # an expanded buffer cannot be written to
    expected = Tied().state_dict()
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
        assert weights[name].dtype == value.dtype
        assert weights[name].is_contiguous()
    assert weights["head.weight"] is weights["embedding.weight"]
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_card(saved: Path) -> None:
    card = load_card(saved)
    assert card.tied == {"head.weight": "embedding.weight"}
    assert len(card.sha256) == 64
    assert card.library_version
    assert dataclasses.replace(card, sha256="", tied={}, library_version="") == CARD
    data = json.loads((saved / "model.json").read_text())
    assert data["format_version"] == FORMAT_VERSION
    assert data["model"] == {"name": "tiny", "arguments": {"width": 4, "mixer": "mamba1"}}
    assert "Hündin" in (saved / "model.json").read_text()


def test_other_files_of_the_folder_stay(saved: Path) -> None:
    (saved / "last.ckpt").write_text("mine")
    save_model(saved, Tied(seed=2), dataclasses.replace(CARD, model="other"))
    assert (saved / "last.ckpt").read_text() == "mine"
    assert load_card(saved).model == "other"
    assert torch.equal(load_weights(saved)["norm.weight"], Tied(seed=2).norm.weight)


@pytest.mark.parametrize("change", ["truncated", "flipped", "empty", "of another model"])
def test_changed_weights_are_found(saved: Path, tmp_path: Path, change: str) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    if change == "truncated":
        data = data[:-5]
    elif change == "flipped":
        data[-1] ^= 1
    elif change == "empty":
        data = bytearray()
    else:
        data = bytearray((save_model(tmp_path / "b", Tied(seed=3), CARD) / "model.safetensors").read_bytes())
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or was changed: its SHA-256 is .* expects"):
        load_weights(saved)


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "model.json"
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_newer_format_is_refused_with_the_way_out(saved: Path) -> None:
    edit(saved, format_version=FORMAT_VERSION + 1)
    for load in (load_card, load_weights):
        with pytest.raises(UserError, match=r"format_version 2, this mamba-apps reads up to 1; update it: pip install"):
            load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": None}, "has no format_version"),
        ({"model": None}, r"lacks an entry \('model'\)"),
        ({"task": None}, "lacks an entry .*task"),
        ({"model": "tiny"}, "lacks an entry"),
    ],
)
def test_incomplete_card(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(UserError, match=message):
        load_card(saved)


def test_unknown_entries_of_a_card_are_passed_over(saved: Path) -> None:
    edit(saved, remark="from a later minor version")
    assert load_card(saved).model == "tiny"


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\udcff"])
def test_damaged_card(saved: Path, text: str) -> None:
    (saved / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"model\.json (is not valid JSON|holds a list)"):
        load_card(saved)


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no saved model in .*none: it is not a folder"):
        load_card(tmp_path / "none")
    (saved / "model.json").unlink()
    for load in (load_card, load_weights):
        with pytest.raises(UserError, match=r"no saved model in .*: it has no model\.json"):
            load(saved)
    save_model(saved, Tied(), CARD)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"it has no model\.safetensors"):
        load_weights(saved)


@pytest.mark.parametrize("metrics", [{"mae": float("nan")}, {"mae": torch.tensor(1.0)}, {"mae": object()}])
def test_card_that_is_no_json_leaves_the_old_model(saved: Path, metrics: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the model card cannot be written as JSON"):
        save_model(saved, Tied(seed=4), dataclasses.replace(CARD, metrics=metrics))
    assert torch.equal(load_weights(saved)["norm.weight"], Tied().norm.weight)
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    with pytest.raises(UserError, match="'_extra_state' of type dict"):
        save_model(tmp_path, Odd(1, 1), CARD)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_weights_are_on_the_disk_and_as_readable_as_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number))[1])
    save_model(tmp_path / "new", Tied(), CARD)
    weights, card = (tmp_path / "new" / name for name in ("model.safetensors", "model.json"))
    assert {weights.stat().st_ino, card.stat().st_ino} <= set(synced)
    assert weights.stat().st_mode == card.stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(UserError, match=r"cannot save the model in .*No space left on device; free space"):
        save_model(saved, Tied(seed=4), dataclasses.replace(CARD, model="new"))
    monkeypatch.undo()
    assert load_card(saved).model == "tiny"
    assert torch.equal(load_weights(saved)["embedding.weight"], Tied().embedding.weight)
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]


class CrashError(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("moment", range(1, 10))
def test_death_at_any_moment_leaves_one_whole_model(saved: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    count = 0
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def counted(*args: Any, original: Any = original) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                raise CrashError
            return original(*args)

        monkeypatch.setattr(os, name, counted)
    # a dead process does not clean up either
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    died = True
    try:
        save_model(saved, Tied(seed=4), dataclasses.replace(CARD, model="new"))
        died = False
    except CrashError:
        pass
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.undo()
    card, weights = load_card(saved), load_weights(saved)
    assert card.model in ("tiny", "new") if died else card.model == "new"
    expected = Tied(seed=0 if card.model == "tiny" else 4)
    assert torch.equal(weights["embedding.weight"], expected.embedding.weight)
    save_model(saved, Tied(seed=5), dataclasses.replace(CARD, model="newest"))
    assert load_card(saved).model == "newest"
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
