"""Choices among a kernel's configurations, with kernels and timings that are made up."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mamba_kernels import choices
from mamba_kernels.choices import Choice, cache_directory
from mamba_kernels.errors import BackendError

pytest.importorskip("triton")
CPU = torch.device("cpu")
SHAPES = (16, "bfloat16", None)
MILLISECONDS = {"a": 3.0, "b": 1.0, "c": 2.0}


class Kernel:
    """A kernel whose configurations are letters, and a record of what was done with them."""

    def __init__(self, wrong: str = "", failing: str = "", candidates: str = "abc", source: str = "1") -> None:
        self.wrong, self.failing = wrong, failing
        self.checked: list[str] = []
        self.timed: list[str] = []
        self.choice = Choice(
            "kernel", [SimpleNamespace(cache_key=source)], lambda shapes: list(candidates), self._check
        )

    def _check(self, shapes: tuple, candidate: str, device: torch.device) -> bool:
        self.checked.append(candidate)
        if candidate in self.failing:
            raise RuntimeError("does not compile")
        return candidate not in self.wrong

    def time(self, candidate: str) -> float:
        self.timed.append(candidate)
        return MILLISECONDS[candidate]

    def __call__(self, shapes: tuple = SHAPES, timed: bool = True) -> str:
        return self.choice(shapes, CPU, self.time if timed else None)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(choices.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("wrong", "failing", "timed", "chosen"),
    [
        ("", "", True, "b"),
        ("", "", False, "a"),
        ("b", "", True, "c"),
        ("a", "", False, "b"),
        ("", "b", True, "c"),
        ("a", "b", False, "c"),
    ],
)
def test_the_fastest_right_one_is_chosen_or_the_first(wrong: str, failing: str, timed: bool, chosen: str) -> None:
    kernel = Kernel(wrong, failing)
    assert kernel(timed=timed) == chosen
    assert sorted(kernel.checked) == ["a", "b", "c"]
    assert kernel.timed == ([c for c in "abc" if c not in wrong + failing] if timed else [])


def test_where_none_is_right_it_says_so_and_keeps_nothing(cache: Path) -> None:
    with pytest.raises(BackendError, match=r"kernel: no configuration .* on cpu with Triton \d") as caught:
        Kernel(wrong="ab", failing="c")()
    assert "reference" in caught.value.remedy
    assert not cache.exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("Triton Error [CUDA]: out of memory")], ids=repr
)
def test_memory_that_runs_out_is_no_verdict(cache: Path, error: Exception) -> None:
    kernel = Kernel()

    def check(*_: Any) -> bool:
        raise error

    kernel.choice._check = check
    with pytest.raises(type(error), match="memory"):
        kernel()
    assert not cache.exists()


def test_candidates_are_checked_side_by_side_without_recording_gradients() -> None:
    meeting = threading.Barrier(3, timeout=60)

    def check(shapes: tuple, candidate: str, device: torch.device) -> bool:
        meeting.wait()
        return not torch.is_grad_enabled()

    kernel = Kernel()
    kernel.choice._check = check
    assert kernel() == "b"


def test_a_choice_is_made_once_in_a_process_and_kept_for_the_next(cache: Path) -> None:
    first, second = Kernel(), Kernel()
    assert [first(), first(), second(), second()] == ["b"] * 4
    assert len(first.checked) == 3
    assert (second.checked, second.timed) == ([], [])
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["key"]["shapes"] == list(SHAPES)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Kernel(source="2")(),
        lambda: Kernel(candidates="bc")(),
        lambda: Kernel()((32, "bfloat16", None)),
    ],
    ids=["source", "candidates", "shapes"],
)
def test_what_a_verdict_depends_on_asks_for_a_new_one(other: Callable[[], str], cache: Path) -> None:
    Kernel()()
    other()
    assert len(list(cache.iterdir())) == 2


def test_other_plans_of_launches_ask_for_a_new_one(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("def check(*_):\n    return True\n")
    check = runpy.run_path(str(tmp_path / "checks.py"))["check"]
    for slices, verdicts in ((1, 1), (1, 1), (2, 2)):
        (tmp_path / "plan.py").write_text(f"SLICES = {slices}\n")
        kernel = Kernel()
        kernel.choice._check = check
        kernel(timed=False)
        assert len(list(cache.iterdir())) == verdicts


@pytest.mark.parametrize("name", ["_gpu_name", "_triton_version"])
def test_another_gpu_or_triton_asks_for_a_new_one(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel()()
    monkeypatch.setattr(choices, name, lambda *_: "another")
    kernel = Kernel(wrong="b")
    assert kernel() == "c"
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_take_the_first_right_one_also_where_timings_are_known() -> None:
    kernel = Kernel(wrong="a")
    assert kernel() == "b"
    assert kernel.timed == []
    torch.use_deterministic_algorithms(False)
    assert kernel.choice(SHAPES, CPU, {"b": 5.0, "c": 1.0}.__getitem__) == "c"
    assert len(kernel.checked) == 3
    torch.use_deterministic_algorithms(True)
    assert kernel() == "b"
    again = Kernel(wrong="a")
    assert (again(), again.checked) == ("b", [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("true", "1", 1),
        lambda text: text.replace("3.0", '"3"'),
        lambda text: text.replace("3.0,", ""),
        lambda text: text.replace('"cpu"', '"another"'),
        lambda text: text.replace("right", "left"),
    ],
)
def test_a_damaged_file_is_ignored_and_written_anew(damage: Callable[[str], str], cache: Path) -> None:
    Kernel()()
    (file,) = cache.iterdir()
    whole = file.read_text()
    assert damage(whole) != whole
    file.write_text(damage(whole))
    kernel = Kernel()
    assert kernel() == "b"
    assert len(kernel.checked) == 3
    assert file.read_text() == whole
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize("kind", ["file in the way", "unwritable"])
def test_a_directory_that_takes_nothing_costs_only_time(
    kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "file in the way":
        cache.write_text("")
    else:
        monkeypatch.setattr(choices.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    kernel = Kernel()
    assert [kernel(), kernel()] == ["b", "b"]
    assert len(kernel.checked) == 3
    assert not cache.is_dir() or not list(cache.iterdir())


RACER = """
import sys, time, types
import torch
from mamba_kernels.choices import Choice
def check(shapes, candidate, device):
    return candidate != "b"
choice = Choice("kernel", [types.SimpleNamespace(cache_key="1")], lambda shapes: list("abc"), check)
print("ready", flush=True)
sys.stdin.readline()
print(choice((1,), torch.device("cpu"), {"a": 3.0, "b": 1.0, "c": 2.0}.__getitem__))
"""


def test_processes_may_choose_at_the_same_time(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "racer.py"
    script.write_text(RACER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    racing = [
        subprocess.Popen(
            [sys.executable, str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in racing:
        assert process.stdout.readline() == "ready\n"
    for process in racing:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].strip() for process in racing] == ["c", "c"]
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["right"] == [True, False, True]


def test_what_another_process_measured_meanwhile_is_taken_over() -> None:
    slow, quick = Kernel(), Kernel()

    def time(candidate: str) -> float:
        quick()
        return {"a": 0.1, "b": 9.0, "c": 9.0}[candidate]

    assert slow.choice(SHAPES, CPU, time) == "b"


def captured(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(choices, "_gpu_name", lambda _: "cpu")
    return kernel.choice(SHAPES, torch.device("cuda:0"), kernel.time)


def traced(kernel: Kernel, _: pytest.MonkeyPatch) -> str:
    found = []
    make_fx(lambda x: found.append(kernel()) or x)(torch.ones(1))
    return found[0]


@pytest.mark.parametrize("look", [captured, traced])
def test_nothing_is_checked_in_a_capture_or_under_a_tracer(
    look: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(wrong="b")
    with pytest.raises(BackendError, match=r"kernel: no configuration .* checked yet .* captured") as caught:
        look(kernel, monkeypatch)
    assert "run the model once" in caught.value.remedy
    assert kernel.checked == []
    Kernel(wrong="b")()
    assert look(kernel, monkeypatch) == "c"
    assert kernel.checked == []


@pytest.mark.parametrize("candidates", ["", "abcd"])
def test_too_many_candidates_are_a_mistake(candidates: str) -> None:
    with pytest.raises(ValueError, match="1 to 3 candidates"):
        Kernel(candidates=candidates)()


def test_the_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv(choices.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "mamba-apps" / "choices"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_directory() == tmp_path / "home" / ".cache" / "mamba-apps" / "choices"
