"""The command's front: which command, its help, and how its errors end."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from mamba_apps import __version__
from mamba_apps.errors import UserError
from mamba_datasets.report import nearest
from mamba_recipes.cli.errors import DONE, INTERRUPTED, say
from mamba_recipes.cli.termination import TERMINATED, terminable

# command -> (module with main(argv) -> exit code, what it does). Modules import torch only once they work.
COMMANDS: dict[str, tuple[str, str]] = {
    "compare": ("mamba_recipes.cli.compare", "Mamba against Transformers and simple baselines; no argument: traffic"),
    "fit": ("mamba_recipes.cli.fit", "train a recipe"),
    "validate": ("mamba_recipes.cli.evaluate", "measure a trained model on the validation data"),
    "test": ("mamba_recipes.cli.evaluate", "measure a trained model on the test data"),
    "predict": ("mamba_recipes.cli.evaluate", "write a trained model's predictions for the recipe's data"),
    "forecast": ("mamba_recipes.cli.forecast", "forecast the series of a CSV or Parquet file"),
    "classify": ("mamba_recipes.cli.classify", "say what images show or sounds are, and what is heard when"),
    "segment": ("mamba_recipes.cli.segment", "write masks for an image or volume, or a folder of them"),
    "recipes": ("mamba_recipes.cli.listing", "list the recipes, or show one"),
    "models": ("mamba_recipes.cli.listing", "list the models and what they take"),
    "check": ("mamba_recipes.cli.check", "check a data file before training on it"),
    "bench": ("mamba_recipes.bench", "time the operators on this machine"),
    "doctor": ("mamba_recipes.doctor", "say what this installation can do here"),
}
# What other people's tools call them.
_ELSEWHERE = {
    "train": "fit",
    "finetune": "fit",
    "eval": "test",
    "evaluate": "test",
    "infer": "predict",
    "list": "models",
}
_NAMED = {"validate", "test", "predict", "recipes", "models"}  # one module serves several: it is told which


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 wrong input, 1 our failure, 130 interrupted, 143 terminated.

    Args:
        argv: The words after the command's name; None for the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files may hold bytes that are no text, and a terminal may lack a label's letters; JSON reads these as
        # the same names again
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with terminable():
            return _dispatch(words)
    except SystemExit as stop:  # argparse leaves this way after --help, and bench and doctor after a usage error
        if stop.code == TERMINATED:
            print("mamba-apps: terminated", file=sys.stderr, flush=True)
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else 2
    except BrokenPipeError:
        # The reader of our stdout has left (`| head`); keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        return say(error, debug=debug)


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return DONE
    if words[0] in ("-V", "--version"):
        print(f"mamba-apps {__version__}")
        return DONE
    command = words[0]
    if "" in words:  # as a path it would mean the working folder, which nobody types like that
        before = words[words.index("") - 1] if words[0] else "mamba-apps"
        raise UserError(f"the word after {before!r} is empty", "give its value; a variable of the shell may be unset")
    if command not in COMMANDS:
        if command.startswith("-"):
            raise UserError(f"there is no option {command!r} here", "give a command first; see mamba-apps --help")
        meant = _ELSEWHERE.get(command)
        raise UserError(f"there is no command {command!r}", f"use {meant!r}" if meant else nearest(command, COMMANDS))
    if command != "bench":
        # OpenMP's threads spin while they wait for each other; where other work shares the cores that made training of
        # small models 10 to 20 times slower. It is read when torch is imported, which is not yet.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = importlib.import_module(COMMANDS[command][0])
    argv = words if command in _NAMED else words[1:]
    code = module.main(argv)
    sys.stdout.flush()
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: mamba-apps COMMAND ...\n\n"
        "Mamba for images, volumes, audio and time series, compared honestly with Transformers.\n\n"
        f"commands:\n{listing}\n\n"
        "mamba-apps COMMAND --help says more; --version prints the version; --debug shows the traceback of an error.\n"
        f"Data goes to stdout, talk to stderr. Exit codes: 0 done, 2 wrong input, 1 our failure, {INTERRUPTED} "
        "interrupted."
    )
