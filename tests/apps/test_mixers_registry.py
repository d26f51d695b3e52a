"""Mixers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.mixers import AttentionMixer, Mamba1Mixer, create, names, register, registry, spec


def test_both_mixers_are_registered() -> None:
    assert {"attention", "mamba1"} <= set(names())
    assert names() == sorted(names())
    assert spec("mamba1").cls is Mamba1Mixer
    assert spec("attention").cls is AttentionMixer
    assert spec("mamba1").options["d_state"] == 16
    assert "d_model" not in spec("mamba1").options


def test_create_passes_the_options() -> None:
    mixer = create("mamba1", 8, d_state=3, backend="reference")
    assert isinstance(mixer, Mamba1Mixer)
    assert mixer.A_log.shape == (16, 3)
    assert mixer.backend == "reference"


@pytest.mark.parametrize(
    ("name", "remedy"), [("mamba", "'mamba1'"), ("atention", "'attention'"), ("zzz", "choose one of 'attention'")]
)
def test_an_unknown_name_brings_the_nearest(name: str, remedy: str) -> None:
    with pytest.raises(UserError, match=f"unknown mixer '{name}'") as caught:
        create(name, 8)
    assert remedy in caught.value.remedy
    with pytest.raises(UserError, match="unknown mixer"):
        spec(name)


@pytest.mark.parametrize("name", [3, None, ["mamba1"], {"class_path": "os.system"}])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match=r"unknown mixer .*; "):
        create(name, 8)


def test_an_unknown_option_brings_the_nearest() -> None:
    with pytest.raises(UserError, match="mixer 'mamba1' has no option 'd_sate'; did you mean 'd_state'"):
        create("mamba1", 8, d_sate=4)
    with pytest.raises(UserError, match="mixer 'attention' has no option 'qqqq'; choose one of 'heads', 'causal'"):
        create("attention", 8, qqqq=4)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("mamba2", {"headdim": "8"}, r"mamba2: headdim is '8'; give it as int \| Literal"),
        ("mamba2", {"A_init_range": 3}, r"A_init_range is 3; give it as tuple\[float, float\]"),
        ("mamba2", {"dt_limit": (0, 1, 2)}, r"dt_limit is \(0, 1, 2\)"),
        ("mamba2", {"rmsnorm": None}, "rmsnorm is None; give it as bool"),
        ("mamba1", {"d_state": True}, "d_state is True; give it as int"),
        ("mamba1", {"dt_min": "1e-3"}, "dt_min is '1e-3'; give it as float"),
        ("attention", {"heads": 2.0}, "heads is 2.0"),
    ],
)
def test_values_of_another_kind_are_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        create(name, 8, **options)


@pytest.mark.parametrize(
    ("kind", "fits", "does_not"),
    [
        (tuple[int, ...], [1, 2, 3], [1, "2"]),
        (tuple[int, ...] | None, (), 3),
        (Sequence[int], [1], 1),
        (dict[str, Any] | None, {}, []),
    ],
    ids=str,
)
def test_kinds_that_mixers_of_ones_own_may_have(kind: Any, fits: Any, does_not: Any) -> None:
    assert registry._fits(fits, kind)
    assert not registry._fits(does_not, kind)
    assert registry._fits(does_not, Any)


def test_whole_numbers_are_numbers_and_lists_are_tuples() -> None:
    mixer = create("mamba2", 8, d_state=2, expand=1, dt_limit=[0, 0.1], conv_init=1, headdim="auto", d_ssm=None)
    assert mixer.dt_limit == (0.0, 0.1)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'mamba1' is already registered, by Mamba1Mixer"):
        register("mamba1")(Mamba1Mixer)


def test_the_width_comes_first() -> None:
    class Odd(Mamba1Mixer):
        def __init__(self, size: int) -> None:
            super().__init__(size)

    with pytest.raises(ValueError, match="must be d_model"):
        register("odd")(Odd)
    assert "odd" not in names()


@pytest.mark.parametrize("name", names())
def test_a_width_of_zero_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="d_model is 0"):
        create(name, 0)


def test_a_parameter_less_device_can_be_asked_for() -> None:
    assert all(p.device.type == "meta" for p in create("mamba1", 8, device=torch.device("meta")).parameters())
    assert all(p.device.type == "meta" for p in create("attention", 8, device="meta").parameters())
