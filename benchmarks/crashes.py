"""Whole commands on a tiny pipeline whose process is killed, or in which one writing call or stage fails.

``python -m benchmarks.crashes kill --command check --times 25`` kills the command at uniformly random times of an
undisturbed run, up to five times on one cache, runs it to the end on that cache, and compares what it wrote. ``faults``
makes every writing call fail in turn, in each ``--mode``, and ``memory`` lets memory run out at every stage. The
commands are check, export, qat and advise; each try is a fork of a process that has imported everything. The export of
the graph by torch, which writes nothing, is done once.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qcheck.cli import app
from qcheck.core.progress import Stopwatch
from qcheck.model import graph
from qcheck.result.report import REPORT
from qcheck.tasks import advise, remedies
from qcheck.training.objective import Settings
from tests import families
from tests.crash import injector
from tests.crash.injector import NONE, Ended, Fault, Mode, attempt

FEW = ("--steps", "2", "--width", "32", "--height", "32", "--max-probes", "2")
HERE = ("--threads", "1", "--overwrite")
TIMES = frozenset({"seconds", "created"})
DRAWN = frozenset({"report.html", "report.md", "junit.xml", "SHA256SUMS", "report.intoto.json"})  # they hold times too
COMMANDS = ("check", "export", "qat", "advise")
ROUND = 5  # kills on one cache, then a run to the end


@dataclass(frozen=True)
class Command:
    """A command below ``root``: its folders and files of output, and the arguments after ``qcheck``."""

    root: Path
    name: str

    @property
    def words(self) -> list[str]:
        """The command line."""
        base, adapter, out = str(self.root / "base"), str(self.root / "style.safetensors"), str(self.run / "out")
        judged = [base, "--lora", adapter, "--scheme", "int4-g128", *FEW, "--no-build"]
        own = {
            "check": [*judged, "--out", out],
            "export": [base, "--lora", adapter, "--size", "32x32", "--no-build", "--out", out],
            "qat": [*judged, "--train-steps", "4", "--out", f"{out}.safetensors", "--report", out],
            "advise": [str(self.root / "report"), "--out", out],
        }
        said = {"advise": ("--json",), "qat": ()}.get(self.name, ("--quiet",))
        return [self.name, *own[self.name], *HERE, *said]

    @property
    def run(self) -> Path:
        """The folder of one try: its output, its cache and its temporary files."""
        return self.root / "run"

    def fresh(self) -> None:
        """Empty it."""
        shutil.rmtree(self.run, ignore_errors=True)
        (self.run / "tmp").mkdir(parents=True)

    def __call__(self) -> dict[str, Any]:
        """Run the command in this process; its exit code and what it said on standard error."""
        os.environ |= {"QCHECK_CACHE": str(self.run / "cache"), "TMPDIR": str(self.run / "tmp")}
        tempfile.tempdir = None
        sys.argv = ["qcheck", *self.words]
        said, code = io.StringIO(), 0
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                app.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return {"code": code, "said": said.getvalue()}

    def written(self) -> dict[str, Any]:
        """What a user sees of the output, but for times."""
        return {name: timeless(name, content) for name, content in injector.tree(self.run).items() if _shown(name)}


def _shown(name: str) -> bool:
    return not name.startswith(("cache/", "tmp/"))


def timeless(name: str, content: bytes) -> Any:
    """The content of a file of output without times; None where it is drawn from others, which hold times."""
    if Path(name).name in DRAWN:
        return None
    return _without_times(json.loads(content)) if name.endswith(".json") else content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def prepare(root: Path) -> None:
    """The tiny pipeline and its adapter, a report that asks for advice, and torch's exports, done once."""
    torch.set_num_threads(1)
    _export_once()
    advise.Settings = functools.partial(Settings, steps=4, every=2, probes=4)  # type: ignore[assignment, misc]
    every = remedies.remedies
    remedies.remedies = lambda case: _one_of_each(every(case))
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "style.safetensors").exists():
        families.saved("sd1", root / "base")
        families.adapter("sd1", root / "style.safetensors")
    if not (root / "report").exists():
        check = Command(root, "check")
        check.fresh()
        check()
        failing = json.loads((check.run / "out" / REPORT).read_bytes())
        failing["cases"][0]["verdict"] = "NEEDS-QAT"
        (root / "report").mkdir()
        (root / "report" / REPORT).write_text(json.dumps(failing), "utf-8")


def _one_of_each(every: Iterable[Any]) -> Iterator[Any]:
    """The first remedy that quantizes otherwise, and the first that trains."""
    kinds = set[bool]()
    for remedy in every:
        if remedy.spec is not None and remedy.train not in kinds:
            kinds.add(remedy.train)
            yield remedy


def _export_once() -> None:
    """Keep the graphs that torch exports: a fork has those of the runs before it."""
    real, kept = graph.export, dict[tuple[object, ...], Any]()

    def export(component: Any, compute: str, sizes: bool = False, hollow: bool = False) -> Any:
        shapes = tuple((name, tuple(value.shape)) for name, value in component.inputs.items())
        key = (type(component.module).__name__, shapes, compute, sizes, hollow)
        if key not in kept:
            kept[key] = real(component, compute, sizes, hollow)
        return kept[key].clone()

    for module in [*sys.modules.values()]:
        if module.__name__.startswith("qcheck") and getattr(module, "export", None) is real:
            module.export = export  # type: ignore[attr-defined]


def undisturbed(command: Command) -> tuple[dict[str, Any], float, int]:
    """What the command writes, its seconds in a fork, and the number of its writing calls."""
    command.fresh()
    command()  # in this process: exports are kept
    command.fresh()
    start = time.monotonic()
    ended = attempt(command, command.run, NONE)
    if ended.error or ended.result["code"] == 2:
        raise RuntimeError(ended.detail or ended.result["said"])
    seconds = time.monotonic() - start
    _say(f"{command.name}: undisturbed {seconds:.1f} s, {ended.calls} writing calls, exit code {ended.result['code']}")
    return command.written(), seconds, ended.calls


def kill(command: Command, times: int, draws: random.Random) -> int:
    """Kill the command at random times, five times on one cache, and run it to the end; the number of wrong results."""
    whole, seconds, _ = undisturbed(command)
    killed = wrong = ends = 0
    while killed < times:
        command.fresh()
        for _ in range(min(ROUND, times - killed)):
            if not _killed(command, draws.uniform(0, seconds)):
                break
            killed += 1
        ended = attempt(command, command.run, NONE)
        ends += 1
        if problem := _differs(command, ended, whole):
            wrong += 1
            _say(f"{command.name}, after kill {killed}: {problem}")
        _say(f"{command.name}: {killed} kills, {ends} runs to the end, {wrong} of them wrong")
    return wrong


def _killed(command: Command, after: float) -> bool:
    """Whether the command still ran after that many seconds, and was killed."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            command()
        os._exit(0)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _differs(command: Command, ended: Ended, whole: Mapping[str, Any]) -> str:
    """What is wrong with a run to the end; empty where it wrote what an undisturbed one writes."""
    if ended.error or ended.result["code"] == 2:
        return ended.detail or str(ended.result["said"])
    now = command.written()
    names = sorted(name for name in {*now, *whole} if now.get(name, ...) != whole.get(name, ...))
    return f"other content of {names}" if names else ""


def faults(command: Command, modes: Sequence[Mode], first: int, step: int) -> int:
    """Let every ``step``-th writing call fail from the ``first`` on; how often something is wrong after it.

    A run to the end follows each failure that left another cache or output than those before it.
    """
    whole, _, calls = undisturbed(command)
    wrong = tried = 0
    states = set[str]()
    for fault in injector.faults(calls, modes):
        if fault.number < first or (fault.number - first) % step:
            continue
        tried += 1
        command.fresh()
        log = command.root / "log"
        ended = attempt(command, command.run, fault, log)
        problems = [*_wrong(command, fault, ended, whole)]
        state = _state(command)
        if state not in states:
            states.add(state)
            if problem := _differs(command, attempt(command, command.run, NONE), whole):
                problems.append(f"done again: {problem}")
        if problems:
            wrong += 1
            call = log.read_text().splitlines()[fault.number - 1 : fault.number]
            _say(f"{command.name}, {fault.mode.name} at {call}: {'; '.join(problems)}")
    _say(f"{command.name}: {tried} faults, {len(states)} states of cache and output, {wrong} wrong")
    return wrong


def _wrong(command: Command, fault: Fault, ended: Ended, whole: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong after a fault, before the command runs again."""
    if command.written() not in ({}, whole):
        yield f"half of it is there: {sorted(command.written())}"
    if ended.killed:
        return
    if left := [name for name in injector.leftovers(command.run) if not name.startswith("tmp/")]:
        yield f"left behind: {left}"
    if ended.error:
        yield ended.detail
    elif fault.mode == Mode.SHORT and ended.result["code"] == 2:
        yield f"a short write ends in {ended.result['said']}"
    elif ended.result["code"] == 2 and not {"error:", "fix:"} <= {*ended.result["said"].split()}:
        yield f"no error that says what to do: {ended.result['said']}"


def _state(command: Command) -> str:
    """The entries of the cache and the files of the output that are there, with the bytes of small ones."""
    names = sorted(name for name in injector.tree(command.run) if not name.startswith("tmp/"))
    return "\n".join(names)


def memory(command: Command) -> int:
    """Let memory run out at every stage; the number of times after which something is wrong."""
    whole, _, _ = undisturbed(command)
    number = wrong = 0
    while True:
        number += 1
        command.fresh()
        ended = attempt(functools.partial(_forgetting, command, number), command.run, NONE)
        if not ended.error and ended.result["calls"] < number:
            _say(f"{command.name}: {number - 1} stages, {wrong} wrong")
            return wrong
        problems = [*_wrong(command, NONE, ended, whole)]
        if not ended.error and ended.result["code"] != 2:
            problems.append(f"exit code {ended.result['code']}")
        if problem := _differs(command, attempt(command, command.run, NONE), whole):
            problems.append(f"done again: {problem}")
        if problems:
            wrong += 1
            _say(f"{command.name}, memory runs out at stage {number}: {'; '.join(problems)}")


def _forgetting(command: Command, number: int) -> dict[str, Any]:
    """Run the command, where memory runs out at the begin of the stage of that number."""
    real, calls = Stopwatch.stage, 0

    def stage(watch: Stopwatch, title: str, total: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise MemoryError
        return real(watch, title, total)

    Stopwatch.stage = stage  # type: ignore[method-assign, assignment]
    return {**command(), "calls": calls}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """The command line; the exit code is the number of things that are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kill", "faults", "memory"])
    parser.add_argument("--command", action="append", choices=COMMANDS, help="Default: all four.")
    parser.add_argument("--times", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", action="append", choices=[mode.name for mode in Mode])
    parser.add_argument("--first", type=int, default=1, help="the first call that fails")
    parser.add_argument("--step", type=int, default=1, help="every how many-th call fails")
    parser.add_argument("--root", type=Path, default=Path("build/crashes"))
    given = parser.parse_args()
    root = given.root.resolve()
    if "LD_PRELOAD" not in os.environ:
        root.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.crashes", *sys.argv[1:]]
        os.execve(sys.executable, words, injector.environment(root))  # noqa: S606 - this program, with a library
    prepare(root)
    draws, modes = random.Random(given.seed), [Mode[name] for name in given.mode or ("FULL",)]  # noqa: S311
    wrong = 0
    for command in (Command(root, name) for name in given.command or COMMANDS):
        if given.what == "kill":
            wrong += kill(command, given.times, draws)
        elif given.what == "memory":
            wrong += memory(command)
        else:
            wrong += faults(command, modes, given.first, given.step)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
