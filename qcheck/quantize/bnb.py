"""The denoiser as diffusers runs it with bitsandbytes: NF4 or LLM.int8 layers, the adapter merged or beside them.

bitsandbytes itself computes; it is not simulated.
"""

from collections.abc import Mapping
from typing import Any

import bitsandbytes
import torch
from torch import nn
from torch.nn import functional as F

from qcheck.model.components import copied
from qcheck.model.quiet import quiet
from qcheck.quantize.fake import Factors, low_rank
from qcheck.quantize.formats import Integer, Table
from qcheck.quantize.plan import Grid, Plan

NAME = f"bitsandbytes {bitsandbytes.__version__}"
OUTLIER = 6.0  # LLM.int8's threshold: inputs beyond it are computed in 16 bit (arXiv 2208.07339)


class _FlatLinear(nn.Module):
    """NF4 where runs cross rows: there bitsandbytes' CPU kernel (0.50.2) is wrong for 2-D weights, right for flat ones.

    Its CUDA kernel dequantizes the flattened weight, so a device computes the same values as this layer.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, block: int) -> None:
        super().__init__()
        self.shape, self.bias = weight.shape, bias
        self.packed, self.numbers = bitsandbytes.functional.quantize_4bit(
            weight.flatten(), blocksize=block, quant_type="nf4"
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = bitsandbytes.functional.dequantize_4bit(self.packed, self.numbers).view(self.shape)
        return F.linear(inputs, weight, self.bias)


def converted(
    unet: nn.Module, state: Mapping[str, torch.Tensor], plan: Plan, branches: Mapping[str, Factors]
) -> nn.Module:
    """A copy of ``unet`` with the weights of ``state`` whose planned layers are bitsandbytes' own.

    Raises:
        ValueError: a planned layer has a format or blocks that bitsandbytes does not have.
    """
    with quiet():
        owned = copied(unet, dtype=torch.float32)
    for name, value in owned.state_dict().items():
        value.copy_(state[name])
    for name, numbers in plan.items():
        parent, _, child = name.rpartition(".")
        holder: Any = owned.get_submodule(parent)
        layer: Any = owned.get_submodule(name)
        setattr(holder, child, _layer(state[f"{name}.weight"], layer.bias, numbers.weight))
    for name, factors in branches.items():
        _attach(owned.get_submodule(name), factors)
    return owned


def _layer(weight: torch.Tensor, bias: torch.Tensor | None, grid: Grid) -> nn.Module:
    outputs, inputs = weight.shape
    values, bias_copy = weight.detach().clone(), None if bias is None else bias.detach().clone()
    layer: Any
    if isinstance(grid.number, Table) and grid.block is not None:
        if inputs % grid.block:
            return _FlatLinear(values, bias_copy, grid.block)
        layer = bitsandbytes.nn.Linear4bit(inputs, outputs, compute_dtype=values.dtype, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(
            values, requires_grad=False, quant_type="nf4", blocksize=grid.block, compress_statistics=False
        )
    elif isinstance(grid.number, Integer) and grid.number.bits == 8:
        layer = bitsandbytes.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=OUTLIER)
        layer.weight = bitsandbytes.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False)
    else:
        raise ValueError(f"bitsandbytes has no {grid.number.name} weights in this layout")
    layer.bias = None if bias_copy is None else nn.Parameter(bias_copy, requires_grad=False)
    quantized: nn.Module = layer.to("cpu")  # bitsandbytes quantizes when a layer is moved
    return quantized


def _attach(layer: nn.Module, factors: Factors) -> None:
    """An unmerged adapter beside a quantized layer, as PEFT runs it."""

    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + low_rank(layer, inputs[0], factors)

    layer.register_forward_hook(add)
