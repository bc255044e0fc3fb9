"""What the board is, and the state that it is in: read from procfs, sysfs and ``nvpmodel``, and never changed.

What reads takes the ``root`` of the file system, and ``run`` where it asks a program. A value that cannot be read is
None, and ``missing`` has its reason under its name.
"""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import CannotVerify
from .sysfs import ROOT, known_text, label, memory, monitors, number, numbered, why

# A builder's peak was 3.2 to 4.1 times the bytes of the ONNX file and its weights.
TIMES = 4
_WORKSPACE, _SHARE, _SMALL = 2_000_000_000, 8, 256_000_000
_PATIENCE = 5.0
# The GPU's own clock, newest boards first; a Thor has a clock gpu-nvd-0 of its video engines beside it.
_GPUS = ("gpu-gpc-0", "*.gpu", "*.ga10b", "*.gv11b", "*.gp10b")
_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_MODE = re.compile(r"NV Power Mode\s*:\s*(\S.*)")
_ALARM = re.compile(r"(curr|in|power)(\d+)(_\w+)?_alarm")
# What a passive trip point may switch without making the board slower: Orin's 70 °C only warns of a hot surface.
_HARMLESS = ("hot-surface", "pwm-fan")
_BINDINGS = "usr/lib/python3*/dist-packages/tensorrt"
_DLA = "libnvdla_compiler.so"
_CLOSE = (
    "Close the desktop with `sudo systemctl isolate multi-user.target` (`graphical.target` brings it back), and stop "
    "other programs and containers; or export a component of fewer bytes. Swap does not count: a GPU cannot use it."
)


def ask(command: list[str]) -> str | None:
    """What a program prints; None where it is missing, fails, or is not done in 5 s. It never raises."""
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, encoding="utf-8", errors="replace"
        )
    except (OSError, ValueError):
        return None
    try:
        printed, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.SubprocessError:
        # A program of root's cannot be killed, and waiting for it could last for ever.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            process.kill()
            process.communicate(timeout=1)
        return None
    return printed if process.returncode == 0 else None


def power_mode(root: Path = ROOT, run: Callable[[list[str]], str | None] = ask) -> str | None:
    """The power mode that ``nvpmodel`` tells, such as "MAXN" or "25W"; None where it tells none.

    A machine without ``nvpmodel`` is not asked: its ``sudo`` may tell an administrator.
    """
    if not any((root / place / "nvpmodel").exists() for place in ("usr/sbin", "usr/bin")):
        return None
    for command in (["sudo", "-n", "nvpmodel", "-q"], ["nvpmodel", "-q"]):
        found = _MODE.search(run(command) or "")
        if found:
            return found.group(1).strip()
    return None


@dataclass(frozen=True)
class Board:
    """What stays the same: the model, its release of Linux ("R36.4.3" or ""), and the Python that runs.

    ``memory_total`` is in bytes; ``power_mode`` is "unknown" where ``nvpmodel`` says nothing.
    """

    model: str
    is_jetson: bool
    release: str
    power_mode: str
    python: str
    executable: str
    memory_total: int | None
    missing: Mapping[str, str]

    @classmethod
    def here(cls, root: Path = ROOT, run: Callable[[list[str]], str | None] = ask) -> Board:
        """This board. Its model is the device tree's, the SoC driver's (containers hide the tree), or the mainboard's.

        The machine's name on the network is not read.
        """
        missing: dict[str, str] = {}
        release = _RELEASE.search(known_text(root / "etc/nv_tegra_release"))
        tree, chip = root / "proc/device-tree", root / "sys/devices/soc0"
        places = (tree / "model", chip / "machine", root / "sys/class/dmi/id/product_name")
        tegra = "nvidia,tegra" in known_text(tree / "compatible") or known_text(chip / "family") == "Tegra"
        return cls(
            model=next((found for found in map(known_text, places) if found), platform.machine() or "unknown"),
            is_jetson=bool(release) or tegra,
            release="R{}.{}".format(*release.groups()) if release else "",
            power_mode=power_mode(root, run) or "unknown",
            python=platform.python_version(),
            executable=sys.executable,
            memory_total=_memory(root, {"memory_total": "MemTotal"}, missing)["memory_total"],
            missing=missing,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as values of JSON."""
        return asdict(self)


@dataclass(frozen=True)
class State:
    """What changes: memory in bytes, clocks in Hz, temperatures in °C by thermal zone.

    ``trips`` are the lowest temperatures, in °C, at which a zone's cooling makes the board slower. ``alarms`` are the
    flags of the power monitors, 0 or 1; ``events`` are over-current events counted since the start; ``cooling`` is the
    state of the kernel's throttle alerts, 0 where a part of the chip runs at its full speed.
    """

    memory_available: int | None
    swap_total: int | None
    swap_free: int | None
    gpu_clock: int | None
    gpu_clock_min: int | None
    gpu_clock_max: int | None
    temperatures: Mapping[str, float]
    trips: Mapping[str, float]
    alarms: Mapping[str, int]
    events: Mapping[str, int]
    cooling: Mapping[str, int]
    power_mode: str | None
    missing: Mapping[str, str]

    @classmethod
    def now(cls, root: Path = ROOT, run: Callable[[list[str]], str | None] = ask) -> State:
        """The state at this moment; two to be compared are both taken under load, at once after a call."""
        missing: dict[str, str] = {}
        clocks = _clocks(root, missing)  # first, for it falls as soon as the GPU has nothing to do
        names = {"memory_available": "MemAvailable", "swap_total": "SwapTotal", "swap_free": "SwapFree"}
        memories = _memory(root, names, missing)
        temperatures, trips = _thermal(root, missing)
        alarms = dict(_alarms(root))
        events = dict(_counted(root / "sys/class/hwmon", "hwmon*/oc*_event_cnt"))
        cooling = dict(_cooling(root))
        mode = power_mode(root, run)
        for name, found, reason in (
            ("alarms", alarms, "no power monitor of the INA family has an alarm"),
            ("events", events, "no counters of over-current events"),
            ("cooling", cooling, "no throttle alerts"),
            ("power_mode", mode, "`nvpmodel -q` is missing, may not be asked, or did not answer"),
        ):
            if not found:
                missing[name] = reason
        return cls(
            memory_available=memories["memory_available"],
            swap_total=memories["swap_total"],
            swap_free=memories["swap_free"],
            gpu_clock=clocks["gpu_clock"],
            gpu_clock_min=clocks["gpu_clock_min"],
            gpu_clock_max=clocks["gpu_clock_max"],
            temperatures=temperatures,
            trips=trips,
            alarms=alarms,
            events=events,
            cooling=cooling,
            power_mode=mode,
            missing=missing,
        )

    @property
    def swap_used(self) -> int | None:
        """The swap in use, in bytes."""
        if self.swap_total is None or self.swap_free is None:
            return None
        return self.swap_total - self.swap_free

    def to_json(self) -> dict[str, Any]:
        """The fields as values of JSON."""
        return asdict(self)


def throttled(before: State, after: State) -> list[str]:
    """Why latency between two states is inconclusive, a sentence each; empty where nothing speaks against it.

    What either state could not read is not compared: ``missing`` has it.
    """
    return [
        *_mode_changed(before, after),
        *(f"the alarm {name} rose" for name, on in after.alarms.items() if on > before.alarms.get(name, 0)),
        *_events_counted(before, after),
        *_cooled(before, after),
        *_slower(before, after),
        *_hot(before, after),
        *_swapped(before, after),
    ]


def require_memory(component_bytes: int, state: State) -> None:
    """Refuse to build an engine where the out-of-memory killer would end it.

    Args:
        component_bytes: of the ONNX file and of its weights beside it.
        state: the board's, before the build.

    Raises:
        CannotVerify: less than four times these bytes is available, or nobody knows.
    """
    needed = TIMES * component_bytes
    asked = f"building an engine from {_gb(component_bytes)} of ONNX needs {_gb(needed)}, {TIMES} times its size"
    if state.memory_available is None:
        reason = state.missing.get("memory_available", "it was not read")
        raise CannotVerify(f"{asked}, and the memory available is unknown: {reason}", "Mount /proc, and run it again.")
    if state.memory_available < needed:
        raise CannotVerify(f"{asked}, and only {_gb(state.memory_available)} are available", _CLOSE)


def workspace(state: State) -> int:
    """The builder's limit of workspace, in bytes: 2 GB, or an eighth of the memory available where that is less.

    256 MB where it is unknown.
    """
    return _SMALL if state.memory_available is None else min(_WORKSPACE, state.memory_available // _SHARE)


def python_fault(error: str, executable: str = sys.executable, root: Path = ROOT) -> str | None:
    """What is wrong where ``import tensorrt`` fails, and the fix; None where it is none of the known faults.

    Args:
        error: the text of the ImportError.
        executable: the Python that failed.
        root: of the file system.
    """
    if _DLA in error:
        return _dla_fault(root)
    bindings = sorted(root.glob(_BINDINGS))
    if "No module named 'tensorrt" not in error or not bindings or _is_system(executable, bindings):
        return None
    # The path is named as the board has it, whatever the root.
    place = "/" + bindings[-1].relative_to(root).as_posix()
    return (
        f"apt's TensorRT in {place} is for the system's Python alone, and this is {executable}: "
        "run with /usr/bin/python3."
    )


def _dla_fault(root: Path) -> str:
    needs = f"TensorRT needs {_DLA}"
    install = "`sudo apt install nvidia-l4t-dla-compiler` and `sudo ldconfig`"
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return (
            f"{needs}, which a container gets from the board: start it with `docker run --runtime nvidia`, "
            f"and where the board has none either, run {install} there."
        )
    places = (path for path in root.glob(f"usr/lib/aarch64-linux-gnu/*/{_DLA}") if path.stat().st_size)
    if any(places):
        return f"{needs}, which is installed and which the loader does not know yet: run `sudo ldconfig`."
    return f"{needs}, which is not installed: run {install}."


def _is_system(executable: str, bindings: list[Path]) -> bool:
    path = Path(executable)
    version = re.fullmatch(r"python(3\.\d+)", path.name)
    own = not version or any(one.parent.parent.name in {"python3", path.name} for one in bindings)
    return str(path.parent) in {"/usr/bin", "/bin"} and own


def _gb(value: int) -> str:
    return f"{value / 1e9:.1f} GB"


def _memory(root: Path, names: Mapping[str, str], missing: dict[str, str]) -> dict[str, int | None]:
    path, found = root / "proc/meminfo", {}
    try:
        found = memory(root)
    except (OSError, ValueError) as error:
        missing.update({name: why(path, error) for name in names})
    else:
        missing.update({name: f"{path} has no {key}" for name, key in names.items() if key not in found})
    return {name: found.get(key) for name, key in names.items()}


def _clocks(root: Path, missing: dict[str, str]) -> dict[str, int | None]:
    names = {"gpu_clock": "cur_freq", "gpu_clock_min": "min_freq", "gpu_clock_max": "max_freq"}
    folder = root / "sys/class/devfreq"
    gpu = next((found for pattern in _GPUS for found in sorted(folder.glob(pattern))), None)
    clocks: dict[str, int | None] = {}
    for name, file in names.items():
        clocks[name] = None
        if gpu is None:
            missing[name] = f"no clock of a GPU in {folder}"
            continue
        try:
            clocks[name] = number(gpu / file)
        except (OSError, ValueError) as error:
            missing[name] = why(gpu / file, error)
    return clocks


def _thermal(root: Path, missing: dict[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    temperatures: dict[str, float] = {}
    trips: dict[str, float] = {}
    zones = numbered(root / "sys/class/thermal", "thermal_zone*")
    for zone in zones:
        kind = known_text(zone / "type") or zone.name
        name = f"{kind} ({zone.name})" if kind in temperatures else kind
        try:
            temperatures[name] = number(zone / "temp") / 1000
        except (OSError, ValueError) as error:
            missing[f"temperatures.{name}"] = why(zone / "temp", error)
            continue
        slowing = list(_trips(zone))
        if slowing:
            trips[name] = min(slowing)
    if not zones:
        missing["temperatures"] = "no thermal zones"
    return temperatures, trips


def _trips(zone: Path) -> Iterator[float]:
    for path in numbered(zone, "trip_point_*_type"):
        point = path.name.split("_")[2]
        if known_text(path) not in {"passive", "hot"}:
            continue
        with contextlib.suppress(OSError, ValueError):
            degrees = number(zone / f"trip_point_{point}_temp") / 1000
            bound = list(_bound(zone, point))
            if degrees > 0 and not (bound and all(kind.startswith(_HARMLESS) for kind in bound)):
                yield degrees


def _bound(zone: Path, point: str) -> Iterator[str]:
    """The kinds of the cooling devices that a trip point switches."""
    for path in zone.glob("cdev*_trip_point"):
        if known_text(path) == point:
            yield known_text(zone / path.name.split("_")[0] / "type")


def _alarms(root: Path) -> Iterator[tuple[str, int]]:
    for chip, folder in monitors(root):
        if not chip.startswith("ina"):
            continue
        for path in sorted(folder.glob("*_alarm")):
            found = _ALARM.fullmatch(path.name)
            with contextlib.suppress(OSError, ValueError):
                if found:
                    rail = label(folder, found.group(2)) or chip
                    yield f"{folder.name}/{path.name} ({rail})", number(path)


def _counted(folder: Path, pattern: str) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(OSError, ValueError):
            yield f"{path.parent.name}/{path.name}", number(path)


def _cooling(root: Path) -> Iterator[tuple[str, int]]:
    for path in numbered(root / "sys/class/thermal", "cooling_device*"):
        kind = known_text(path / "type")
        with contextlib.suppress(OSError, ValueError):
            if kind.endswith("throttle-alert"):
                yield kind, number(path / "cur_state")


def _mode_changed(before: State, after: State) -> Iterator[str]:
    if before.power_mode and after.power_mode and before.power_mode != after.power_mode:
        yield f"the power mode changed from {before.power_mode} to {after.power_mode}"


def _events_counted(before: State, after: State) -> Iterator[str]:
    for name, counted in after.events.items():
        more = counted - before.events.get(name, counted)
        if more > 0:
            yield f"{name} counted {more} over-current event{'s' * (more > 1)}: the board was slowed to save its supply"


def _cooled(before: State, after: State) -> Iterator[str]:
    for name in sorted({*before.cooling, *after.cooling}):
        if before.cooling.get(name, 0) > 0 or after.cooling.get(name, 0) > 0:
            yield f"{name} was on: the board was slowed because it was hot"


def _slower(before: State, after: State) -> Iterator[str]:
    for name, first, last, share in (
        ("highest clock", before.gpu_clock_max, after.gpu_clock_max, 1.0),
        ("clock", before.gpu_clock, after.gpu_clock, 0.95),
    ):
        if first is not None and last is not None and last < share * first:
            yield f"the GPU's {name} fell from {first / 1e6:.0f} to {last / 1e6:.0f} MHz"


def _hot(before: State, after: State) -> Iterator[str]:
    for name, trip in {**before.trips, **after.trips}.items():
        warmest = max(state.temperatures[name] for state in (before, after) if name in state.temperatures)
        if warmest >= trip:
            yield f"{name} was at {warmest:.1f} °C, and the board is slowed from {trip:.1f} °C"


def _swapped(before: State, after: State) -> Iterator[str]:
    if before.swap_used is not None and after.swap_used is not None and after.swap_used > before.swap_used:
        yield f"the swap in use grew from {before.swap_used / 1e6:.1f} to {after.swap_used / 1e6:.1f} MB"
