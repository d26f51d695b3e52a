"""The verdict in plain sentences: who wins, by how much, how sure that is, and what went badly."""

from __future__ import annotations

from collections.abc import Sequence

from mamba_recipes.compare.result import Comparison, Summary
from mamba_recipes.recipe import Metric

# Below this relative difference a single seed cannot tell two models apart; sentences then say "level with".
LEVEL = 0.005


def figure(value: float) -> str:
    """Write a metric with four significant digits, large ones with thousands separators."""
    if value != value:
        return "n/a"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    if value and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"


def spread_figure(std: float, mean: float) -> str:
    """Write a deviation with the decimals of the mean that it stands beside."""
    _, _, decimals = figure(mean).partition(".")
    return f"{std:.{len(decimals)}f}" if "e" not in decimals else figure(std)


def verdict(comparison: Comparison) -> list[str]:
    """Return sentences, the most important first; there is always at least one."""
    metric = comparison.metric
    summaries = comparison.summaries()
    ended = [s for s in summaries if metric.name in s.metrics]
    failed = [s for s in summaries if s.errors]
    if not ended:
        return ["Nothing was measured: every candidate failed."]
    lines = [*_main(ended, metric), *_twins(ended, metric)]
    if comparison.plan.measure == "quality":
        lines += _simple(ended, metric)
    lines += [f"{s.model} failed ({_seeds(len(s.errors))}): {s.errors[0]}" for s in failed]
    if comparison.plan.measure == "quality" and len(comparison.plan.seeds) == 1 and len(ended) > 1:
        lines.append(
            "One seed was run: a difference of a per cent or two may be chance. --seeds 3 gives means, spreads and "
            "paired intervals."
        )
    return lines


def headline(comparison: Comparison) -> str:
    """Return the first sentence of the verdict."""
    return verdict(comparison)[0]


def relative(candidate: float, reference: float) -> str:
    """Say how ``candidate`` stands to ``reference``: "4.2 % lower"."""
    if reference == 0:
        return f"{figure(candidate)} against {figure(reference)}"
    change = candidate / reference - 1
    return f"{abs(change):.1%}".replace("%", " %") + (" lower" if change < 0 else " higher")


def _value(summary: Summary, metric: Metric) -> float:
    return summary.metrics[metric.name].mean


def _written(summary: Summary, metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{summary.model} ({metric.label} {figure(_value(summary, metric))}{unit})"


def _first(ended: Sequence[Summary], family: str) -> Summary | None:
    return next((s for s in ended if s.family == family), None)


def _main(ended: Sequence[Summary], metric: Metric) -> list[str]:
    best = ended[0]
    mamba, transformer = _first(ended, "mamba"), _first(ended, "transformer")
    if mamba is None or transformer is None:
        return [f"The best is {_written(best, metric)}."]
    lead = _pair(mamba, transformer, metric, "the best Mamba", "the best Transformer")
    lines = [lead]
    if mamba.paired is not None:
        p = mamba.paired
        kind = "leaves out zero: the difference is clear" if p.clear else "includes zero: the difference may be chance"
        lines.append(
            f"Over {p.count} seeds {mamba.model} minus {transformer.model} is {p.mean:+.4g} "
            f"(95 % interval {p.low:+.4g} to {p.high:+.4g}), which {kind}."
        )
    if best.model not in (mamba.model, transformer.model):
        lines.append(f"The best of all is neither: {_written(best, metric)}.")
    return lines


def _pair(ours: Summary, theirs: Summary, metric: Metric, our_role: str, their_role: str) -> str:
    a, b = _value(ours, metric), _value(theirs, metric)
    if b and abs(a / b - 1) < LEVEL:
        gap = f"{abs(a / b - 1):.1%}".replace("%", " %")
        return (
            f"Level, {gap} apart: {our_role}, {_written(ours, metric)}, and {their_role}, {_written(theirs, metric)}."
        )
    wins = metric.better(a, b)
    name = our_role if wins else their_role
    winner, loser, other = (ours, theirs, their_role) if wins else (theirs, ours, our_role)
    gap = relative(_value(winner, metric), _value(loser, metric))
    side = "Mamba wins" if wins else "The Transformer wins"
    return f"{side}: {name}, {_written(winner, metric)}, is {gap} than {other}, {_written(loser, metric)}."


def _twins(ended: Sequence[Summary], metric: Metric) -> list[str]:
    by_name = {s.model: s for s in ended}
    lines = []
    for summary in ended:
        twin = by_name.get(summary.twin or "")
        if twin is None:
            continue
        a, b = _value(summary, metric), _value(twin, metric)
        gap = relative(a, b)
        if b and abs(a / b - 1) < LEVEL:
            text = "level with"
        else:
            text = "better than" if metric.better(a, b) else "worse than"
        lines.append(
            f"Only the mixer swapped: {summary.model} is {text} its attention twin {twin.model} "
            f"({figure(a)} against {figure(b)}, {gap})."
        )
    return lines


def _simple(ended: Sequence[Summary], metric: Metric) -> list[str]:
    lines = []
    mamba = _first(ended, "mamba")
    if mamba is None:
        return []
    for family, kind in (("linear", "linear model"), ("naive", "baseline without learning")):
        simple = _first(ended, family)
        if simple is None:
            continue
        gap = relative(_value(mamba, metric), _value(simple, metric))
        if metric.better(_value(mamba, metric), _value(simple, metric)):
            lines.append(f"Against the best {kind}, {_written(simple, metric)}, the best Mamba's is {gap}.")
        else:
            lines.append(f"No Mamba beats the best {kind}, {_written(simple, metric)}: the best Mamba's is {gap}.")
    naive = _first(ended, "naive")
    if naive is not None:
        learned = [s for s in ended if s.family != "naive"]
        worse = [s.model for s in learned if not metric.better(_value(s, metric), _value(naive, metric))]
        if worse:
            lines.append(f"Not worth their training here, no better than {naive.model}: {', '.join(worse)}.")
    return lines


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
