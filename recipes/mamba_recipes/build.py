"""From a recipe's tree to a model, its data and its trainer's options, through LightningCLI's typed parser."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mamba_apps.errors import UserError
from mamba_apps.training.chatter import quiet
from mamba_apps.training.refusals import check_early
from mamba_apps.training.seeding import seed_everything
from mamba_apps.training.trainer import make_trainer
from mamba_datasets.report import nearest
from mamba_recipes import safety
from mamba_recipes.recipe import CONFIGS

# What the commands decide themselves: a recipe's trainer block need not and may not state it.
_OURS = {"run_dir", "seed", "progress", "resume", "test_dir"}
# What the parser says of a value that is of none of several plain types.
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[((?:<class '[\w.]+'>(?:, )?)+)\] Errors: "
    r"(?:- Expected a <class '[\w.]+'> )+Given value type: <class '[\w.]+'> Given value: (.+?)"
    r"(?= - Expected a <class| Given value type|$)"
)
# Lightning's options that make_trainer has under another name or settles for good.
_SETTLED = {"max_time", "min_time", "default_root_dir", "plugins", "enable_progress_bar", "enable_model_summary"}


@dataclass(frozen=True)
class Built:
    """A recipe's objects.

    Args:
        model: The Lightning module.
        data: The data module.
        trainer_options: Arguments of `make_trainer` from the ``trainer:`` block.
        seed: The seed that everything was built with.
    """

    model: LightningModule
    data: LightningDataModule
    trainer_options: dict[str, Any]
    seed: int


def _recipe_trainer(**options: Any) -> Trainer:
    """Stand for `make_trainer` before the parser; its signature, set below, is what a ``trainer:`` block may state."""
    return make_trainer(**options)


def _trainer_signature() -> inspect.Signature:
    """Return make_trainer's parameters with the rest of Lightning's in place of its ``**lightning_options``.

    The parser finds what ``**options`` stand for by reading source code, and not where they pass through a variable.
    """
    found: dict[str, inspect.Parameter] = {}
    for function in (make_trainer, Trainer.__init__):
        hints = get_type_hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            usable = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if usable and name != "self" and name not in _OURS | _SETTLED:
                kept = parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints.get(name, Any))
                found.setdefault(name, kept)
    return inspect.Signature(list(found.values()), return_annotation=Trainer)


_recipe_trainer.__signature__ = _trainer_signature()  # type: ignore[attr-defined]


class _RecipeCLI(LightningCLI):
    """LightningCLI's parser and typed instantiation over a tree; the trainer is made when the command needs it."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_object(args)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None

    def _set_seed(self) -> None:
        seed_everything(int(self.config["seed_everything"]))


class _SettingsCLI(_RecipeCLI):
    """The parser alone, which makes nothing."""

    def instantiate_classes(self) -> None:
        pass


def check_settings(config: Mapping[str, Any], source: str | Path) -> None:
    """Refuse what `build` refuses before it makes anything: settings that are unknown or have the wrong type.

    Args:
        config: As for `build`.
        source: As for `build`.

    Raises:
        UserError: If there is one, naming it.
    """
    _parse(_SettingsCLI, config, source)


def build(config: Mapping[str, Any], source: str | Path) -> Built:
    """Build the model and data that a recipe's tree describes; nothing outside the allowed prefixes is imported.

    Args:
        config: The blocks ``model``, ``data``, ``trainer`` and ``seed_everything``.
        source: Where the tree came from, for errors.

    Raises:
        UserError: If a setting is unknown or has the wrong type, naming it.
    """
    cli = _parse(_RecipeCLI, config, source)
    given = set(config.get("trainer") or {})
    options = {key: value for key, value in _plain(cli.config_init["trainer"]).items() if key in given}
    check_early(options)
    # A model whose shape the data decides is made now, so that its size is known and weights can be loaded into it.
    prepare = getattr(cli.model, "prepare_for", None)
    if callable(prepare):
        prepare(cli.datamodule)
    return Built(cli.model, cli.datamodule, options, int(cli.config["seed_everything"]))


def _parse(kind: type[_RecipeCLI], config: Mapping[str, Any], source: str | Path) -> _RecipeCLI:
    quiet()
    if Path(source).resolve().is_relative_to(CONFIGS):  # what is wrong was typed, and not in our file
        source = f"recipe {Path(source).stem!r}"
    safety.check_class_paths(config, source)
    safety.guard_parser()
    tree = dict(config)
    tree["trainer"] = dict(tree.get("trainer") or {})
    for name in sorted(_OURS & set(tree["trainer"])):
        raise UserError(f"{source}: trainer.{name}: the command sets this", "leave it out; see --out, --seed, --resume")
    try:
        return _quietly(
            kind,
            model_class=None,
            datamodule_class=None,
            save_config_callback=None,
            trainer_class=_recipe_trainer,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
            args=tree,
            run=False,
            auto_configure_optimizers="optimizer" in tree,
            load_from_checkpoint_support=False,
        )
    except ArgumentError as error:
        raise _setting_error(error, source) from error
    except ValueError as error:
        # Whatever a constructor raises reaches us wrapped in a list of the types that were tried.
        if (mendable := _mendable(error)) is None:
            raise
        raise mendable from None


def _quietly(kind: type[_RecipeCLI], **options: Any) -> _RecipeCLI:
    """Make the parser without jsonargparse's notices about the names by which Lightning calls it."""
    with warnings.catch_warnings():
        for message in (r"\s*By default only one Jsonargparse", r"\s*``instantiate_classes`` was deprecated"):
            warnings.filterwarnings("ignore", message=message)
        return kind(**options)


def _plain(value: Any) -> dict[str, Any]:
    return value.as_dict() if isinstance(value, Namespace) else dict(value)


def _mendable(error: BaseException) -> BaseException | None:
    """Return the error that a person can mend among the causes of ``error``."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "remedy"):
        cause = cause.__cause__
    return cause


def _setting_error(error: ArgumentError, source: str | Path) -> UserError:
    """Turn the parser's complaint, which lists every type it tried, into our one line."""
    text = " ".join(str(error.message).split())
    if denied := re.search(r"Importing '([^']+)' is not allowed", text):
        return UserError(
            f"{source}: {denied.group(1)!r} is outside what a recipe may name and was not imported",
            f"name something under {', '.join(safety.ALLOWED_PREFIXES)}",
        )
    if unknown := re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", text):
        group, option = unknown.groups()
        known = inspect.signature(_recipe_trainer).parameters if group == "trainer" else ()
        return UserError(f"{source}: {group} has no setting {option!r}", nearest(option, known))
    if unknown := re.search(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted", text):
        path, option = unknown.groups()
        return UserError(
            f"{source}: {path.rpartition('.')[2]} has no setting {option!r}", nearest(option, _settings_of(path))
        )
    text = _UNION.sub(_either, text)
    if wrong := re.search(r"class_path '([\w.]+)': (Parser key .*?)(?: - Expected a <class 'NoneType'>|$)", text):
        text = f"{wrong.group(1).rpartition('.')[2]}: {wrong.group(2)}"
    text = text.replace("Parser key ", "").replace("<class '", "").replace("'>", "")
    return UserError(f"{source}: {text}", _setting_remedy(text))


def _either(found: re.Match[str]) -> str:
    """Write a complaint about each of some plain types as one, as the parser does of a single type."""
    names = [name for name in re.findall(r"<class '([\w.]+)'>", found[1]) if name != "NoneType"]
    return f"Expected a {' or '.join(names)}. Got value: {found[2]}"


def _setting_remedy(text: str) -> str:
    if re.search(r"Expected a (tuple|list|collections\.abc\.Sequence)", text):
        return "write a list, such as '[a, b]'"
    if plain := re.search(r"Expected a str\. Got value: ([\w.:+-]+)$", text):
        word = {"True": "yes", "False": "no"}.get(plain[1], plain[1])  # as which YAML reads these words
        return f"write text like this in quotes of its own, such as '\"{word}\"', or a path as ./{word}"
    return "correct this setting"


def _settings_of(class_path: str) -> list[str]:
    """Return the arguments of a class that the parser has imported already."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return [] if kind is None else [p for p in inspect.signature(kind).parameters if p not in ("args", "kwargs")]
