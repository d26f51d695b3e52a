"""`mamba-apps validate | test | predict`: a trained model on its recipe's data."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mamba_apps.errors import UserError
from mamba_datasets.files import write_whole
from mamba_recipes import recipe as recipes
from mamba_recipes import runs
from mamba_recipes.cli.arguments import RECIPE_OPTIONS, Parser, split_overrides
from mamba_recipes.cli.errors import DONE
from mamba_recipes.cli.targets import PAGE, check_target

_WHAT = {
    "validate": "Measure a trained model on its recipe's validation data.",
    "test": "Measure a trained model on its recipe's test data.",
    "predict": "Write a trained model's predictions for its recipe's data as safetensors.",
}


def make_parser(command: str) -> Parser:
    """Return the parser of validate, test or predict."""
    parser = Parser(prog=f"mamba-apps {command}", description=_WHAT[command], epilog=RECIPE_OPTIONS)
    parser.add_argument("recipe", metavar="RUN|NAME|PATH", help="a run's folder, or a recipe with --model")
    parser.add_argument(
        "--model", type=Path, metavar="DIR|FILE", help="weights: a run's folder, a saved model, a .ckpt"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    if command == "predict":
        default = Path("predictions.safetensors")
        parser.add_argument("--out", type=Path, default=default, metavar="FILE", help=f"the predictions ({default})")
    if command == "test":
        parser.add_argument(
            "--page", type=Path, metavar="FILE.html", help="write a page on the test, where models have one"
        )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps validate | test | predict`, as the first word says, and return its exit code."""
    command = argv[0]
    arguments, overrides = split_overrides(make_parser(command), argv[1:])
    path = Path(arguments.recipe)
    named = arguments.recipe in recipes.shipped() and not runs.is_run(path)  # data of that name may lie here
    in_folder = path.is_dir() and not named
    recipe = runs.load_run(path) if in_folder else recipes.load(arguments.recipe)
    source = arguments.model or (path if in_folder else None)
    if source is None:
        raise UserError(
            f"recipe {recipe.name!r} has no trained weights of its own", "give a run's folder, or --model DIR|FILE"
        )
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder", "give a run's folder, a saved model or a .ckpt")
    config = _on_one_device(recipe.with_overrides(overrides), overrides)
    out: Any = arguments.out if command == "predict" else getattr(arguments, "page", None)
    if out is not None:
        option, endings = ("--out", (".safetensors",)) if command == "predict" else ("--page", PAGE)
        check_target(option, out, [recipe.path, *_kept(source)], endings)

    from mamba_apps.training.trainer import make_trainer
    from mamba_recipes.build import build
    from mamba_recipes.cli.training import header, load_into, run_interruptibly

    built = build(config, recipe.path)
    draw: Any = getattr(built.model, "page", None)
    if command != "predict" and out is not None and not callable(draw):
        raise UserError(f"a {type(built.model).__name__} draws no page on its test", "leave --page out")
    load_into(built.model, source)
    first = runs.is_first_process()
    if first:
        header(path.name if in_folder else recipe.name, built)
    options = {**built.trainer_options, "monitor": None, "patience": None, "logger": False}
    with tempfile.TemporaryDirectory(prefix="mamba-apps-") as folder:
        # what a task writes about its test lies beside the weights that were tested
        beside = source if source.is_dir() else source.parent
        trainer = make_trainer(run_dir=folder, test_dir=beside, seed=built.seed, progress=True, **options)
        if trainer.world_size > 1 and (command == "predict" or out is not None):
            raise UserError("several devices were asked for, and one process writes", "leave out --trainer.devices")
        if command == "predict":
            found = run_interruptibly(trainer, lambda: trainer.predict(built.model, datamodule=built.data))
            return _write_predictions(found, out, _notes(built.data), as_json=arguments.json)
        run = getattr(trainer, command)
        found = run_interruptibly(trainer, lambda: run(built.model, datamodule=built.data, verbose=False))
        metrics = {key: float(value) for part in found for key, value in part.items()}
        if not metrics:
            part = {"validate": "val", "test": "test"}[command]
            raise UserError(
                f"{recipe.name}: its data has no {part} part to {command}",
                f"name a folder of it (--data.{part} NAME), or hold one back before training (--data.{part} 0.1)",
            )
        if out is not None:
            predicted = run_interruptibly(trainer, lambda: trainer.predict(built.model, datamodule=built.data))
            text = draw(built.data, predicted, metrics)
            write_whole(out, lambda file: file.write(text.encode()))
            print(f"page:   {out}", file=sys.stderr)
    if not first:
        return DONE
    if arguments.json:
        print(json.dumps({"model": str(source), "metrics": metrics}, indent=1))
    else:
        width = max(map(len, metrics))
        for key, value in metrics.items():
            print(f"{key:<{width}}  {value:.6g}")
    return DONE


def _on_one_device(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the devices that trained, unless a person names some for this as well."""
    trainer = dict(config["trainer"])
    if "trainer.devices" not in overrides:
        devices = trainer.get("devices")
        trainer["devices"] = devices if isinstance(devices, list) and len(devices) == 1 else 1
        for name in ("strategy", "num_nodes"):
            if f"trainer.{name}" not in overrides:
                trainer.pop(name, None)
    return {**config, "trainer": trainer}


def _kept(source: Path) -> list[Path]:
    """Return the files that training keeps in a run's or a saved model's folder, or the file that ``source`` is."""
    from mamba_apps.training.saved import CARD_NAME, MODEL_NAME, WEIGHTS_NAME

    folders = (source, source / MODEL_NAME)
    return [source, *source.glob("*.ckpt"), *(one / name for one in folders for name in (CARD_NAME, WEIGHTS_NAME))]


def _notes(data: Any) -> dict[str, str]:
    """Return what the file of predictions says beside them, as JSON: the names of their rows, and those of classes."""
    names_of = getattr(data, "predicted_names", None)
    if names_of is None:
        return {}
    notes = {"names": names_of(), "classes": list(data.classes)}
    return {key: json.dumps(words) for key, words in notes.items() if words}


def _write_predictions(found: list[Any], out: Path, notes: dict[str, str], *, as_json: bool) -> int:
    import torch
    from safetensors.torch import save

    columns: dict[str, list[torch.Tensor]] = {}
    for part in found or []:
        entries = part if isinstance(part, Mapping) else {"prediction": part}
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                columns.setdefault(str(key), []).append(value.cpu())
    if not columns:
        raise UserError("there is nothing to predict: the data has no test part", "name or hold one back (--data.test)")
    tensors = {key: torch.cat(values).contiguous() for key, values in columns.items()}
    write_whole(out, lambda file: file.write(save(tensors, notes or None)))
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    if as_json:
        print(json.dumps({"predictions": str(out), "shapes": shapes}, indent=1))
    else:
        for key, shape in shapes.items():
            print(f"{out}: {key} {' x '.join(map(str, shape))}")
    return DONE
