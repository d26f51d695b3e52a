"""`mamba-apps forecast FILE --cross-validate N`: scores of forecasts that have come true, and a page on them."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.forecast_file import read_file

_NAIVE, _OTHER = "seasonal_naive", "repeat_last"


def cross_validate(arguments: Namespace, argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: Its arguments.
        argv: The words they were read from, for the page.

    Raises:
        UserError: The model is a trained one.
        DataError: The file cannot be used.
    """
    import pandas as pd

    from mamba_datasets.series import read_series
    from mamba_recipes.cli.forecast import make_forecaster, write_file, write_frame
    from mamba_recipes.forecast_page import CrossValidation, render, summary_lines

    if Path(arguments.model).is_dir() or "/" in arguments.model:
        raise UserError(
            f"--cross-validate learns at cuts in the past, and {arguments.model} has learned already",
            "name a model, such as --model patch",
        )
    source = read_file(arguments)
    forecaster = make_forecaster(arguments, source)
    naive = make_forecaster(arguments, source, _OTHER if arguments.model == _NAIVE else _NAIVE)
    cuts = {"n_windows": arguments.cross_validate, "step_size": arguments.step_size, "refit": arguments.refit}
    refits = "learned anew at each" if arguments.refit else "learned once, before the first"
    found = CrossValidation(
        forecasts=forecaster.cross_validation(source.table, **cuts),
        naive=naive.cross_validation(source.table, **cuts),
        series_set=read_series(source.table, **source.reading),
        name=forecaster.alias,
        naive_name=naive.alias,
        levels=forecaster.levels,
        horizon=forecaster.horizon,
        facts=[arguments.file.name, forecaster.model, f"horizon {forecaster.horizon}",
               f"{arguments.cross_validate} cuts, {refits}"],
        command=shlex.join(["mamba-apps", "forecast", *argv]),
    )  # fmt: skip
    if arguments.out is not None:
        write_frame(found.forecasts, arguments.out)
    write_file(arguments.page, lambda path: path.write_text(render(found), encoding="utf-8"))
    scores = pd.concat([found.scores().assign(model=found.name), found.naive_scores().assign(model=found.naive_name)])
    scores = scores[["model", *scores.columns.drop("model")]]
    if arguments.json:
        print(json.dumps(json.loads(scores.to_json(orient="records")), indent=1))
    else:
        print(scores.to_csv(index=False, float_format="%.6g"), end="")
    lines = [*summary_lines(found), *([f"forecasts: {arguments.out}"] if arguments.out else [])]
    print("\n".join([*lines, f"page: {arguments.page}"]), file=sys.stderr)
