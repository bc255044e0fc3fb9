"""The files that three boards have in /proc, /sys and /etc, by their users' listings."""

from collections.abc import Mapping
from pathlib import Path

_RELEASES = {
    "R36": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37",
    "R38": "# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64, DATE: Thu Sep 25 22:47:11",
}


def write(root: Path, files: Mapping[str, object]) -> Path:
    """Files with a newline at their end, as sysfs writes them."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", "utf-8")
    return root


def meminfo(root: Path, total: int, available: int, swap_total: int = 0, swap_free: int = 0) -> Path:
    """/proc/meminfo of some kB."""
    lines = {
        "MemTotal:": total,
        "MemFree:": available // 2,
        "MemAvailable:": available,
        "SwapTotal:": swap_total,
        "SwapFree:": swap_free,
    }
    rows = [f"{name:15}{value:9} kB" for name, value in lines.items()]
    return write(root, {"proc/meminfo": "\n".join([*rows, "HugePages_Total:       0"])})


def status(root: Path, peak: int, pid: str = "self") -> Path:
    """/proc/PID/status of a process whose memory had a peak of some kB."""
    return write(
        root, {f"proc/{pid}/status": f"Name:\tpython3\nVmPeak:\t{3 * peak} kB\nVmHWM:\t{peak} kB\nThreads:\t2"}
    )


def orin_nano(root: Path) -> Path:
    """A Jetson Orin Nano 8GB with JetPack 6.2: one INA3221, and a passive trip point which only warns."""
    _known(root, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "tegra234", "R36")
    meminfo(root, 7802240, 5240832, 3901120, 3901120)
    status(root, 204800)
    _devfreq(root, "17000000.gpu", 1020000000, 306000000, 1020000000)
    rails = [("VDD_IN", 4984, 1856), ("VDD_CPU_GPU_CV", 4984, 440), ("VDD_SOC", 4984, 328)]
    _ina3221(root, "hwmon1", rails)
    _over_current(root, "hwmon3")
    alerts = ["cpufreq-cpu0", "cpu-throttle-alert", "gpu-throttle-alert", "hot-surface-alert", "pwm-fan"]
    _cooling(root, alerts)
    for index, (name, degrees) in enumerate((("cpu-thermal", 51187), ("gpu-thermal", 52406), ("tj-thermal", 52406))):
        _zone(root, index, name, degrees)
        _trips(root, index, [(99000, "passive"), (104500, "critical"), (70000, "passive")])
        _bind(root, index, [("0", "cpu-throttle-alert"), ("2", "hot-surface-alert")])
    return root


def agx_orin(root: Path) -> Path:
    """A Jetson AGX Orin 64GB with JetPack 6.2: two INA3221, none of which measures the whole module."""
    _known(root, "NVIDIA Jetson AGX Orin Developer Kit", "tegra234", "R36")
    meminfo(root, 64349184, 58720256, 32174592, 32174592)
    status(root, 204800)
    _devfreq(root, "17000000.gpu", 1300500000, 306000000, 1300500000)
    _ina3221(root, "hwmon3", [("VDD_GPU_SOC", 19872, 160), ("VDD_CPU_CV", 19872, 60), ("VIN_SYS_5V0", 5008, 953)])
    _ina3221(root, "hwmon4", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 220), ("NC", 0, 0)])
    _over_current(root, "hwmon5")
    _cooling(root, ["cpu-throttle-alert", "gpu-throttle-alert"])
    for index, (name, degrees) in enumerate((("cpu-thermal", 47093), ("gpu-thermal", 43500), ("tj-thermal", 47093))):
        _zone(root, index, name, degrees)
        _trips(root, index, [(99000, "passive"), (104500, "critical")])
        _bind(root, index, [("0", "cpu-throttle-alert")])
    return root


def thor(root: Path) -> Path:
    """A Jetson AGX Thor with its T5000: an INA238 for all of it, and a clock of the video engines beside the GPU's."""
    _known(root, "NVIDIA Jetson AGX Thor Developer Kit", "tegra264", "R38")
    meminfo(root, 128791552, 121634816)
    status(root, 204800)
    _devfreq(root, "gpu-nvd-0", 1692000000, 405000000, 1692000000)
    _devfreq(root, "gpu-gpc-0", 1575000000, 315000000, 1575000000)
    _devfreq(root, "bwmgr", 4266000000, 665600000, 4266000000)
    own = {"name": "ina238", "label": "VIN", "power1_input": 20986000, "in1_input": 20010, "curr1_input": 1049}
    alarms = {"power1_max_alarm": 0, "in0_max_alarm": 0, "in1_min_alarm": 0, "in1_max_alarm": 0}
    write(root, {f"sys/class/hwmon/hwmon4/{name}": value for name, value in {**own, **alarms}.items()})
    _ina3221(root, "hwmon5", [("VDD_GPU", 19864, 20), ("VDD_CPU_SOC_MSS", 19856, 300), ("VIN_SYS_5V0", 19856, 330)])
    _over_current(root, "hwmon6")
    _cooling(root, ["cpu-throttle-alert", "gpu-throttle-alert", "soc012-throttle-alert", "devfreq-gpu-gpc-0"])
    zones = (("cpu-thermal", 53700), ("gpu-thermal", 55100), ("soc012-thermal", 55100), ("tj-thermal", 55100))
    for index, (name, degrees) in enumerate(zones):
        _zone(root, index, name, degrees)
        _trips(root, index, [(109000, "passive"), (114500, "critical")])
        _bind(root, index, [("0", "soc012-throttle-alert")])
    return root


def _known(root: Path, model: str, chip: str, release: str) -> None:
    write(
        root,
        {
            "usr/sbin/nvpmodel": "",
            "proc/device-tree/compatible": f"nvidia,p0000\0nvidia,{chip}\0",
            "etc/nv_tegra_release": f"{_RELEASES[release]}\n# KERNEL_VARIANT: oot",
            "sys/devices/soc0/family": "Tegra",
            "sys/devices/soc0/machine": model,
        },
    )
    (root / "proc/device-tree/model").write_bytes(model.encode() + b"\0")


def _devfreq(root: Path, name: str, *hertz: int) -> None:
    files = (f"sys/class/devfreq/{name}/{file}" for file in ("cur_freq", "min_freq", "max_freq"))
    write(root, dict(zip(files, hertz, strict=True)))


def _ina3221(root: Path, folder: str, rails: list[tuple[str, int, int]]) -> None:
    files: dict[str, object] = {"name": "ina3221", "in7_label": "sum of shunt voltages", "in7_input": 680}
    for channel, (label, volts, amperes) in enumerate(rails, 1):
        files |= {f"in{channel}_label": label, f"in{channel}_input": volts, f"curr{channel}_input": amperes}
        files |= {f"in{channel + 3}_input": amperes, f"curr{channel}_max_alarm": 0, f"curr{channel}_crit_alarm": 0}
    files |= {"curr4_input": 2000, "curr4_crit_alarm": 0}
    write(root, {f"sys/class/hwmon/{folder}/{name}": value for name, value in files.items()})


def _over_current(root: Path, folder: str) -> None:
    files: dict[str, object] = {"name": "soctherm_oc"}
    for index in (1, 2, 3):
        files |= {f"oc{index}_event_cnt": 15 * (index - 1), f"oc{index}_throt_en": 1}
    write(root, {f"sys/class/hwmon/{folder}/{name}": value for name, value in files.items()})


def _cooling(root: Path, kinds: list[str]) -> None:
    for index, kind in enumerate(kinds):
        folder = f"sys/class/thermal/cooling_device{index}"
        write(root, {f"{folder}/type": kind, f"{folder}/cur_state": 0, f"{folder}/max_state": 1})


def _zone(root: Path, index: int, name: str, degrees: int) -> None:
    folder = f"sys/class/thermal/thermal_zone{index}"
    write(root, {f"{folder}/type": name, f"{folder}/temp": degrees})


def _trips(root: Path, index: int, points: list[tuple[int, str]]) -> None:
    folder = f"sys/class/thermal/thermal_zone{index}"
    for point, (degrees, kind) in enumerate(points):
        write(root, {f"{folder}/trip_point_{point}_temp": degrees, f"{folder}/trip_point_{point}_type": kind})


def _bind(root: Path, index: int, devices: list[tuple[str, str]]) -> None:
    folder = f"sys/class/thermal/thermal_zone{index}"
    for device, (point, kind) in enumerate(devices):
        write(root, {f"{folder}/cdev{device}_trip_point": point, f"{folder}/cdev{device}/type": kind})
