"""Where the program keeps what it can make again."""

from pathlib import Path

from efficientnetv2.utils.io import cache_folder


def test_the_folder_is_the_users_cache_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "here"))
    assert cache_folder("pictures") == tmp_path / "here/pictures"
    monkeypatch.delenv("EFFNETV2_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("pictures") == tmp_path / "efficientnetv2/pictures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("pictures") == Path.home() / ".cache/efficientnetv2/pictures"
