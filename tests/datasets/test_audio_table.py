"""Tables of sounds: what their columns mean, and every row that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mamba_datasets.audio import AudioTable, open_clips
from mamba_datasets.broken import write_broken
from mamba_datasets.errors import DataError
from mamba_datasets.registry import check

RATE = 8000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sounds"
    (root / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.wav", "b.flac", "deep/c.wav"]):
        time = np.arange(2 * RATE) / RATE
        soundfile.write(root / name, 0.3 * np.sin(2 * np.pi * (200 + 100 * number) * time), RATE)
    soundfile.write(tmp_path / "outside.wav", np.zeros(100), RATE)
    return root


def table(root: Path, text: str, name: str = "clips.csv") -> Path:
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


PLAIN = "path,label\na.wav,dog\nb.flac,cat\ndeep/c.wav,dog\n"


def test_a_row_is_a_clip(root: Path) -> None:
    data = AudioTable(table(root, PLAIN), rate=RATE)
    assert (data.classes, data.labels.tolist(), data.multilabel) == (["cat", "dog"], [1, 0, 1], False)
    assert (data.folds, data.splits, data.notes) == (None, None, [])
    clip = data[2]
    assert (len(clip.samples_S), clip.label, clip.path) == (2 * RATE, 1, str(root / "deep" / "c.wav"))
    assert (clip.start_s, clip.end_s) == (0.0, 2.0)
    assert data.seconds(2) == 2.0


def test_every_column_is_read(root: Path) -> None:
    text = (
        "File\tclass\tonset\toffset\tsubset\tfold\tspeaker\tweather\n"
        "a.wav\tdog\t0.25\t0.75\ttraining\t1\tann\train\n"
        "\n"
        "a.wav\tcat\t0.75\t\tvalidation\t2\tben\tsun\n"
        "b.flac\tcat\t\t\ttest\t1\t\tsun\n"
    )
    data = AudioTable(table(root, text, "clips.tsv"), rate=RATE)
    assert (data.splits, data.folds) == (["train", "val", "test"], [1, 2, 1])
    assert [place.group for place in data.places] == ["ann", "ben", None]
    assert [len(data[index].samples_S) / RATE for index in range(3)] == [0.5, 1.25, 2.0]
    assert [data.seconds(index) for index in range(3)] == [0.5, 1.25, 2.0]
    assert data.notes == ["columns passed over: weather"]
    whole, part = data[2].samples_S, data.read(2, 0.5, 1.0)
    torch.testing.assert_close(part.samples_S, whole[RATE // 2 : 3 * RATE // 2], rtol=0, atol=0)
    assert (part.start_s, part.end_s) == (0.5, 1.5)
    assert data.read(0, 0.25, 10.0).end_s == 0.75
    assert [Path(place.name).name for place in data.places[:2]] == ["a.wav, 0.25 to 0.75 s", "a.wav, from 0.75 s"]


def test_clips_are_chosen_by_split_and_fold(root: Path) -> None:
    text = "path,label,split,fold\na.wav,x,train,1\nb.flac,y,train,2\ndeep/c.wav,x,test,3\n"
    data = AudioTable(table(root, text), rate=RATE)
    for part, expected in (
        (data.in_split("train"), [0, 1]),
        (data.in_split("testing"), [2]),
        (data.in_folds(1, 3), [0, 2]),
        (data.outside_folds(1), [1, 2]),
        (data.subset([2, 0]), [2, 0]),
    ):
        assert part.places == [data.places[index] for index in expected]
        assert (part.classes, part.rate) == (["x", "y"], RATE)
    with pytest.raises(DataError, match=r"split 'val': there is no clip of it; choose one of 'train', 'test'"):
        data.in_split("validation")
    with pytest.raises(DataError, match=r"fold 4: there is no clip of it"):
        data.outside_folds(4)


def test_a_multilabel_cell_holds_any_number_of_labels(root: Path) -> None:
    text = 'path,tags\na.wav,"rain; dog"\nb.flac,\ndeep/c.wav,dog\n'
    data = AudioTable(table(root, text), rate=RATE, multilabel=True)
    assert data.classes == ["dog", "rain"]
    assert data.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert data[0].label.tolist() == [1, 1]  # type: ignore[union-attr]
    assert data.counts == [2, 1]
    other = AudioTable(table(root, "path,tags\na.wav,x|y\n"), rate=RATE, multilabel=True, separator="|")
    assert other.labels.tolist() == [[1, 1]]
    with pytest.raises(DataError, match=r"row 2, column tags: expected one label, found 'rain; dog'; give m"):
        AudioTable(table(root, text), rate=RATE)


def test_classes_may_be_fixed(root: Path) -> None:
    path = table(root, PLAIN)
    data = AudioTable(path, rate=RATE, classes=["dog", "bird", "cat"])
    assert data.labels.tolist() == [0, 2, 0]
    assert data.notes == ["1 of 3 classes have no clip: 'bird'"]
    class_map = table(root, 'index,mid,display_name\n1,/m/1,"Cat, the animal"\n0,/m/0,Dog\n', "map.csv")
    text = 'path,label\na.wav,/m/0\nb.flac,"Cat, the animal"\n'
    mapped = AudioTable(table(root, text), rate=RATE, class_map=class_map)
    assert (mapped.classes, mapped.labels.tolist()) == (["Dog", "Cat, the animal"], [0, 1])


def test_columns_and_root_may_be_named(root: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "recording,species,note\na.wav,dog,x\nb.flac,cat,y\n")
    columns = {"path": "recording", "label": "species"}
    data = AudioTable(path, rate=RATE, root=root, columns=columns)
    assert [Path(place.path).name for place in data.places] == ["a.wav", "b.flac"]
    assert data.labels.tolist() == [1, 0]
    opened = open_clips(path, rate=RATE, root=root, columns=columns)
    assert opened.places == data.places


def test_a_path_may_be_made_of_columns_and_a_column_passed_over(root: Path) -> None:
    (root / "fold3").mkdir()
    (root / "deep" / "c.wav").rename(root / "fold3" / "c.wav")
    (root / "a.wav").rename(root / "fold3" / "a.wav")
    text = "id,fold,label,start,end\na,3,dog,90,94\nc,3,cat,12.5,16.5\n"
    columns = {"path": "fold{fold}/{id}.wav", "start": None, "end": None}
    data = AudioTable(table(root, text), rate=RATE, columns=columns)
    assert data.folds == [3, 3]
    assert [Path(place.path).name for place in data.places] == ["a.wav", "c.wav"]
    assert [len(data[index].samples_S) for index in (0, 1)] == [2 * RATE, 2 * RATE]
    assert data.notes == ["columns passed over: start, end"]
    with pytest.raises(DataError, match=r"row 2, column {id}/../../outside.wav: path '.*' leaves the folder"):
        AudioTable(table(root, text), rate=RATE, columns={"path": "{id}/../../outside.wav"})
    with pytest.raises(DataError, match=r"header: there is no column 'flod'; did you mean 'fold'"):
        AudioTable(table(root, text), rate=RATE, columns={"path": "fold{flod}/{id}.wav"})


BAD = {
    "leaves": (PLAIN + "../outside.wav,dog\n", r"row 5, column path: path '../outside.wav' leaves the folder"),
    "hidden": (PLAIN + "deep/../../outside.wav,dog\n", r"row 5, column path: path '.*' leaves the folder"),
    "absolute": (PLAIN + "/etc/passwd,dog\n", r"row 5, column path: path '/etc/passwd' leaves the folder"),
    "link": (PLAIN + "link.wav,dog\n", r"row 5, column path: path 'link.wav' leaves the folder"),
    "missing": (PLAIN + "d.wav,dog\n", r"row 5, column path: there is no file 'd.wav' in .*; mend the path, or remove"),
    "pathless": (PLAIN + ",dog\n", r"row 5, column path: expected a path, found nothing; fill the cell"),
    "unlabelled": (PLAIN + "a.wav,\n", r"row 5, column label: expected a label, found nothing"),
    "twice": (PLAIN + "./a.wav,dog\n", r"row 5: repeats row 2: the same part of .*a.wav; remove one of them"),
    "relabelled": (PLAIN + "a.wav,cat\n", r"row 5: repeats row 2"),
    "ragged": (PLAIN + "a.wav,dog,barks\n", r"row 5: expected 2 cells, found 3; put text with a comma in"),
    "case": (PLAIN + "deep/d.wav,Dog\n", r"classes: 'Dog' and 'dog' differ in case only; write both alike"),
    "one class": ("path,label\na.wav,dog\n", r"classes: found one class only, 'dog'"),
    "no rows": ("path,label\n", r"classes: found no label"),
    "empty": ("", r"header: the file is empty"),
    "no header": ("a.wav,dog\nb.wav,cat\n", r"header: expected a column path or file .*, found a.wav, dog; name it"),
    "two columns": ("path,file,label\na,b,c\n", r"header: expected one column for the path, found path, file; name it"),
    "column twice": ("path,path,label\na,b,c\n", r"header: column 'path' appears twice"),
    "quotes": ('path,label\n"a.wav"x,dog\n', r"row 2: is no CSV"),
    "negative": (
        "path,label,start\na.wav,x,-1\nb.flac,y,\n",
        r"row 2, column start: expected seconds from 0, f",
    ),
    "no time": ("path,label,end\na.wav,x,1s\nb.flac,y,\n", r"row 2, column end: expected seconds from 0, found '1s'"),
    "endless": ("path,label,end\na.wav,x,inf\nb.flac,y,\n", r"row 2, column end: expected seconds from 0, found 'inf'"),
    "backwards": ("path,label,start,end\na.wav,x,1,0.5\nb.flac,y,,\n", r"row 2, column end: expected an end after 1 s"),
    "fold": (
        "path,label,fold\na.wav,x,one\nb.flac,y,1\n",
        r"row 2, column fold: expected a whole number from 0",
    ),
    "split": ("path,label,split\na.wav,x,train\nb.flac,y,\n", r"row 3, column split: expected a split, found nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_cannot_be_used_is_refused_by_row(root: Path, case: str) -> None:
    text, message = BAD[case]
    (root / "link.wav").symlink_to(root.parent / "outside.wav")
    path = table(root, text)
    with pytest.raises(DataError, match=message) as caught:
        AudioTable(path, rate=RATE)
    assert caught.value.path == str(path)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["dog", "bird"]}, r"row 3, column label: label 'cat' is none of the 2 classes of classes"),
        (
            {"class_map": "map.csv"},
            r"row 3, column label: label 'cat' is none of the 2 classes of map.csv; did",
        ),
        ({"class_map": "clips.csv"}, r"clips.csv: header: expected columns index and display_name or name"),
        (
            {"class_map": "holes.csv"},
            r"holes.csv: row 3, column index: expected each index from 0 to 1 once",
        ),
        ({"classes": ["dog", "dog"]}, r"class 'dog' is given twice"),
        ({"classes": ["dog", "cat"], "class_map": "map.csv"}, r"classes and class_map are both given"),
        ({"columns": {"label": "labell"}}, r"header: there is no column 'labell'; did you mean 'label'"),
        ({"columns": {"lable": "label"}}, r"columns: there is no role 'lable'; did you mean 'label'"),
        ({"root": "deep"}, r"row 2, column path: there is no file 'a.wav' in deep"),
        ({"leave_out": "clips.csv"}, r"is no list that a check wrote"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(root)
    table(root, PLAIN)
    table(root, "index,name\n0,dog\n1,cats\n", "map.csv")
    table(root, "index,name\n0,dog\n2,cat\n", "holes.csv")
    with pytest.raises(DataError, match=message):
        AudioTable("clips.csv", rate=RATE, **options)


def test_text_that_is_no_utf8_and_a_missing_table_are_refused(root: Path) -> None:
    path = root / "clips.csv"
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        AudioTable(path, rate=RATE)
    path.write_bytes("path,label\na.wav,grün\n".encode("latin-1"))
    with pytest.raises(DataError, match="text: is no UTF-8 text"):
        AudioTable(path, rate=RATE)


@pytest.mark.parametrize(("start", "end"), [("1.5", "2.5"), ("2.5", ""), ("2.5", "3")])
def test_times_outside_the_file_name_file_and_row(root: Path, start: str, end: str) -> None:
    path = table(root, f"path,label,start,end\na.wav,x,{start},{end}\nb.flac,y,0,2.005\n")
    data = AudioTable(path, rate=RATE)
    with pytest.raises(DataError, match=rf"a.wav: times \(row 2 of {path}\): expected times within the 2 s") as caught:
        data[0]
    assert len(data[1].samples_S) == 2 * RATE  # tables round times
    report = check(path, "audio")
    assert [str(finding) for finding in report.findings] == [str(caught.value)]


def test_the_check_gathers_every_row_and_file(root: Path) -> None:
    (root / "letter.wav").write_text("a letter, and no sound at all")
    (root / "deep" / "c.wav").write_bytes((root / "deep" / "c.wav").read_bytes()[:-1000])
    text = PLAIN + "d.wav,dog\n../outside.wav,bird\nletter.wav,bird\na.wav,cat\n"
    path = table(root, text)
    report = check(root, "audio", table="clips.csv")
    found = [(Path(finding.path).name, finding.where) for finding in report.findings]
    assert found == [
        ("clips.csv", "row 5, column path"),
        ("clips.csv", "row 6, column path"),
        ("clips.csv", "row 8"),
        ("c.wav", "end"),
        ("letter.wav", "file"),
    ]
    assert check(path, "audio").findings == report.findings
    broken = root.parent / "broken.json"
    write_broken(report, broken)
    table(root, PLAIN + "letter.wav,bird\n")
    kept = open_clips(root, rate=RATE, table="clips.csv", leave_out=broken)
    assert [Path(place.path).name for place in kept.places] == ["a.wav", "b.flac"]
    assert kept.notes == ["1 of 3 classes have no clip: 'bird'"]


def test_the_check_tells_what_there_is(root: Path) -> None:
    text = "path,labels,start,end,split\na.wav,x,0,1,train\na.wav,x;y,1,2,train\nb.flac,,,,test\ndeep/c.wav,x,,,test\n"
    report = check(table(root, text), "audio", multilabel=True)
    assert (report.findings, report.summary) == ((), "4 clips in 3 files of 2 labels")
    notes = "\n".join(report.notes)
    assert "x (3), y (1)" in notes
    assert "1 with one clip only, to be learned or tested, not both: 'y'" in notes
    assert "1 clips without a label" in notes
    assert "splits: test (2), train (2)" in notes
    assert "rates: 8000 Hz (3)" in notes
