"""What earlier runs left: whole or absent, found by all it depends on, shown and pruned."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from qcheck.core import cache, digest, versions
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Inputs, Setup, Subject
from qcheck.spec import probe
from qcheck.spec.arm import Side
from qcheck.spec.probe import Probe
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
    assert store.items() == []
    assert list((tmp_path / "ranges").iterdir()) == [tmp_path / "ranges" / ".locks"]
    assert (store.obtain("ranges", "k", "about", lambda folder: (folder / "x").touch()) / "x").exists()


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


_ONE_OF_TWO = """
import sys, time
from pathlib import Path
from qcheck.core.cache import Cache

root, side, own = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

class Watched(Cache):
    def find(self, kind, key):
        found = super().find(kind, key)
        if found is None:
            (side / f"missed-{own}").touch()
        return found

def make(folder):
    while len(list(side.glob("missed-*"))) < 2:  # until the other one has missed the entry too
        time.sleep(0.01)
    with (side / "computed").open("a") as stream:
        stream.write(own)
    (folder / "x").write_text(own)

print(Watched(root).obtain("ranges", "k", "about", make))
"""


def test_of_two_processes_that_want_the_same_entry_one_computes_it(tmp_path: Path) -> None:
    side, root = tmp_path / "side", tmp_path / "cache"
    side.mkdir()
    command = [sys.executable, "-c", _ONE_OF_TWO, str(root), str(side)]
    both = [subprocess.Popen([*command, own], stdout=subprocess.PIPE, text=True) for own in "ab"]
    said = [one.communicate(timeout=300)[0].strip() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert said == [str(root / "ranges" / "k")] * 2
    assert len((side / "computed").read_text()) == 1
    assert (root / "ranges" / "k" / "x").read_text() == (side / "computed").read_text()


class _Watched(Cache):
    """A cache that counts, by thread, who missed something."""

    missed: ClassVar[set[int]] = set()

    def find(self, kind: str, key: str) -> Path | None:
        found = super().find(kind, key)
        if found is None:
            self.missed.add(threading.get_ident())
        return found


class _Solver:
    """Three steps, each of which takes an output off."""

    config: ClassVar[dict[str, int]] = {}
    timesteps = torch.tensor([3.0, 2.0, 1.0])

    def step(self, output: torch.Tensor, _timestep: Any, latents: torch.Tensor, return_dict: bool) -> Any:
        assert not return_dict
        return (latents - output,)


def _three(store: Cache) -> Sampler:
    """Three probes of latents that are their seeds, in batches of up to eight."""

    def inputs(_: Side, asked: Sequence[Probe]) -> Inputs:
        latents = torch.stack([torch.full((1, 2, 2), float(p.seed)) for p in asked])
        return Inputs(latents, tuple(torch.Generator() for _ in asked), {"words": np.zeros((len(asked), 1, 2))})

    family: Any = SimpleNamespace(
        latent="sample",
        tile=0,
        feed=lambda sample, _t, words: {"sample": sample, **words},
        read=lambda raw, _shape: raw,
    )
    setup = Setup(family, _Solver, 1.0, (1, 2), 8, inputs)
    probes = tuple(probe.probes(probe.find("emoji"), (1.0,))[:3])
    return Sampler(setup, probes, store)


def test_probes_that_two_runs_want_are_computed_once(tmp_path: Path) -> None:
    """One wants two of the probes, the other all; locks keep out threads as they do processes."""
    rows: list[int] = []

    class Slow:
        name = "slow"

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            while len(_Watched.missed) < 2:  # until the other run has missed its probes too
                time.sleep(0.01)
            rows.append(len(inputs["sample"]))
            return 0.1 * inputs["sample"]

    sampler = _three(_Watched(tmp_path))
    setup, probes = sampler.setup, sampler.probes
    subject = Subject("f1", "adapted", "f1", lambda: nullcontext(Slow()))
    _Watched.missed.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(s.reference, subject, lambda _: None) for s in (sampler.take(2), sampler)]
        two, three = (run.result(timeout=300) for run in asked)
    assert sum(rows) == 3 * setup.calls
    assert two.paths == three.paths[:2]
    for asked_for, final in zip(probes, three.finals(), strict=True):
        assert final == pytest.approx(np.full((1, 2, 2), asked_for.seed * 0.9**3))


def test_a_batch_that_lost_a_part_is_computed_as_a_whole_so_that_no_bit_changes(tmp_path: Path) -> None:
    """The stand-in's outputs depend on how many probes stand beside each other, as the last bits of a real one do."""
    rows: list[int] = []

    class Beside:
        name = "beside"

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            rows.append(len(inputs["sample"]))
            return 0.1 * len(inputs["sample"]) * inputs["sample"]

    sampler = _three(Cache(tmp_path))
    subject = Subject("f1", "adapted", "f1", lambda: nullcontext(Beside()))
    first = sampler.reference(subject, lambda _: None)
    whole, calls = list(first.finals()), len(rows)
    shutil.rmtree(first.paths[1].parent)
    again = list(sampler.reference(subject, lambda _: None).finals())
    assert rows[calls:] == [3] * sampler.setup.calls
    assert all(np.array_equal(x, y) for x, y in zip(whole, again, strict=True))


def test_another_version_of_the_code_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key("qcheck.core.digest", "a")
    monkeypatch.setattr(cache, "code", lambda *_: "other")
    assert cache.key("qcheck.core.digest", "a") != before


def test_what_other_code_computed_has_another_key() -> None:
    keys = [cache.key(module, "a") for module in ("qcheck.core.digest", "qcheck.core.values", "qcheck.core.digest")]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("qcheck.sampling.sampler", {"qcheck.sampling.solvers", "qcheck.sampling.trajectory", "qcheck.model.arms"}),
        ("qcheck.quantize.artifact", {"qcheck.quantize.formats", "qcheck.quantize.merge", "qcheck.model.graph"}),
        ("qcheck.calibration.inputs", {"qcheck.calibration.histogram", "qcheck.calibration.smoothing"}),
        ("qcheck.build.gate", {"qcheck.build.builder", "qcheck.build.precision"}),
        ("qcheck.diagnose.alignment", {"qcheck.sampling.sampler"}),
        ("qcheck.diagnose.sensitivity", {"qcheck.quantize.fake"}),
        ("qcheck.training.trainer", {"qcheck.training.student", "qcheck.quantize.merge"}),
    ],
)
def test_entries_depend_on_the_code_that_computes_and_not_on_the_code_that_reads(module: str, needs: set[str]) -> None:
    found = set(cache.imported([module]))
    assert needs <= found
    reading = ("qcheck.cli", "qcheck.api", "qcheck.report", "qcheck.judge", "qcheck.tasks")
    assert not {name for name in found if name.startswith(reading)}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A qcheck of two modules, the one of which imports the other, with two libraries installed."""
    root = tmp_path / "qcheck"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text('"""A."""\n\nimport numpy\n\nfrom qcheck import b\n\nX = b.Y\n')
    (root / "b.py").write_text("Y = 1\n")
    monkeypatch.setattr(cache, "PACKAGE", root)
    monkeypatch.setattr(versions, "versions", lambda: {"numpy": "1", "scipy": "1"})
    cache.code.cache_clear()
    yield root
    cache.code.cache_clear()


def _code() -> str:
    cache.code.cache_clear()
    return cache.code("qcheck.a")


@pytest.mark.parametrize(
    ("module", "text", "same"),
    [
        ("a", '"""Other words."""\n\nimport numpy  # a comment\n\nfrom qcheck import b\n\n\nX = b.Y\n', True),
        ("b", '"""B."""\n\nY = 1\n', True),
        ("a", '"""A."""\n\nimport numpy\n\nfrom qcheck import b\n\nX = b.Y + 1\n', False),
        ("b", "Y = 2\n", False),
        ("b", 'Y = 1\n"""No docstring: an expression of its own."""\n', False),
        ("c", "Z = 3\n", True),
    ],
    ids=["words", "imported words", "a statement", "an imported statement", "an expression", "another module"],
)
def test_statements_are_code_and_words_are_none(package: Path, module: str, text: str, same: bool) -> None:
    before = _code()
    (package / f"{module}.py").write_text(text)
    assert (_code() == before) == same


def test_docstrings_of_functions_and_classes_are_no_code_either(package: Path) -> None:
    plain = "class A:\n    x = 1\n\n    def f(self):\n        return 1\n\n\ndef g():\n    pass\n"
    said = plain.replace("class A:", 'class A:\n    """A."""').replace("    pass", '    """G."""')
    said = said.replace("        return 1", '        """F."""\n        return 1')
    found = []
    for text in (plain, said, plain.replace("return 1", "return 2")):
        (package / "b.py").write_text(text)
        found.append(_code())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("library", "same"), [("numpy", False), ("scipy", True)])
def test_a_library_counts_where_it_is_imported(
    package: Path, monkeypatch: pytest.MonkeyPatch, library: str, same: bool
) -> None:
    before = _code()
    monkeypatch.setattr(versions, "versions", lambda: {"numpy": "1", "scipy": "1"} | {library: "2"})
    assert (_code() == before) == same
    (package / "b.py").write_text("import scipy.stats\n\nY = 1\n")
    after = _code()
    monkeypatch.setattr(versions, "versions", lambda: {"numpy": "1", "scipy": "3"})
    assert _code() != after


def _filled(root: Path) -> Cache:
    store = Cache(root)
    for age, name in enumerate(("new", "middle", "old")):
        store.obtain("trace", name, name, lambda folder: (folder / "x").write_bytes(b"0" * 1000))
        used = time.time() - age * 10 * 86400
        os.utime(root / "trace" / name / cache.ENTRY, (used, used))
    return store


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "more", "mark", "no mark"])
def test_an_entry_that_lost_files_or_parts_of_them_is_computed_again(damage: str, tmp_path: Path) -> None:
    """As after lost power, or a copy of the cache that was cut; bytes that changed in place are not noticed."""
    store = Cache(tmp_path)

    def make(folder: Path) -> None:
        (folder / "x").write_text("whole")
        (folder / "y").mkdir()
        (folder / "y" / "z").write_text("whole")

    entry = store.obtain("ranges", "k", "about", make)
    {
        "cut": lambda: (entry / "x").write_text("who"),
        "empty": lambda: (entry / "y" / "z").write_text(""),
        "gone": (entry / "y" / "z").unlink,
        "more": (entry / "other").touch,
        "mark": lambda: (entry / cache.ENTRY).write_text('{"about": "ab'),
        "no mark": lambda: (entry / cache.ENTRY).write_text(""),
    }[damage]()
    assert len(store.items()) == 1
    assert store.find("ranges", "k") is None
    assert (store.obtain("ranges", "k", "about", make) / "x").read_text() == "whole"
    assert [item.about for item in store.items()] == ["about"]


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400], ids=["back", "forth"])
def test_a_clock_that_jumps_costs_time_and_no_result(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = _filled(tmp_path), time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert len(store.prune(30, 1e9)) == (3 if jump > 0 else 0)
    assert len(_filled(tmp_path).prune(0, 1e9)) == 3  # all of it, whatever the clock said before


@pytest.mark.parametrize(
    ("days", "size", "left"), [(15, 1e9, 2), (0, 1e9, 0), (100, 2100, 2), (100, 1e9, 3), (5, 0, 0)]
)
def test_pruning_takes_the_least_recently_used(days: float, size: float, left: int, tmp_path: Path) -> None:
    store = _filled(tmp_path)
    removed = store.prune(days, size)
    assert len(removed) == 3 - left
    assert [item.about for item in store.items()] == ["old", "middle", "new"][3 - left :]


def test_pruning_takes_leftovers_that_are_a_day_old_and_nothing_else(tmp_path: Path) -> None:
    """Of killed runs, whose entries are half written, and of locks; what is younger may be in use."""
    store, kind = Cache(tmp_path), tmp_path / "trace"
    with store.put("trace", "kept", "kept") as folder:
        (folder / "values").write_bytes(b"1")
    with store.locked("trace", "old-lock", "young-lock"):
        pass
    for name in (".old.1", ".young.2"):
        (kind / name).mkdir()
        (kind / name / "part").write_bytes(b"1")
    (kind / ".old-file").write_bytes(b"1")
    (locks,) = (path for path in kind.iterdir() if path.name == ".locks")
    hours = {kind / ".old.1": 25, kind / ".old-file": 25, locks / "old-lock": 25}
    hours |= {locks: 25, kind / "kept": 25, kind / ".young.2": 23, locks / "young-lock": 23}
    for path, age in hours.items():
        os.utime(path, (time.time() - 3600 * age,) * 2)
    assert store.prune(30, 1e9) == []
    assert {path.name for path in kind.iterdir()} == {"kept", ".locks", ".young.2"}
    assert [path.name for path in locks.iterdir()] == ["young-lock"]
    assert store.find("trace", "kept") is not None


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


def test_a_large_file_is_read_again_only_after_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path, reads = Cache(tmp_path / "cache"), tmp_path / "weights", list[Path]()
    monkeypatch.setattr(cache, "_LARGE", 4)

    def counted(one: Path) -> bytes:
        reads.append(one)
        return digest.file_digest(one)

    monkeypatch.setattr(cache, "file_digest", counted)
    path.write_bytes(b"first")
    assert store.file_digest(path) == store.file_digest(path) == digest.file_digest(path)
    assert reads == [path]
    before = path.stat()
    path.write_bytes(b"other")  # of the same size, and of the same time as copies have
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.file_digest(path) == digest.file_digest(path)
    path.write_bytes(b"few")
    assert store.file_digest(path) == digest.file_digest(path)
    assert len(reads) == 3


def test_a_user_without_a_home_is_told_where_else_results_can_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setattr(cache, "user_cache_path", nowhere)
    with pytest.raises(UserError) as error:
        cache.location()
    assert "QCHECK_CACHE" in error.value.fix
    assert "--no-cache" in error.value.fix
