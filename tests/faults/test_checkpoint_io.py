"""Checkpoints are whole or absent, whatever happens while one is written or to the file afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from mamba_apps.errors import UserError
from mamba_apps.training import AtomicCheckpointIO
from mamba_apps.training.checkpoint import is_good, keep_as, resume_path
from mamba_apps.training.files import clean_stale, make_directory, writing
from mamba_apps.training.plain import to_plain

NOBODY = 65534


def content(value: float, size: int = 1000) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((size,), value)}, "epoch": 3, "loops": {"a": [1, 2.5, None, "x"]}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1), path)
    return path


def value_in(path: Path) -> float:
    return AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["weight"][0].item()


def assert_only(directory: Path, *names: str) -> None:
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)


def test_round_trip_and_checksum_file(saved: Path) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert loaded["loops"] == {"a": [1, 2.5, None, "x"]}
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(1000))
    checked = subprocess.run(
        ["sha256sum", "-c", "last.ckpt.sha256"], cwd=saved.parent, capture_output=True, text=True, check=False
    )
    assert checked.stdout == "last.ckpt: OK\n"
    AtomicCheckpointIO().save_checkpoint(content(2), saved)
    assert value_in(saved) == 2
    assert len((saved.parent / "last.ckpt.sha256").read_text().splitlines()) == 1
    AtomicCheckpointIO().remove_checkpoint(saved)
    assert_only(saved.parent)


@pytest.mark.parametrize("place", [0, 40, 0.5, -30, -1])
def test_flipped_bit_is_found(saved: Path, place: float) -> None:
    data = bytearray(saved.read_bytes())
    data[int(place * len(data)) if 0 < place < 1 else int(place)] ^= 4
    saved.write_bytes(data)
    with pytest.raises(UserError, match=r"last\.ckpt is truncated or was changed: its SHA-256 is"):
        AtomicCheckpointIO().load_checkpoint(saved)


@pytest.mark.parametrize("length", [0, 1, 500, -1])
def test_truncated_file_is_found(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(UserError, match=r"last\.ckpt is truncated"):
        AtomicCheckpointIO().load_checkpoint(saved)


def with_checksum(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    return path


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(200), pickle.dumps({"a": 1})[:7]])
def test_file_that_is_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.ckpt is not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(with_checksum(tmp_path / "x.ckpt", data))


@pytest.mark.parametrize("value", [[1, 2], {"weights": torch.zeros(2)}])
def test_file_that_is_no_training_checkpoint(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(value, path)
    with_checksum(path, path.read_bytes())
    with pytest.raises(UserError, match="it is not a training checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_missing_file_and_missing_checksum(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "last.ckpt.sha256").unlink()
    with pytest.raises(UserError, match=r"has no last\.ckpt\.sha256 beside it .*sha256sum last\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(saved)
    (tmp_path / "last.ckpt.sha256").write_text("nonsense\n")
    with pytest.raises(UserError, match="holds no SHA-256"):
        AtomicCheckpointIO().load_checkpoint(saved)
    AtomicCheckpointIO().save_checkpoint(content(2), saved)
    assert value_in(saved) == 2


class Bomb:
    """An object whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}, "surprise": Bomb(f"touch {tmp_path / 'ran'}")}, path)
    with_checksum(path, path.read_bytes())
    with pytest.raises(UserError) as raised:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "wants to run code while it is loaded and is refused" in str(raised.value)
    assert "system" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_bare_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    bomb = Bomb(f"touch {tmp_path / 'ran'}")
    torch.save({"state_dict": {}, "surprise": bomb}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for data in (pickle.dumps(bomb), (tmp_path / "old.ckpt").read_bytes()):
        with pytest.raises(UserError, match="a bare pickle is refused because it could run code"):
            AtomicCheckpointIO().load_checkpoint(with_checksum(tmp_path / "x.ckpt", data))
    assert not (tmp_path / "ran").exists()


def test_what_has_a_plain_form_is_stored_in_it(tmp_path: Path) -> None:
    import collections
    import dataclasses
    import enum

    @dataclasses.dataclass
    class Config:
        width: int
        folder: PurePosixPath

    class Color(enum.StrEnum):
        RED = "red"

    class Pair(collections.namedtuple("Pair", "a b")):
        pass

    plain = to_plain(
        {
            "state_dict": {},
            "config": Config(3, PurePosixPath("/a")),
            "color": Color.RED,
            "pair": Pair(True, np.float32(0.5)),
            "numbers": [np.int64(3), np.float64(1.5), np.bool_(False), 2 + 3j],
            "default": collections.defaultdict(list, {1: {2, 3}}),
            "size": torch.Size([2, 3]),
            "types": (torch.float16, torch.device("cpu"), b"bytes"),
        }
    )
    AtomicCheckpointIO().save_checkpoint(plain, tmp_path / "x.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    assert loaded == plain
    assert loaded["config"] == {"width": 3, "folder": "/a"}
    assert (loaded["color"], loaded["pair"], loaded["size"]) == ("red", (True, 0.5), (2, 3))
    assert [type(value) for value in loaded["numbers"]] == [int, float, bool, complex]
    assert type(loaded["pair"][0]) is bool


@pytest.mark.parametrize("value", [torch.nn.ReLU(), object(), lambda: 0, np.zeros(3)])
def test_what_could_not_be_loaded_again_is_refused_with_its_place(saved: Path, value: Any) -> None:
    with pytest.raises(
        UserError, match=r"checkpoint\['hyper_parameters'\]\['net'\]\[1\] is a .*which cannot be loaded"
    ):
        AtomicCheckpointIO().save_checkpoint(content(2) | {"hyper_parameters": {"net": [1, value]}}, saved)
    assert value_in(saved) == 1
    assert_only(saved.parent, "last.ckpt", "last.ckpt.sha256")


@pytest.mark.parametrize("call", ["fsync", "replace", "write", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_refusal_of_the_disk_leaves_the_last_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    if call == "write":
        monkeypatch.setattr("mamba_apps.training.checkpoint._HashingFile.write", failing_write(code))
    elif call == "open":
        monkeypatch.setattr(Path, "open", refuse)
    else:
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(UserError, match=rf"cannot save the checkpoint .*last\.ckpt: {os.strerror(code)}; "):
        AtomicCheckpointIO().save_checkpoint(content(2), saved)
    monkeypatch.undo()
    assert value_in(saved) == 1
    assert_only(saved.parent, "last.ckpt", "last.ckpt.sha256")


def failing_write(code: int) -> Any:
    """Return a write that is refused after some kilobytes, as on a disk that fills up."""
    from mamba_apps.training.checkpoint import _HashingFile

    original = _HashingFile.write
    written = 0

    def write(self: _HashingFile, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 3000 and self.error is None:
            self.error = OSError(code, os.strerror(code))
            raise self.error
        return original(self, data)

    return write


PROGRAM = """
    import resource, sys, torch
    from pathlib import Path
    from mamba_apps.errors import UserError
    from mamba_apps.training import AtomicCheckpointIO

    path = Path(sys.argv[1])
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"weight": torch.ones(1000)}}, path)
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    for size in (2_000_000, 5_000_000):
        try:
            io.save_checkpoint({"state_dict": {"weight": torch.zeros(size)}}, path)
        except UserError as error:
            print(error)
        else:
            raise SystemExit("it was saved")
    print(io.load_checkpoint(path)["state_dict"]["weight"].sum().item())
    print(sorted(p.name for p in path.parent.iterdir()))
"""


def run_program(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_file_size_limit(tmp_path: Path) -> None:
    first, second, total, names = run_program(str(tmp_path / "last.ckpt"), "1000000")
    assert first == second
    assert "last.ckpt: File too large; free space on the disk" in first
    assert float(total) == 1000
    assert names == "['last.ckpt', 'last.ckpt.sha256']"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_full_disk(small_disk: Path) -> None:
    first, second, total, names = run_program(str(small_disk / "last.ckpt"))
    assert first == second
    assert "last.ckpt: No space left on device; free space on the disk" in first
    assert float(total) == 1000
    assert names == "['last.ckpt', 'last.ckpt.sha256']"


CRASHES = """
    import os, sys, torch
    from pathlib import Path
    from mamba_apps.training import AtomicCheckpointIO
    from mamba_apps.training.checkpoint import keep_as

    # die at the n-th call that changes something on the disk, for every n
    directory = Path(sys.argv[1])
    io = AtomicCheckpointIO()

    def work(path):
        keep_as(path, "previous.ckpt")
        io.save_checkpoint({"state_dict": {"weight": torch.full((1000,), 2.0)}}, path)
        keep_as(path, "best.ckpt")

    def crash_at(n):
        count = 0
        for name in ("fsync", "replace", "link", "unlink"):
            original = getattr(os, name) if name != "fsync" else lambda descriptor: None

            def counted(*args, original=original, **kwargs):
                nonlocal count
                count += 1
                if count == n:
                    os._exit(9)
                result = original(*args, **kwargs)
                return result

            setattr(os, name, counted)

    n, code = 0, 9
    while code == 9:
        n += 1
        path = directory / f"{n:03d}" / "last.ckpt"
        path.parent.mkdir()
        io.save_checkpoint({"state_dict": {"weight": torch.zeros(1000)}}, path)
        keep_as(path, "best.ckpt")
        io.save_checkpoint({"state_dict": {"weight": torch.ones(1000)}}, path)
        child = os.fork()
        if child == 0:
            crash_at(n)
            work(path)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(n)
"""


def test_death_at_any_moment_of_saving_leaves_good_checkpoints(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CRASHES), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    crashes = int(done.stdout)
    assert crashes > 12
    seen = set()
    for directory in sorted(tmp_path.iterdir()):
        assert resume_path(directory) == directory / "last.ckpt"
        values = [value_in(directory / "last.ckpt"), value_in(directory / "best.ckpt")]
        previous = directory / "previous.ckpt"
        if previous.exists():
            values.append(value_in(previous))
        assert values[0] in (1, 2)
        assert values[1] in (0, 2)
        assert values[2:] in ([], [1])
        seen.add(tuple(values))
        # resuming has cleaned up, and the next save makes everything new
        assert not list(directory.glob(".*"))
        AtomicCheckpointIO().save_checkpoint(content(3), directory / "last.ckpt")
        assert value_in(directory / "last.ckpt") == 3
        assert len((directory / "last.ckpt.sha256").read_text().splitlines()) == 1
    assert {(1.0, 0.0), (1.0, 0.0, 1.0), (2.0, 0.0, 1.0), (2.0, 2.0, 1.0)} == seen


def test_temporary_in_use_is_not_cleaned(tmp_path: Path) -> None:
    stale, used = tmp_path / ".last.ckpt.0000.part", tmp_path / ".last.ckpt.1111.part"
    stale.write_bytes(b"half")
    with writing(used):
        assert clean_stale(tmp_path) == [stale]
    assert clean_stale(tmp_path) == [used]
    assert clean_stale(tmp_path / "none") == []


def test_kept_copy_survives_the_next_save(saved: Path) -> None:
    kept = keep_as(saved, "best.ckpt")
    AtomicCheckpointIO().save_checkpoint(content(2), saved)
    assert (value_in(kept), value_in(saved)) == (1, 2)
    assert is_good(kept)


def test_kept_copy_without_hard_links(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    assert value_in(keep_as(saved, "best.ckpt")) == 1


@pytest.fixture
def as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


def test_folder_without_write_permission(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for folder in tmp_path.parents:  # others must be able to reach it, to be refused there
        if folder.owner() == "root" and "pytest" in str(folder):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    request.getfixturevalue("as_nobody")
    with pytest.raises(UserError, match=r"cannot write to the run folder .*Permission denied; give yourself write"):
        make_directory(closed / "run", "run folder")
    with pytest.raises(UserError, match="Permission denied"):
        make_directory(closed, "run folder")
    with pytest.raises(UserError, match=r"cannot save the checkpoint .*Permission denied"):
        AtomicCheckpointIO().save_checkpoint(content(1), closed / "last.ckpt")


def test_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(UserError, match="a file stands where a folder is needed"):
            make_directory(path, "run folder")


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "x.ckpt", storage_options={"a": 1})
