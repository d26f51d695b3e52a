"""`mamba-apps compare`: candidates on equal terms, a table on stdout and a report that opens without a network."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_apps.errors import UserError
from mamba_recipes import recipe as recipes
from mamba_recipes.cli.arguments import RECIPE_OPTIONS, Parser, positive, split_overrides
from mamba_recipes.cli.errors import DONE, FAILED, WRONG_INPUT
from mamba_recipes.cli.targets import PAGE, check_target

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mamba_recipes.compare.plan import Job, Plan
    from mamba_recipes.compare.result import Comparison, Row

DEFAULT = "traffic"


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps compare",
        description="Train every candidate of a recipe on the same data with the same budget and seed, measure all of "
        "them on the same test data, and write a table and a report. Without arguments: hourly traffic, one day ahead.",
        epilog=RECIPE_OPTIONS,
    )
    parser.add_argument("recipe", nargs="?", default=DEFAULT, metavar="NAME|PATH", help=f"default: {DEFAULT}")
    parser.add_argument("--budget", metavar="N", help="for each candidate: 300steps, 5epochs or 60s (the recipe's own)")
    parser.add_argument("--candidates", metavar="A,B", help="only these rows (all)")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="so many seeds, with spreads (1)")
    parser.add_argument("--seed", type=int, metavar="S", help="the first seed (the recipe's own)")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B", help="vary a setting of the recipe; may be repeated"
    )
    parser.add_argument("--measure", default="quality", metavar="quality|speed", help="what to measure (quality)")
    parser.add_argument(
        "--parallel", type=positive, default=1, metavar="N", help="so many candidates at a time, untimed then (1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the report (report.html)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what the candidates' libraries print")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps compare` and return its exit code; failed candidates make it 1 (or 2, if all can be mended)."""
    arguments, overrides = split_overrides(make_parser(), argv)
    recipe = recipes.load(arguments.recipe)

    from mamba_recipes.compare.plan import make_plan
    from mamba_recipes.compare.report import write
    from mamba_recipes.compare.runner import run_plan
    from mamba_recipes.compare.table import print_table

    plan = make_plan(
        recipe,
        budget=arguments.budget,
        candidates=arguments.candidates,
        seeds=arguments.seeds,
        seed=arguments.seed,
        sweeps=arguments.sweep,
        measure=arguments.measure,
        overrides=overrides,
    )
    if arguments.parallel > 1 and (plan.measure == "speed" or plan.budget.kind == "seconds"):
        raise UserError("--parallel makes candidates share the machine, which times would show", "leave it out")
    command = shlex.join(["mamba-apps", "compare", *argv])
    check_target("--out", arguments.out, [recipe.path], PAGE)
    drawn = arguments.out.with_name(f"{arguments.out.stem}_tests")  # data may lie in a folder of the report's own name
    if arguments.log is not None:
        check_target("--log", arguments.log, [recipe.path, arguments.out])
    with _Bar(plan) as bar:
        comparison = run_plan(plan, command, bar, drawn, arguments.log, arguments.parallel)
    _refuse_what_all_refused(comparison)
    unwritten: UserError | None = None
    try:
        write(comparison, arguments.out)
    except UserError as error:  # what was measured is printed all the same
        unwritten = error
    if arguments.json:
        print(json.dumps(comparison.document(), indent=1))
    else:
        print_table(comparison)
    if unwritten is not None:
        raise unwritten
    _last_lines(comparison, arguments.out, drawn)
    return _exit_code(comparison)


def _refuse_what_all_refused(comparison: Comparison) -> None:
    """Raise the one error that a setting of all candidates led to; it says more than a report in which nothing is."""
    first = comparison.rows[0]
    if first.error is not None and all(row.mendable and row.error == first.error for row in comparison.rows):
        message, _, remedy = first.error.rpartition("; ")
        raise UserError(message, remedy)


def _last_lines(comparison: Comparison, out: Path, drawn: Path) -> None:
    from mamba_recipes.compare.words import verdict

    print(file=sys.stderr)
    for line in verdict(comparison):
        print(line, file=sys.stderr)
    print(f"report: {out} ({comparison.seconds:.0f} s in all)", file=sys.stderr)
    if drawn.is_dir():
        print(f"tests:  {drawn}/, tables and pictures of each", file=sys.stderr)
    print(f"next:   {_next(comparison)}", file=sys.stderr)


def _next(comparison: Comparison) -> str:
    plan = comparison.plan
    if any(row.error is not None and not row.mendable for row in comparison.rows):
        return f"{comparison.command} --log log.txt, to keep what the failed ones printed"
    if plan.measure == "speed" or len(plan.seeds) > 1:
        named = recipes.shipped().get(plan.recipe.name) == plan.recipe.path
        settings = [word for key, value in plan.settings.items() for word in (f"--{key}", _typed(value))]
        return shlex.join(["mamba-apps", "fit", plan.recipe.name if named else str(plan.recipe.path), *settings])
    return f"{comparison.command} --seeds 3"


def _typed(value: object) -> str:
    """Return a setting's value as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _exit_code(comparison: Comparison) -> int:
    failed = [row for row in comparison.rows if row.error is not None]
    if not failed:
        return DONE
    return WRONG_INPUT if all(row.mendable for row in failed) else FAILED


class _Bar:
    """The header line and one progress bar on stderr; where stderr is no terminal, a line per candidate that ended."""

    def __init__(self, plan: Plan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._plan = plan
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._spent: dict[int, float] = {}

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=len(self._plan.jobs))
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def opened(self, setting: Mapping[str, str]) -> None:
        """Print the header line."""
        plan = self._plan
        models = len({job.model for job in plan.jobs})
        seeds = f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"seeds {plan.seeds[0]}-{plan.seeds[-1]}"
        words = [
            f"compare {plan.recipe.name}",
            f"{models} candidate{'s' if models != 1 else ''}",
            f"{plan.budget} each",
            seeds,
            setting["device"],
            setting["data"],
        ]
        self._console.print(" · ".join(words), soft_wrap=True)

    def started(self, job: Job, place: int) -> None:
        """Show which candidate runs."""
        if self._task is not None:
            self._progress.update(self._task, description=f"{job.model} ({place + 1}/{len(self._plan.jobs)})")

    def progressed(self, place: int, fraction: float) -> None:
        """Move the bar."""
        self._spent[place] = fraction
        if self._task is not None:
            self._progress.update(self._task, completed=sum(self._spent.values()))

    def ended(self, place: int, row: Row) -> None:
        """Where there is no bar to watch, say what ended."""
        self.progressed(place, 1.0)
        if self._console.is_terminal:
            return
        from mamba_recipes.compare.words import figure

        name = "train_samples_per_second" if self._plan.measure == "speed" else self._plan.recipe.metric.name
        if row.error is not None:
            found = f"failed: {row.error}"
        else:
            found = f"{name} {figure(row.metrics.get(name, float('nan')))}"
            found += f", {row.train_seconds:.1f} s" if row.train_seconds is not None else ""
        seed = f" (seed {row.seed})" if len(self._plan.seeds) > 1 else ""
        self._console.print(f"{row.model}{seed}: {found}", soft_wrap=True)
