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
    if abs(value) >= 1000:
        return f"{value:,.0f}"
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
    loads = _loads(comparison, ended)
    lines = _main(ended, metric) if len(loads) < 2 else [_main(load, metric)[0] for load in loads]
    lines += _twins(ended, metric)
    if comparison.plan.measure == "quality":
        lines += _simple(ended, metric)
    lines += [f"{s.model} failed ({_seeds(len(s.errors))}): {s.errors[0]}" for s in failed]
    if comparison.plan.left_out:
        lines.append(f"Left out, for they take no steps to time: {', '.join(comparison.plan.left_out)}.")
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


def _loads(comparison: Comparison, ended: Sequence[Summary]) -> list[list[Summary]]:
    """Return what is fair to compare: all, but of speeds those at one place on the axes of numbers, such as a size."""
    if comparison.plan.measure == "quality":
        return [list(ended)]
    places = {job.model: tuple(job.point[key] for key in comparison.plan.axes) for job in comparison.plan.jobs}
    return [[s for s in ended if places[s.model] == place] for place in sorted({places[s.model] for s in ended})]


def _value(summary: Summary, metric: Metric) -> float:
    return summary.metrics[metric.name].mean


def _written(summary: Summary, metric: Metric, *, unit: bool = False) -> str:
    name = f" {metric.unit}" if unit and metric.unit else ""
    return f"{summary.model} ({metric.label} {figure(_value(summary, metric))}{name})"


def _first(ended: Sequence[Summary], family: str) -> Summary | None:
    return next((s for s in ended if s.family == family), None)


def _main(ended: Sequence[Summary], metric: Metric) -> list[str]:
    best = ended[0]
    mamba, transformer = _first(ended, "mamba"), _first(ended, "transformer")
    if mamba is None or transformer is None:
        return [f"The best is {_written(best, metric, unit=True)}."]
    lines = [_best_pair(mamba, transformer, metric)]
    if mamba.paired is not None:
        p = mamba.paired
        kind = "leaves out zero: the difference is clear" if p.clear else "includes zero: the difference may be chance"
        lines.append(
            f"Over {p.count} seeds {mamba.model} minus {transformer.model} is {p.mean:+.3g} "
            f"(95 % interval {p.low:+.3g} to {p.high:+.3g}), which {kind}."
        )
    if best.model not in (mamba.model, transformer.model):
        lines.append(f"The best of all is neither: {_written(best, metric)}.")
    return lines


def _best_pair(mamba: Summary, transformer: Summary, metric: Metric) -> str:
    """Say who wins, the best Mamba or the best Transformer, and whether the two are twins."""
    a, b = _value(mamba, metric), _value(transformer, metric)
    twins = mamba.twin == transformer.model
    if _level(a, b):
        gap = f"{abs(a / b - 1):.1%}".replace("%", " %")
        role = "the best Transformer and its attention twin" if twins else "the best Transformer"
        first = _written(mamba, metric, unit=True)
        return f"Level, {gap} apart: the best Mamba, {first}, and {role}, {_written(transformer, metric)}."
    if metric.better(a, b):
        side, winner, role, loser = "Mamba wins", mamba, "the best Mamba", transformer
        other = "the best Transformer and its attention twin" if twins else "the best Transformer"
    else:
        side, winner, role, loser = "The Transformer wins", transformer, "the best Transformer", mamba
        other = "the best Mamba and its twin" if twins else "the best Mamba"
    gap = relative(_value(winner, metric), _value(loser, metric))
    first = _written(winner, metric, unit=True)
    return f"{side}: {role}, {first}, is {gap} than {other}, {_written(loser, metric)}."


def _twins(ended: Sequence[Summary], metric: Metric) -> list[str]:
    """Say for every pair of twins what the mixer alone did, but for the pair that the first sentence is about."""
    by_name = {s.model: s for s in ended}
    mamba, transformer = _first(ended, "mamba"), _first(ended, "transformer")
    lines = []
    for summary in ended:
        twin = by_name.get(summary.twin or "")
        if twin is None or (summary is mamba and twin is transformer):
            continue
        a, b = _value(summary, metric), _value(twin, metric)
        text = "level with" if _level(a, b) else "better than" if metric.better(a, b) else "worse than"
        lines.append(
            f"Only the mixer swapped: {summary.model} is {text} its attention twin {twin.model} "
            f"({figure(a)} against {figure(b)}, {relative(a, b)})."
        )
    return lines


def _level(a: float, b: float) -> bool:
    return b != 0 and abs(a / b - 1) < LEVEL


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
