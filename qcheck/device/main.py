"""The command: ``python3 verify.pyz BUNDLE``, and ``qcheck verify BUNDLE`` on a workstation.

Exit codes: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 where nothing can be verified.
"""

from __future__ import annotations

import io
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from . import backends, bundle, page, sums, tensorrt_engine
from .board import Board
from .bundle import Bundle
from .errors import REFUSALS, CannotVerify
from .options import exit_code, parser
from .replay import whole
from .sysfs import ROOT
from .text import visible
from .verify import SCHEMA, Backend, Outcome, Verification


def main(words: Sequence[str] | None = None) -> int:
    """Verify, print, and return the exit code."""
    words = sys.argv[1:] if words is None else list(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that this terminal has no letters for
    if words[:1] == [tensorrt_engine.OPTION]:
        return int(backends.build_here(words[1:]))
    given = parser().parse_args(words)
    try:
        verification = run(given.bundle, given.work, given.out, given.runner, not given.no_free_run)
        print(as_json(verification) if given.json else page.text(verification), end="", flush=True)
    except KeyboardInterrupt:
        print("interrupted. What was finished is kept: run the same command again to go on.", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - a bug keeps its traceback, and is no verdict
        told = _told(error)
        if told is None:
            traceback.print_exc()
        else:
            print(visible(f"error: {told.problem}\nfix:   {told.fix}"), file=sys.stderr)
        return 2
    return exit_code(one["verdict"] for one in (verification, *verification["others"]))


def _told(error: Exception) -> CannotVerify | None:
    """The error that a person can mend: input, or what the machine refuses to write; None for a bug."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return CannotVerify(str(error), "Free space, or give folders that you may write: --work, --out, $TMPDIR.")
    return error if isinstance(error, CannotVerify) else None


def say(message: str) -> None:
    """Progress, on standard error."""
    print(visible(f"{time.strftime('%H:%M:%S')} {message}"), file=sys.stderr, flush=True)


def run(
    folder: Path, work: Path | None, out: Path | None, runner: str | None, free_run: bool, root: Path = ROOT
) -> Mapping[str, Any]:
    """Verify the bundle in ``folder`` and write verify.json and verify.txt; verify.json's content.

    ``root`` is that of the board's files.

    Raises:
        CannotVerify: the bundle, this machine or this Python does not allow it.
    """
    start, board = time.monotonic(), Board.here(root)
    say("compare digests")
    opened = bundle.read(folder)
    work = work or folder.resolve().with_name(f"{folder.resolve().name}-verify")
    place = out or work / "verify.json"
    if work.exists():
        bundle.require_plain(work, "Give another folder as --work.")
    _require_writable(work, place)
    backend = backends.choose(runner, opened, work, board, say, root)
    results = []
    for one in (opened, *opened.others):
        say(f"adapter {one.facts['asked']['adapter']}")
        outcome = Verification(one, backend, work, say, free_run).run()
        results.append(_verification(one, backend, board, outcome, time.monotonic() - start))
    verification = {**results[0], "others": results[1:]}
    try:
        whole(place, lambda path: _write(path, as_json(verification)))
        whole(place.with_suffix(".txt"), lambda path: _write(path, page.text(verification)))
    except OSError as error:
        raise CannotVerify(
            f"--out {place}: {error.strerror}", "Give a file in a folder that can be written."
        ) from error
    say(f"{place}")
    return verification


def _require_writable(work: Path, place: Path) -> None:
    """Make the folder of work, and remove the result of an earlier run: it says nothing about this one.

    Raises:
        CannotVerify: one of them cannot be written.
    """
    for option, folder in (("--work", work), ("--out", place.parent)):
        try:
            if option == "--work":
                folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".qcheck-writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            fix = "Give a folder that can be written." if option == "--work" else "Give a file in a folder that exists."
            raise CannotVerify(f"{option} {folder}: {error.strerror}", fix) from error
    for earlier in (place, place.with_suffix(".txt")):
        if earlier.exists():
            earlier.unlink()


def as_json(verification: Mapping[str, Any]) -> str:
    """verify.json."""
    return json.dumps(verification, indent=1, allow_nan=False) + "\n"


def _write(path: Path, content: str) -> None:
    path.write_text(content, "utf-8")


def _verification(
    opened: Bundle, backend: Backend, board: Board, outcome: Outcome, seconds: float
) -> Mapping[str, Any]:
    facts = opened.facts
    return {
        "schema": SCHEMA,
        "bundle": sums.digest(opened.root / sums.NAME),
        "asked": facts["asked"],
        "probes": opened.probes,
        "runner": {"name": backend.name, "deployed": backend.deployed},
        "board": board.to_json(),
        **outcome.to_json(),
        "warnings": [*backend.warnings(), *_slower(outcome.components)],
        "forecast": facts["forecast"],
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "verifier": facts["qcheck"]},
        "seconds": round(seconds, 1),
        "others": [],
    }


def _slower(components: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where the quantized engine is no faster than the one in 16 bit."""
    medians = {
        one["role"]: one["cost"]["latency"]["median"]
        for one in components
        if one["cost"].get("latency") is not None and not one["cost"]["doubts"]
    }
    if not {"denoiser", "twin"} <= set(medians) or medians["denoiser"] < medians["twin"]:
        return []
    return [
        f"the quantized engine takes {medians['denoiser']:.3g} ms a call, the one in 16 bit {medians['twin']:.3g} ms: "
        "quantization gains no time here"
    ]
