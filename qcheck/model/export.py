"""A component as an ONNX graph: exported once for each compute type, then filled with any arm's weights."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch

from qcheck.model.components import Component
from qcheck.model.quiet import quiet

OPSET = 20  # GroupNormalization of 21 is not parsed before TensorRT 10.9; at 20 it comes decomposed
_MOST = 1024


def export(component: Component, compute: str, sizes: bool = False) -> ir.Model:
    """The graph of ``component`` in ``compute``; the batch varies, with ``sizes`` the sides of the picture too.

    Nodes keep torch's module names in their metadata, which ``quantize.onnx`` reads.
    """
    with quiet():
        owned = component.cast(getattr(torch, compute))  # the graph keeps references to these tensors
    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            owned.module,
            tuple(owned.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(owned.inputs),
            output_names=list(owned.outputs),
            dynamic_shapes=_axes(owned, sizes),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model


def _axes(component: Component, sizes: bool) -> dict[str, dict[int, Any] | None]:
    """The axes that vary; sides of pictures are multiples of the component's own step."""
    batch, *sides = (torch.export.Dim(name, min=1, max=_MOST) for name in ("batch", "height", "width"))
    found: dict[str, dict[int, Any] | None] = {}
    for name in component.inputs:
        axes: dict[int, Any] = {0: batch}
        if sizes and name in component.pictures:
            axes |= {axis: component.steps * side for axis, side in zip((2, 3), sides, strict=True)}
        found[name] = None if name in component.fixed else axes
    return found
