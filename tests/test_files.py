"""Files that are at every moment whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atm_triton.files import replaced, write_atomically


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_and_its_folder_are_made_as_any_other(mask: int, shared: bool, tmp_path: Path) -> None:
    path, previous = tmp_path / "new" / "some.csv", os.umask(mask)
    try:
        write_atomically(path, lambda file: file.write(b"new"), shared)
        (other := tmp_path / "other").write_bytes(b"")
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"new" and path.stat().st_mode == other.stat().st_mode
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_what_fails_leaves_the_old_file(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replaced(path, shared) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    if (child := os.fork()) == 0:
        with replaced(path) as partial:
            partial.write_bytes(b"half")
            os._exit(9)
    os.waitpid(child, 0)
    assert [left.suffix for left in tmp_path.iterdir()] == [".csv"]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    with replaced(path, shared=True) as first:
        first.write_bytes(b"first")
        write_atomically(path, lambda file: file.write(b"second"), shared=True)
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
