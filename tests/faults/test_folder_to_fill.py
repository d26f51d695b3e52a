"""A folder that was made for results, when the work ends before there are any."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mamba_apps.errors import UserError
from mamba_apps.training.files import check_directory, folder_to_fill, storage_error
from mamba_datasets import files


def work(folder: Path, *files: Path, error: type[BaseException] | None = ValueError) -> None:
    """Write files while a folder waits for them, then fail."""
    with folder_to_fill(folder, "folder of masks"):
        assert folder.is_dir()
        for file in files:
            file.touch()
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_goes_if_nothing_came(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        work(tmp_path / "a" / "b", error=error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, None])
def test_what_was_there_or_is_filled_stays(tmp_path: Path, error: type[BaseException] | None) -> None:
    (tmp_path / "old").mkdir()
    for words in (["old"], ["a/b", "a/first"], ["c/d", "c/d/first"]):
        try:
            work(*(tmp_path / word for word in words), error=error)
        except ValueError:
            assert error is not None
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"old", "a", "a/first", "c", "c/d", "c/d/first"} | (set() if error else {"a/b"})


def test_a_file_in_its_place_stays(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to the folder of masks"):
        work(tmp_path / "file" / "masks")
    assert (tmp_path / "file").is_file()


def test_a_folder_is_checked_and_not_left(tmp_path: Path) -> None:
    check_directory(tmp_path / "a" / "b", "folder of scores")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    check_directory(tmp_path / "old", "folder of scores")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to the folder of scores"):
        check_directory(tmp_path / "file" / "scores", "folder of scores")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "file"}


def test_permissions_are_not_asked_for_where_nobody_may_write() -> None:
    refused = OSError(errno.EROFS, "Read-only file system")
    assert storage_error("write", Path("disk/run"), refused).remedy == "choose another folder"


def test_an_array_that_was_written_in_part_filled_the_disk() -> None:
    refused = OSError("78000 requested and 19424 written")
    assert files.storage_error(Path("disk/case"), refused).remedy.startswith("free space on the disk")
