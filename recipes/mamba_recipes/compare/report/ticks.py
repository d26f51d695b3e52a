"""Round positions for axes, of numbers and of time."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_HOUR = 3600
_DAY = 24 * _HOUR
_TIME_STEPS = (
    1, 5, 15, 30, 60, 300, 900, 1800, _HOUR, 2 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR,
    _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY, 91 * _DAY, 365 * _DAY,
)  # fmt: skip


def number_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers that lie within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number_label(value: float, ticks: list[float]) -> str:
    """Write a tick with as many decimals as its neighbours need."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    if step and not math.isclose(step * 10**decimals, round(step * 10**decimals)):
        decimals += 1
    return f"{value + 0.0:,.{min(decimals, 8)}f}"


def seconds_of(text: str) -> float:
    """Return seconds since 1970 of an ISO timestamp without a zone."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def time_ticks(low: float, high: float, count: int = 8) -> list[tuple[float, str]]:
    """Return at most ``count`` + 1 round times within [low, high], in seconds since 1970, with their labels."""
    span = high - low
    step = next((s for s in _TIME_STEPS if span / s <= count), _TIME_STEPS[-1])
    found = []
    position = math.ceil(low / step) * step
    while position <= high:
        found.append((float(position), _time_label(position, step)))
        position += step
    return found


def _time_label(position: float, step: int) -> str:
    moment = datetime.fromtimestamp(position, UTC)
    if step >= 30 * _DAY:
        return f"{moment:%b %Y}"
    if step >= _DAY:
        return f"{moment:%a} {moment.day} {moment:%b}"
    if moment.hour == 0 and moment.minute == 0 and moment.second == 0:
        return f"{moment:%a} {moment.day} {moment:%b}"
    return f"{moment:%H:%M:%S}" if step < 60 else f"{moment:%H:%M}"
