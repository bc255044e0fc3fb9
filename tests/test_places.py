"""Files of a shared place: a folder and an object store keep the same promises."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from qcheck.core import places
from qcheck.core.errors import UserError
from qcheck.core.places import Files, Remote


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    """An empty place of each kind."""
    yield places.at(tmp_path / "place" if request.param == "folder" else "memory://bucket/place")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_what_is_written_is_read(place: Files) -> None:
    assert place.names() == []
    assert place.size("a/b.json") is None
    place.write("a/b.json", b"one")
    place.write("a/b.json", b"other")
    place.write("top", b"")
    assert place.read("a/b.json") == b"other"
    assert (place.size("a/b.json"), place.size("top")) == (5, 0)
    assert place.size("a") is None
    assert place.names() == ["a", "top"]
    place.remove("a/b.json")
    place.remove("a/b.json")
    assert place.size("a/b.json") is None
    with pytest.raises(OSError, match=r"b\.json"):
        place.read("a/b.json")


def test_a_folder_is_moved_whole_in_place_of_an_earlier_one(place: Files) -> None:
    for content in (b"one", b"other"):
        with place.work() as work:
            folder = work / "page"
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "file").write_bytes(content)
            place.move(folder, "pages/page")
        assert not work.exists()
        assert place.read("pages/page/deep/file") == content
    assert place.names() == ["pages"]


class _FullError(OSError):
    pass


def test_a_write_that_fails_leaves_what_was_there(place: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("file", b"before")

    def full(*_: Any) -> None:
        raise _FullError

    for module, name in (("os", "fsync"), ("fsspec.implementations.memory.MemoryFile", "commit")):
        monkeypatch.setattr(f"{module}.{name}", full)
    with pytest.raises((_FullError, UserError)):
        place.write("file", b"after")
    assert place.read("file") == b"before"
    assert place.names() == ["file"]


def test_a_folder_s_name_is_claimed_by_one(tmp_path: Path) -> None:
    one, other = places.at(tmp_path), places.at(tmp_path)
    with one.claim("job") as ours:
        assert ours
        with other.claim("job") as theirs, other.claim("another") as free:
            assert (theirs, free) == (False, True)
    with other.claim("job") as ours:
        assert ours


def test_a_url_goes_to_another_process_as_itself() -> None:
    assert str(pickle.loads(pickle.dumps(places.at("memory://bucket/place")))) == "memory://bucket/place"  # noqa: S301


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert str(places.at(tmp_path.as_uri())) == str(tmp_path)


def test_a_url_that_cannot_be_opened_or_read_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        places.at("nowhere://bucket/place")

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials")

    for name, act in (
        ("ls", Remote.names),
        ("info", lambda place: place.size("file")),
        ("open", lambda place: place.write("file", b"")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(fsspec.implementations.memory.MemoryFileSystem, name, refuse)
            with pytest.raises(UserError, match="no credentials"):
                act(Remote("memory://bucket/place"))
