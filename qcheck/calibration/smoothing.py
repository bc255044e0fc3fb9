"""SmoothQuant and AWQ factors from NVIDIA ModelOpt; qcheck's own formats quantize with them."""

import copy
import io
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from qcheck.model.components import copied
from qcheck.quantize.plan import Input
from qcheck.spec.scheme import Smoothing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as mtq

_PRESETS = {"smoothquant": "INT8_SMOOTHQUANT_CFG", "awq_lite": "INT4_AWQ_CFG"}


def smoothed(
    model: nn.Module, layers: Iterable[str], smoothing: Smoothing, run: Callable[[nn.Module], None]
) -> dict[str, Input]:
    """Factors [in] of the Linear layers of ``layers``, and the largest input after them (0 where inputs stay in float).

    ``run`` forwards the calibration data through the module that it gets; the algorithm may call it several times.
    ``model`` is copied and stays unchanged.
    """
    config = copy.deepcopy(getattr(mtq, _PRESETS[smoothing.method]))
    algorithm = {"method": smoothing.method, "alpha": smoothing.alpha}
    config["algorithm"] = {key: value for key, value in algorithm.items() if value is not None}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        quantized = mtq.quantize(copied(model, dtype=torch.float32), config, run)
    inputs = {}
    for name in layers:
        module: Any = quantized.get_submodule(name)
        quantizer: Any = module.input_quantizer
        if isinstance(module, nn.Linear) and quantizer.pre_quant_scale is not None:
            factor = quantizer.pre_quant_scale.detach().float().cpu().clone()
            maximum = quantizer.amax if quantizer.is_enabled else None
            inputs[name] = Input(0.0 if maximum is None else float(maximum), factor)
    return inputs
