"""How much a check costs beside the bare forwards it needs, both taken from the same run.

``python benchmarks/overhead.py`` checks the demo's adapters under int8 and int4-g128 in all orders without engine
builds: the first from an empty cache, the others with the exported graphs already there, and the last once more with
everything there. The forwards are timed inside each run, around every call of a denoiser.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from qcheck import cache, trace
from qcheck.backend.base import Runner
from qcheck.demo import library
from qcheck.scheme import ORDERS

_ADAPTERS = ("faint", "flat", "ink", "ink")


class Clock:
    """Seconds and rows spent in denoiser calls."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._call = 0.0, 0, trace.call

    def __call__(self, runner: Runner, sample: np.ndarray, *rest: Any) -> np.ndarray:
        """As ``backend.base.call``, timed."""
        start = time.perf_counter()
        output = self._call(runner, sample, *rest)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return output


def main() -> None:
    """Run them and print the ratios."""
    from typer.testing import CliRunner

    from qcheck.cli.app import app

    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache.VARIABLE] = str(Path(folder) / "cache")
        orders = [part for order in ORDERS for part in ("--order", order)]
        for index, adapter in enumerate(_ADAPTERS):
            clock = Clock()
            trace.call = clock  # type: ignore[assignment]
            start = time.perf_counter()
            command = ["check", library.NAME, "--lora", adapter, "--scheme", "int8", "--scheme", "int4-g128", *orders]
            found = CliRunner().invoke(
                app, [*command, *sys.argv[1:], "--no-build", "--out", str(Path(folder) / f"out{index}")]
            )
            total = time.perf_counter() - start
            trace.call = clock._call
            if "measure" not in found.output and "scheme" not in found.output:
                raise SystemExit(found.output or repr(found.exception))
            verdicts = [line for line in found.output.splitlines() if line.startswith((" int8 ", " int4"))]
            ratio = f"{total / clock.seconds:.2f} x" if clock.seconds else "no forwards"
            print(f"{adapter}: {total:.1f} s, forwards {clock.seconds:.1f} s in {clock.calls} calls: {ratio}")
            print("\n".join(verdicts), flush=True)


if __name__ == "__main__":
    main()
