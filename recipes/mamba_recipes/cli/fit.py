"""`mamba-apps fit`: train a recipe, keep checkpoints that survive a crash, save the model."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mamba_apps.errors import UserError
from mamba_recipes import recipe as recipes
from mamba_recipes import runs
from mamba_recipes.cli.arguments import RECIPE_OPTIONS, Parser, split_overrides
from mamba_recipes.cli.errors import DONE
from mamba_recipes.cli.termination import end_as_ever
from mamba_recipes.settings import lookup


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps fit",
        description="Train a recipe. The run's folder keeps the recipe, checkpoints and, at the end, the saved model.",
        epilog=RECIPE_OPTIONS,
    )
    parser.add_argument("recipe", nargs="?", metavar="NAME|PATH", help="a recipe (see mamba-apps recipes)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (runs/<name>-<time>)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    parser.add_argument("--seed", type=int, metavar="S", help="the seed (the recipe's own)")
    parser.add_argument("--json", action="store_true", help="print one JSON document when done")
    parser.add_argument("--show-config", action="store_true", help="print the recipe with all settings, and stop")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps fit` and return its exit code."""
    arguments, overrides = split_overrides(make_parser(), argv)
    if (arguments.recipe is None) == (arguments.resume is None):
        raise UserError("fit needs a recipe or --resume DIR, and only one of them", "see mamba-apps fit --help")
    if arguments.resume and arguments.out:
        raise UserError("--resume goes on in the run's own folder, and --out names another", "leave one of them out")
    recipe = runs.load_run(arguments.resume) if arguments.resume else recipes.load(arguments.recipe)
    if arguments.seed is not None:
        overrides["seed_everything"] = arguments.seed
    config = recipe.with_overrides(overrides)
    if arguments.show_config:
        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120), end="")
        return DONE
    folder = arguments.resume or runs.new_run(recipe, arguments.out, lookup(config, "data.root"))

    from mamba_apps.training.checkpoint import LAST_NAME
    from mamba_apps.training.files import check_directory
    from mamba_apps.training.saved import MODEL_NAME
    from mamba_apps.training.trainer import make_trainer
    from mamba_recipes.build import build
    from mamba_recipes.cli.training import AtStart, MonitorCheck, header, load_into, refuse_precision, save

    first = runs.is_first_process()
    if first and arguments.resume is None:
        check_directory(folder, "run folder")  # before data are read, which may take long
    built = build(config, recipe.path)
    options = dict(built.trainer_options)
    if arguments.resume and first:
        # a checkpoint that these settings do not fit is refused before this, and the run stays as it is
        keep = AtStart(lambda: runs.write_recipe(folder, recipe, config))
        options["callbacks"] = [*(options.get("callbacks") or []), keep]
    if overrides.get("trainer.monitor") is not None and arguments.resume is None:
        options["callbacks"] = [*(options.get("callbacks") or []), MonitorCheck(options["monitor"])]
        options["num_sanity_val_steps"] = options.get("num_sanity_val_steps") or 1
    name = recipe.name if arguments.recipe else folder.name
    if first:
        header(name, built)
    # only the first process keeps others out: those that train with it are started by it, or beside it
    with runs.training_in(folder, resume=arguments.resume is not None) if first else contextlib.nullcontext():
        trainer = None
        try:
            trainer = make_trainer(
                run_dir=folder,
                seed=built.seed,
                progress=True,
                resume=arguments.resume is not None,
                **options,
            )
            if first and arguments.resume is None:
                runs.write_recipe(folder, recipe, config)
            if trainer.world_size > 1:
                end_as_ever()
            trainer.fit(built.model, datamodule=built.data)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # Ctrl-C, SIGTERM
            if first and arguments.resume is None:
                runs.forget(folder, untrained=not stopped and trainer is not None and trainer.global_step == 0)
            if first and stopped and (folder / LAST_NAME).exists():
                print(f"continue with: mamba-apps fit --resume {shlex.quote(str(folder))}", file=sys.stderr)
            refuse_precision(error, options.get("precision"))
            raise
        if not first:
            return DONE
        checkpoint = trainer.checkpoint_callback
        best = str(getattr(checkpoint, "best_model_path", "") or "")
        if best:
            load_into(built.model, Path(best))
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "train" not in key}
        monitor = getattr(checkpoint, "monitor", None)
        score = getattr(checkpoint, "best_model_score", None)
        if monitor and score is not None:
            metrics[monitor] = float(score)
        saved = save(built, recipe, config, metrics, folder / MODEL_NAME)
    if arguments.json:
        print(json.dumps({"recipe": name, "run": str(folder), "model": str(saved), "metrics": metrics}, indent=1))
    written = f"best {monitor} {metrics[monitor]:.4g}" if monitor in metrics else f"{trainer.global_step} steps done"
    print(f"{written}\nsaved: {saved}\nnext:  mamba-apps test {shlex.quote(str(folder))}", file=sys.stderr)
    return DONE
