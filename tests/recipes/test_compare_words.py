"""What a comparison concludes: numbers over seeds, sentences, table, report, all from made-up rows."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from toy_candidates import TOY_RECIPE, write_recipe

from mamba_apps.errors import UserError
from mamba_recipes import recipe as recipes
from mamba_recipes.compare.candidate import Panel
from mamba_recipes.compare.plan import make_plan
from mamba_recipes.compare.report import render, write
from mamba_recipes.compare.report.ticks import number_label, number_ticks, time_ticks
from mamba_recipes.compare.result import Comparison, Row
from mamba_recipes.compare.stats import paired, spread
from mamba_recipes.compare.table import print_table
from mamba_recipes.compare.words import figure, verdict

EVIL_NAME = "<img src=https://evil.example/x.png onerror=alert(1)>"


def row(model: str, family: str, mae: float | None, seed: int = 1, **more: object) -> Row:
    metrics = {} if mae is None else {"mae": mae}
    values = {"metrics": metrics, "parameters": 10, "train_seconds": 1.0, "peak_memory_mib": 5.0, "twin": None, **more}
    return Row(model=model, family=family, seed=seed, **values)  # type: ignore[arg-type]


def comparison(tmp_path: Path, rows: list[Row], direction: str = "min") -> Comparison:
    text = TOY_RECIPE.replace("direction: min", f"direction: {direction}")
    recipe = recipes.load(str(write_recipe(tmp_path, text)))
    plan = make_plan(recipe, seeds=len({r.seed for r in rows}))
    about = {"python": "3.11", "versions": {"torch": "2"}, "cpu": "a chip", "cores": 2, "platform": "here"}
    return Comparison(plan, rows, about, {"data": "points", "device": "CPU"}, "mamba-apps compare toy", 12.0)


def test_spread_and_paired_difference_by_hand() -> None:
    assert spread([1.0, 2.0, 3.0]) == spread(iter([1.0, 2.0, 3.0]))
    assert spread([1.0, 2.0, 3.0]).std == 1.0
    assert math.isnan(spread([1.0]).std)
    found = paired({1: 1.0, 2: 2.0, 3: 3.0}, {1: 2.0, 2: 2.5, 3: 5.0, 4: 9.0})
    assert found is not None
    # differences -1, -0.5, -2: mean -7/6, sample deviation 0.7637626, t(2) = 4.303
    assert found.mean == pytest.approx(-7 / 6)
    assert found.high - found.mean == pytest.approx(4.303 * 0.7637626 / math.sqrt(3), rel=1e-6)
    assert not found.clear
    assert paired({1: 1.0}, {1: 2.0}) is None
    assert paired({1: 1.0, 2: 2.0}, {3: 2.0, 4: 1.0}) is None


def test_mamba_wins_in_words(tmp_path: Path) -> None:
    rows = [
        row("p[mamba1]", "mamba", 0.90, twin="p[attention]"),
        row("p[attention]", "transformer", 1.00),
        row("naive", "naive", 2.0),
    ]
    lines = verdict(comparison(tmp_path, rows))
    assert lines[0].startswith("Mamba wins: the best Mamba, p[mamba1] (MAE 0.9), is 10.0 % lower than the best Trans")
    assert lines[0].endswith("the best Transformer and its attention twin, p[attention] (MAE 1).")
    assert not any("Only the mixer swapped" in line for line in lines)  # nothing is said twice
    assert any("best Mamba's is 55.0 % lower" in line for line in lines)
    assert "One seed was run" in lines[-1]


def test_negative_results_are_said_plainly(tmp_path: Path) -> None:
    rows = [
        row("p[mamba1]", "mamba", 2.2, twin="p[attention]"),
        row("p[attention]", "transformer", 2.0),
        row("s", "mamba", 2.5, twin="i"),
        row("i", "transformer", 2.3),
        row("ridge", "linear", 1.0),
        row("naive", "naive", 2.1),
        row("broken", "mamba", None, error="out of luck"),
    ]
    lines = verdict(comparison(tmp_path, rows))
    assert lines[0].startswith("The Transformer wins: the best Transformer, p[attention] (MAE 2), is 9.1 % lower than")
    assert lines[0].endswith("the best Mamba and its twin, p[mamba1] (MAE 2.2).")
    text = "\n".join(lines)
    assert "The best of all is neither: ridge (MAE 1)." in text
    assert "Only the mixer swapped: s is worse than its attention twin i (2.5 against 2.3, 8.7 % higher)." in text
    assert "No Mamba beats the best linear model, ridge (MAE 1): the best Mamba's is 120.0 % higher." in text
    assert "No Mamba beats the best baseline without learning, naive" in text
    assert "Not worth their training here, no better than naive: p[mamba1], i, s." in text
    assert "broken failed (1 seed): out of luck" in text


def test_level_is_no_win(tmp_path: Path) -> None:
    rows = [row("m", "mamba", 1.0, twin="t"), row("t", "transformer", 1.004)]
    lines = verdict(comparison(tmp_path, rows))
    assert lines[0].startswith("Level, 0.4 % apart: the best Mamba")
    assert lines[0].endswith("and the best Transformer and its attention twin, t (MAE 1.004).")


def test_higher_may_be_better(tmp_path: Path) -> None:
    rows = [row("m", "mamba", 0.9), row("t", "transformer", 0.8), row("n", "naive", 0.95)]
    found = comparison(tmp_path, rows, direction="max")
    assert [s.model for s in found.summaries()] == ["n", "m", "t"]
    assert verdict(found)[0].startswith("Mamba wins: the best Mamba, m (MAE 0.9), is 12.5 % higher than")


@pytest.mark.parametrize(("differences", "kind"), [((-0.1, -0.11, -0.09), "clear"), ((-0.3, 0.2, -0.1), "chance")])
def test_paired_intervals_in_words(differences: tuple[float, ...], kind: str, tmp_path: Path) -> None:
    rows = []
    for seed, difference in enumerate(differences, start=1):
        rows += [row("m", "mamba", 1 + difference, seed), row("t", "transformer", 1.0, seed)]
    found = comparison(tmp_path, rows)
    line = next(line for line in verdict(found) if line.startswith("Over 3 seeds m minus t"))
    assert kind in line
    assert next(s for s in found.summaries() if s.model == "t").paired is None


def test_a_seed_that_failed_is_left_out_of_the_mean(tmp_path: Path) -> None:
    rows = [
        row("m", "mamba", 1.0, 1),
        row("m", "mamba", None, 2, error="no"),
        row("t", "transformer", 2.0, 1),
        row("t", "transformer", 3.0, 2),
    ]
    found = comparison(tmp_path, rows)
    first = found.summaries()[0]
    assert (first.metrics["mae"].count, first.metrics["mae"].mean) == (1, 1.0)
    assert any("m failed (1 seed): no" in line for line in verdict(found))


def test_the_document_has_no_nan(tmp_path: Path) -> None:
    rows = [row("m", "mamba", float("nan")), row("t", "transformer", 1.0, samples_per_second=float("inf"))]
    document = comparison(tmp_path, rows).document()
    assert document["rows"][0]["mae"] is None
    assert document["rows"][1]["samples_per_second"] is None
    json.dumps(document, allow_nan=False)


def test_the_table_is_sorted_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a-rather-long-candidate-name[with=options,and=more]"
    rows = [row("t", "transformer", 1.0), row(long, "mamba", 0.5), row("x", "naive", None, error="bad [red]luck[/red]")]
    print_table(comparison(tmp_path, rows))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(long)
    assert lines[2].split()[:3] == ["t", "1", "+100.0"]
    assert lines[3].rstrip() == "x  failed: bad [red]luck[/red]"


def test_a_narrow_terminal_gets_fewer_columns_and_whole_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("a-model[mamba1]", "mamba", 123.44), row("t", "transformer", 1.0)]
    headings = ("MAE", "to the best", "parameters", "training s", "points/s", "peak MiB")
    counts = []
    for width in (200, 66, 54, 40):
        print_table(comparison(tmp_path, rows), width=width)
        out = capsys.readouterr().out
        assert "…" not in out
        assert "a-model[mamba1]" in out
        assert "123.4" in out
        counts.append(sum(heading in out for heading in headings))
    assert counts[0] == len(headings)
    assert counts == sorted(counts, reverse=True)
    assert 1 <= counts[-1] < counts[0]


class _Loads(HTMLParser):
    """Collects every attribute by which a browser would fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            f"{tag}.{key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "data", "xlink:href")
        ]


def panel(title: str, values: list[float], label: str = "forecast") -> Panel:
    hours = [f"2018-09-0{1 + i // 24}T{i % 24:02d}:00:00" for i in range(len(values))]
    band = ([v - 1 for v in values], [v + 1 for v in values])
    return Panel(title, hours, "time", "vehicles", {"observed": [1.0] * len(values), label: values}, {label: band})


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    day = [float(i % 24) for i in range(48)]
    day[5] = float("nan")
    rows = [
        row("p[mamba1]", "mamba", 0.9, twin="p[attention]", panels=[panel("A day", day), panel("Another", day)]),
        row("p[attention]", "transformer", 1.0, panels=[panel("A day", day), panel("Another", day)]),
        row(EVIL_NAME, "other", 3.0, panels=[panel(EVIL_NAME, day)]),
        row("broken", "naive", None, error=EVIL_NAME),
    ]
    found = comparison(tmp_path, rows)
    write(found, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    loads = _Loads()
    loads.feed(text)
    assert loads.found == []
    assert "img" not in loads.tags
    assert not re.search(r"url\(|@import|https?://(?!evil\.example)", text)
    assert "default-src 'none'" in text
    for what in ("Mamba wins", "mamba-apps compare toy", "2 epochs", "Python 3.11", "a chip", "p[mamba1]", "broken"):
        assert what in text
    assert text.count("data-series='observed'") == 1 + 3  # its chip, and once in each picture
    assert text.count("<h3>A day</h3>") == 1
    assert "NaN" not in text
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text)
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = comparison(tmp_path, [row("m", "mamba", 1.0)])
    target = tmp_path / "r.html"
    target.write_text("old", encoding="utf-8")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write the report .*r.html: No space left on device; free space"):
        write(found, target)
    monkeypatch.undo()
    assert target.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_panels_without_names_of_their_own_and_numbers_for_time(tmp_path: Path) -> None:
    steps = Panel("Steps", [0, 1, 2], "step", "y", {"observed": [1.0, 2.0, 3.0], "low": [0.0] * 3, "high": [4.0] * 3})
    text = render(comparison(tmp_path, [row("m", "mamba", 1.0, panels=[steps])]))
    assert "m: low" in text
    assert "m: high" in text


@pytest.mark.parametrize(
    ("low", "high", "first", "last"), [(0, 1, 0.0, 1.0), (3.2, 7.9, 4.0, 7.0), (-5, 5, -4.0, 4.0), (0, 7300, 0, 6000)]
)
def test_ticks_are_round_and_inside(low: float, high: float, first: float, last: float) -> None:
    ticks = number_ticks(low, high)
    assert (ticks[0], ticks[-1]) == pytest.approx((first, last))
    assert all(low <= tick <= high for tick in ticks)
    assert len({number_label(tick, ticks) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("span", [10, 3600, 86400, 7 * 86400, 90 * 86400, 900 * 86400])
def test_time_ticks_are_few_and_distinct(span: int) -> None:
    ticks = time_ticks(1_536_000_000, 1_536_000_000 + span)
    assert 2 <= len(ticks) <= 10
    assert len({position for position, _ in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (231.44, "231.4"),
        (1234.56, "1,235"),
        (123456.0, "123,456"),
        (1e-6, "1.00e-06"),
        (0, "0"),
    ],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_sweep_of_the_data_varies_it_for_every_candidate(tmp_path: Path) -> None:
    recipe = recipes.load(str(write_recipe(tmp_path)))
    jobs = make_plan(recipe, sweeps=["data.points=50,60"]).jobs
    names = [f"{name}[data.points={n}]" for name in ("toy[mamba1]", "toy[attention]", "mean") for n in (50, 60)]
    assert [job.model for job in jobs] == names
    assert jobs[1].twin == "toy[attention][data.points=60]"
    assert [job.model for job in make_plan(recipe, sweeps=["mixer=mamba1", "data.points=50"]).jobs] == [
        "toy[mixer=mamba1,data.points=50]"
    ]
    alone = recipes.load(str(write_recipe(tmp_path, TOY_RECIPE[: TOY_RECIPE.index("compare:")])))
    assert len(make_plan(alone, sweeps=["data.points=50,60"], budget="2epochs").jobs) == 2


def test_speeds_are_compared_at_the_same_place_of_a_sweep(tmp_path: Path) -> None:
    recipe = recipes.load(str(write_recipe(tmp_path)))
    plan = make_plan(recipe, measure="speed", sweeps=["data.points=50,600"], candidates="toy[mamba1],toy[attention]")
    speeds = {"toy[mamba1]": (90.0, 45.0), "toy[attention]": (100.0, 20.0)}
    rows = [
        row(job.model, job.family, None, metrics={"train_samples_per_second": speeds[job.candidate][n % 2]})
        for n, job in enumerate(plan.jobs)
    ]
    lines = verdict(Comparison(plan, rows, {}, {}, "mamba-apps compare toy", 12.0))
    assert [line.split(":")[0] for line in lines[:2]] == ["The Transformer wins", "Mamba wins"]
    assert "125.0 % higher than the best Transformer, toy[attention][data.points=600]" in lines[1]
