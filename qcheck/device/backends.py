"""What can run a component on this machine: TensorRT's bindings, trtexec, or ONNX Runtime for the numbers alone."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from . import board as boards
from . import cudart, inspector, monitor, onnx_runner, sums, tensorrt_engine, trtexec
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
ENERGY_MS, ENERGY_SECONDS = 4000.0, 60.0  # of calls, for the power monitors to have enough samples; and at most


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


class EngineBackend(ABC):
    """Engines that are built on this board, through TensorRT's bindings or through trtexec.

    ``alone`` says that the runner's calls are all that happens while it is timed, so that power and clocks are theirs.
    """

    deployed = True
    alone = True
    name: str

    def __init__(self, opened: Bundle, work: Path, board: Board, root: Path = ROOT) -> None:
        self._bundle, self._board, self._root = opened, board, root
        self._engines = work / "engines"

    @abstractmethod
    def _build(self, job: Job) -> Built:
        """The engine of a job."""

    @abstractmethod
    def _load(self, engine: Path, component: Component) -> Any:
        """The runner of an engine."""

    def open(self, component: Component) -> Opened:
        """Build the component's engine where there is none, and load it."""
        engine = self._build(self._job(component))
        runner = self._load(engine.engine, component)
        precision = _precision(component, runner.inspect()) if component.layers else None
        return Opened(runner, sums.digest(engine.engine)[:16], _described(engine), precision)

    def _job(self, component: Component) -> Job:
        board, state = self._board, State.now(self._root)
        timings = _plain(f"timing-{board.model}-{self.name}-{board.power_mode}")
        return Job(
            onnx=component.path,
            digest=self._bundle.digest_of(component),
            inputs=component.inputs,
            engine=self._engines / f"{component.name}.engine",
            timing_cache=self._engines / f"{timings}.cache",
            workspace=boards.workspace(state),
            board=board.model,
            mode=board.power_mode,
            preflight=lambda: boards.require_memory(component.bytes, state),
        )

    def warnings(self) -> Sequence[str]:
        """That this is no board, where it is none."""
        return [] if self._board.is_jetson else [f"{self._board.model} is no Jetson: its engines are not the target's"]

    @functools.cached_property
    def _idle(self) -> Usage:
        """The board with nothing to do."""
        with Monitor(self._root) as watching:
            if self.alone and monitor.rails(self._root):
                time.sleep(IDLE_SECONDS)
        return watching.usage()

    def cost(self, opened: Opened, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Latency in ms, memory in bytes and energy in J; ``doubts`` say what makes the latency inconclusive.

        ``states`` are the board's before and after the calls; each says what it could not read.
        """
        runner: Any = opened.runner
        idle = self._idle
        runner.time(inputs, runs=1)  # warms up: both states are those of a board under load
        before, start = State.now(self._root), time.monotonic()
        with Monitor(self._root) as watching:
            times = runner.time(inputs, runs=RUNS)
            every = list(times)
            while self._measures_power and sum(every) < ENERGY_MS and time.monotonic() - start < ENERGY_SECONDS:
                every += runner.time(inputs, runs=RUNS)
        after, usage = State.now(self._root), watching.usage()
        energy, memory = self._energy(usage, idle, every), self._memory(opened)
        return {
            "latency": monitor.latency(times).to_json(),
            "doubts": [*boards.throttled(before, after), *self._unobserved(after)],
            "memory": memory,
            "available_drop": usage.available_drop,
            "resident_peak": usage.resident_peak,
            "energy": None if isinstance(energy, str) else energy.to_json(),
            "states": {"before": before.to_json(), "after": after.to_json()},
            "missing": {
                **({"energy": energy} if isinstance(energy, str) else {}),
                **({"memory": "this runner does not say how much the engine takes"} if memory is None else {}),
            },
        }

    @property
    def _measures_power(self) -> bool:
        return self.alone and bool(monitor.rails(self._root))

    def _energy(self, usage: Usage, idle: Usage, times: Sequence[float]) -> monitor.Energy | str:
        if not self.alone:
            return f"{self.name} starts a process for every measurement: its power is not that of the calls alone"
        return monitor.energy(usage, idle, len(times), sum(times) / 1000)

    def _memory(self, opened: Opened) -> int | None:
        """Bytes of the engine and its activations; None where the runner does not say."""
        runner: Any = opened.runner
        size, activations = (opened.build or {}).get("engine_bytes"), runner.device_memory
        return None if size is None or activations is None else int(size + activations)

    def _unobserved(self, state: State) -> list[str]:
        """Why throttling would not have been seen, where it would not."""
        if not self.alone:
            return [f"clocks and temperatures were read when {self.name} had ended, not under load"]
        if state.gpu_clock is None and not state.temperatures and not state.cooling:
            return [f"throttling could not be observed: {state.missing.get('gpu_clock', 'no clock can be read')}"]
        return []


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
        two = "this Python has two TensorRTs"
        copies = [f"{two}: {origin['file']} was used, {unused} was not" for unused in origin["unused"]]
        return [*super().warnings(), *copies]


class TrtexecBackend(EngineBackend):
    """TensorRT's own program, for a board whose Python has no bindings."""

    alone = False

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


def _described(engine: Built) -> dict[str, Any]:
    """A build as verify.json has it."""
    record = engine.to_json()
    kept = {key: value for key, value in record.items() if key not in ("bytes", "digest")}
    return {**kept, "engine_bytes": engine.bytes}


def _precision(component: Component, layer_information: str) -> dict[str, Any]:
    """Whether an engine computes as the scheme asks, by its inspector; what cannot be read cannot be told."""
    try:
        operations = inspector.inspected(layer_information)
    except ValueError as error:
        reason = f"the engine's inspector gave no JSON: {error}"
        return {"status": inspector.FUSED, "text": reason, "fell_back": []}
    precision = inspector.precision(component.layers, component.compute, operations, component.float32)
    counted = ", ".join(f"{count} {operands}" for operands, count in precision["operands"].items()) or "none"
    text = f"{counted} of {precision['layers']} quantized layers were read"
    return {"status": precision["status"], "text": text, "fell_back": precision["fell_back"]}


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
            reasons.append(f"{error.problem} ({error.fix})")
    fix = "On a Jetson run it with /usr/bin/python3; on a workstation install onnxruntime."
    raise CannotVerify("nothing here can run the bundle:\n  " + "\n  ".join(reasons), fix)


def build_here(words: Sequence[str]) -> int:
    """What the child of a build does."""
    tensorrt_engine.answer(Path(words[0]))
    return 0
