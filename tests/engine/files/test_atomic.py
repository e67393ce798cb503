"""Files that are there wholly or not at all."""

import errno
import fcntl
import os
import stat

import pytest

from stepfuse.files import atomic


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    file = tmp_path / "report.txt"
    file.write_text("old")

    def fail(scratch):
        scratch.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic.write_atomically(file, fail)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("report.txt", "old")]


def test_modes_links_and_what_is_no_file(tmp_path):
    file, link = tmp_path / "a.npy", tmp_path / "link.npy"
    file.touch(mode=0o600)
    link.symlink_to(file.name)
    atomic.write_atomically(link, lambda scratch: scratch.write_bytes(scratch.suffix.encode()))
    assert link.is_symlink()
    assert file.read_bytes() == b".npy"  # the suffix tells writers a format
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    atomic.write_atomically(tmp_path / "new", lambda scratch: scratch.write_bytes(b""))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    read, written = os.pipe()
    atomic.write_atomically(tmp_path / f"/proc/self/fd/{written}", lambda path: path.write_bytes(b"through"))
    assert os.read(read, 10) == b"through"
    for handle in (read, written):
        os.close(handle)


def test_what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, unlike = tmp_path / ".a-0123abcd.partial", tmp_path / ".a-0123abcd.mine"
    for file in (dead, unlike):
        file.touch()
    with atomic.scratch_beside(tmp_path / "a") as living:
        assert not dead.exists()
        with atomic.scratch_beside(tmp_path / "b", folder=True):
            assert living.exists()
    assert sorted(tmp_path.iterdir()) == [unlike]


@pytest.mark.parametrize("code", sorted(atomic._NO_LOCKS))
def test_without_locks_files_are_written_all_the_same(tmp_path, monkeypatch, code):
    def refuse(handle, operation):
        raise OSError(code, os.strerror(code))

    (tmp_path / ".a-0123abcd.partial").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    atomic.write_atomically(tmp_path / "a", lambda scratch: scratch.write_text("whole"))
    assert {one.name for one in tmp_path.iterdir()} == {"a", ".a-0123abcd.partial"}  # its writer may be alive
