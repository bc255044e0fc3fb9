"""The same check in several processes: other seeds of hashes, other numbers of threads, another build of ONNX Runtime.

``python -m benchmarks.determinism [--python PATH]`` runs the check of the tiny pipeline of ``benchmarks.crashes`` each
time with a cache of its own and compares the folders with the first: every file by its bytes, JSON without times.
Where a report differs it prints the largest difference of a number, relative to that number. ``--python`` is an
interpreter of another environment, as one with onnxruntime-gpu; its provider on the CPU is compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import crashes
from qcheck.result.report import REPORT
from tests import families
from tests.crash import injector


def checked(root: Path, name: str, python: str, seed: int, threads: int) -> dict[str, Any]:
    """What a check writes in a process of its own, but for times."""
    command = crashes.Command(root, "check")
    command.fresh()
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "QCHECK_CACHE": str(command.run / "cache")}
    words = [*command.words[: command.words.index("--threads")], "--threads", str(threads), "--quiet"]
    ended = subprocess.run(
        [python, "-W", "ignore", "-m", "qcheck", *words], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode == 2:
        raise RuntimeError(ended.stderr)
    shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(command.run / "out", root / name)
    return {path: crashes.timeless(path, content) for path, content in injector.tree(root / name).items()}


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a JSON value, with its place."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(one, f"{place}.{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, float(value)


def compared(first: dict[str, Any], other: dict[str, Any]) -> str:
    """Which files differ, and the largest difference of a number in the report."""
    names = sorted(name for name in {*first, *other} if first.get(name, ...) != other.get(name, ...))
    if not names:
        return f"{len(first)} files are equal"
    ours, theirs = dict(numbers(first[REPORT])), dict(numbers(other[REPORT]))
    apart = {place: abs(theirs.get(place, 0) - one) / max(abs(one), 1e-12) for place, one in ours.items()}
    worst = max(apart, key=lambda place: apart[place])
    return f"{len(names)} of {len(first)} files differ: {names}; report: at most {apart[worst]:.1e} of {worst}"


def main() -> None:
    """Print a line for each process after the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="an interpreter of another environment")
    parser.add_argument("--root", type=Path, default=Path("build/determinism"))
    given = parser.parse_args()
    root = given.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "style.safetensors").exists():
        families.saved("sd1", root / "base")
        families.adapter("sd1", root / "style.safetensors")
    first = checked(root, "first", sys.executable, 1, 1)
    variants = {"another seed": (sys.executable, 2, 1), "two threads": (sys.executable, 1, 2)}
    if given.python:
        variants["another environment"] = (given.python, 1, 1)
    for name, (python, seed, threads) in variants.items():
        found = compared(first, checked(root, name.replace(" ", "-"), python, seed, threads))
        sys.stdout.write(f"{name}: {found}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
