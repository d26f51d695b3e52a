"""Folds and parts that are held back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from mamba_datasets.audio import ClipSet, Place, hold_back, make_folds
from mamba_datasets.errors import DataError


def clips(labels: Sequence[int | tuple[int, ...]], groups: Sequence[str] | None = None) -> ClipSet:
    multilabel = not isinstance(labels[0], int)
    places = [
        Place(f"{index}.wav", (label,) if isinstance(label, int) else label, group=groups[index] if groups else None)
        for index, label in enumerate(labels)
    ]
    return ClipSet(places, ["a", "b", "c"], rate=8000, multilabel=multilabel, source="clips.csv")


def test_each_class_is_spread_over_the_folds() -> None:
    data = make_folds(clips([0] * 50 + [1] * 10 + [2] * 3), 5)
    assert data.folds is not None
    for fold in range(1, 6):
        counts = data.in_folds(fold).counts
        assert counts[:2] == [10, 2]
        assert counts[2] <= 1
    assert data.folds == make_folds(data, 5).folds
    assert data.folds != make_folds(data, 5, seed=1).folds


def test_what_belongs_together_stays_together() -> None:
    groups = [f"speaker {index % 10}" for index in range(100)]
    data = make_folds(clips([index % 3 for index in range(100)], groups), 5)
    assert data.folds is not None
    assert len(set(zip(groups, data.folds, strict=True))) == 10
    assert set(Counter(data.folds).values()) == {20}
    kept, held = hold_back(data, 0.2)
    assert (len(kept), len(held)) == (80, 20)
    assert not {place.group for place in kept.places} & {place.group for place in held.places}


def test_pieces_of_a_file_are_a_group() -> None:
    places = [Place(f"{index // 4}.wav", (index % 2,), float(index), index + 1.0) for index in range(40)]
    data = make_folds(ClipSet(places, ["a", "b"], rate=8000), 5)
    assert len({(place.path, place.fold) for place in data.places}) == 10
    alone = ClipSet([Place("0.wav", (index % 2,), float(index)) for index in range(8)], ["a", "b"], rate=8000)
    with pytest.raises(DataError, match=r"classes: 2 with one file only, .*: 'a', 'b'; add another file"):
        make_folds(alone, 2)


@pytest.mark.parametrize("part", [0.05, 0.2, 0.5, 0.9])
def test_a_part_of_each_class_is_held_back(part: float) -> None:
    data = clips([0] * 60 + [1] * 20 + [2] * 2)
    kept, held = hold_back(data, part)
    assert [a + b for a, b in zip(kept.counts, held.counts, strict=True)] == [60, 20, 2]
    assert held.counts == [round(60 * part), max(1, round(20 * part)), 1]
    assert hold_back(data, part)[1].places == held.places
    assert (held.classes, held.rate) == (data.classes, data.rate)


def test_labels_of_a_multilabel_set_are_spread() -> None:
    labels = [(0,)] * 30 + [(0, 1)] * 10 + [(2,)] + [()] * 9
    data = make_folds(clips(labels), 5)
    for fold in range(1, 6):
        part = data.in_folds(fold)
        assert part.counts[:2] == [8, 2]
        assert len(part) == 10


@pytest.mark.parametrize("divide", [lambda data: make_folds(data, 2), lambda data: hold_back(data, 0.5)])
def test_a_class_with_one_clip_is_refused(divide: object) -> None:
    with pytest.raises(DataError) as caught:
        divide(clips([0, 0, 1, 2, 2]))  # type: ignore[operator]
    assert str(caught.value) == (
        "clips.csv: classes: 1 with one clip only, which cannot be learned and tested: 'b'; add another clip, "
        "or leave the class out"
    )
    with pytest.raises(DataError, match=r"classes: 1 with one group only, .*: 'c'; add another group"):
        divide(clips([0, 0, 1, 1, 2, 2], ["x", "y", "x", "y", "y", "y"]))  # type: ignore[operator]


@pytest.mark.parametrize("labels", [[(0,), (1,), ()], [()] * 3])
def test_what_cannot_be_divided_is_refused(labels: list[tuple[int, ...]]) -> None:
    data = clips(labels, ["together"] * 3)
    with pytest.raises(DataError, match="part: 3 clips in 1 files or groups leave nothing on one side"):
        hold_back(data, 0.5)


def test_numbers_that_make_no_sense_are_refused() -> None:
    data = clips([0, 0, 1, 1])
    with pytest.raises(DataError, match="folds: expected at least 2 folds, found 1"):
        make_folds(data, 1)
    with pytest.raises(DataError, match="folds: 4 files or groups are too few for 5 folds"):
        make_folds(data, 5)
    for part in (0.0, 1.0, 1.5):
        with pytest.raises(DataError, match="part: expected a part between 0 and 1"):
            hold_back(data, part)
