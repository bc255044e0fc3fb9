"""Full-size pipelines on this machine: time and peak memory of a command, and the seconds of its stages.

``python -m benchmarks.scale inspect|check|export SHAPE [--scheme S ...] [options of the command]`` writes a pipeline of
that shape (``benchmarks/shapes.py``: sd15, sdxl) with random weights in float16, with a rank-16 adapter on its
attention, into a temporary folder, or into ``--keep FOLDER``, and runs the command on it once for each scheme, each in
a process of its own. A check is of 8 probes of 2 steps without guidance at 256 x 256, an export of 512 x 512 with its
TensorRT-RTX builds; both are calibrated on one prompt. What is measured is size, not quality.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TARGET = "jetson-agx-orin-64gb"
_LIMITED = ("--steps", "2", "--guidance", "1")
_OPTIONS = {
    "check": (*_LIMITED, "--max-probes", "8", "--width", "256", "--height", "256", "--no-build"),
    "export": (*_LIMITED, "--size", "512x512"),
    "inspect": (),
}


def _high(process: int) -> float:
    """Highest resident memory of a process so far, GB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def run(arguments: Sequence[str]) -> tuple[int, str, float, float]:
    """Exit code and standard output of ``qcheck`` with these arguments, its seconds and its peak of memory in GB."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "qcheck", *arguments], stdout=subprocess.PIPE, text=True)
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _high(child.pid))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = child.communicate()
    done.set()
    watcher.join()
    return child.returncode, printed, time.monotonic() - start, peak


def words(what: str, folder: Path, scheme: str | None, extra: Sequence[str]) -> list[str]:
    """The arguments of the command."""
    base, lora = str(folder / "base"), str(folder / "lora.safetensors")
    if what == "inspect":
        return ["inspect", lora, "--base", base, "--json", *extra]
    chosen = ["--lora", lora, "--scheme", scheme or "int8", "--target", _TARGET, "--recipe", str(folder / "few.toml")]
    out = ["--json", "--no-cache", "--out", str(folder / f"{what}-{scheme}")]
    return [what, base, *chosen, *_OPTIONS[what], *out, *extra]


def show(what: str, told: dict[str, Any]) -> None:
    """The stages of a check, the parts of an export."""
    for title, seconds in told["provenance"]["seconds"].items() if what == "check" else ():
        print(f"  {seconds:8.1f} s  {title}", flush=True)
    for case in told["cases"] if what == "check" else ():
        print(f"  {case['scheme']} {case['order']}: {case['verdict']}, {'; '.join(case['reasons'])[:200]}", flush=True)
    for part in told["parts"] if what == "export" else ():
        build, realised = part["build"], (part["build"]["realised"] or {})
        size = f"{part['bytes'] / 1e6:.0f} MB file"
        if build["bytes"]:
            size += f", {build['bytes'] / 1e6:.0f} MB engine"
        cost = f"{build['status']} in {build['seconds']} s with {(build['peak_memory_mb'] or 0) / 1e3:.1f} GB"
        print(f"  {part['name']}: {size}, {cost} {realised.get('operands', '')} {build['detail'][:300]}", flush=True)


def main() -> None:
    """Write once, run the command for each scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(_OPTIONS))
    parser.add_argument("shape")
    parser.add_argument("--scheme", action="append", help="default: int8 and, for an export, int4-g128")
    parser.add_argument("--keep", type=Path, help="write the pipeline here, or take the one that is here")
    given, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.keep or Path(name)
        if not (folder / "base").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, "-m", "benchmarks.shapes", given.shape, str(folder)], check=True)
        schemes = given.scheme or {"check": ["int8"], "export": ["int8", "int4-g128"]}.get(given.what, [None])
        for scheme in schemes:
            code, printed, seconds, peak = run(words(given.what, folder, scheme, extra))
            title = f"{given.what} {given.shape} {scheme or ''}"
            print(f"{title}: exit {code}, {seconds:.0f} s, peak {peak:.1f} GB", flush=True)
            if printed:
                show(given.what, json.loads(printed))


if __name__ == "__main__":
    main()
