"""What earlier runs left: whole or absent, found by all it depends on, shown and pruned."""

import os
import time
from pathlib import Path

import pytest

from qcheck.core import cache
from qcheck.core.cache import Cache
from tests.conftest import run


def test_an_entry_is_made_once_and_found_again(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "x").write_text("1")

    store = Cache(tmp_path)
    first, second = (store.obtain("ranges", "k", "about", make) for _ in range(2))
    assert first == second
    assert len(made) == 1
    assert (first / "x").read_text() == "1"


def test_what_fails_on_the_way_leaves_no_entry(tmp_path: Path) -> None:
    store = Cache(tmp_path)

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.obtain("ranges", "k", "about", stop)
    assert store.find("ranges", "k") is None
    assert list(tmp_path.rglob("*")) == [tmp_path / "ranges"]


def test_of_two_runs_that_make_the_same_entry_one_whole_entry_stays(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    with store.put("ranges", "k", "slow") as slow:
        (slow / "x").write_text("slow")
        with store.put("ranges", "k", "quick") as quick:
            (quick / "x").write_text("quick")
    found = store.find("ranges", "k")
    assert found is not None
    assert (found / "x").read_text() == "quick"  # the first to be whole stays: it may be in use
    assert len(store.items()) == 1


def test_another_version_of_the_code_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key("a")
    monkeypatch.setattr(cache, "code", lambda *_: "other")
    assert cache.key("a") != before


def test_entries_depend_on_the_code_that_computes_and_not_on_the_code_that_reads() -> None:
    found = set(cache.imported(cache.COMPUTING))
    assert {"qcheck.sampling.trace", "qcheck.quantize.formats", "qcheck.runtime.ort_runner"} <= found
    assert not {name for name in found if name.startswith(("qcheck.metric", "qcheck.cli", "qcheck.report.contact"))}
    assert "qcheck.measure.effect" in cache.imported(["qcheck.tasks.check"])


def _filled(root: Path) -> Cache:
    store = Cache(root)
    for age, name in enumerate(("new", "middle", "old")):
        store.obtain("trace", name, name, lambda folder: (folder / "x").write_bytes(b"0" * 1000))
        used = time.time() - age * 10 * 86400
        os.utime(root / "trace" / name / cache.ENTRY, (used, used))
    return store


@pytest.mark.parametrize(
    ("days", "size", "left"), [(15, 1e9, 2), (0, 1e9, 0), (100, 2100, 2), (100, 1e9, 3), (5, 0, 0)]
)
def test_pruning_takes_the_least_recently_used(days: float, size: float, left: int, tmp_path: Path) -> None:
    store = _filled(tmp_path)
    removed = store.prune(days, size)
    assert len(removed) == 3 - left
    assert [item.about for item in store.items()] == ["old", "middle", "new"][3 - left :]


def test_the_command_shows_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    (tmp_path / "mine" / ".git").mkdir(parents=True)
    os.utime(tmp_path / "mine" / ".git", (0, 0))
    _filled(tmp_path / "qcheck")
    shown = run("cache").stdout
    assert "trace" in shown
    assert str(tmp_path) in shown.replace("\n", "")
    assert "removed 1 entries" in run("cache", "prune", "--older-than", "15").stdout
    assert "removed 2 entries" in run("cache", "prune", "--older-than", "0").stdout
    assert (tmp_path / "mine" / ".git").exists()
