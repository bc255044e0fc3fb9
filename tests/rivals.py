"""NVIDIA ModelOpt as an oracle; it warns while it is imported, which our tests take for an error."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as modelopt
    from modelopt.torch.quantization.calib.histogram import _compute_amax_entropy as entropy

__all__ = ["entropy", "quantized"]


def quantized(model: torch.nn.Module, config: str, run: Callable[[torch.nn.Module], object]) -> Any:
    """A copy of ``model`` quantized by one of ModelOpt's presets, calibrated by ``run``."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        chosen = copy.deepcopy(getattr(modelopt, config))
        return modelopt.quantize(copy.deepcopy(model), chosen, run)
