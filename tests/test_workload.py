"""What is said to be ahead is what is run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from qcheck.demo import library
from qcheck.sampling import sampler
from qcheck.spec import recipe
from qcheck.tasks import workload
from qcheck.tasks.workload import Workload
from tests.conftest import run


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "2 cases, 8 to 64 probes each, 100 to 4,000 denoiser calls, less what the cache holds"),
        (0.1, "at 0.1 s each, as measured now, less than a minute to 7 min; artifacts and builds come on top"),
        (6.0, "each, as measured now, 10 min to 6.7 h;"),
    ],
)
def test_the_words(seconds: float | None, text: str) -> None:
    assert text in Workload(2, (8, 64), (100, 4000)).text(seconds)
    assert Workload(1, (8, 8), (10, 10)).text(None).startswith("1 case, 8 probes each, 10 denoiser calls")


@pytest.mark.parametrize(
    ("probes", "calls", "seconds"),
    [
        (1, (9, 0.25, 2.5, 0.5, 0.125), 0.25),
        (1, (9, 6, 1), 6),
        (64, (0.5, 2, 1, 1.5), 0.125),  # in batches of 8, as a run
        (4, (0.5, 2, 1, 1.5), 0.25),  # or of all probes
        (64, (2, 3, 4, 1), 1.5),  # or of as many as the warm-up lets expect within five seconds
    ],
)
def test_a_call_is_timed_apart_from_its_warm_up_and_from_what_else_runs(
    probes: int, calls: tuple[float, ...], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least of three calls; where they are long, of fewer. Closing the runner is no part of a call."""
    clock, ahead = [0.0], iter(calls)

    def spend(*_: object) -> None:
        clock[0] += next(ahead)

    @contextmanager
    def opened() -> Iterator[None]:
        yield
        clock[0] += 100

    monkeypatch.setattr(sampler, "_guided", spend)
    monkeypatch.setattr(sampler.time, "monotonic", lambda: clock[0])
    setup, subject = MagicMock(batch=8), MagicMock()
    subject.open = opened
    assert sampler.Sampler(setup, (MagicMock(),) * probes, MagicMock()).seconds(subject) == seconds


@pytest.mark.parametrize(("load", "said"), [(0.4, False), (2.6, True), (40.0, True)])
def test_a_time_that_was_taken_beside_other_work_says_so(
    load: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload.psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(workload.psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(workload, "plan", lambda *_: Workload(1, (8, 8), (100, 100)))
    session = MagicMock()
    session.sampler.known.return_value, session.sampler.seconds.return_value = False, 1.0
    monkeypatch.setattr(workload, "sampling_origin", lambda _: None)
    monkeypatch.setattr(workload.subject, "full", lambda *_: None)
    workload.announce(session)
    assert ("beside other work" in session.watch.note.call_args.args[0]) is said


@pytest.mark.usefixtures("graphs_alone")
def test_the_calls_are_those_of_the_stages(tmp_path: Path) -> None:
    """Of the two calibration stages the second finds the walk of the first."""
    few = ("--steps", "2", "--max-probes", "3", "--no-build")
    made = run("check", "demo", "--lora", "flat", "--scheme", "int8", *few, "--out", str(tmp_path / "out"))
    said = re.search(r"1 case, 3 probes each, ([\d,]+) denoiser calls", made.stderr)
    assert said is not None
    stages = [int(total) for total in re.findall(r" (?!1/1 )\d+/(\d+) ", made.stderr)]
    walk = recipe.find(library.RECIPE).samples * 2
    assert int(said[1].replace(",", "")) == sum(stages) - walk
