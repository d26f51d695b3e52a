"""A recipe from a stranger: nothing outside the allowed prefixes is imported, whatever way it is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_candidates import TOY_RECIPE, write_recipe

from mamba_apps.errors import UserError
from mamba_recipes import recipe as recipes
from mamba_recipes.build import build
from mamba_recipes.cli import main
from mamba_recipes.safety import is_allowed

EVIL = "evil_module_of_a_stranger"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it is imported; the test fails if the mark is there at its end."""
    mark = tmp_path / "imported"
    code = f"open({str(mark)!r}, 'w').close()\nclass Thing: pass\ndef call(*a, **k): Thing\n"
    (tmp_path / f"{EVIL}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return mark


def tree() -> dict[str, Any]:
    return yaml.safe_load(TOY_RECIPE.replace("5e-2", "0.05"))


def in_model(tree: dict[str, Any]) -> None:
    tree["model"]["class_path"] = f"{EVIL}.Thing"


def in_data(tree: dict[str, Any]) -> None:
    tree["data"]["class_path"] = f"{EVIL}.Thing"


def in_short_form(tree: dict[str, Any]) -> None:
    tree["model"] = f"{EVIL}.Thing"


def in_callback(tree: dict[str, Any]) -> None:
    tree["trainer"]["callbacks"] = [{"class_path": f"{EVIL}.Thing"}]


def in_logger(tree: dict[str, Any]) -> None:
    tree["trainer"]["logger"] = {"class_path": f"{EVIL}.Thing"}


def in_nested_argument(tree: dict[str, Any]) -> None:
    tree["model"]["init_args"]["width"] = {"class_path": f"{EVIL}.Thing"}


def in_candidate(tree: dict[str, Any]) -> None:
    tree["compare"]["candidates"]["mean"]["class_path"] = f"{EVIL}.Thing"


def in_override(tree: dict[str, Any]) -> None:
    tree["compare"]["candidates"]["toy[mamba1]"]["overrides"] = {"model.class_path": f"{EVIL}.Thing"}


@pytest.mark.parametrize(
    "place",
    [in_model, in_data, in_short_form, in_callback, in_logger, in_nested_argument, in_candidate, in_override],
)
def test_a_class_path_outside_is_refused_before_any_import(
    place: Any, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tree()
    place(changed)
    path = write_recipe(evil.parent, yaml.safe_dump(changed))
    assert main(["compare", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{EVIL}.Thing" in err
    assert str(path) in err
    assert "outside what a recipe may name" in err
    assert err.count("\n") == 1
    assert EVIL not in sys.modules
    assert not evil.exists()


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_class_path_in_an_option_is_refused(
    command: str, evil: Path, capsys: pytest.CaptureFixture[str], toy_recipe: Path
) -> None:
    assert main([command, str(toy_recipe), "--model.class_path", f"{EVIL}.Thing"]) == 2
    assert "outside what a recipe may name" in capsys.readouterr().err
    assert not evil.exists()


@pytest.mark.parametrize(
    "callback",
    [
        {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_train_start": f"{EVIL}.call"}},
        {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_train_start": "os.getcwd"}},
    ],
)
def test_a_callable_as_an_argument_is_refused_by_the_parser(callback: dict[str, Any], evil: Path) -> None:
    changed = tree()
    changed["trainer"]["callbacks"] = [callback]
    recipe = recipes.load(str(write_recipe(evil.parent, yaml.safe_dump(changed))))
    with pytest.raises(UserError, match="outside what a recipe may name"):
        build(recipe.config, recipe.path)
    assert EVIL not in sys.modules
    assert not evil.exists()


def test_a_nested_file_with_a_class_path_outside_is_not_imported(evil: Path) -> None:
    (evil.parent / "nested.yaml").write_text(f"class_path: {EVIL}.Thing\n", encoding="utf-8")
    changed = tree()
    changed["trainer"]["logger"] = "nested.yaml"
    recipe = recipes.load(str(write_recipe(evil.parent, yaml.safe_dump(changed))))
    with pytest.raises(UserError):
        build(recipe.config, recipe.path)
    assert EVIL not in sys.modules
    assert not evil.exists()


def test_a_path_through_an_allowed_module_into_another_is_refused(tmp_path: Path) -> None:
    changed = tree()
    changed["trainer"]["callbacks"] = [{"class_path": "mamba_recipes.environment.subprocess.Popen"}]
    recipe = recipes.load(str(write_recipe(tmp_path, yaml.safe_dump(changed))))
    with pytest.raises(UserError, match="outside what a recipe may name"):
        build(recipe.config, recipe.path)


@pytest.mark.parametrize(
    "tag",
    [
        f"!!python/object/apply:{EVIL}.call []",
        f"!!python/name:{EVIL}.Thing ''",
        f"!!python/object/new:{EVIL}.Thing []",
        "!custom {}",
    ],
)
def test_yaml_tags_are_refused(tag: str, evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(evil.parent, TOY_RECIPE + f"\nseed_everything: {tag}\n")
    assert main(["fit", str(path)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err
    assert "a recipe is plain YAML without tags" in err
    assert not evil.exists()


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("mamba_apps.forecasting.ForecastTask", True),
        ("torch.optim.AdamW", True),
        ("lightning.pytorch.callbacks.EarlyStopping", True),
        ("mamba_apps", False),
        ("mamba_apps_evil.Thing", False),
        ("torch.load", False),
        ("torch.hub.load", False),
        ("lightning.pytorch.Trainer", False),
        ("os.system", False),
        ("builtins.eval", False),
    ],
)
def test_prefixes(path: str, allowed: bool) -> None:
    assert is_allowed(path) == allowed


def test_every_other_recipe_command_reads_safely(evil: Path) -> None:
    changed = tree()
    in_model(changed)
    path = write_recipe(evil.parent, yaml.safe_dump(changed))
    for words in (["recipes", str(path)], ["test", str(path), "--model", "."], ["fit", str(path), "--show-config"]):
        result = subprocess.run(
            [sys.executable, "-m", "mamba_recipes.cli", *words], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 2
        assert "was not imported" in result.stderr
    assert not evil.exists()
