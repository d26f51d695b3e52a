"""The layouts of published sets of sounds, each in miniature."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mamba_datasets.audio import AudioFolder, ClipSet, audioset_segments, esc50, fsdd, open_clips, speech_commands
from mamba_datasets.audio.layouts.known import guess_layout
from mamba_datasets.broken import write_broken
from mamba_datasets.errors import DataError
from mamba_datasets.registry import check, guess_kind

RATE = 8000


def sound(path: Path, seconds: float = 1.0) -> None:
    """Write a sound that no other is like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(path)))
    wave_S = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, wave_S, RATE)


def names(clips: ClipSet) -> list[tuple[str, str, str | None]]:
    """Return the file, class and split of each clip."""
    return [
        ("/".join(Path(place.path).parts[-2:]), clips.classes[place.labels[0]], place.split) for place in clips.places
    ]


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    root = tmp_path / "commands"
    for word in ("yes", "no", "bird", "cat"):
        for speaker in ("aa", "bb", "cc"):
            sound(root / word / f"{speaker}_nohash_0.wav")
    sound(root / "_background_noise_" / "tap.wav", 11.5)
    (root / "_background_noise_" / "README.md").write_text("noise")
    (root / "validation_list.txt").write_text("yes/bb_nohash_0.wav\nno/bb_nohash_0.wav\nbird/bb_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("yes/cc_nohash_0.wav\n\ncat/cc_nohash_0.wav\n")
    (root / "LICENSE").write_text("CC BY 4.0")
    return root


def test_speech_commands_splits_by_its_lists(commands: Path) -> None:
    data = speech_commands(commands, rate=RATE)
    assert data.classes == ["bird", "cat", "no", "yes"]
    found = names(data)
    assert ("yes/aa_nohash_0.wav", "yes", "train") in found
    assert ("yes/bb_nohash_0.wav", "yes", "val") in found
    assert ("cat/cc_nohash_0.wav", "cat", "test") in found
    assert [split for _, _, split in found].count("train") == 7
    assert {place.group for place in data.places} == {"aa", "bb", "cc"}
    assert data.notes == ["_background_noise_ was left out"]


def test_words_that_are_not_asked_for_are_left_out_or_unknown_and_it_is_said(commands: Path) -> None:
    few = speech_commands(commands, rate=RATE, words=["yes", "no"])
    assert (few.classes, few.counts) == (["yes", "no"], [3, 3])
    assert few.notes[0] == "2 other words were left out: bird, cat"
    data = speech_commands(commands, rate=RATE, words=["yes", "no"], unknown="class", background="class")
    assert (data.classes, data.counts) == (["yes", "no", "_unknown_", "_silence_"], [3, 3, 6, 11])
    assert ("cat/cc_nohash_0.wav", "_unknown_", "test") in names(data)
    assert data.notes == [
        "2 other words are class _unknown_: bird, cat",
        "_background_noise_: 11 pieces of 1 s are class _silence_",
    ]
    silence = data.subset([index for index, place in enumerate(data.places) if place.labels == (3,)])
    assert [split for _, _, split in names(silence)] == [*["train"] * 8, "val", "test", "train"]
    assert [len(silence[index].samples_S) for index in (0, 10)] == [RATE, RATE]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"words": ["yes", "brid"]}, r"words: there is no folder of 'brid'; did you mean 'bird'"),
        (None, {"unknown": "other"}, r"unknown: expected leave_out or class, found 'other'"),
        ("testing_list.txt", {}, r"testing_list.txt: list: expected a list of clips"),
        ("yes/cc_nohash_0.wav", {}, r"testing_list.txt: line 1: there is no file 'yes/cc_nohash_0.wav'"),
        ("_background_noise_/tap.wav", {"background": "class"}, r"holds no sound"),
    ],
)
def test_speech_commands_that_lack_something(
    commands: Path, change: str | None, options: dict[str, Any], message: str
) -> None:
    if change is not None:
        (commands / change).unlink()
    with pytest.raises(DataError, match=message):
        speech_commands(commands, rate=RATE, **options)


def test_a_list_that_leaves_the_folder_is_refused(commands: Path) -> None:
    with (commands / "testing_list.txt").open("a") as file:
        file.write("../secret.wav\n")
    with pytest.raises(DataError, match=r"testing_list.txt: line 4: path '../secret.wav' leaves the folder"):
        speech_commands(commands, rate=RATE)


@pytest.fixture
def esc(tmp_path: Path) -> Path:
    root = tmp_path / "ESC-50"
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, name, esc10 in ((0, "dog", True), (38, "clock", True), (7, "pig", False)):
            sound(root / "audio" / f"{fold}-{name}.wav")
            rows.append(f"{fold}-{name}.wav,{fold},{target},{name},{esc10},{fold}00,A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return root


def test_esc50_has_its_folds_and_the_published_order_of_classes(esc: Path) -> None:
    data = esc50(esc, rate=RATE)
    assert (data.classes, data.counts) == (["dog", "pig", "clock"], [5, 5, 5])
    assert data.folds == [fold for fold in range(1, 6) for _ in range(3)]
    assert names(data.in_folds(2)) == [(f"audio/2-{name}.wav", name, None) for name in ("dog", "clock", "pig")]
    assert len(data.outside_folds(2)) == 12
    assert esc50(esc, rate=RATE, esc10=True).classes == ["dog", "clock"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filename,", "file,", r"esc50.csv: header: expected columns .* there is no filename"),
        ("2-dog.wav,2,0,dog", "2-dog.wav,2,0,cat", r"esc50.csv: row 5: class 0 is 'dog' above and 'cat' here"),
        ("2-dog.wav,2", "2-dog.wav,two", r"esc50.csv: row 5: expected numbers as fold and target"),
        ("2-dog.wav,2", "../../2-dog.wav,2", r"row 5, column filename: path '.*' leaves the folder"),
        ("2-dog.wav,2", "9-dog.wav,2", r"row 5, column filename: there is no file 'audio/9-dog.wav'"),
    ],
)
def test_an_esc50_table_that_was_changed_is_refused(esc: Path, old: str, new: str, message: str) -> None:
    path = esc / "meta" / "esc50.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        esc50(esc, rate=RATE)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    root = tmp_path / "fsdd"
    for digit in (0, 7):
        for index in (0, 4, 5, 11):
            sound(root / "recordings" / f"{digit}_ann_{index}.wav", 0.3)
    return root


def test_fsdd_tests_on_the_first_five_of_each_digit_and_speaker(digits: Path) -> None:
    data = fsdd(digits, rate=RATE)
    assert data.classes == [*"0123456789"]
    assert data.counts == [4, 0, 0, 0, 0, 0, 0, 4, 0, 0]
    found = [(name, split) for name, digit, split in names(data) if digit == "7"]
    assert found == [
        ("recordings/7_ann_0.wav", "test"),
        ("recordings/7_ann_11.wav", "train"),
        ("recordings/7_ann_4.wav", "test"),
        ("recordings/7_ann_5.wav", "train"),
    ]
    assert fsdd(digits / "recordings", rate=RATE).splits == data.splits
    sound(digits / "recordings" / "seven.wav")
    with pytest.raises(DataError, match=r"seven.wav: name: expected {digit}_{speaker}_{index}.wav; rename it"):
        fsdd(digits, rate=RATE)
    shutil.rmtree(digits / "recordings")
    with pytest.raises(DataError, match="holds no recording"):
        fsdd(digits, rate=RATE)


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    root = tmp_path / "audioset"
    sound(root / "train" / "Yaaa.wav", 10.0)
    sound(root / "train" / "-bbb_30.wav")
    sound(root / "train" / "ccc_1500_11500.flac")
    sound(root / "eval" / "ddd.wav", 10.0)
    head = (
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3\n# YTID, start_seconds, end_seconds, labels\n"
    )
    (root / "balanced_train_segments.csv").write_text(
        head + 'aaa, 2.000, 4.000, "/m/1,/m/0"\n-bbb, 30.000, 40.000, "/m/0"\nccc, 1.500, 11.500, "/m/2"\n'
    )
    (root / "eval_segments.csv").write_text(head + 'ddd, 0.000, 10.000, "/m/2"\n')
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/0,"Speech"\n1,/m/1,"Male speech, man speaking"\n2,/m/2,"Dog"\n'
    )
    return root


def test_audioset_finds_the_sound_of_each_segment(segments: Path) -> None:
    data = audioset_segments(segments, rate=RATE)
    assert (data.classes, data.multilabel) == (["Speech", "Male speech, man speaking", "Dog"], True)
    assert data.labels.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert data.splits == ["train", "train", "train", "test"]
    assert [Path(place.path).name for place in data.places] == [
        "Yaaa.wav",
        "-bbb_30.wav",
        "ccc_1500_11500.flac",
        "ddd.wav",
    ]
    assert [len(data[index].samples_S) / RATE for index in range(4)] == [10, 1, 1, 10]
    whole = audioset_segments(segments, rate=RATE, whole=True)
    assert [len(whole[index].samples_S) / RATE for index in range(4)] == [2, 1, 1, 10]
    assert (whole[0].start_s, whole[0].end_s) == (2.0, 4.0)


def test_audiosets_lost_segments_are_an_error_or_said(segments: Path) -> None:
    (segments / "train" / "-bbb_30.wav").unlink()
    message = r"balanced_train_segments.csv: sounds: 1 of 3 segments have no file: -bbb \(row 5\); fetch them, or give"
    with pytest.raises(DataError, match=message):
        audioset_segments(segments, rate=RATE)
    data = audioset_segments(segments, rate=RATE, missing="leave_out")
    assert len(data) == 3
    assert "1 of 3 segments have no file: -bbb (row 5); they were left out" in data.notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('eee, 0.000, 10.000, "/m/9"', r"eval_segments.csv: row 5: label '/m/9' is none of the 3 classes"),
        ('ddd, 5.000, 15.000, "/m/2"', r"row 5 of .*: has the same sound as row 4 of .*; keep one of the rows"),
        ('eee, 10.000, 0.000, "/m/2"', r"row 5: expected seconds, the end after the start"),
        ('eee, ten, 0.000, "/m/2"', r"row 5: expected seconds, the end after the start, found 'ten'"),
        ("eee, 0.000, 10.000, /m/2, /m/1", r"row 5: expected 4 cells, found 5"),
    ],
)
def test_audioset_rows_that_cannot_be_used(segments: Path, line: str, message: str) -> None:
    with (segments / "eval_segments.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        audioset_segments(segments, rate=RATE)


def test_audioset_takes_other_lists(segments: Path) -> None:
    data = audioset_segments(segments, rate=RATE, segments={"evaluation": "eval_segments.csv"})
    assert (len(data), data.splits) == (1, ["evaluation"])
    assert data.notes == ["2 of 3 classes have no clip: 'Speech', 'Male speech, man speaking'"]


@pytest.mark.parametrize("layout", ["speech_commands", "esc50", "fsdd", "audioset", "folder"])
def test_each_layout_is_recognised_opened_and_checked(layout: str, request: pytest.FixtureRequest) -> None:
    fixtures = {"speech_commands": "commands", "esc50": "esc", "fsdd": "digits", "audioset": "segments"}
    root: Path = request.getfixturevalue(fixtures.get(layout, "commands"))
    if layout == "folder":
        for name in ("validation_list.txt", "testing_list.txt"):
            (root / name).unlink()
        shutil.rmtree(root / "_background_noise_")
        assert open_clips(root, rate=RATE).places == AudioFolder(root, rate=RATE).places
    assert guess_kind(root) == "audio"
    assert guess_layout(root) == layout
    data = open_clips(root, rate=RATE)
    assert data.places == open_clips(root, rate=RATE, layout=layout).places
    report = check(root)
    assert (report.kind, report.findings) == ("audio", ())
    assert f"{len(data)} " in report.summary
    for path in {place.path for place in data.places}:
        assert Path(path).is_file()
    # every layout leaves out what a check found to be broken
    victim = Path(data.places[1].path)
    victim.write_text("no sound at all, just a text")
    report = check(root)
    assert [finding.path for finding in report.findings] == [str(victim)]
    broken = root.parent / "broken.json"
    assert write_broken(report, broken) == 1
    kept = open_clips(root, rate=RATE, leave_out=broken)
    assert kept.places == [place for place in data.places if place.path != str(victim)]


def test_unknown_layouts_and_options_are_refused_by_name(digits: Path) -> None:
    with pytest.raises(DataError, match=r"there is no layout 'fsd'; did you mean 'fsdd'"):
        open_clips(digits, rate=RATE, layout="fsd")
    with pytest.raises(DataError, match=r"options: layout 'fsdd' takes no 'words'; there is only 'leave_out'"):
        open_clips(digits, rate=RATE, words=["one"])
    with pytest.raises(DataError, match=r"options: a folder takes no 'words'"):
        check(digits, "audio", layout="folder", words=["one"])
