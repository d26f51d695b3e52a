"""What is said of long work on files: where, how often, and not at all of short work."""

from __future__ import annotations

import itertools
import sys
import time

import pytest

from mamba_datasets.progress import clock, followed


def test_a_log_says_now_and_then_how_far_work_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count(0, 20)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    assert list(followed(iter("abcdef"), "checking", 6)) == list("abcdef")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "checking: 2 of 6 · 0:00:40\nchecking: 4 of 6 · 0:01:20\n"


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(followed(range(1000), "checking", 1000)) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(followed(range(3), "preparing", 3)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "preparing" in captured.err


def test_a_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 61, 3 * 3600 + 59.7)] == ["0:00:00", "0:01:01", "3:01:00"]
