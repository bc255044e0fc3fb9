"""What can run a component on this machine: TensorRT's bindings, trtexec, or ONNX Runtime for the numbers alone."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from . import board as boards
from . import bundle, cudart, inspector, monitor, onnx_runner, tensorrt_engine, trtexec
from .board import Board, State
from .built import Built, Job
from .bundle import Bundle, Component
from .errors import CannotVerify
from .monitor import Monitor, Usage
from .onnx_runner import OnnxRunner
from .options import RUNNERS
from .replay import Say
from .sysfs import ROOT
from .verify import Backend, Opened

IDLE_SECONDS = 10.0
RUNS = 100  # timed calls, or as many as 30 s take
ENERGY_MS = 4000.0  # of calls, for the power monitors to have enough samples


class OnnxBackend:
    """ONNX Runtime on the processor: the numbers of the files, no engine. ``reasons`` say why no engine can run."""

    deployed = False

    def __init__(self, reasons: Sequence[str] = ()) -> None:
        self.name = f"ONNX Runtime {onnx_runner.module().__version__}"
        self._reasons = reasons

    def open(self, component: Component) -> Opened:
        """Load the file."""
        return Opened(OnnxRunner(component), self.name.lower().replace(" ", "-"))

    def cost(self, opened: Opened, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Nothing: the processor's time says nothing about the engine's."""
        return {"missing": {"latency, memory and energy": "no engine runs here"}}

    def warnings(self) -> Sequence[str]:
        """That no engine was run, and why."""
        return [*self._reasons, "no engine was run: these are the files' numbers on a processor, not the board's"]


class EngineBackend:
    """Engines that are built on this board, through TensorRT's bindings or through trtexec."""

    deployed = True

    def __init__(self, opened: Bundle, work: Path, board: Board, root: Path = ROOT) -> None:
        self._bundle, self._board, self._root = opened, board, root
        self._engines = work / "engines"

    name: str

    def open(self, component: Component) -> Opened:
        """Build the component's engine where there is none, and load it."""
        job = self._job(component)
        if not job.record.exists():
            boards.require_memory(component.bytes, State.now(self._root))
        made = self._build(job)
        runner: Any = self._load(made.engine, component)
        precision = _precision(component, runner.inspect()) if component.layers else None
        return Opened(runner, f"{bundle.digest(made.engine)[:16]}", _told(made), precision)

    def _job(self, component: Component) -> Job:
        board = self._board
        return Job(
            onnx=component.path,
            digest=self._bundle.digest_of(component),
            inputs=component.inputs,
            engine=self._engines / f"{component.name}.engine",
            timing_cache=self._engines
            / f"timing-{_plain(self._board.model)}-{_plain(self.name)}-{_plain(self._board.power_mode)}.cache",
            workspace=boards.workspace(State.now(self._root)),
            board=board.model,
            mode=board.power_mode,
        )

    def _build(self, job: Job) -> Built:
        raise NotImplementedError

    def _load(self, engine: Path, component: Component) -> Any:
        raise NotImplementedError

    def warnings(self) -> Sequence[str]:
        """Nothing to warn of."""
        return []

    @functools.cached_property
    def _idle(self) -> Usage:
        """The board with nothing to do."""
        with Monitor(self._root) as watching:
            if monitor.rails(self._root):
                time.sleep(IDLE_SECONDS)
        return watching.usage()

    def cost(self, opened: Opened, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Latency in ms, memory in bytes and energy in J; ``doubts`` say what makes the latency inconclusive."""
        runner: Any = opened.runner
        idle = self._idle
        runner.time(inputs, runs=1)  # warms up: both states are those of a board under load
        before = State.now(self._root)
        with Monitor(self._root) as watching:
            times = runner.time(inputs, runs=RUNS)
            every = list(times)
            while monitor.rails(self._root) and sum(every) < ENERGY_MS:
                every += runner.time(inputs, runs=RUNS)
        after = State.now(self._root)
        energy = monitor.energy(watching.usage(), idle, len(every), sum(every) / 1000)
        size = (opened.build or {}).get("engine_bytes")
        activations, missing = runner.device_memory, {}
        if isinstance(energy, str):
            missing["energy"] = energy
        if activations is None or size is None:
            missing["memory"] = "this runner does not say how much the engine takes"
        return {
            "latency": monitor.latency(times).to_json(),
            "doubts": boards.throttled(before, after),
            "memory": None if "memory" in missing else size + activations,
            "energy": None if isinstance(energy, str) else energy.to_json(),
            "missing": missing,
        }


class TensorRTBackend(EngineBackend):
    """TensorRT's bindings for Python."""

    def __init__(self, opened: Bundle, work: Path, board: Board, root: Path = ROOT) -> None:
        super().__init__(opened, work, board, root)
        try:
            self._trt = tensorrt_engine.bindings()
        except CannotVerify as error:
            fault = boards.python_fault(error.problem, root=root)
            raise CannotVerify(error.problem, fault or error.fix) from error
        self._cuda = cudart.find()
        self.name = f"TensorRT {self._trt.__version__}"

    def _build(self, job: Job) -> Built:
        return tensorrt_engine.build_in_child(job, program())

    def _load(self, engine: Path, component: Component) -> Any:
        return tensorrt_engine.Engine(engine, component, self._trt, self._cuda)

    def warnings(self) -> Sequence[str]:
        """Other copies of TensorRT that this Python has."""
        origin = tensorrt_engine.origin(self._trt)
        return [
            f"this Python has two TensorRTs: {origin['file']} was used, {unused} was not" for unused in origin["unused"]
        ]


class TrtexecBackend(EngineBackend):
    """TensorRT's own program, for a board whose Python has no bindings."""

    def __init__(self, opened: Bundle, work: Path, board: Board, root: Path = ROOT) -> None:
        super().__init__(opened, work, board, root)
        self._program = trtexec.find()
        self.name = f"trtexec of TensorRT {self._program.version}"

    def _build(self, job: Job) -> Built:
        return trtexec.build_by_trtexec(job, self._program)

    def _load(self, engine: Path, component: Component) -> Any:
        return trtexec.Trtexec(engine, component, self._program)


def _plain(text: str) -> str:
    """Text as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def program() -> list[str]:
    """The words after ``python3`` that run this package: its module, or the archive that it lies in."""
    archive = Path(__file__).parent.parent
    return [str(archive)] if archive.is_file() else ["-m", str(__package__)]


def _told(made: Built) -> dict[str, Any]:
    """A build as verify.json has it."""
    found = made.to_json()
    return {**{key: found[key] for key in found if key not in ("bytes", "digest")}, "engine_bytes": made.bytes}


def _precision(component: Component, inspected: str) -> dict[str, Any]:
    found = inspector.precision(component.layers, component.compute, inspector.inspected(inspected))
    counted = ", ".join(f"{count} {operands}" for operands, count in found["operands"].items()) or "none"
    text = f"{counted} of {found['layers']} quantized layers were read"
    return {"status": found["status"], "text": text, "fell_back": found["fell_back"]}


def choose(runner: str | None, opened: Bundle, work: Path, board: Board, say: Say, root: Path = ROOT) -> Backend:
    """The runner of that name, or the first that works here.

    Raises:
        CannotVerify: it does not, or none of them does.
    """
    makers: dict[str, Any] = {"tensorrt": TensorRTBackend, "trtexec": TrtexecBackend}
    if runner in makers:
        chosen: Backend = makers[runner](opened, work, board, root)
        return chosen
    if runner is not None:
        return OnnxBackend()
    reasons: list[str] = []
    for name in RUNNERS:
        try:
            return makers[name](opened, work, board, root) if name in makers else OnnxBackend(reasons)
        except CannotVerify as error:
            say(f"not {name}: {error.problem}")
            reasons.append(f"{error.problem}. {error.fix}")
    fix = "On a Jetson run it with /usr/bin/python3; on a workstation install onnxruntime."
    raise CannotVerify("nothing here can run the bundle: " + "; ".join(reasons), fix)


def build_here(words: Sequence[str]) -> int:
    """What the child of a build does."""
    tensorrt_engine.answer(Path(words[0]))
    return 0
