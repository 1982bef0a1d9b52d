"""Atomic writes: a complete file or none."""

import os
from pathlib import Path

import pytest
from bifrons.blocks.files import atomic_write, rename_new, temporary_path


@pytest.mark.parametrize("durable", [True, False])
def test_atomic_write_replaces_the_file(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with atomic_write(path, durable) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_atomic_write_keeps_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_path_is_hidden_and_removed_with_its_content(tmp_path: Path) -> None:
    with temporary_path(tmp_path / "folder") as temporary:
        assert (temporary.parent, temporary.name[0]) == (tmp_path, ".")
        temporary.mkdir()
        (temporary / "file").touch()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_rename_new_refuses_a_taken_name(tmp_path: Path, monkeypatch, links: bool) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    with pytest.raises(FileExistsError):
        rename_new(source, target)
    assert (source.read_text(), target.read_text()) == ("new", "old")
    rename_new(source, tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    assert (tmp_path / "c").read_text() == "new"
