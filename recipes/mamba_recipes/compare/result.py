"""What a comparison found: its rows, and the form they take for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mamba_recipes.compare.candidate import Panel
from mamba_recipes.compare.plan import Plan
from mamba_recipes.compare.stats import Paired, Spread, paired, spread
from mamba_recipes.recipe import Metric

SPEED = Metric("train_samples_per_second", "max", "training speed", "samples/s")


@dataclass(frozen=True)
class Row:
    """One candidate with one seed.

    Args:
        model: The candidate's name.
        family: mamba, transformer, linear, naive or other.
        twin: The candidate that differs only in its mixer, if there is one.
        seed: The seed.
        metrics: Its metrics on the test data; empty if it failed.
        parameters: How many numbers it learned.
        train_seconds: How long its fit took, validation included, compilation left out.
        samples_per_second: Training samples per second of training steps; None where a fit does not read samples.
        peak_memory_mib: The most memory it took (see `mamba_recipes.compare.worker`).
        error: Why it failed; None if it did not.
        mendable: Whether a failure is one that the person can mend.
        overrides: What was set for this candidate alone.
        panels: Its pictures.
    """

    model: str
    family: str
    twin: str | None
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    train_seconds: float | None = None
    samples_per_second: float | None = None
    peak_memory_mib: float | None = None
    error: str | None = None
    mendable: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    panels: Sequence[Panel] = ()


@dataclass(frozen=True)
class Summary:
    """A candidate over its seeds.

    Args:
        model: The candidate's name.
        family: mamba, transformer, linear, naive or other.
        twin: The candidate that differs only in its mixer, if there is one.
        metrics: Metric -> mean and spread over the seeds that ended.
        figures: parameters, train_seconds, samples_per_second, peak_memory_mib -> mean; None where not measured.
        errors: Why seeds failed.
        paired: The paired difference of the primary metric to the best Transformer, with two seeds or more.
    """

    model: str
    family: str
    twin: str | None
    metrics: Mapping[str, Spread]
    figures: Mapping[str, float | None]
    errors: Sequence[str]
    paired: Paired | None = None


FIGURES = ("parameters", "train_seconds", "samples_per_second", "peak_memory_mib")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Args:
        plan: What was asked for.
        rows: What came back, in the order of the plan.
        environment: Hardware, versions and commit.
        setting: Device and data in words.
        command: The command that repeats it.
        seconds: How long all of it took.
        parallel: How many candidates ran at a time.
    """

    plan: Plan
    rows: Sequence[Row]
    environment: Mapping[str, Any]
    setting: Mapping[str, str]
    command: str
    seconds: float
    parallel: int = 1

    @property
    def metric(self) -> Metric:
        """The metric that the candidates are ranked by."""
        return SPEED if self.plan.measure == "speed" else self.plan.recipe.metric

    def summaries(self) -> list[Summary]:
        """Return one summary per candidate, the best first and failed ones last."""
        name = self.metric.name
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.model, []).append(row)
        found = [_summary(rows) for rows in groups.values()]
        sign = 1 if self.metric.direction == "min" else -1
        found.sort(key=lambda s: (name not in s.metrics, sign * s.metrics[name].mean if name in s.metrics else 0))
        reference = next((s.model for s in found if s.family == "transformer" and name in s.metrics), None)
        if reference is None:
            return found
        by_seed = {
            model: {r.seed: r.metrics[name] for r in rows if name in r.metrics} for model, rows in groups.items()
        }
        return [
            Summary(**{**vars(s), "paired": paired(by_seed[s.model], by_seed[reference])})
            if s.model != reference
            else s
            for s in found
        ]

    def document(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values; a figure that was not measured is null."""
        return {
            "recipe": self.plan.recipe.name,
            "budget": str(self.plan.budget),
            "environment": {**self.environment, **self.setting},
            "rows": [_row_document(row, self.metric) for row in self.rows],
        }


def _row_document(row: Row, metric: Metric) -> dict[str, Any]:
    document: dict[str, Any] = {"model": row.model, "seed": row.seed}
    document.update(row.metrics if row.metrics else {metric.name: None})
    document.update({name: getattr(row, name) for name in FIGURES})
    if row.error is not None:
        document["error"] = row.error
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in document.items()}


def _summary(rows: Sequence[Row]) -> Summary:
    good = [row for row in rows if row.error is None]
    names = dict.fromkeys(name for row in good for name in row.metrics)
    figures: dict[str, float | None] = {}
    for name in FIGURES:
        values = [getattr(row, name) for row in good if getattr(row, name) is not None]
        figures[name] = sum(values) / len(values) if values else None
    first = rows[0]
    return Summary(
        model=first.model,
        family=first.family,
        twin=first.twin,
        metrics={name: spread(row.metrics[name] for row in good if name in row.metrics) for name in names},
        figures=figures,
        errors=[row.error for row in rows if row.error is not None],
    )
