"""What can run a component on this machine: TensorRT's bindings, trtexec, or ONNX Runtime for the numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from .board import Board
from .bundle import Bundle, Component
from .onnx_runner import OnnxRunner, module
from .replay import Say
from .verify import Backend, Opened

BUILD = "--build"


class OnnxBackend:
    """ONNX Runtime on the processor: the numbers of the files, no engine."""

    deployed = False

    def __init__(self) -> None:
        self.name = f"ONNX Runtime {module().__version__}"
        self.key = self.name.lower().replace(" ", "-")

    def open(self, component: Component) -> Opened:
        """Load the file."""
        return Opened(OnnxRunner(component))

    def cost(self, opened: Opened, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Nothing: the processor's time says nothing about the engine's."""
        return {"missing": {"latency, memory and energy": "no engine runs here"}}

    def warnings(self) -> Sequence[str]:
        """That no engine was run."""
        return ["no engine was run: these are the file's numbers on a processor, not the board's"]


def choose(runner: str | None, bundle: Bundle, work: Path, board: Board, say: Say) -> Backend:
    return OnnxBackend()


def build_here(words: Sequence[str]) -> int:
    return 0
