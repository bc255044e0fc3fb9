"""Engines: an attempt at each optimization level until one is built, and the record by which it is taken again."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from .errors import CannotVerify
from .replay import whole
from .sums import digest
from .tensors import Tensor

_POLL = 0.1  # seconds between looks at a child's memory
_OFFERED = "1000"  # the kernel ends this process first, rather than the desktop or the verifier
_KILLED = 9


@dataclass(frozen=True)
class Job:
    """One engine to build: the ONNX file and the digest of it and its weights, and the fixed shapes of its inputs.

    ``workspace`` is the most scratch memory of a layer in bytes. The engine belongs to the ``board``, in its power
    ``mode``. ``level`` (0 to 5) is the optimization level that is tried first; ``limit`` are the seconds of an attempt.
    ``preflight`` is called before an engine is built, and raises where that must not be tried.
    """

    onnx: Path
    digest: str
    inputs: tuple[Tensor, ...]
    engine: Path
    timing_cache: Path
    workspace: int
    board: str
    mode: str
    level: int = 3
    limit: float = 7200.0
    preflight: Callable[[], None] = lambda: None

    @property
    def partial(self) -> Path:
        """Where an engine is written before it is complete."""
        return self.engine.with_name(f"{self.engine.name}.partial")

    @property
    def record(self) -> Path:
        """The JSON beside the engine that says what it was built from, and for what."""
        return self.engine.with_name(f"{self.engine.name}.json")


@dataclass(frozen=True)
class Tried:
    """One attempt, which wrote ``Job.partial`` unless it tells a ``failure``; a refused file is not tried again."""

    failure: str = ""
    refused: bool = False
    seconds: float = 0.0
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Built:
    """An engine and how it came to be; ``attempts`` are the levels that failed, and how.

    ``seconds`` and ``peak_bytes`` (of the builder's process) are those of the attempt that succeeded.
    """

    engine: Path
    digest: str
    tensorrt: str
    board: str
    mode: str
    level: int
    workspace: int
    bytes: int
    seconds: float
    peak_bytes: int | None
    attempts: tuple[tuple[int, str], ...]
    reused: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "engine": self.engine.name, "attempts": [list(attempt) for attempt in self.attempts]}


def build(job: Job, tensorrt: str, attempt: Callable[[int], Tried]) -> Built:
    """The engine of a job: the one that is there, if it was built for the same, else by the first level that succeeds.

    Raises:
        CannotVerify: there is too little memory, TensorRT refuses the file, or every level failed.
    """
    kept = _kept(job, tensorrt)
    if kept is not None:
        return kept
    job.preflight()
    job.engine.parent.mkdir(parents=True, exist_ok=True)
    job.record.unlink(missing_ok=True)  # before the engine changes
    failures: list[tuple[int, str]] = []
    for level in range(job.level, -1, -1):
        job.partial.unlink(missing_ok=True)
        tried = attempt(level)
        if not tried.failure:
            try:
                return _recorded(job, tensorrt, level, tried, failures)
            finally:
                job.partial.unlink(missing_ok=True)
        if tried.refused:
            break
        failures.append((level, tried.failure))
    job.partial.unlink(missing_ok=True)
    raise _impossible(job, tensorrt, tried, failures)


def _recorded(job: Job, tensorrt: str, level: int, tried: Tried, failures: Sequence[tuple[int, str]]) -> Built:
    job.partial.replace(job.engine)
    built = Built(
        engine=job.engine,
        digest=job.digest,
        tensorrt=tensorrt,
        board=job.board,
        mode=job.mode,
        level=level,
        workspace=job.workspace,
        bytes=job.engine.stat().st_size,
        seconds=round(tried.seconds, 1),
        peak_bytes=tried.peak_bytes,
        attempts=tuple(failures),
        reused=False,
    )
    own = {"first_level": job.level, "inputs": _shapes(job), "sha256": digest(job.engine)}
    record = json.dumps({**built.to_json(), **own}, indent=1) + "\n"
    whole(job.record, lambda path: _write(path, record))
    return built


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _impossible(job: Job, tensorrt: str, tried: Tried, failures: Sequence[tuple[int, str]]) -> CannotVerify:
    if tried.refused:
        return CannotVerify(
            f"TensorRT {tensorrt} refuses {job.onnx.name}: {tried.failure}",
            "Export the bundle for this release of TensorRT, or update JetPack.",
        )
    levels = ", ".join(str(level) for level, _ in failures)
    return CannotVerify(
        f"TensorRT {tensorrt} built no engine from {job.onnx.name} at the optimization levels {levels}; "
        f"the last attempt {tried.failure}",
        "Free memory (close other programs and the desktop, add swap), or verify on a board that has more.",
    )


def _shapes(job: Job) -> list[list[Any]]:
    """The inputs that an engine was built for, as JSON has them."""
    return [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in job.inputs]


def _kept(job: Job, tensorrt: str) -> Built | None:
    """The engine that is there, if it is whole and its record names the same file, TensorRT, board, mode and level."""
    try:
        record = json.loads(job.record.read_text("utf-8"))
        first_level, attempts = record.pop("first_level"), tuple(map(tuple, record["attempts"]))
        shapes, content = record.pop("inputs"), record.pop("sha256")
        kept = Built(**{**record, "engine": job.engine, "attempts": attempts, "reused": True})
        found = (kept.digest, kept.tensorrt, kept.board, kept.mode, first_level, content, shapes)
        wanted = (job.digest, tensorrt, job.board, job.mode, job.level, digest(job.engine), _shapes(job))
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or another version of this module wrote it
        return None
    return kept if found == wanted else None


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (None where it took too long), what it said, and its peak memory in bytes."""

    code: int | None
    text: str
    peak_bytes: int | None
    limit: float

    @property
    def failure(self) -> str:
        """What went wrong, as a predicate with the child's last words; empty where nothing did."""
        if self.code == 0:
            return ""
        if self.code is None:
            how = f"took more than {self.limit:g} s"
        elif self.code < 0:
            how = f"was killed by signal {-self.code}"
            how += (
                f", probably out of memory, at {(self.peak_bytes or 0) / 1e9:.1f} GB" if -self.code == _KILLED else ""
            )
        else:
            how = f"ended with code {self.code}"
        words = last_words(self.text)
        return f"{how}: {words}" if words else how


def run(command: Sequence[str], limit: float, folder: Path | None = None) -> Ended:
    """Run a program for at most ``limit`` seconds as the first that the kernel ends where memory runs out."""
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ) as process:
            with suppress(OSError):
                Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OFFERED, "ascii")
            try:
                code, peak = _watched(process, limit)
            finally:
                process.kill()  # without effect where it has ended
        output.seek(0)
        return Ended(code, output.read().decode("utf-8", "replace"), peak, limit)


def _watched(process: subprocess.Popen[bytes], limit: float) -> tuple[int | None, int | None]:
    """The exit code, None after ``limit`` seconds, and the peak memory in bytes."""
    deadline, peak = time.monotonic() + limit, None
    while True:
        peak = peak_bytes(str(process.pid)) or peak
        try:
            return process.wait(_POLL), peak
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return None, peak


def peak_bytes(process: str = "self") -> int | None:
    """The peak memory of a process in bytes, from /proc: ``ru_maxrss`` would include its parent's at the fork."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def last_words(text: str) -> str:
    """The last three lines of a log, of its errors ("[E]") where it has any; at most 600 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "[E]" in line]
    return " / ".join((errors or lines)[-3:])[-600:]
