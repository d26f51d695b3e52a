"""The archives' text format: cases of unequal length, and every line that is not one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.series.ts_format import read_ts

HEAD = "# a comment\n@problemName Two\n@dimensions 2\n@classLabel true low high\n@data\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "two.ts"
    path.write_text(text, encoding="utf-8")
    return path


def test_cases_of_unequal_length(tmp_path: Path) -> None:
    found = read_ts(write(tmp_path, HEAD + "1,2,3:4,5,6:high\n\n7.5:-1e-3:low\n"))
    assert (found.name, found.classes, len(found), found.channels) == ("Two", ("low", "high"), 2, 2)
    np.testing.assert_array_equal(found.series[0], np.array([[1, 4], [2, 5], [3, 6]], dtype=np.float32))
    np.testing.assert_allclose(found.series[1], [[7.5, -1e-3]])
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (HEAD, "@data", "cases were expected"),
        (HEAD.replace("@data\n", ""), "@data", "found none"),
        (HEAD.replace("true low high", "false"), "@classLabel", "names of classes"),
        ("1,2:3,4:low\n" + HEAD, "line 1", "a line of the head"),
        (HEAD + "1,2:3,4:hihg\n", "line 6", "found 'hihg'"),
        (HEAD + "1,2:3:low\n", "line 6", r"one length were expected, found \[1, 2\]"),
        (HEAD + "1,x:3,4:low\n", "line 6", "numbers were expected"),
        (HEAD + "1,?:3,4:low\n", "line 6", "numbers were expected"),
        (HEAD + "1,nan:3,4:low\n", "line 6", "finite numbers"),
        (HEAD + "1,2:3,4:low\n1,2:low\n", "line 7", "2 dimensions were expected, found 1"),
        (HEAD + "1,2:low\n", "line 6", "2 dimensions were expected, found 1"),
    ],
)
def test_what_is_not_a_case_is_named(tmp_path: Path, text: str, where: str, found: str) -> None:
    with pytest.raises(DataError, match=found) as caught:
        read_ts(write(tmp_path, text))
    assert caught.value.where == where


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a text file was expected"):
        read_ts(tmp_path / "none.ts")
    (tmp_path / "bytes.ts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="a text file was expected"):
        read_ts(tmp_path / "bytes.ts")
