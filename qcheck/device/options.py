"""The options of the command, and its exit codes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Iterable

_EXITS = {"FAIL": 1, "INCONCLUSIVE": 3, "PASS": 0}  # the worst first
RUNNERS = ("tensorrt", "trtexec", "onnxruntime")


def exit_code(verdicts: Iterable[str]) -> int:
    """The exit code of the worst verdict: of one adapter, or of several on one engine."""
    every = set(verdicts)
    return next(code for verdict, code in _EXITS.items() if verdict in every)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="verify",
        description="Verify a qcheck bundle on this board: build its engines, replay its probes, and compare them with "
        "the host's full-precision reference. Exit code 0: pass, 1: fail, 3: open, 2: cannot be verified.",
    )
    options.add_argument("bundle", type=Path, help="the bundle's folder")
    options.add_argument("--out", type=Path, help="verify.json; verify.txt lies beside it (default: in --work)")
    options.add_argument("--runner", choices=RUNNERS, help="default: the first of them that works here")
    options.add_argument("--work", type=Path, help="engines and results, for the next run (default: BUNDLE-verify)")
    options.add_argument("--no-free-run", action="store_true", help="leave out the probes' own runs")
    options.add_argument("--json", action="store_true", help="print verify.json instead of the page")
    return options
