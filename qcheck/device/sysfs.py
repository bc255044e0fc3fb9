"""Small files of procfs and sysfs."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path("/")
_MOST = 1 << 16


def text(path: Path) -> str:
    """The text of a small file of procfs or sysfs, without the NUL or newline at its end.

    A thermal zone without power answers EAGAIN, which ``open`` makes None or a TypeError of.

    Raises:
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(handle, _MOST).decode("utf-8", "replace").strip("\0 \t\n")
    finally:
        os.close(handle)


def number(path: Path) -> int:
    """The whole number in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no number.
    """
    return int(text(path))


def why(path: Path, error: Exception) -> str:
    """Why a file has no value, with its path."""
    return f"{path}: {error.strerror if isinstance(error, OSError) else error}"


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Paths in a folder by the number at their end: hwmon2 before hwmon10."""
    return sorted(folder.glob(pattern), key=lambda path: (int(re.sub(r"\D", "", path.name) or 0), path.name))


def monitors(root: Path = ROOT) -> list[tuple[str, Path]]:
    """Chip and folder of every sensor of the kernel's hardware monitoring."""
    return [(known_text(path / "name"), path) for path in numbered(root / "sys/class/hwmon", "hwmon*")]


def label(folder: Path, channel: str) -> str:
    """The name of a channel of a power monitor: its own, else the chip's (Thor's INA238), else ""."""
    own = (f"in{channel}_label", f"curr{channel}_label", f"power{channel}_label", "label")
    return next((found for found in (known_text(folder / name) for name in own) if found), "")


def memory(root: Path = ROOT) -> dict[str, int]:
    """/proc/meminfo in bytes, by the kernel's names.

    Raises:
        OSError: there is none.
    """
    lines = (line.partition(":") for line in text(root / "proc/meminfo").splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if value.strip().endswith("kB")}


def known_text(path: Path) -> str:
    """The text of a small file, or "" where there is none."""
    try:
        return text(path)
    except OSError:
        return ""
