"""Atomic writes, output folders and errors of the file system."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest
from tests.messages import mentioning

from efficientnetv2.utils import io
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import (
    cache_folder,
    check_writable_dir,
    check_writable_file,
    entry_names,
    hint_for_os_error,
    output_dir,
    write_atomically,
    write_text_atomically,
)


def test_file_that_is_open_elsewhere_is_replaced_when_it_is_closed(tmp_path, monkeypatch):
    """As a virus scanner of Windows reads a new file."""
    os_replace, refusals = os.replace, [1, 2]

    def refuse_twice(source, target):
        if refusals and refusals.pop():
            raise PermissionError(13, "Access is denied")
        os_replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_twice)
    with pytest.raises(PermissionError):
        write_text_atomically(tmp_path / "report.json", "new")
    assert os.listdir(tmp_path) == []
    refusals[:] = [1, 2]
    monkeypatch.setattr(io, "_PATIENCE_S", 5.0)
    write_text_atomically(tmp_path / "report.json", "new")
    assert (tmp_path / "report.json").read_text() == "new"


def test_files_of_finder_and_explorer_are_no_entries(tmp_path):
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", "a.jpg"):
        (tmp_path / name).touch()
    assert entry_names(tmp_path) == ["a.jpg"]
    assert entry_names(tmp_path / "none") == []


def test_finished_file_replaces_the_old_one_without_remains(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    write_text_atomically(target, "neu: ä\n")
    assert target.read_bytes() == "neu: ä\n".encode()
    assert os.listdir(tmp_path) == ["report.json"]


def test_failed_write_keeps_the_old_file_without_remains(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")

    def fails_halfway(partial):
        partial.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, fails_halfway)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_old_file_is_readable_during_the_write(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    seen = []

    def writer(partial):
        partial.write_text("half")
        seen.append((partial.parent, target.read_text()))

    write_atomically(target, writer)
    assert seen == [(tmp_path, "old")]
    assert target.read_text() == "half"


def test_file_is_synced_before_and_folder_after_the_rename(tmp_path, monkeypatch):
    happened = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        happened.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(a, b):
        happened.append("replace")
        real_replace(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text_atomically(tmp_path / "a", "x")
    assert happened == ["file", "replace"] + ["folder"] * (os.name != "nt")


def _closed_to_others(partial):
    """Write as safetensors does: to another name, readable for the owner only, then rename."""
    beside = partial.with_name("beside")
    beside.write_text("x")
    beside.chmod(0o600)
    beside.replace(partial)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
@pytest.mark.parametrize("writer", [lambda partial: partial.write_text("x"), _closed_to_others])
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_permissions_follow_the_umask(umask, writer, tmp_path):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "atomic", writer)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == 0o666 & ~umask


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_text_atomically(tmp_path / "nowhere" / "a", "x")


def test_longest_allowed_file_name(tmp_path):
    target = tmp_path / ("ä" * 127)
    write_text_atomically(target, "x")
    assert target.read_text() == "x"


@pytest.mark.parametrize("ended_by", [ValueError, KeyboardInterrupt])
def test_empty_output_folder_is_removed_after_an_error(ended_by, tmp_path):
    def work():
        assert (tmp_path / "there/a/b").is_dir()
        raise ended_by

    (tmp_path / "there").mkdir()
    with pytest.raises(ended_by), output_dir(tmp_path / "there/a/b", "--output"):
        work()
    assert os.listdir(tmp_path) == ["there"]
    assert os.listdir(tmp_path / "there") == []


def test_output_folder_with_files_is_kept(tmp_path):
    def work():
        (tmp_path / "a/half.txt").write_text("half")
        raise ValueError("later")

    with pytest.raises(ValueError, match="later"), output_dir(tmp_path / "a/b", "--output"):
        work()
    assert os.listdir(tmp_path / "a") == ["half.txt"]
    with output_dir(tmp_path / "c/d", "--output"):
        pass
    assert (tmp_path / "c/d").is_dir()


def test_failed_output_folder_leaves_no_parents(tmp_path):
    with pytest.raises(InputError, match="too long"), output_dir(tmp_path / "a" / ("x" * 300), "--output"):
        pass
    assert os.listdir(tmp_path) == []


def test_unwritable_output_is_rejected_before_the_work(tmp_path, monkeypatch):
    check_writable_file(tmp_path / "out.csv", "--output", such_as="out.csv")
    check_writable_dir(tmp_path / "new/and/below", "--output")
    with pytest.raises(InputError, match=mentioning("out.csv")):
        check_writable_file(tmp_path, "--output", such_as="out.csv")
    with pytest.raises(InputError, match=mentioning("nowhere")):
        check_writable_file(tmp_path / "nowhere/out.csv", "--output", such_as="out.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=mentioning("file", "folder")):
        check_writable_dir(tmp_path / "file/below", "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the user may be root
    with pytest.raises(InputError, match="nothing may be written into"):
        check_writable_file(tmp_path / "out.csv", "--output", such_as="out.csv")
    with pytest.raises(InputError, match="nothing may be written into"):
        check_writable_dir(tmp_path / "new", "--output")


@pytest.mark.skipif(os.name == "nt", reason="no folder is synced there")
@pytest.mark.parametrize("place", ["open", "fsync"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EIO])
def test_mount_without_folder_sync_keeps_files(place, code, tmp_path, monkeypatch):
    """The file is already complete and renamed. Only an I/O error of the disk is raised."""
    real = {"open": os.open, "fsync": os.fsync}

    def refuses(what, *more, **words):
        if os.path.isdir(what) if place == "open" else stat.S_ISDIR(os.fstat(what).st_mode):
            raise OSError(code, os.strerror(code))
        return real[place](what, *more, **words)

    monkeypatch.setattr(os, place, refuses)
    expectation = pytest.raises(OSError, match="error") if code == errno.EIO else contextlib.nullcontext()
    with expectation:
        write_text_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Make room on the disk"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "Make room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "Make it writable"),
        (OSError(errno.EROFS, "Read-only file system"), "Make it writable"),
        (OSError(errno.EIO, "Input/output error"), "or bring it back"),
    ],
)
def test_hint_follows_from_the_error(error, what):
    assert what in hint_for_os_error(error)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "here"))
    assert cache_folder("pictures") == tmp_path / "here/pictures"
    monkeypatch.delenv("EFFNETV2_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("pictures") == tmp_path / "efficientnetv2/pictures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("pictures") == Path.home() / ".cache/efficientnetv2/pictures"
