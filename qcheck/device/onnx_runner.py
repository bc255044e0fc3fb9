"""ONNX Runtime on the processor: the numbers of the file, not those of the engine that is deployed."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from .bundle import Component
from .errors import CannotVerify


class OnnxRunner:
    """A component's file in ONNX Runtime, with exact Q/DQ arithmetic (no integer fusions)."""

    deployed = False

    def __init__(self, component: Component) -> None:
        runtime = module()
        if component.compute == "bfloat16":
            raise CannotVerify(
                f"{component.name} computes in bfloat16, for which ONNX Runtime has no kernels on a processor",
                "Verify it on the board.",
            )
        options: Any = runtime.SessionOptions()
        options.log_severity_level = 4  # what it refuses is one error, told by its exception
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = runtime.InferenceSession(str(component.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class of their own
            raise CannotVerify(
                f"ONNX Runtime cannot run {component.path.name}: {_first_line(error)}",
                "Verify with --runner tensorrt or trtexec, on the board.",
            ) from error
        self._component = component
        self.name = f"ONNX Runtime {runtime.__version__}"

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs in the types of the bindings."""
        fed = {tensor.name: np.ascontiguousarray(inputs[tensor.name]) for tensor in self._component.inputs}
        names = [tensor.name for tensor in self._component.outputs]
        try:
            return dict(zip(names, self._session.run(names, fed)))
        except Exception as error:  # as above
            raise CannotVerify(
                f"ONNX Runtime fails on {self._component.path.name}: {_first_line(error)}", "Export the bundle again."
            ) from error

    def close(self) -> None:
        """Free the session."""
        del self._session


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def module() -> Any:
    """The package.

    Raises:
        CannotVerify: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise CannotVerify(
            f"--runner onnxruntime: {error}", "Install onnxruntime for this Python, or use another runner."
        ) from error
    return onnxruntime
