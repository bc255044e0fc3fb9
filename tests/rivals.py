"""Other quantizers, to compare with: NVIDIA ModelOpt, which warns while it is imported, and ONNX Runtime's."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import quantization as ort

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as modelopt
    from modelopt.torch.quantization.calib.histogram import _compute_amax_entropy as entropy

__all__ = ["entropy", "export", "quantized", "static"]


def quantized(model: torch.nn.Module, config: str, run: Callable[[torch.nn.Module], object]) -> Any:
    """A copy of ``model`` quantized by one of ModelOpt's presets, calibrated by ``run``."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        chosen = copy.deepcopy(getattr(modelopt, config))
        return modelopt.quantize(copy.deepcopy(model), chosen, run)


def export(denoiser: torch.nn.Module, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Save what ModelOpt quantized as ONNX; only torch's older exporter knows its quantizers."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            denoiser,
            (*inputs.values(), {"return_dict": False}),
            path,
            dynamo=False,
            opset_version=20,
            input_names=[*inputs],
            output_names=["out_sample"],
            dynamic_axes={name: {0: "batch"} for name, value in inputs.items() if value.dim() > 1},
        )


class _Reader(ort.CalibrationDataReader):
    def __init__(self, rows: Sequence[dict[str, np.ndarray]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def static(plain: Path, rows: Sequence[dict[str, np.ndarray]], nodes: Sequence[str], path: Path) -> None:
    """ONNX Runtime's static INT8 of some nodes: symmetric, weights per channel, calibrated on ``rows``."""
    prepared = path.with_suffix(".prepared")
    ort.shape_inference.quant_pre_process(plain, prepared, skip_optimization=True, skip_symbolic_shape=True)
    computing = ["Conv", "Gemm", "MatMul"]
    ort.quantize_static(
        prepared,
        path,
        _Reader(rows),
        op_types_to_quantize=computing,
        nodes_to_quantize=[*nodes],
        per_channel=True,
        extra_options={"ActivationSymmetric": True, "OpTypesToExcludeOutputQuantization": computing},
    )
