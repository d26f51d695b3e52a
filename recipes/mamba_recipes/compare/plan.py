"""From a recipe and the command's options to the list of jobs to run, each a candidate with a seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mamba_apps.errors import UserError
from mamba_datasets.report import nearest
from mamba_recipes.compare.budget import Budget
from mamba_recipes.recipe import CandidateSpec, Recipe
from mamba_recipes.settings import lookup, parse_value

MEASURES = ("quality", "speed")
SPEED_BUDGET = "10s"


@dataclass(frozen=True)
class Job:
    """One candidate with one seed, as plain values that a process can be given.

    Args:
        model: The row's name.
        family: mamba, transformer, linear, naive or other.
        twin: The row that differs only in its mixer, if there is one.
        seed: The seed.
        config: The recipe's Lightning blocks with every override set; their ``data`` serves each candidate.
        overrides: What was overridden for this candidate, for the report.
        class_path: The candidate's own class, where Lightning does not train it.
        init_args: That class's arguments.
        candidate: Its name in the recipe, without the point.
        point: Where it lies on the sweeps' axes, by the keys as typed.
    """

    model: str
    family: str
    twin: str | None
    seed: int
    config: Mapping[str, Any]
    overrides: Mapping[str, Any]
    class_path: str | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)
    candidate: str = ""
    point: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A comparison to run.

    Args:
        recipe: What is compared.
        budget: What each candidate may spend.
        measure: "quality" or "speed".
        jobs: What to run, in this order.
        device: The accelerator of every candidate, as Lightning names it.
        settings: What the command line set for all candidates.
        left_out: Candidates of the recipe that have nothing which this measure could measure.
    """

    recipe: Recipe
    budget: Budget
    measure: str
    jobs: tuple[Job, ...]
    device: str
    settings: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({job.seed for job in self.jobs})

    @property
    def axes(self) -> list[str]:
        """The keys that were swept through numbers, at least two of them."""
        swept = dict.fromkeys(key for job in self.jobs for key in job.point)
        return [key for key in swept if _is_axis([job.point[key] for job in self.jobs])]


def make_plan(
    recipe: Recipe,
    *,
    budget: str | None = None,
    candidates: str | None = None,
    seeds: int = 1,
    seed: int | None = None,
    sweeps: Sequence[str] = (),
    measure: str = "quality",
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the jobs of a comparison.

    Args:
        recipe: A recipe, with a ``compare:`` block unless it is swept.
        budget: "300steps", "5epochs" or "60s"; None for the recipe's own, or ten seconds to measure speed.
        candidates: Names joined by commas; None for all, but where a sweep varies more than the data: then the recipe
            as it stands, for the candidates are variations themselves.
        seeds: How many seeds, counted up from the first.
        seed: The first seed; None for the card's.
        sweeps: "key=a,b,c" each; several multiply. A key is dotted, or a short name the recipe declares.
        measure: "quality" (train within the budget, measure on the test data) or "speed".
        overrides: Dotted settings for every candidate.

    Raises:
        UserError: For an unknown candidate, a malformed sweep, a recipe that says nothing to compare, or a candidate
            whose speed is asked for and that takes no steps.
    """
    if measure not in MEASURES:
        raise UserError(f"unknown measure {measure!r}", nearest(measure, MEASURES))
    settings = dict(overrides or {})
    points = _sweep_points(recipe, sweeps)
    of_data = all(_sweep_key(recipe, key).startswith("data.") for key in points[0])
    specs = _chosen(recipe, candidates, alone=bool(sweeps) and not (of_data and recipe.compare))
    own = recipe.compare.budget if recipe.compare else None
    text = budget or (SPEED_BUDGET if measure == "speed" else own)
    if text is None:
        raise UserError(f"recipe {recipe.name!r} states no budget to compare with", "give one: --budget 5epochs")
    amount = Budget.parse(text)
    left_out: tuple[str, ...] = ()
    if measure == "speed":
        if amount.kind != "seconds":
            raise UserError(f"speed is measured for a time, not for {amount}", "give --budget in seconds, such as 10s")
        left_out = tuple(spec.name for spec in specs if spec.class_path is not None)
        if left_out and (candidates is not None or len(left_out) == len(specs)):
            raise UserError(f"{left_out[0]} has no training steps to time", "choose others with --candidates")
        specs = [spec for spec in specs if spec.class_path is None]
    first = int(recipe.card["seed"]) if seed is None else seed
    jobs = tuple(
        _job(recipe, spec, point, points, first + offset, settings)
        for offset in range(seeds)
        for spec in specs
        for point in points
    )
    device = str(lookup(jobs[0].config, "trainer.accelerator") or "auto")
    return Plan(recipe, amount, measure, jobs, device, settings, left_out)


def _chosen(recipe: Recipe, candidates: str | None, *, alone: bool) -> list[CandidateSpec]:
    known = {spec.name: spec for spec in recipe.compare.candidates} if recipe.compare else {}
    if candidates is not None:
        names = [name.strip() for name in candidates.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise UserError(f"recipe {recipe.name!r} has no candidate {name!r}", nearest(name, known))
        if not names:
            raise UserError("--candidates names none", nearest("", known))
        return [known[name] for name in dict.fromkeys(names)]
    if alone:
        return [CandidateSpec(recipe.name)]
    if not known:
        raise UserError(
            f"recipe {recipe.name!r} has no compare block", "vary a setting with --sweep key=a,b,c or choose another"
        )
    return list(known.values())


def _sweep_points(recipe: Recipe, sweeps: Sequence[str]) -> list[dict[str, Any]]:
    """Return the product of all sweeps: one mapping from the key as typed to its value per point."""
    axes = []
    for text in sweeps:
        key, equals, values = text.partition("=")
        words = [word.strip() for word in values.split(",")]
        if not equals or not key.strip() or not all(words):
            raise UserError(f"sweep {text!r} is not understood", "write it like --sweep mixer=mamba1,attention")
        _sweep_key(recipe, key.strip())
        axes.append([(key.strip(), parse_value(word)) for word in words])
    return [dict(point) for point in itertools.product(*axes)]


def _sweep_key(recipe: Recipe, key: str) -> str:
    short = recipe.compare.sweeps if recipe.compare else {}
    if key in short:
        return short[key]
    if "." not in key:
        raise UserError(
            f"recipe {recipe.name!r} has no short name {key!r} to sweep",
            f"{nearest(key, short)} (or write the dotted setting, like model.lr)" if short else "write it dotted",
        )
    return key


def _job(
    recipe: Recipe,
    spec: CandidateSpec,
    point: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    seed: int,
    settings: Mapping[str, Any],
) -> Job:
    overrides = {**spec.overrides, **{_sweep_key(recipe, key): value for key, value in point.items()}}
    config = recipe.with_overrides({**overrides, **settings})
    config["seed_everything"] = seed
    if spec.class_path is not None and not all(key.startswith("data.") for key in overrides):
        raise UserError(
            f"candidate {spec.name!r} is not trained by Lightning, so only data.* can be varied for it",
            "leave it out with --candidates",
        )
    return Job(
        model=row_name(spec.name, point),
        family=_family(recipe, spec, point),
        twin=_twin(spec, point, points),
        seed=seed,
        config=config,
        overrides=overrides,
        class_path=spec.class_path,
        init_args=dict(spec.init_args),
        candidate=spec.name,
        point=dict(point),
    )


def _is_axis(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and len(set(values)) > 1


def row_name(candidate: str, point: Mapping[str, Any]) -> str:
    """Return what a candidate is called at a point of the sweeps."""
    return f"{candidate}[{','.join(f'{key}={value}' for key, value in point.items())}]" if point else candidate


def _is_mamba(value: object) -> bool:
    return isinstance(value, str) and value.startswith("mamba")


def _family(recipe: Recipe, spec: CandidateSpec, point: Mapping[str, Any]) -> str:
    """Return the family of a row: a swept mixer's own, that of the candidate who states a swept value, or its own."""
    if any(_is_mamba(value) for value in point.values()):
        return "mamba"
    if "attention" in point.values():
        return "transformer"
    for other in recipe.compare.candidates if recipe.compare else ():
        if any(other.overrides.get(_sweep_key(recipe, key)) == value for key, value in point.items()):
            return other.family
    return spec.family


def _twin(spec: CandidateSpec, point: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the row that differs only in having attention where this one has a Mamba."""
    other = {key: "attention" if _is_mamba(value) else value for key, value in point.items()}
    if other == dict(point):
        return row_name(spec.twin, point) if spec.twin else None
    return row_name(spec.name, other) if other in [dict(p) for p in points] else None
