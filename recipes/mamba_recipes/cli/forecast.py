"""`mamba-apps forecast FILE`: learn from the series of a file and forecast what comes, with intervals."""

from __future__ import annotations

import io
import json
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_apps.errors import UserError
from mamba_recipes.cli.arguments import Parser, positive
from mamba_recipes.cli.errors import DONE
from mamba_recipes.settings import parse_value

if TYPE_CHECKING:
    import pandas as pd

    from mamba_apps import Forecaster

_COLUMNS = ("id_col", "time_col", "target_col", "past", "future", "static", "missing")
_FLOAT = "%.7g"  # what single precision holds


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps forecast",
        description="Learn from the series of a CSV or Parquet file in the long format (unique_id, ds, y) and forecast "
        "the steps after their end. The forecast is printed as CSV, or written with --out.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the series")
    parser.add_argument("--horizon", type=positive, metavar="H", help="steps to forecast (needed unless --model DIR)")
    parser.add_argument("--levels", type=_numbers, default=[], metavar="80,95", help="intervals, in per cent (none)")
    parser.add_argument("--freq", metavar="F", help="h, D, MS, ... (inferred)")
    parser.add_argument(
        "--model", default="patch", metavar="NAME|DIR", help="a model, or a trained one's folder (patch)"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the model; may be repeated"
    )
    parser.add_argument("--lookback", type=positive, metavar="L", help="steps of the past each forecast reads")
    parser.add_argument("--id-col", default="unique_id", metavar="C", help="column of series ids (unique_id)")
    parser.add_argument("--time-col", default="ds", metavar="C", help="column of timestamps (ds)")
    parser.add_argument("--target-col", default="y", metavar="C", help="column of targets (y)")
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
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the forecast (.png, .svg or .pdf)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="save the trained model")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of CSV")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps forecast` and return its exit code."""
    arguments = make_parser().parse_args(list(argv))
    _check_targets(arguments)

    from mamba_apps.training.chatter import quiet

    quiet()
    saved = Path(arguments.model)
    if saved.is_dir() or "/" in arguments.model:
        forecaster, reading = _load(saved, arguments)
        forecast = forecaster.predict(arguments.futr, df=arguments.file)
    else:
        reading = {"freq": _freq(arguments.freq), **{name: getattr(arguments, name) for name in _COLUMNS}}
        forecaster = _fit(arguments, reading)
        forecast = forecaster.predict(arguments.futr)
    if arguments.plot is not None:
        from mamba_recipes.forecast_plot import draw

        picture = draw(arguments.file, reading, forecast, forecaster.alias, forecaster.levels)
        _write(arguments.plot, lambda path: picture.savefig(path, dpi=150, format=arguments.plot.suffix[1:]))
    _put(forecast, arguments)
    _last_lines(forecaster, arguments)
    return DONE


def _check_targets(arguments: Namespace) -> None:
    """Refuse what could not be written before anything is trained."""
    from mamba_apps.training.files import make_directory

    if not arguments.file.exists():
        raise UserError(f"{arguments.file}: there is no such file", "check the path")
    for name, endings in (("out", (".csv", ".parquet")), ("plot", (".png", ".svg", ".pdf"))):
        path = getattr(arguments, name)
        if path is None:
            continue
        if path.suffix not in endings:
            raise UserError(f"--{name} {path}: unknown ending {path.suffix!r}", f"use {', '.join(endings)}")
        if path.is_dir():
            raise UserError(f"--{name} {path} is a folder", "give a file")
        make_directory(path.resolve().parent, f"folder of --{name}")


def _fit(arguments: Namespace, reading: dict[str, Any]) -> Forecaster:
    from mamba_apps import Forecaster
    from mamba_recipes.setting import device_words

    if arguments.horizon is None:
        raise UserError("--horizon is missing", "say how many steps to forecast: --horizon 24")
    options: dict[str, Any] = {}
    for word in arguments.option:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"--option {word!r} is not understood", "write it like --option mixer=attention")
        options[key] = parse_value(value)
    forecaster = Forecaster(
        arguments.model,
        horizon=arguments.horizon,
        lookback=arguments.lookback,
        levels=arguments.levels,
        model_options=options,
        holidays=arguments.holidays,
        max_steps=arguments.max_steps,
        seed=arguments.seed,
        progress=sys.stderr.isatty(),
        **reading,
    )
    words = [f"forecast {arguments.file.name}", arguments.model, f"horizon {arguments.horizon}", device_words()]
    print(" · ".join(words), file=sys.stderr, flush=True)
    return forecaster.fit(arguments.file)


def _load(folder: Path, arguments: Namespace) -> tuple[Forecaster, dict[str, Any]]:
    """Return a saved forecaster, and how the series of its training were read."""
    from mamba_apps import Forecaster
    from mamba_apps.training.saved import load_card
    from mamba_recipes.runs import MODEL_NAME
    from mamba_recipes.setting import device_words

    inner = folder / MODEL_NAME if (folder / MODEL_NAME).is_dir() else folder
    forecaster = Forecaster.load(inner)
    settings = load_card(inner).preprocessing
    reading = {"freq": settings["columns"]["freq"], "missing": settings["missing"], **settings["columns"]["columns"]}
    if arguments.horizon not in (None, forecaster.horizon):
        raise UserError(
            f"{folder}: the model forecasts {forecaster.horizon} steps, --horizon is {arguments.horizon}",
            "leave --horizon out, or train with another one",
        )
    if arguments.levels and tuple(arguments.levels) != tuple(forecaster.levels):
        known = ",".join(f"{level:g}" for level in forecaster.levels) or "none"
        raise UserError(f"{folder}: the model's levels are {known}", "leave --levels out, or train with others")
    words = [f"forecast {arguments.file.name}", f"{forecaster.model} from {folder}", f"horizon {forecaster.horizon}"]
    print(" · ".join([*words, device_words()]), file=sys.stderr, flush=True)
    return forecaster, reading


def _put(forecast: pd.DataFrame, arguments: Namespace) -> None:
    """Print the forecast, or write it whole or not at all."""
    if arguments.out is not None:
        if arguments.out.suffix == ".parquet":
            _write(arguments.out, lambda path: forecast.to_parquet(path, index=False))
        else:
            _write(arguments.out, lambda path: forecast.to_csv(path, index=False, float_format=_FLOAT))
    if arguments.json:
        print(json.dumps(json.loads(forecast.to_json(orient="records", date_format="iso")), indent=1))
    elif arguments.out is None:
        text = io.StringIO()
        forecast.to_csv(text, index=False, float_format=_FLOAT)
        print(text.getvalue(), end="")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _last_lines(forecaster: Forecaster, arguments: Namespace) -> None:
    held_back = [(name, value) for name, value in forecaster.metrics.items() if name.startswith("val")]
    lines = [f"{name} {value:.4g} on the part held back" for name, value in held_back[:1]]
    if arguments.save is not None:
        lines.append(f"saved: {forecaster.save(arguments.save)}")
    lines += [f"{name}: {path}" for name, path in (("forecast", arguments.out), ("plot", arguments.plot)) if path]
    if arguments.save is not None:
        lines.append(f"next:  mamba-apps forecast FILE --model {arguments.save}")
    elif arguments.plot is None:
        which = f"--model {arguments.model}" if Path(arguments.model).is_dir() else f"--horizon {forecaster.horizon}"
        lines.append(f"next:  mamba-apps forecast {arguments.file} {which} --plot forecast.png")
    print("\n".join(lines), file=sys.stderr)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"expected numbers joined by commas, found {text!r}") from None


def _freq(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdigit() else text
