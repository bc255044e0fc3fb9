"""The denoiser as an ONNX graph: exported once for each compute type, then filled with any arm's weights."""

import copy
import io
from contextlib import redirect_stderr, redirect_stdout

import onnx_ir as ir
import torch
from torch import nn

from qcheck.backend.base import INPUTS, OUTPUT
from qcheck.model.quiet import quiet

MODULE = "denoiser"
OPSET = 20  # GroupNormalization of 21 is not parsed before TensorRT 10.9; at 20 it comes decomposed


class _Entry(nn.Module):
    """The denoiser with positional inputs and a bare tensor as output."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.denoiser = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return output


def export(unet: nn.Module, sample: torch.Size, hidden: torch.Size, compute: str) -> ir.Model:
    """Graph with inputs sample [batch, C, H, W], timestep [1] (float32) and encoder_hidden_states [batch, L, D].

    Nodes keep torch's module names in their metadata, which ``quantize.onnx`` reads.
    """
    dtype: torch.dtype = getattr(torch, compute)
    batch = torch.export.Dim("batch", min=1, max=1024)
    example = (
        torch.zeros(2, *sample[1:], dtype=dtype),
        torch.ones(1, dtype=torch.float32),
        torch.zeros(2, *hidden[1:], dtype=dtype),
    )
    with quiet():
        owned = copy.deepcopy(unet).to(dtype)  # the graph keeps references to these tensors
    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            _Entry(owned),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes={"sample": {0: batch}, "timestep": None, "encoder_hidden_states": {0: batch}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model
