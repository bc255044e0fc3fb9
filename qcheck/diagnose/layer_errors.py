"""The error that quantization makes in each layer, against the full-precision adapted arm."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qcheck.model.arms import Arms
from qcheck.quantize.contents import QuantizedWeights
from qcheck.quantize.plan import LayerPlan


@dataclass(frozen=True)
class LayerError:
    """The error of one layer in a case: ``numbers`` round its input, and ``weight`` computes dW [out, in, ...]."""

    weight: Callable[[], torch.Tensor]
    numbers: LayerPlan

    @property
    def rounds_input(self) -> bool:
        """Whether the layer's input is quantized."""
        return self.numbers.input is not None

    def input(self, values: torch.Tensor) -> torch.Tensor:
        """The rounding error dx of an input, of the same shape."""
        rounded = self.numbers.fake_input(values)
        return (rounded if self.numbers.smooth is None else rounded / self.numbers.smooth) - values


Errors = Mapping[str, LayerError]


def errors(arms: Arms, content: QuantizedWeights) -> dict[str, LayerError]:
    """The errors of q1, from ``content``, against f1, from ``arms``, by layer: dW = weight of q1 - weight of f1.

    ``content`` may have other adapters than ``arms``, calibrated ones: dW then contains the change by training too. The
    branch of an unmerged adapter is added to the weight without rounding. In the artifact it reads the input without
    rounding, while the activation part counts rounding on W + D: it is off by about |D| / |W|.
    """
    f1_weights, device = arms.state("adapted"), arms.device.torch
    layer_errors = {}
    for layer, numbers in content.plan.items():
        there = numbers.to(device)
        error = functools.partial(_weight_error, there, content, f1_weights, layer)
        layer_errors[layer] = LayerError(error, there)
    return layer_errors


def _weight_error(
    numbers: LayerPlan, content: QuantizedWeights, full: Mapping[str, torch.Tensor], layer: str
) -> torch.Tensor:
    """The weight of q1, rounded by ``numbers`` with its branch beside it, less that of f1, ``full``."""
    rounded, branch = content.state[f"{layer}.weight"], content.branches.get(layer)
    device = numbers.weight.step.device
    weight = numbers.fake(rounded.to(device))
    if branch is not None:
        down, up = (factor.to(device) for factor in branch)
        weight = weight + (up @ down.flatten(1)).view(weight.shape)
    return weight - full[f"{layer}.weight"].to(device)
