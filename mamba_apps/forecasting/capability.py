"""What each forecaster takes and gives, read off the code, so that no table says anything else."""

from __future__ import annotations

from dataclasses import dataclass

from mamba_apps.forecasting.baselines import BASELINES, Baseline
from mamba_apps.forecasting.models import ForecastModel, names, spec
from mamba_apps.forecasting.models.base import KINDS

HEADINGS = ("model", "what it is", "past", "future", "static", "intervals", "lives on")


@dataclass(frozen=True)
class Capability:
    """What a forecaster takes and gives.

    Args:
        name: What `Forecaster` calls it.
        summary: What it is.
        past: What becomes of covariates known up to the present: "yes", "effect", "ignored" or "no".
        future: Of those known ahead.
        static: Of those of a whole series.
        intervals: "quantile, conformal" or "conformal".
        lives_on: What a stream of it carries: "its state" or "the lookback".
    """

    name: str
    summary: str
    past: str
    future: str
    static: str
    intervals: str
    lives_on: str

    @property
    def row(self) -> tuple[str, ...]:
        """The row of the table, under `HEADINGS`."""
        return tuple(vars(self).values())


def capabilities() -> list[Capability]:
    """Return what each registered model takes, and then each baseline."""
    learned = [_of(name, spec(name).cls, spec(name).summary, "quantile, conformal") for name in names()]
    others = [_of(name, cls, (cls.__doc__ or "").partition("\n")[0], "conformal") for name, cls in BASELINES.items()]
    return [*learned, *others]


def capability_table() -> str:
    """Return the table as Markdown."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS)]
    lines += [(f"`{one.name}`", *one.row[1:]) for one in capabilities()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _of(name: str, cls: type[ForecastModel], summary: str, intervals: str) -> Capability:
    def becomes(kind: str) -> str:
        if issubclass(cls, Baseline) and kind in cls.ignored:
            return "ignored"
        return "yes" if kind in cls.covariates else "effect" if kind in cls.through_effect else "no"

    past, future, static = (becomes(kind) for kind in KINDS)
    own = cls.init_state is not ForecastModel.init_state
    lives_on = "its state" if own else "the lookback"
    return Capability(name, summary.rstrip("."), past, future, static, intervals, lives_on)
