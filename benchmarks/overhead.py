"""How much a check costs beside the bare forwards it needs, both taken from the same run.

``python benchmarks/overhead.py`` checks the demo's adapters under int8 and int4-g128 in all orders without engine
builds: the first from an empty cache, the others with the exported graphs already there, and the last once more with
everything there. Bare forwards are what the same calls cost without qcheck: each file in one plain ONNX Runtime session
with the same threads and batch, timed right after the run and multiplied by its calls; torch calls as they were timed.
Beside it the time really spent in calls, which is less because ``OnnxRunner`` shares rows among threads.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import qcheck
from qcheck.core import cache
from qcheck.demo import library
from qcheck.runtime.ort_runner import OnnxRunner, session
from qcheck.runtime.runner import Runner
from qcheck.sampling import sampler
from qcheck.spec.order import MERGES

_ADAPTERS, _SCHEMES = ("faint", "flat", "ink", "ink"), ("int8", "int4-g128")


class Clock:
    """Seconds spent in denoiser calls, and what the calls would cost bare."""

    def __init__(self) -> None:
        self.seconds, self.torch, self.calls, self.call = 0.0, 0.0, 0, sampler.call
        self.files: dict[Path, list[Mapping[str, np.ndarray]]] = {}

    def __call__(self, runner: Runner, inputs: Mapping[str, np.ndarray], latent: str) -> np.ndarray:
        """As ``runtime.runner.call``, timed."""
        start = time.perf_counter()
        output = self.call(runner, inputs, latent)
        spent = time.perf_counter() - start
        self.seconds += spent
        self.calls += 1
        if isinstance(runner, OnnxRunner):
            self.files.setdefault(runner.path, []).append(inputs)
        else:
            self.torch += spent
        return output

    def bare(self, threads: int, out: Path) -> float:
        """Seconds of the same calls, a plain session a file: the median of seven of them times their number."""
        total = self.torch
        for path, calls in self.files.items():
            moved = out.joinpath(*path.relative_to(out.parent).parts[1:])  # it ran in a folder that became ``out``
            running = session(path if path.exists() else moved, threads)
            halves = {given.name for given in running.get_inputs() if "float16" in given.type}
            spent = []
            for inputs in [calls[0], *calls[:7]]:
                values = {name: value.astype(np.float16) if name in halves else value for name, value in inputs.items()}
                start = time.perf_counter()
                running.run(None, values)
                spent.append(time.perf_counter() - start)
            total += len(calls) * statistics.median(spent[1:])
        return total


def main() -> None:
    """Run them and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache.VARIABLE] = str(Path(folder) / "cache")
        for index, adapter in enumerate(_ADAPTERS):
            clock = Clock()
            sampler.call = clock  # type: ignore[assignment]
            start, out = time.perf_counter(), Path(folder) / f"out{index}"
            report = qcheck.check(
                library.NAME, adapter, scheme=_SCHEMES, order=MERGES, threads=threads, build=False, out=out
            )
            total = time.perf_counter() - start
            sampler.call = clock.call
            if clock.calls:
                bare = clock.bare(threads, out)
                print(
                    f"{adapter}: {total:.1f} s = {total / bare:.2f} x the {bare:.1f} s of {clock.calls} bare forwards"
                )
                print(f"  in calls: {clock.seconds:.1f} s")
            else:
                print(f"{adapter}: {total:.1f} s, no forwards")
            for case in report.cases:
                print(f"  {case.scheme} {case.order} {case.verdict} after {case.probes_used} probes", flush=True)


if __name__ == "__main__":
    main()
