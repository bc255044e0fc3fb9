"""Resident memory: flat over probes and steps. ``benchmarks.scale`` measures that of commands on large bases.

``python -m benchmarks.memory traces`` traces all four arms of the demo for 8 and then 256 probes of 10 steps in one
process, and for 8 probes of 50 steps in another, and prints the peaks of the resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_TRACES = [(10, 8, 256), (50, 8)]  # steps, then numbers of probes


def _resident() -> float:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def trace_once(steps: int, *counts: int) -> None:
    """Trace f1, f0, q0 and q1 (int8 in ONNX Runtime) on more and more probes; print the peak of each number in MB."""
    import numpy as np

    from qcheck.api.request import check_spec
    from qcheck.core.cache import Cache
    from qcheck.core.progress import Silent
    from qcheck.quantize import artifact
    from qcheck.spec import limits
    from qcheck.tasks import check
    from qcheck.tasks import session as sessions
    from qcheck.tasks.check import QuantizedBase

    looks = limits.find("default").model_copy(update={"looks": counts})
    spec = check_spec("demo", "flat", scheme="int8", limits=looks, steps=steps, threads=1, build=False)
    with (
        tempfile.TemporaryDirectory() as name,
        sessions.opened(spec, Cache(Path(name) / "cache"), Silent()) as session,
    ):
        chosen, strata = spec.schemes[0], session.sampler.setup.strata
        sources = session.sources(chosen)
        q0 = session.quantized("q0", "base", artifact.write_base(sources), chosen)
        made = check.make(
            session, spec.orders[0], QuantizedBase(sources, q0, np.zeros(len(strata)), [], {}), Path(name)
        )
        for count in counts:
            peak, done = _resident(), threading.Event()

            def watch(done: threading.Event = done) -> None:
                nonlocal peak
                while not done.is_set():
                    peak = max(peak, _resident())
                    time.sleep(0.02)

            watcher = threading.Thread(target=watch)
            watcher.start()
            check.look(made, count)
            done.set()
            watcher.join()
            print(json.dumps({"probes": count, "steps": steps, "peak_mb": round(peak, 1)}))


def traces() -> None:
    """Run the three sizes and print the differences."""
    found: dict[tuple[int, int], float] = {}
    for numbers in _TRACES:
        command = [sys.executable, __file__, "once", *map(str, numbers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            print(line, flush=True)
            seen = json.loads(line)
            found[seen["probes"], seen["steps"]] = seen["peak_mb"]
    print(f"8 -> 256 probes: {found[256, 10] - found[8, 10]:+.1f} MB")
    print(f"10 -> 50 steps:  {found[8, 50] - found[8, 10]:+.1f} MB")


def main() -> None:
    """Choose one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["traces", "once"])
    parser.add_argument("numbers", nargs="*", type=int)
    asked = parser.parse_args()
    if asked.what == "once":
        trace_once(*asked.numbers)
    else:
        traces()


if __name__ == "__main__":
    main()
