"""What a call costs on the board: its time, its memory, and, indicative, its energy."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .sysfs import ROOT, label, memory, monitors, number, text, why

# Fewer samples of a sensor that averages over tens of milliseconds say nothing about a call.
ENOUGH = 30
# The rails that are the whole board or module: the first set that a board has. VDD_IN and VIN contain its other rails.
_TOTALS = (("VDD_IN",), ("VIN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


@dataclass(frozen=True)
class Latency:
    """Times of calls in milliseconds; ``drift`` is how much slower the last third was than the first, as a share."""

    median: float
    p90: float
    p95: float
    min: float
    count: int
    drift: float

    def to_json(self) -> dict[str, Any]:
        """The fields as values of JSON."""
        return asdict(self)


def latency(times_ms: Sequence[float]) -> Latency:
    """The latency of calls in the order they were made.

    The percentiles are nearest-rank: the time that at least 90 or 95 % of the calls did not exceed.

    Raises:
        ValueError: there are no times.
    """
    if not times_ms:
        raise ValueError("no call was timed")
    third = max(1, len(times_ms) // 3)
    ordered = sorted(times_ms)
    return Latency(
        median=statistics.median(ordered),
        p90=_percentile(ordered, 90),
        p95=_percentile(ordered, 95),
        min=ordered[0],
        count=len(ordered),
        drift=statistics.mean(times_ms[-third:]) / statistics.mean(times_ms[:third]) - 1,
    )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-len(ordered) * percent // 100) - 1]


@dataclass(frozen=True)
class Rail:
    """A supply that a power monitor measures: one file in µW, or two in mV and mA; their product is a power in µW."""

    label: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        """The power at this moment, in W.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no number.
        """
        microwatts = 1
        for path in self.files:
            microwatts *= number(path)
        return microwatts / 1e6


def rails(root: Path = ROOT) -> list[Rail]:
    """The labelled rails of the power monitors: three of an INA3221, the one of a chip that tells its power itself."""
    found = []
    for folder in (folder for chip, folder in monitors(root) if chip.startswith("ina")):
        for channel in "123":
            power = (folder / f"power{channel}_input",)
            product = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
            files = next((files for files in (power, product) if all(path.exists() for path in files)), None)
            name = label(folder, channel)
            if files and name not in {"", "NC"}:
                found.append(Rail(name, files))
    return found


@dataclass(frozen=True)
class Sample:
    """One moment: seconds since the start, MemAvailable and a process's VmHWM in bytes, and power in W by rail."""

    seconds: float
    available: int | None
    resident: int | None
    watts: Mapping[str, float]


@dataclass(frozen=True)
class Usage:
    """What a monitor saw: bytes, and the mean power in W by rail and of the board, over ``power_samples`` samples.

    ``available_drop`` is what MemAvailable lost from its start to its lowest; ``resident_peak`` is the process's VmHWM.
    """

    seconds: float
    samples: int
    available_start: int | None
    available_lowest: int | None
    available_drop: int | None
    resident_peak: int | None
    rails: Mapping[str, float]
    total: tuple[str, ...]
    watts: float | None
    power_samples: int
    missing: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The fields as values of JSON."""
        return {**asdict(self), "total": list(self.total)}


@dataclass(frozen=True)
class Energy:
    """Power in W and energy in J a call of ``rails``, gross and net of the idle board; indicative.

    The sensors are not calibrated, they average over time, and the board does other things at the same time.
    """

    watts: float
    idle_watts: float
    net_watts: float
    joules: float
    net_joules: float
    samples: int
    rails: tuple[str, ...]
    quality: str = "indicative"

    def to_json(self) -> dict[str, Any]:
        """The fields as values of JSON."""
        return {**asdict(self), "rails": list(self.rails)}


def energy(load: Usage, idle: Usage, calls: int, seconds: float) -> Energy | str:
    """The energy of a call, or why it is unknown.

    Args:
        load: of a monitor around the calls alone.
        idle: of a monitor around 10 s in which the board had nothing to do.
        calls: their number, at least 1.
        seconds: what all of them took.
    """
    watts, idle_watts = _power(load, "calls"), _power(idle, "idle board")
    if isinstance(watts, str):
        return watts
    if isinstance(idle_watts, str):
        return idle_watts
    if load.total != idle.total:
        return f"the calls were measured on {' + '.join(load.total)}, the idle board on {' + '.join(idle.total)}"
    return Energy(
        watts=watts,
        idle_watts=idle_watts,
        net_watts=watts - idle_watts,
        joules=watts * seconds / calls,
        net_joules=(watts - idle_watts) * seconds / calls,
        samples=load.power_samples,
        rails=load.total,
    )


def _power(usage: Usage, name: str) -> float | str:
    if usage.watts is None:
        return f"no power of the {name}: {usage.missing['watts']}"
    if usage.power_samples < ENOUGH:
        return f"{usage.power_samples} samples of the power of the {name} are too few: {ENOUGH} are needed"
    return usage.watts


class Monitor:
    """Samples memory and power in a thread while its ``with`` block runs, and once at its start and end.

    Args:
        root: of the file system.
        seconds: between two samples.
        pid: of the process whose VmHWM is wanted; this one's where None.
        clock: seconds that never go back.
        wait: waits some seconds, and returns True where the thread shall end; until the block ends where None.
    """

    def __init__(
        self,
        root: Path = ROOT,
        seconds: float = 0.1,
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.samples: list[Sample] = []
        self._root, self._period, self._clock = root, seconds, clock
        self._status = root / "proc" / ("self" if pid is None else str(pid)) / "status"
        self._rails = rails(root)
        labels = {rail.label for rail in self._rails}
        self._total: tuple[str, ...] = next((total for total in _TOTALS if labels.issuperset(total)), ())
        self._reasons: dict[str, str] = {}
        if not self._total:
            self._reasons["watts"] = f"no rails that are the whole board (found: {', '.join(sorted(labels)) or 'none'})"
        self._done = threading.Event()
        self._wait = wait or self._done.wait
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._start = 0.0

    def __enter__(self) -> Monitor:
        self._start = self._clock()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    def usage(self) -> Usage:
        """What was seen so far.

        Raises:
            ValueError: the block was not entered.
        """
        if not self.samples:
            raise ValueError("a monitor is read after its `with` block")
        samples = list(self.samples)
        start = samples[0].available
        lowest = min((one.available for one in samples if one.available is not None), default=None)
        whole = [one.watts for one in samples if self._total and one.watts.keys() >= set(self._total)]
        usage = Usage(
            seconds=samples[-1].seconds,
            samples=len(samples),
            available_start=start,
            available_lowest=lowest,
            available_drop=None if start is None or lowest is None else start - lowest,
            resident_peak=max((one.resident for one in samples if one.resident is not None), default=None),
            rails=self._means(samples),
            total=self._total,
            watts=statistics.mean(sum(watts[name] for name in self._total) for watts in whole) if whole else None,
            power_samples=len(whole),
            missing={},
        )
        absent = [name for name, value in vars(usage).items() if value is None]
        return replace(usage, missing={name: self._reasons[name.split("_")[0]] for name in absent})

    def _means(self, samples: Sequence[Sample]) -> dict[str, float]:
        found = {
            rail.label: [one.watts[rail.label] for one in samples if rail.label in one.watts] for rail in self._rails
        }
        return {name: statistics.mean(watts) for name, watts in found.items() if watts}

    def _watch(self) -> None:
        due = self._start + self._period
        while not self._wait(max(0.0, due - self._clock())):
            self._sample()
            due += self._period
            if due < self._clock():  # what was missed is not made up for
                due = self._clock() + self._period

    def _sample(self) -> None:
        watts = {}
        seconds = self._clock() - self._start
        for rail in self._rails:
            try:
                watts[rail.label] = rail.watts()
            except (OSError, ValueError) as error:
                if rail.label in self._total:
                    self._reasons["watts"] = why(rail.files[0], error)
        self.samples.append(Sample(seconds, self._available(), self._resident(), watts))

    def _available(self) -> int | None:
        path = self._root / "proc/meminfo"
        try:
            return memory(self._root)["MemAvailable"]
        except (OSError, ValueError) as error:
            self._reasons["available"] = why(path, error)
        except KeyError:
            self._reasons["available"] = f"{path} has no MemAvailable"
        return None

    def _resident(self) -> int | None:
        try:
            lines = text(self._status).splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        except (OSError, ValueError) as error:
            self._reasons["resident"] = why(self._status, error)
        except StopIteration:
            self._reasons["resident"] = f"{self._status} has no VmHWM"
        return None
