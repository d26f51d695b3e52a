"""Recipes as files: the shipped ones hold, broken ones are refused with their place, settings mean what they say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from toy_candidates import TOY_RECIPE, write_recipe

from mamba_apps.errors import UserError
from mamba_datasets.volumes.synthetic import write_synthetic
from mamba_recipes import recipe as recipes
from mamba_recipes.build import build, check_settings
from mamba_recipes.cli import main
from mamba_recipes.compare.budget import Budget
from mamba_recipes.compare.plan import make_plan
from mamba_recipes.settings import apply_overrides, lookup, parse_overrides, parse_value


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a folder a class in each of its parts, for recipes that leave their folder to the user."""
    root = tmp_path_factory.mktemp("photos")
    for part, name in itertools.product(("train", "val", "test"), ("cat", "dog")):
        (root / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / part / name / "1.png")
    return root


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table in the layout of the forecasting benchmarks, for the recipe that leaves it too."""
    root = tmp_path_factory.mktemp("benchmark")
    rows = "".join(f"{2000 + day // 360}-{day // 30 % 12 + 1:02}-01,{day % 7},{day % 5}\n" for day in range(2000))
    (root / "toy.csv").write_text("date,a,OT\n" + rows, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of volumes in nnU-Net's layout, for recipes that leave theirs to the user."""
    return write_synthetic(tmp_path_factory.mktemp("volumes"), 5, (48, 44, 40))


@pytest.mark.parametrize("name", sorted(recipes.shipped()))
def test_every_shipped_recipe_builds(name: str, photos: Path, benchmark: Path, volumes: Path) -> None:
    recipe = recipes.load(name)
    given: dict[str, Any] = {}
    if recipe.config["data"]["class_path"].startswith("mamba_apps.vision.classification."):
        if lookup(recipe.config, "data.root") is None:
            flat = "train" in recipe.config["data"]["init_args"]
            given["data.root"] = str(photos / "train" if flat else photos)
    if recipe.config["data"]["class_path"] == "mamba_apps.forecasting.ltsf.LtsfData":
        given = {"data.root": str(benchmark), "data.name": "toy"}
    if recipe.config["data"]["class_path"] == "mamba_apps.medical.segmentation.VolumeData":
        given = {"data.root": str(volumes)}
    if recipe.config["data"]["class_path"] == "mamba_apps.audio.tagging.AudioData":
        given = {"data.root": "sounds", "data.layout": None, "data.fold": None}
    built = build(recipe.with_overrides(given), recipe.path)
    assert sum(p.numel() for p in built.model.parameters()) > 0
    assert recipe.path.parent.name == recipe.card["domain"]
    assert recipe.card["command"].startswith("mamba-apps ")
    assert name in recipe.card["command"]
    if recipe.compare:
        plan = make_plan(recipe, overrides=given)
        for job in plan.jobs:
            if job.class_path is None:
                build(job.config, recipe.path)


def test_names_of_shipped_recipes_are_unique() -> None:
    files = list(recipes.CONFIGS.glob("*/*.yaml"))
    assert len(files) == len(recipes.shipped()) > 0


def without(key: str) -> str:
    tree = yaml.safe_load(TOY_RECIPE)
    node = tree
    *way, last = key.split(".")
    for name in way:
        node = node[name]
    del node[last]
    return yaml.safe_dump(tree)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file: expected a mapping, found nothing"),
        ("- a\n- b\n", "the file: expected a mapping, found list"),
        ("a: [1, 2\n", "line 2"),
        (without("model"), "model: expected a mapping, found nothing"),
        (without("recipe.expected"), "recipe.expected: is missing"),
        (TOY_RECIPE.replace("direction: min", "direction: down"), "recipe.metric: expected a name and direction"),
        (TOY_RECIPE + "\ntrainr: {}\n", "unknown block 'trainr'; did you mean 'trainer'"),
        (TOY_RECIPE + "\ntrainer: {max_epochs: 9}\n", "the key 'trainer' is given twice"),
        (TOY_RECIPE.replace("family: naive", "family: naiv"), "did you mean 'naive'"),
        (TOY_RECIPE.replace('toy[attention]", over', 'toy[atention]", over'), "there is no candidate 'toy[atention]'"),
        (TOY_RECIPE.replace("budget: 2epochs", "note: x"), "compare.budget: is missing"),
        (TOY_RECIPE.replace("family: transformer", "famly: x"), "unknown key 'famly'; did you mean 'family'"),
    ],
)
def test_broken_recipes_are_refused_with_their_place(text: str, says: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, text)
    with pytest.raises(UserError) as caught:
        recipes.load(str(path))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_what_was_typed_is_not_blamed_on_our_file() -> None:
    recipe = recipes.load("sounds")
    with pytest.raises(UserError, match=r"^recipe 'sounds': AudioTask has no setting 'lrr'"):
        build(recipe.with_overrides({"model.lrr": 1}), recipe.path)


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        recipes.load(str(path))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"trainer.max_epoch": 3}, "trainer has no setting 'max_epoch'; did you mean 'max_epochs'"),
        ({"model.lrr": 1}, "ToyModule has no setting 'lrr'; did you mean 'lr'"),
        ({"model.lr": "fast"}, "Expected a float. Got value: fast"),
        ({"trainer.max_steps": 1.5}, 'toy.yaml: "trainer.max_steps": Expected a int. Got value: 1.5; correct this'),
        ({"trainer.precision": 16}, """such as '"16"', or a path as ./16"""),
        ({"model.mixer": False}, """Got value: False; write text like this in quotes of its own, such as '"no"'"""),
        ({"trainer.callbacks": "nosuch"}, "write a list, such as '[a, b]'"),
        ({"trainer.run_dir": "x"}, "trainer.run_dir: the command sets this"),
        ({"modle.lr": 1}, "unknown setting 'modle.lr'; did you mean 'model'"),
        ({"model.lr.deep": 1}, "passes through 'model.lr', which is 0.05"),
    ],
)
def test_wrong_settings_are_named(overrides: dict[str, Any], says: str, toy_recipe: Path) -> None:
    recipe = recipes.load(str(toy_recipe))
    with pytest.raises(UserError) as caught:
        build(recipe.with_overrides(overrides), recipe.path)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["2024", "2024-01-01"])
def test_a_folder_called_by_a_number_is_written_with_its_place(name: str) -> None:
    recipe = recipes.load("finetune")
    with pytest.raises(UserError) as caught:
        check_settings(recipe.with_overrides(parse_overrides(["--data.root", name])), recipe.path)
    says = (
        f"""recipe 'finetune': ImageData: "root": Expected a str. Got value: {name}; write text like this in quotes"""
    )
    assert str(caught.value).startswith(says)
    assert str(caught.value).endswith(f"or a path as ./{name}")
    check_settings(recipe.with_overrides(parse_overrides(["--data.root", f"./{name}"])), recipe.path)


def test_a_folder_beside_does_not_hide_a_recipe_but_a_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()  # data are often kept in a folder of that name
    assert recipes.find("digits") == recipes.shipped()["digits"]
    assert main(["test", "digits"]) == 2
    assert "recipe 'digits' has no trained weights of its own" in capsys.readouterr().err
    Path("digits/recipe.yaml").touch()  # a run's folder is tested, as ever
    assert main(["test", "digits"]) == 2
    assert "expected a mapping, found nothing" in capsys.readouterr().err
    Path("traffic").write_text(TOY_RECIPE)
    assert recipes.load("traffic").card["title"] == yaml.safe_load(TOY_RECIPE)["recipe"]["title"]


def test_settings_reach_the_objects(toy_recipe: Path) -> None:
    recipe = recipes.load(str(toy_recipe))
    words = ["--model.lr", "1e-3", "--data.noise=0.5", "--trainer.gradient_clip_val", "1.0"]
    built = build(recipe.with_overrides(parse_overrides(words)), recipe.path)
    assert built.model.lr == 1e-3
    assert built.data.noise == 0.5
    assert built.trainer_options["gradient_clip_val"] == 1.0
    assert built.trainer_options["max_epochs"] == 2


@pytest.mark.parametrize("key", ["trainer.max_steps", "trainer.max_seconds", "trainer.max_epochs"])
def test_a_budget_takes_the_place_of_the_recipes_own(key: str, toy_recipe: Path) -> None:
    recipe = recipes.load(str(toy_recipe))
    assert recipe.config["trainer"]["max_epochs"] == 2
    left = recipe.with_overrides({key: 7})["trainer"]
    assert {name: left[name] for name in left if name.startswith("max_") and left[name] is not None} == {
        key.removeprefix("trainer."): 7
    }
    both = recipe.with_overrides({"trainer.max_epochs": 3, "trainer.max_steps": 7})["trainer"]
    assert (both["max_epochs"], both["max_steps"]) == (3, 7)  # refused by the trainer


def test_building_is_seeded(toy_recipe: Path) -> None:
    recipe = recipes.load(str(toy_recipe))
    first, again = (build(recipe.config, recipe.path).model.net.weight.item() for _ in range(2))
    other = build(recipe.with_overrides({"seed_everything": 2}), recipe.path).model.net.weight.item()
    assert first == again != other


def test_overrides_skip_init_args_and_leave_the_tree_alone() -> None:
    tree = {"model": {"class_path": "a.B", "init_args": {"x": 1, "inner": {"class_path": "c.D"}}}}
    changed = apply_overrides(tree, {"model.x": 2, "model.inner.y": 3, "model.init_args.z": 4})
    assert changed["model"]["init_args"] == {"x": 2, "inner": {"class_path": "c.D", "init_args": {"y": 3}}, "z": 4}
    assert tree["model"]["init_args"]["x"] == 1
    assert lookup(changed, "model.inner.y") == 3
    assert lookup(changed, "model.none.y") is None
    assert apply_overrides(changed, {"model.class_path": "e.F"})["model"] == {"class_path": "e.F"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("null", None), ("[1, 2]", [1, 2]), ("a: b: c", "a: b: c"), ("x", "x")],
)
def test_values_on_the_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "kind", "amount", "written"),
    [
        ("300steps", "steps", 300, "300 steps"),
        ("5 epochs", "epochs", 5, "5 epochs"),
        ("1epoch", "epochs", 1, "1 epoch"),
        ("60s", "seconds", 60, "60 seconds"),
        ("1.5min", "seconds", 90, "90 seconds"),
    ],
)
def test_budgets(text: str, kind: str, amount: float, written: str) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount, str(budget)) == (kind, amount, written)
    given = {key: value for key, value in budget.trainer_options().items() if value is not None}
    assert given == {f"max_{kind}": amount}


@pytest.mark.parametrize("text", ["", "10", "steps", "-3steps", "0epochs", "2.5steps", "5 parsecs", "1e3steps"])
def test_budgets_that_mean_nothing(text: str) -> None:
    with pytest.raises(UserError, match="budget"):
        Budget.parse(text)
