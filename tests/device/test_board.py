"""Trees of an Orin Nano, an AGX Orin and a Thor: what is read there, what is refused, and what makes latency open."""

import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qcheck.device import board, monitor
from qcheck.device.board import Board, State
from qcheck.device.errors import CannotVerify
from qcheck.device.monitor import Energy, Monitor, Usage
from tests.device import trees

NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
DLA = "libnvdla_compiler.so: cannot open shared object file: No such file or directory"
ABSENT = "No module named 'tensorrt'"


def says(text: str | None) -> Callable[[list[str]], str | None]:
    """A ``run`` of a board where a user may ask ``nvpmodel``, but not as root."""
    return lambda command: None if command[0] == "sudo" else text


MAXN = says("NV Power Mode: MAXN\n0\n")


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return trees.orin_nano(tmp_path)


@pytest.fixture
def thor(tmp_path: Path) -> Path:
    return trees.thor(tmp_path)


# What the board is


@pytest.mark.parametrize(
    ("tree", "model", "release", "memory"),
    [
        (trees.orin_nano, NANO, "R36.4.3", 7802240 * 1024),
        (trees.agx_orin, "NVIDIA Jetson AGX Orin Developer Kit", "R36.4.3", 64349184 * 1024),
        (trees.thor, "NVIDIA Jetson AGX Thor Developer Kit", "R38.2.2", 128791552 * 1024),
    ],
    ids=["orin-nano", "agx-orin", "thor"],
)
def test_a_board_says_what_it_is(
    tmp_path: Path, tree: Callable[[Path], Path], model: str, release: str, memory: int
) -> None:
    found = Board.here(tree(tmp_path), MAXN)
    assert (found.model, found.is_jetson, found.release) == (model, True, release)
    assert (found.power_mode, found.memory_total, found.missing) == ("MAXN", memory, {})
    assert (found.python, found.executable) == (platform.python_version(), sys.executable)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_a_container_hides_the_device_tree_and_the_release_but_not_the_chip(nano: Path) -> None:
    shutil.rmtree(nano / "proc/device-tree")
    (nano / "etc/nv_tegra_release").unlink()
    found = Board.here(nano, MAXN)
    assert (found.model, found.is_jetson, found.release) == (NANO, True, "")


def test_a_workstation_is_no_jetson_and_is_named_by_its_mainboard_or_its_processor(tmp_path: Path) -> None:
    assert Board.here(tmp_path, says(None)).model == platform.machine()
    trees.write(tmp_path, {"sys/class/dmi/id/product_name": "Precision 5820"})
    found = Board.here(tmp_path, says(None))
    assert (found.model, found.is_jetson, found.release, found.power_mode) == ("Precision 5820", False, "", "unknown")
    assert found.memory_total is None
    assert found.missing["memory_total"].endswith("proc/meminfo: No such file or directory")


def test_a_power_mode_is_asked_as_root_first_then_as_the_user(nano: Path) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> str | None:
        asked.append(command)
        return None if len(asked) == 1 else "NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n"

    assert board.power_mode(nano, run) == "25W"
    assert asked == [["sudo", "-n", "nvpmodel", "-q"], ["nvpmodel", "-q"]]
    assert board.power_mode(nano, says("NVPM ERROR: no permission")) is None


def test_a_machine_without_nvpmodel_is_not_asked_and_no_sudo_is_tried(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    assert board.power_mode(tmp_path, asked.append) is None
    assert asked == []


def test_a_program_that_is_missing_or_fails_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_PATIENCE", 0.2)
    assert board.ask(["echo", "NV Power Mode: MAXN"]) == "NV Power Mode: MAXN\n"
    assert board.ask(["/nowhere/nvpmodel", "-q"]) is None
    assert board.ask(["false"]) is None
    start = time.monotonic()
    assert board.ask(["sleep", "30"]) is None
    assert time.monotonic() - start < 10


# The state it is in


def test_a_state_is_memory_clocks_temperatures_and_alarms(nano: Path) -> None:
    found = State.now(nano, MAXN)
    assert (found.memory_available, found.swap_total, found.swap_used) == (5240832 * 1024, 3901120 * 1024, 0)
    assert (found.gpu_clock, found.gpu_clock_min, found.gpu_clock_max) == (1020000000, 306000000, 1020000000)
    assert found.temperatures == {"cpu-thermal": 51.187, "gpu-thermal": 52.406, "tj-thermal": 52.406}
    assert found.alarms["hwmon1/curr1_crit_alarm (VDD_IN)"] == 0
    assert found.alarms["hwmon1/curr4_crit_alarm (ina3221)"] == 0
    assert len(found.alarms) == 7
    assert found.events == {"hwmon3/oc1_event_cnt": 0, "hwmon3/oc2_event_cnt": 15, "hwmon3/oc3_event_cnt": 30}
    assert found.cooling == {"cpu-throttle-alert": 0, "gpu-throttle-alert": 0}
    assert (found.power_mode, found.missing) == ("MAXN", {})
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_the_clock_of_a_thors_gpu_is_not_that_of_its_video_engines(thor: Path) -> None:
    found = State.now(thor, MAXN)
    assert (found.gpu_clock, found.gpu_clock_max) == (1575000000, 1575000000)
    assert found.alarms["hwmon4/power1_max_alarm (VIN)"] == 0
    assert found.temperatures["soc012-thermal"] == 55.1


@pytest.mark.parametrize("name", ["57000000.gpu", "17000000.ga10b", "17000000.gv11b"])
def test_older_names_of_the_gpus_clock_are_found(tmp_path: Path, name: str) -> None:
    folder = f"sys/class/devfreq/{name}"
    trees.write(tmp_path, {f"{folder}/cur_freq": 76800000, f"{folder}/min_freq": 76800000, f"{folder}/max_freq": "x"})
    found = State.now(tmp_path, MAXN)
    assert (found.gpu_clock, found.gpu_clock_max) == (76800000, None)
    assert "invalid literal" in found.missing["gpu_clock_max"]


def test_two_zones_of_a_kind_are_both_kept_and_the_second_zone_comes_before_the_tenth(tmp_path: Path) -> None:
    for index in (10, 2):
        folder = f"sys/class/thermal/thermal_zone{index}"
        trees.write(tmp_path, {f"{folder}/type": "acpitz", f"{folder}/temp": 1000 * index})
    assert State.now(tmp_path, MAXN).temperatures == {"acpitz": 2.0, "acpitz (thermal_zone10)": 10.0}


@pytest.fixture
def unpowered(thor: Path) -> Iterator[Path]:
    """A Thor whose gpu-thermal answers EAGAIN, as that of an idle one does."""
    zone = thor / "sys/class/thermal/thermal_zone1/temp"
    zone.unlink()
    os.mkfifo(zone)
    kept = os.open(zone, os.O_RDWR | os.O_NONBLOCK)
    yield thor
    os.close(kept)


def test_a_zone_without_power_is_skipped_with_its_reason(unpowered: Path) -> None:
    found = State.now(unpowered, MAXN)
    assert set(found.temperatures) == {"cpu-thermal", "soc012-thermal", "tj-thermal"}
    assert found.missing["temperatures.gpu-thermal"].endswith("thermal_zone1/temp: Resource temporarily unavailable")


def test_the_clock_is_read_before_nvpmodel_takes_its_time(nano: Path) -> None:
    def slow(command: list[str]) -> str:
        trees.write(nano, {"sys/class/devfreq/17000000.gpu/cur_freq": 306000000})
        return "NV Power Mode: MAXN"

    assert State.now(nano, slow).gpu_clock == 1020000000


def test_every_value_that_cannot_be_read_has_its_reason(tmp_path: Path) -> None:
    found = State.now(tmp_path, says(None))
    empty = {name for name, value in vars(found).items() if not value} - {"trips", "missing"}
    assert empty == set(found.missing)
    assert found.missing["gpu_clock"].startswith("no clock of a GPU in ")
    assert found.missing["power_mode"] == "`nvpmodel -q` is missing, may not be asked, or did not answer"
    assert found.missing["memory_available"].endswith("proc/meminfo: No such file or directory")
    assert found.missing["alarms"] == "no power monitor of the INA family has an alarm"
    trees.write(tmp_path, {"proc/meminfo": "MemTotal: 1 kB"})
    assert State.now(tmp_path, MAXN).missing["swap_free"].endswith("proc/meminfo has no SwapFree")
    assert found.swap_used is None


# What makes latency inconclusive

ZONE, CLOCK, HWMON = "sys/class/thermal/thermal_zone2", "sys/class/devfreq/17000000.gpu", "sys/class/hwmon"


def after(root: Path, files: dict[str, object], mode: str = "MAXN") -> list[str]:
    """Why latency is inconclusive once these files have changed."""
    before = State.now(root, MAXN)
    trees.write(root, files)
    return board.throttled(before, State.now(root, says(f"NV Power Mode: {mode}")))


def test_a_board_that_stays_as_it_is_speaks_for_its_latency(nano: Path, tmp_path: Path) -> None:
    assert after(nano, {}) == []
    warmer = {f"{ZONE}/temp": 98900, f"{CLOCK}/cur_freq": 969000000, f"{CLOCK}/max_freq": 1020000000}
    assert after(nano, warmer) == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({f"{HWMON}/hwmon1/curr1_crit_alarm": 1}, "the alarm hwmon1/curr1_crit_alarm (VDD_IN) rose"),
        ({f"{HWMON}/hwmon1/curr2_max_alarm": 1}, "the alarm hwmon1/curr2_max_alarm (VDD_CPU_GPU_CV) rose"),
        (
            {f"{HWMON}/hwmon3/oc3_event_cnt": 31},
            "hwmon3/oc3_event_cnt counted 1 over-current event: the board was slowed to save its supply",
        ),
        (
            {f"{HWMON}/hwmon3/oc3_event_cnt": 37},
            "hwmon3/oc3_event_cnt counted 7 over-current events: the board was slowed to save its supply",
        ),
        (
            {"sys/class/thermal/cooling_device2/cur_state": 1},
            "gpu-throttle-alert was on: the board was slowed because it was hot",
        ),
        ({f"{CLOCK}/max_freq": 612000000}, "the GPU's highest clock fell from 1020 to 612 MHz"),
        ({f"{CLOCK}/cur_freq": 968000000}, "the GPU's clock fell from 1020 to 968 MHz"),
        ({f"{ZONE}/temp": 99500}, "tj-thermal was at 99.5 °C, and the board is slowed from 99.0 °C"),
    ],
    ids=["critical-alarm", "warning-alarm", "an-event", "events", "cooling", "highest-clock", "clock", "trip-point"],
)
def test_what_slows_a_board_is_named(nano: Path, files: dict[str, object], reason: str) -> None:
    assert after(nano, files) == [reason]


def test_a_changed_power_mode_is_named_and_an_unknown_one_is_not_compared(nano: Path) -> None:
    assert after(nano, {}, "15W") == ["the power mode changed from MAXN to 15W"]
    assert board.throttled(State.now(nano, MAXN), State.now(nano, says(None))) == []


def test_swap_that_grows_is_named_and_swap_that_was_used_before_is_not(nano: Path) -> None:
    trees.meminfo(nano, 7802240, 5240832, 3901120, 3000000)
    before = State.now(nano, MAXN)
    assert board.throttled(before, before) == []
    trees.meminfo(nano, 7802240, 5240832, 3901120, 2900000)
    reasons = board.throttled(before, State.now(nano, MAXN))
    assert reasons == ["the swap in use grew from 922.7 to 1025.1 MB"]


def test_a_board_that_was_hot_and_slowed_from_the_beginning_is_named_too(nano: Path) -> None:
    trees.write(nano, {f"{ZONE}/temp": 99500, "sys/class/thermal/cooling_device1/cur_state": 1})
    assert after(nano, {f"{ZONE}/temp": 90000, "sys/class/thermal/cooling_device1/cur_state": 0}) == [
        "cpu-throttle-alert was on: the board was slowed because it was hot",
        "tj-thermal was at 99.5 °C, and the board is slowed from 99.0 °C",
    ]


def test_a_hot_surface_slows_nothing(nano: Path) -> None:
    assert State.now(nano, MAXN).trips == {"cpu-thermal": 99.0, "gpu-thermal": 99.0, "tj-thermal": 99.0}
    assert after(nano, {f"{ZONE}/temp": 71000}) == []


def test_a_hot_trip_point_counts_and_one_that_is_off_or_active_does_not(thor: Path) -> None:
    names = {"1_type": "hot", "1_temp": 105000, "2_type": "passive", "2_temp": 0, "3_type": "active", "3_temp": 40000}
    trees.write(thor, {f"{ZONE}/trip_point_{name}": value for name, value in names.items()})
    assert State.now(thor, MAXN).trips["soc012-thermal"] == 105.0


def test_what_cannot_be_read_is_not_compared(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    nothing, full = State.now(tmp_path_factory.mktemp("empty"), says(None)), State.now(nano, MAXN)
    assert board.throttled(nothing, nothing) == []
    assert board.throttled(nothing, full) == []
    assert board.throttled(full, nothing) == []


def test_a_zone_that_is_read_at_one_end_only_is_judged_there(unpowered: Path) -> None:
    idle, zone = State.now(unpowered, MAXN), "sys/class/thermal/thermal_zone1"
    (unpowered / zone / "temp").unlink()
    trees.write(unpowered, {f"{zone}/temp": 109500})
    busy = State.now(unpowered, MAXN)
    reason = "gpu-thermal was at 109.5 °C, and the board is slowed from 109.0 °C"
    assert board.throttled(idle, busy) == board.throttled(busy, idle) == [reason]


# Memory for a build


def test_a_component_that_fits_is_built_and_one_byte_more_is_refused_with_what_to_do(nano: Path) -> None:
    state = replace(State.now(nano, MAXN), memory_available=4_000_000_000)
    board.require_memory(1_000_000_000, state)
    with pytest.raises(CannotVerify) as refused:
        board.require_memory(1_000_000_001, state)
    assert refused.value.problem == (
        "building an engine from 1.0 GB of ONNX needs 4.0 GB, 4 times its size, and only 4.0 GB are available"
    )
    assert "sudo systemctl isolate multi-user.target" in refused.value.fix


def test_a_build_is_refused_where_nobody_knows_the_memory(tmp_path: Path) -> None:
    with pytest.raises(CannotVerify, match=r"the memory available is unknown: .*No such file or directory"):
        board.require_memory(1, State.now(tmp_path, MAXN))


@pytest.mark.parametrize(
    ("available", "expected"),
    [(8_000_000_000, 1_000_000_000), (100_000_000_000, 2_000_000_000), (None, 256_000_000)],
    ids=["an-eighth", "2-gb", "unknown"],
)
def test_the_workspace_is_an_eighth_of_the_memory_and_2_gb_at_most(
    nano: Path, available: int | None, expected: int
) -> None:
    assert board.workspace(replace(State.now(nano, MAXN), memory_available=available)) == expected


# A Python that cannot import TensorRT


@pytest.fixture
def apt(nano: Path) -> Path:
    return trees.write(nano, {"usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""})


@pytest.mark.parametrize(
    "executable",
    [
        "/home/me/miniconda3/bin/python",
        "/home/me/.venv/bin/python3",
        "/usr/local/bin/python3.12",
        "/usr/bin/python3.12",
    ],
)
def test_another_python_beside_apts_bindings_is_told_to_be_the_systems(apt: Path, executable: str) -> None:
    assert board.python_fault(ABSENT, executable, apt) == (
        "apt's TensorRT in /usr/lib/python3.10/dist-packages/tensorrt is for the system's Python alone, and this is "
        f"{executable}: run with /usr/bin/python3."
    )


@pytest.mark.parametrize(
    ("error", "executable"),
    [
        (ABSENT, "/usr/bin/python3"),
        (ABSENT, "/usr/bin/python3.10"),
        ("libcudart.so.12: cannot open shared object file", "/home/me/.venv/bin/python3"),
    ],
    ids=["the-system", "its-version", "another-library"],
)
def test_a_fault_that_another_python_does_not_mend_is_not_named(apt: Path, error: str, executable: str) -> None:
    assert board.python_fault(error, executable, apt) is None


def test_a_python_without_any_bindings_beside_it_is_not_told_where_they_are(nano: Path) -> None:
    assert board.python_fault(ABSENT, "/home/me/.venv/bin/python3", nano) is None


def test_the_dla_compiler_that_a_container_lacks_comes_from_the_board(apt: Path) -> None:
    trees.write(apt, {".dockerenv": ""})
    assert board.python_fault(DLA, "/usr/bin/python3", apt) == (
        "TensorRT needs libnvdla_compiler.so, which a container gets from the board: start it with "
        "`docker run --runtime nvidia`, and where the board has none either, run "
        "`sudo apt install nvidia-l4t-dla-compiler` and `sudo ldconfig` there."
    )


def test_the_dla_compiler_that_a_board_lacks_is_installed(apt: Path) -> None:
    library = apt / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"
    library.parent.mkdir(parents=True)
    library.touch()  # the placeholder of a container's image
    assert board.python_fault(DLA, "/usr/bin/python3", apt) == (
        "TensorRT needs libnvdla_compiler.so, which is not installed: run "
        "`sudo apt install nvidia-l4t-dla-compiler` and `sudo ldconfig`."
    )


def test_the_dla_compiler_that_the_loader_does_not_know_yet_needs_ldconfig(apt: Path) -> None:
    trees.write(apt, {"usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so": "ELF"})
    assert board.python_fault(DLA, "/usr/bin/python3", apt) == (
        "TensorRT needs libnvdla_compiler.so, which is installed and which the loader does not know yet: "
        "run `sudo ldconfig`."
    )


# Memory and power while calls run


class Steps:
    """A clock, and a ``wait`` that lets a monitor's thread take a step each time, and then ends it."""

    def __init__(self, *steps: Callable[[], object], late: float = 0.0) -> None:
        self.now, self._steps, self._late = 100.0, list(steps), late

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds + self._late
        if not self._steps:
            return True
        self._steps.pop(0)()
        return False


def watch(root: Path, *steps: Callable[[], object], pid: int | None = None, late: float = 0.0) -> Monitor:
    """A monitor whose thread took a sample after each step."""
    scripted = Steps(*steps, late=late)
    with Monitor(root, pid=pid, clock=scripted.clock, wait=scripted.wait) as found:
        pass
    return found


def steady(root: Path, samples: int) -> Usage:
    """What a monitor saw of a board that stays as it is; the first and the last sample are its own."""
    return watch(root, *[lambda: None] * (samples - 2)).usage()


def test_a_monitor_samples_at_10_hz_and_makes_up_for_nothing(nano: Path) -> None:
    times = [round(sample.seconds, 6) for sample in watch(nano, *[lambda: None] * 3).samples]
    assert times == [0.0, 0.1, 0.2, 0.3, 0.4]
    late = [round(sample.seconds, 6) for sample in watch(nano, *[lambda: None] * 3, late=0.15).samples]
    assert late == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_the_lowest_memory_its_drop_and_the_peak_of_a_process_that_ends_are_kept(nano: Path) -> None:
    trees.status(nano, 1000, "4711")
    steps = [
        lambda: trees.meminfo(nano, 7802240, 2000000),
        lambda: trees.status(nano, 3000, "4711"),
        lambda: shutil.rmtree(nano / "proc/4711"),
        lambda: trees.meminfo(nano, 7802240, 5000000),
    ]
    usage = watch(nano, *steps, pid=4711).usage()
    assert (usage.samples, usage.available_start) == (6, 5240832 * 1024)
    assert usage.available_lowest == 2000000 * 1024
    assert usage.available_drop == 3240832 * 1024
    assert (usage.resident_peak, usage.missing) == (3000 * 1024, {})
    assert json.loads(json.dumps(usage.to_json())) == usage.to_json()


@pytest.mark.parametrize(
    ("tree", "total", "watts", "rails"),
    [
        (trees.orin_nano, ("VDD_IN",), 4.984 * 1.856, {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}),
        (
            trees.agx_orin,
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
            19.872 * 0.16 + 19.872 * 0.06 + 5.008 * 0.953,
            {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"},
        ),
        (trees.thor, ("VIN",), 20.986, {"VIN", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}),
    ],
    ids=["orin-nano", "agx-orin", "thor"],
)
def test_the_power_of_a_board_is_that_of_the_rails_which_are_all_of_it(
    tmp_path: Path, tree: Callable[[Path], Path], total: tuple[str, ...], watts: float, rails: set[str]
) -> None:
    usage = steady(tree(tmp_path), 30)
    assert (usage.total, usage.power_samples) == (total, 30)
    assert usage.watts == pytest.approx(watts)
    assert set(usage.rails) == rails
    assert sum(usage.rails[name] for name in total) == pytest.approx(watts)


def test_a_thor_without_its_ina238_has_no_power_of_the_whole_board(thor: Path) -> None:
    shutil.rmtree(thor / "sys/class/hwmon/hwmon4")
    trees.write(thor, {"sys/class/hwmon/hwmon5/curr1_input": "-"})
    usage = steady(thor, 30)
    reason = "no rails that are the whole board (found: VDD_CPU_SOC_MSS, VDD_GPU, VIN_SYS_5V0)"
    assert (usage.total, usage.watts, usage.missing) == ((), None, {"watts": reason})
    assert monitor.energy(usage, usage, 10, 1.0) == f"no power of the calls: {reason}"


def test_a_rail_that_cannot_be_read_has_its_reason_and_the_others_stay(nano: Path) -> None:
    trees.write(nano, {"sys/class/hwmon/hwmon1/curr1_input": "-"})
    usage = steady(nano, 30)
    assert (usage.watts, usage.power_samples) == (None, 0)
    assert "invalid literal" in usage.missing["watts"]
    assert set(usage.rails) == {"VDD_CPU_GPU_CV", "VDD_SOC"}


def test_a_machine_that_tells_nothing_has_a_reason_for_everything(tmp_path: Path) -> None:
    usage = steady(tmp_path, 30)
    absent = {name for name, value in vars(usage).items() if value is None}
    assert absent == set(usage.missing)
    assert len(absent) == 5
    assert usage.missing["watts"] == "no rails that are the whole board (found: none)"
    assert usage.missing["available_drop"].endswith("proc/meminfo: No such file or directory")
    assert usage.missing["resident_peak"].endswith("proc/self/status: No such file or directory")
    trees.write(tmp_path, {"proc/meminfo": "MemTotal: 1 kB", "proc/self/status": "Name: x"})
    usage = steady(tmp_path, 2)
    assert usage.missing["available_start"].endswith("proc/meminfo has no MemAvailable")
    assert usage.missing["resident_peak"].endswith("proc/self/status has no VmHWM")


def test_the_energy_of_a_call_is_gross_and_net_of_the_idle_board_and_only_indicative(thor: Path) -> None:
    idle = steady(thor, 100)
    trees.write(thor, {"sys/class/hwmon/hwmon4/power1_input": 80986000})
    found = monitor.energy(steady(thor, 40), idle, calls=20, seconds=4.0)
    assert isinstance(found, Energy)
    assert (found.watts, found.idle_watts) == (pytest.approx(80.986), pytest.approx(20.986))
    assert found.net_watts == pytest.approx(60.0)
    assert (found.joules, found.net_joules) == (pytest.approx(80.986 / 5), pytest.approx(12.0))
    assert (found.samples, found.rails, found.quality) == (40, ("VIN",), "indicative")
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_29_samples_are_no_energy(nano: Path) -> None:
    enough, few = steady(nano, 30), steady(nano, 29)
    assert isinstance(monitor.energy(enough, enough, 1, 1.0), Energy)
    reason = "29 samples of the power of the {} are too few: 30 are needed"
    assert monitor.energy(few, enough, 1, 1.0) == reason.format("calls")
    assert monitor.energy(enough, few, 1, 1.0) == reason.format("idle board")


def test_power_of_different_rails_is_not_subtracted(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = steady(trees.thor(tmp_path_factory.mktemp("thor")), 30)
    assert monitor.energy(steady(nano, 30), other, 1, 1.0) == (
        "the calls were measured on VDD_IN, the idle board on VIN"
    )


def test_a_monitor_watches_this_process_until_its_block_ends() -> None:
    with Monitor(seconds=0.005) as found:
        end = time.monotonic() + 10
        while len(found.samples) < 4 and time.monotonic() < end:
            time.sleep(0.005)
    usage = found.usage()
    assert usage.samples >= 5
    assert usage.resident_peak is not None
    assert usage.resident_peak > 10_000_000
    assert "monitor" not in {thread.name for thread in threading.enumerate()}


def test_a_monitor_that_was_never_entered_has_nothing_to_tell(nano: Path) -> None:
    with pytest.raises(ValueError, match="after its `with` block"):
        Monitor(nano).usage()


# Time


def test_percentiles_are_nearest_rank() -> None:
    found = monitor.latency([float(value) for value in range(100, 0, -1)])
    assert (found.median, found.p90, found.p95, found.min, found.count) == (50.5, 90.0, 95.0, 1.0, 100)
    found = monitor.latency([float(value) for value in range(1, 12)])
    assert (found.median, found.p90, found.p95) == (6.0, 10.0, 11.0)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_drift_is_how_much_slower_the_last_third_is_than_the_first() -> None:
    assert monitor.latency([10.0] * 4 + [99.0] * 3 + [12.0] * 3).drift == pytest.approx(0.2)
    assert monitor.latency([10.0, 20.0, 5.0]).drift == pytest.approx(-0.5)
    assert monitor.latency([7.0]) == monitor.Latency(7.0, 7.0, 7.0, 7.0, 1, 0.0)


def test_no_times_are_no_latency() -> None:
    with pytest.raises(ValueError, match="no call was timed"):
        monitor.latency([])
