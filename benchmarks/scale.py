"""Full-size pipelines on this machine: time and peak memory of a command, and those of its stages.

``python -m benchmarks.scale inspect|check|export SHAPE [--scheme S ...] [--set NAME=VALUE ...]`` writes a pipeline of
that shape (``benchmarks/shapes.py``) with random weights in 16 bit, with a rank-16 adapter on its attention, into a
temporary folder, or into ``--keep FOLDER``, and runs the command on it once for each scheme, each in a process of its
own; ``--set`` gives further keywords of the API. A check is of 8 probes of 2 steps without guidance at 256 x 256, an
export of 512 x 512 with its TensorRT-RTX builds; both are calibrated on one prompt. An adapter that is inspected is of
rank 32 on every layer. What is measured is size, not quality.

Two peaks are printed: of the memory that only this process has (``own``), and with the pages of mapped files, which the
system takes back when it needs them (``all``).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qcheck
from qcheck.core.progress import Advance
from qcheck.result.exported import Exported

_LIMITED: Mapping[str, Any] = {"steps": 2, "guidance": 1.0, "target": "jetson-agx-orin-64gb"}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "check": {**_LIMITED, "max_probes": 8, "width": 256, "height": 256, "build": False},
    "export": {**_LIMITED, "size": ((512, 512),)},
    "inspect": {},
}
_SECONDS = 0.05  # between two looks at the memory


def _status(name: str) -> float:
    """A line of this process's status, in GB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith(f"{name}:"))


class Peaks:
    """Progress that prints seconds and peaks of memory of every stage."""

    def __init__(self) -> None:
        self.own = self.all = self._own = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._own = max(self._own, _status("RssAnon"))
            time.sleep(_SECONDS)

    def _take(self) -> tuple[float, float]:
        """The peaks since the last call."""
        peaks = max(self._own, _status("RssAnon")), _status("VmHWM")
        self.own, self.all, self._own = max(self.own, peaks[0]), max(self.all, peaks[1]), 0.0
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # VmHWM begins anew
        return peaks

    def note(self, text: str) -> None:
        """As ``Progress.note``."""
        print(f"  {text}", flush=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """As ``Progress.stage``."""
        self._take()
        start = time.monotonic()
        yield lambda _: None
        spent, (own, everything) = time.monotonic() - start, self._take()
        print(f"  {spent:8.1f} s  own {own:5.1f} GB  all {everything:5.1f} GB  {title}", flush=True)

    def total(self) -> str:
        """The peaks of the whole run."""
        self._take()
        return f"peak {self.own:.1f} GB of its own, {self.all:.1f} GB with mapped files"


def run(what: str, folder: Path, scheme: str | None, extra: Mapping[str, Any]) -> None:
    """Run the command in this process."""
    start, progress = time.monotonic(), Peaks()
    base, lora, options = str(folder / "base"), str(folder / "lora.safetensors"), {**_OPTIONS[what], **extra}
    if what == "inspect":
        asked = {"scheme": scheme, **options}
        inspection = qcheck.inspect(folder / "whole.safetensors", base=base, progress=progress, **asked)
        print(f"  {len(inspection.layers)} layers", flush=True)
    else:
        asked = {"scheme": scheme, "recipe": str(folder / "few.toml"), "cache": False, **options}
        with tempfile.TemporaryDirectory(dir=folder) as out:
            if what == "check":
                show_check(qcheck.check(base, lora, out=Path(out) / "out", progress=progress, **asked))
            else:
                show_export(qcheck.export(base, lora, out=Path(out) / "out", progress=progress, **asked))
    print(f"{what} {folder.name} {scheme or ''}: {time.monotonic() - start:.0f} s, {progress.total()}", flush=True)


def show_check(report: qcheck.Report) -> None:
    """The verdicts."""
    for case in report.cases:
        print(f"  {case.scheme} {case.order}: {case.verdict}, {'; '.join(case.reasons)[:200]}", flush=True)


def show_export(exported: Exported) -> None:
    """The parts and their builds."""
    for part in exported.parts:
        build, realised = part.build, part.build.realised
        size = f"{part.bytes / 1e6:.0f} MB file" + (f", {build.bytes / 1e6:.0f} MB engine" if build.bytes else "")
        cost = f"{build.status} in {build.seconds} s with {(build.peak_memory_mb or 0) / 1e3:.1f} GB"
        operands = realised.operands if realised is not None else ""
        print(f"  {part.name}: {size}, {cost} {operands} {build.detail[:300]}", flush=True)


def main() -> None:
    """Write once, run the command for each scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(_OPTIONS))
    parser.add_argument("shape")
    parser.add_argument("--scheme", action="append", help="default: int8 and, for an export, int4-g128")
    parser.add_argument("--keep", type=Path, help="write the pipeline here, or take the one that is here")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a keyword, its value as JSON")
    parser.add_argument("--here", action="store_true", help="run in this process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.keep or Path(name) / given.shape
        if not (folder / "base").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, "-m", "benchmarks.shapes", given.shape, str(folder)], check=True)
        schemes = given.scheme or {"check": ["int8"], "export": ["int8", "int4-g128"]}.get(given.what, [None])
        for scheme in schemes:
            if given.here:
                extra = {key: json.loads(value) for key, _, value in (one.partition("=") for one in given.set)}
                run(given.what, folder, scheme, extra)
                continue
            words = [given.what, given.shape, "--keep", str(folder), "--here"]
            words += [*(("--scheme", scheme) if scheme else ()), *(f"--set={one}" for one in given.set)]
            child = subprocess.run([sys.executable, "-m", "benchmarks.scale", *words], check=False)
            if child.returncode:
                print(f"{given.what} {given.shape} {scheme or ''}: exit {child.returncode}", flush=True)


if __name__ == "__main__":
    main()
