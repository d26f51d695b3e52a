"""`mamba-apps forecast FILE`: learn from the series of a file and forecast what comes, with intervals."""

from __future__ import annotations

import io
import json
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_apps.errors import UserError
from mamba_datasets.errors import DataError
from mamba_recipes.cli.arguments import Parser, positive
from mamba_recipes.cli.errors import DONE
from mamba_recipes.cli.forecast_checks import check_future, check_learned, check_words, in_options
from mamba_recipes.cli.forecast_file import SeriesFile, read_file, read_future
from mamba_recipes.settings import parse_value

if TYPE_CHECKING:
    import pandas as pd

    from mamba_apps import Forecaster

_FLOAT = "%.7g"  # what single precision holds


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps forecast",
        description="Learn from the series of a CSV or Parquet file and forecast the steps after their end. The file "
        "is long (a row a series and step) or wide (a column a series); its separator, dates and columns are guessed "
        "and said. The forecast is printed as CSV, or written with --out.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the series")
    parser.add_argument("--horizon", type=positive, metavar="H", help="steps to forecast (needed unless --model DIR)")
    parser.add_argument("--levels", type=_numbers, default=[], metavar="80,95", help="intervals, in per cent (none)")
    parser.add_argument(
        "--calibration",
        type=int,
        default=0,
        metavar="STEPS",
        help="correct intervals by the forecasts of the last steps",
    )
    parser.add_argument("--freq", metavar="F", help="h, D, MS, ... (inferred)")
    parser.add_argument(
        "--model", default="patch", metavar="NAME|DIR", help="a model, or a trained one's folder (patch)"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the model; may be repeated"
    )
    parser.add_argument("--lookback", type=positive, metavar="L", help="steps of the past each forecast reads")
    parser.add_argument("--tz", metavar="ZONE", help="the time zone of local times, such as Europe/Berlin")
    parser.add_argument("--id-col", metavar="C", help="column of series ids (guessed)")
    parser.add_argument("--time-col", metavar="C", help="column of timestamps (guessed)")
    parser.add_argument("--target-col", metavar="C", help="column of targets (guessed)")
    parser.add_argument("--past", type=_words, default=(), metavar="A,B", help="columns known up to the present only")
    parser.add_argument("--future", type=_words, default=(), metavar="A,B", help="columns known ahead; needs --futr")
    parser.add_argument("--static", type=_words, default=(), metavar="A,B", help="columns with one value a series")
    parser.add_argument("--futr", type=Path, metavar="FILE", help="the columns known ahead, over the horizon")
    parser.add_argument(
        "--missing", default="error", choices=["error", "mask", "seasonal"], help="missing steps (error)"
    )
    parser.add_argument("--holidays", choices=["US"], help="public holidays known to the model")
    parser.add_argument("--max-steps", type=positive, metavar="N", help="most training steps")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the seed (0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the forecast here (.csv or .parquet)")
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="draw the forecast (.png, .svg or .pdf; FILE-forecast.png)",
    )
    parser.add_argument(
        "--cross-validate",
        type=positive,
        metavar="N",
        help="forecast from N cuts in the past instead, print scores and write a page; --out writes the forecasts",
    )
    parser.add_argument("--step-size", type=positive, metavar="S", help="steps from one cut to the next (the horizon)")
    parser.add_argument("--refit", action="store_true", help="learn anew at every cut, not once before the first")
    parser.add_argument("--page", type=Path, metavar="FILE", help="the page (FILE-cross-validation.html)")
    parser.add_argument("--short", default="error", choices=["error", "pad"], help="series below the lookback (error)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="save the trained model")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of CSV")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps forecast` and return its exit code."""
    parser = make_parser()
    arguments = parser.parse_args(list(argv))
    defaults = {name: parser.get_default(name) for name in vars(arguments)}
    check_words(arguments, defaults)

    from mamba_apps.training.chatter import quiet

    quiet()
    try:
        if arguments.cross_validate is not None:
            from mamba_recipes.cli.forecast_backtest import cross_validate

            cross_validate(arguments, argv)
        else:
            _forecast(arguments, argv, defaults)
    except DataError as error:
        raise in_options(error) from error
    return DONE


def _forecast(arguments: Namespace, argv: Sequence[str], defaults: Mapping[str, Any]) -> None:
    continued = _names_folder(arguments.model)
    if continued:
        forecaster, source = _load(Path(arguments.model), arguments, defaults)
        check_future(arguments, source, forecaster.horizon)
        forecast = forecaster.predict(read_future(arguments.futr, source.reading["time_col"]), df=source.table)
    else:
        _need_horizon(arguments)
        source = read_file(arguments)
        forecaster = make_forecaster(arguments, source)
        check_future(arguments, source, forecaster.horizon)
        forecast = forecaster.fit(source.table).predict(read_future(arguments.futr, source.reading["time_col"]))
    if arguments.plot is not None:
        from mamba_recipes.forecast_plot import draw

        picture = draw(source.table, source.reading, forecast, forecaster.alias, forecaster.levels)
        kind = arguments.plot.suffix[1:].lower()
        write_file(arguments.plot, lambda path: picture.savefig(path, dpi=150, format=kind))
    _put(forecast, arguments)
    _last_lines(forecaster, arguments, argv, learned=not continued)


def _names_folder(model: str) -> bool:
    """Tell whether a folder is meant; one that happens to be called as a model is, only if it holds a saved one."""
    if "/" in model or not Path(model).is_dir():
        return "/" in model
    from mamba_apps.forecasting.baselines import BASELINES
    from mamba_apps.forecasting.models import names
    from mamba_apps.training.saved import CARD_NAME, saved_folder

    return model not in (*names(), *BASELINES) or (saved_folder(model) / CARD_NAME).is_file()


def _need_horizon(arguments: Namespace) -> None:
    if arguments.horizon is None:
        raise UserError("--horizon is missing", "say how many steps to forecast: --horizon 24")


def make_forecaster(arguments: Namespace, source: SeriesFile, model: str | None = None) -> Forecaster:
    """Return a forecaster by the command's options, and print the header line.

    Args:
        arguments: The command's.
        source: The file.
        model: Another model than the one asked for, as it is without options.

    Raises:
        UserError: An option does not fit.
    """
    from mamba_apps import Forecaster
    from mamba_recipes.setting import device_words

    _need_horizon(arguments)
    options: dict[str, Any] = {}
    for word in arguments.option:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"--option {word!r} is not understood", "write it like --option mixer=attention")
        options[key] = parse_value(value)
    forecaster = Forecaster(
        model or arguments.model,
        horizon=arguments.horizon,
        lookback=arguments.lookback,
        levels=arguments.levels if model is None else (),
        calibration=arguments.calibration if model is None else 0,
        model_options=options if model is None else {},
        holidays=arguments.holidays,
        max_steps=arguments.max_steps,
        short=arguments.short,
        seed=arguments.seed,
        progress=True,
        **source.reading,
    )
    if model is None:
        words = [f"forecast {arguments.file.name}", arguments.model, f"horizon {arguments.horizon}", device_words()]
        print(" · ".join(words), file=sys.stderr, flush=True)
    return forecaster


def _load(folder: Path, arguments: Namespace, defaults: Mapping[str, Any]) -> tuple[Forecaster, SeriesFile]:
    """Return a saved forecaster, and the series that it is to continue."""
    from mamba_apps import Forecaster
    from mamba_apps.training.saved import load_card, saved_folder
    from mamba_recipes.setting import device_words

    inner = saved_folder(folder)
    forecaster = Forecaster.load(inner)
    settings = load_card(inner).preprocessing
    named = settings["columns"]["columns"]
    roles = {role: tuple(named[role]) for role in ("past", "future", "static")}
    check_learned(arguments, defaults, {"freq": settings["columns"]["freq"], "missing": settings["missing"], **roles})
    if arguments.horizon not in (None, forecaster.horizon):
        raise UserError(
            f"{folder}: the model forecasts {forecaster.horizon} steps, --horizon is {arguments.horizon}",
            "leave --horizon out, or train with another one",
        )
    if arguments.levels and tuple(arguments.levels) != tuple(forecaster.levels):
        known = ",".join(f"{level:g}" for level in forecaster.levels) or "none"
        raise UserError(f"{folder}: the model's levels are {known}", "leave --levels out, or train with others")
    for name, own in (("calibration", forecaster.calibration), ("tz", settings.get("tz"))):
        asked = getattr(arguments, name)
        if asked and asked != own:
            raise UserError(f"{folder}: the model's {name} is {own}", f"leave --{name} out, or train with another")
    words = [f"forecast {arguments.file.name}", f"{forecaster.model} from {folder}", f"horizon {forecaster.horizon}"]
    print(" · ".join([*words, device_words()]), file=sys.stderr, flush=True)
    source = read_file(arguments, named)
    same = {"freq": settings["columns"]["freq"], "missing": settings["missing"], "tz": settings.get("tz")}
    return forecaster, SeriesFile(source.table, {**source.reading, **same})


def _put(forecast: pd.DataFrame, arguments: Namespace) -> None:
    """Print the forecast, or write it."""
    if arguments.out is not None:
        write_frame(forecast, arguments.out)
    if arguments.json:
        # pandas would write times of a zone in UTC, and the CSV has them in the zone.
        times = forecast.iloc[:, 1].map(lambda at: at.isoformat() if hasattr(at, "isoformat") else at)
        rows = forecast.assign(**{str(times.name): times})
        print(json.dumps(json.loads(rows.to_json(orient="records")), indent=1))
    elif arguments.out is None:
        text = io.StringIO()
        forecast.to_csv(text, index=False, float_format=_FLOAT)
        print(text.getvalue(), end="")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as CSV or Parquet, whole or not at all."""
    if path.suffix.lower() == ".parquet":
        write_file(path, lambda partial: frame.to_parquet(partial, index=False))
    else:
        write_file(path, lambda partial: frame.to_csv(partial, index=False, float_format=_FLOAT))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: The disk is full, the folder is read-only, ...
    """
    from mamba_apps.training.files import storage_error, temporary_beside

    try:
        with temporary_beside(path) as temporary:
            write(temporary)
            temporary.replace(path)
    except OSError as error:
        raise storage_error("write", path, error) from error


def _last_lines(forecaster: Forecaster, arguments: Namespace, argv: Sequence[str], *, learned: bool) -> None:
    # A saved model's score is of the data that it was learned from, not of these.
    held_back = [(name, value) for name, value in forecaster.metrics.items() if learned and name.startswith("val")]
    lines = [f"{name} {value:.4g} on the part held back" for name, value in held_back[:1]]
    if arguments.save is not None:
        lines.append(f"saved: {forecaster.save(arguments.save)}")
    lines += [f"{name}: {path}" for name, path in (("forecast", arguments.out), ("plot", arguments.plot)) if path]
    if arguments.save is not None:
        lines.append(f"next:  mamba-apps forecast FILE --model {shlex.quote(str(arguments.save))}")
    elif arguments.plot is None:
        lines.append(f"next:  {shlex.join(['mamba-apps', 'forecast', *argv, '--plot'])}")
    print("\n".join(lines), file=sys.stderr)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"expected numbers joined by commas, found {text!r}") from None
