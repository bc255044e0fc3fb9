"""What a bundle withstands: changed bytes, and a verifier that is killed.

``python -m benchmarks.bundles [--changes 1000] [--kills 20]`` exports the demo's bundle and verifies it through ONNX
Runtime in a Python that has numpy and ONNX Runtime alone. It changes single bytes anywhere in the bundle, each of
which has to be refused, and kills the verifier at random moments, after which a run to the end has to give the same
numbers. The last line says how large the bundle is, and how long its verification took.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import qcheck
from qcheck.device import bundle as bundles
from qcheck.device.errors import CannotVerify


def bare(folder: Path) -> Path:
    """A Python without site-packages but for numpy and ONNX Runtime."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    only, site = folder / "only", Path(np.__file__).parents[1]
    only.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        if (site / name).exists():
            (only / name).symlink_to(site / name)
    (place,) = folder.glob("lib/python3*/site-packages")
    (place / "only.pth").write_text(f"{only}\n", "utf-8")
    return folder / "bin" / "python"


def changes(folder: Path, count: int) -> int:
    """The number of refused bundles among ``count``, each with one byte changed somewhere."""
    draws = random.Random(0)  # noqa: S311
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights, refused = [path.stat().st_size for path in files], 0
    for number in range(count):
        # half of them anywhere by size, half in any file: most files are small
        path = draws.choices(files, weights)[0] if number % 2 else draws.choice(files)
        content = path.read_bytes()
        place, value = draws.randrange(len(content)), draws.randrange(1, 256)
        path.write_bytes(content[:place] + bytes([content[place] ^ value]) + content[place + 1 :])
        try:
            bundles.read(folder)
        except CannotVerify:
            refused += 1
        path.write_bytes(content)
    bundles.read(folder)
    return refused


def verify(python: Path, folder: Path, work: Path, limit: float | None = None) -> dict[str, Any] | None:
    """verify.json of a run, or None where it was killed after ``limit`` seconds."""
    verifier, words = folder / "verify.pyz", ["--work", str(work), "--json", "--runner", "onnxruntime"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(python), "-I", str(verifier), str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        try:
            told, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            child.kill()
            return None
    found: dict[str, Any] = json.loads(told)
    return found


def values(found: dict[str, Any]) -> list[tuple[str, float]]:
    """The measurements."""
    return [(one["name"], one["value"]) for one in found["measurements"]]


def main() -> None:
    """Print what was refused, and what was the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    asked = parser.parse_args()
    draws = random.Random(1)  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder, python = place / "flat-int8", bare(place / "bare")
        told = qcheck.bundle("demo", "flat", out=folder, target="jetson-agx-orin-64gb", build=False)
        print(f"{changes(folder, asked.changes)} of {asked.changes} changed bytes refused", flush=True)
        start = time.monotonic()
        whole = verify(python, folder, place / "whole")
        seconds = time.monotonic() - start
        same = 0
        for number in range(asked.kills):
            work = place / f"killed-{number}"
            verify(python, folder, work, draws.uniform(0, seconds))
            again = verify(python, folder, work)
            same += whole is not None and again is not None and values(again) == values(whole)
        print(f"{same} of {asked.kills} killed runs went on to the same numbers")
        print(f"{told.bytes / 1e6:.1f} MB, verified in {seconds:.0f} s: {whole['verdict'] if whole else 'killed'}")


if __name__ == "__main__":
    main()
