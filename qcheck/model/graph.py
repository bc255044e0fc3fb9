"""A component as an ONNX graph: exported once for each compute type, then filled with any arm's weights."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common

from qcheck.model import attention
from qcheck.model.components import Component
from qcheck.model.quiet import quiet

OPSET = 20  # GroupNormalization of 21 is not parsed before TensorRT 10.9; at 20 it comes decomposed
_MOST = 16384
# those of torch's exporter that find something in these graphs
_RULES = (
    common.add_0_rule,
    common.cast_cast_rule,
    common.collapse_slice2_rule,
    common.collapse_slice_rule,
    common.div_by_1_rule,
    common.materialize_reshape_shape_rule,
    common.max_min_rule,
    common.min_max_rule,
    common.mul_by_1_rule,
    common.no_op_cast_rule,
    common.no_op_expand_rule,
    common.no_op_transpose_rule,
    common.remove_optional_bias_from_conv_rule,
    common.reshape_reshape_rule,
    common.squeeze_reshape_1d_rule,
    common.sub_0_rule,
    common.transpose_transpose_rule,
    common.unsqueeze_unsqueeze_rule,
)


def export(component: Component, compute: str, sizes: bool = False, hollow: bool = False) -> ir.Model:
    """The graph of ``component`` in ``compute``; the batch varies, with ``sizes`` the sides of the picture too.

    Nodes keep torch's module names in their metadata, which ``quantize.sites`` reads. A ``hollow`` graph has stand-ins
    for the weights of layers.
    """
    with quiet():  # the graph keeps references to these tensors
        owned = (component.hollow if hollow else component.cast)(getattr(torch, compute))
    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            owned.module,
            kwargs=dict(owned.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(owned.inputs),
            dynamic_shapes=_axes(owned, sizes),
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        _optimize(program.model)
    for value, name in zip(program.model.graph.outputs, owned.outputs, strict=True):
        value.name = name
    _narrow(program.model)
    _promote(program.model)
    attention.simplify(program.model)
    return program.model


def _optimize(model: ir.Model) -> None:
    """What torch's exporter does to a new graph, without most of its rewriting rules.

    One of those compares every node with every other one: its time grows with the square of the graph.
    """
    once = (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, _RULES)
    ir.passes.Sequential(*once)(model)


def _narrow(model: ir.Model) -> None:
    """Replace float64, in which torch computes positions of tokens, by float32: TensorRT has no double."""
    double, single = ir.DataType.DOUBLE, ir.DataType.FLOAT
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == double:
            node.attributes["to"] = ir.AttrInt64("to", int(single))
        for value in node.outputs:
            if value.dtype == double:
                value.dtype = single
            if node.op_type == "Constant" and value.const_value is not None and value.const_value.dtype == double:
                node.attributes["value"] = ir.AttrTensor("value", _single(value.const_value))
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == double:
            value.const_value, value.dtype = _single(value.const_value), single


def _single(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _promote(model: ir.Model) -> None:
    """Cast the inputs of Concat to their widest type, as torch does; its exporter leaves the casts out."""
    for node in [node for node in model.graph if node.op_type == "Concat"]:
        types = {value.dtype for value in node.inputs if value is not None and value.dtype is not None}
        if len(types) < 2:
            continue
        widest = max(types, key=lambda dtype: dtype.itemsize)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype != widest:
                cast = ir.node("Cast", [value], attributes={"to": int(widest)}, name=f"{node.name}/cast{index}")
                cast.outputs[0].name, cast.outputs[0].dtype = f"{node.name}_cast{index}", widest
                cast.outputs[0].shape = value.shape
                model.graph.insert_before(node, [cast])
                node.replace_input_with(index, cast.outputs[0])
        node.outputs[0].dtype = widest


def _axes(component: Component, sizes: bool) -> dict[str, dict[int, Any] | None]:
    """The dynamic axes of each input; sides of pictures are multiples of the component's ``step``.

    The batch is named without limits, as torch finds those itself: limits that it narrows cost a second export. Where
    sides vary it may not mix such a name with the sides' dimensions.
    """
    batch: Any = torch.export.Dim("batch", min=1, max=_MOST) if sizes else "batch"
    sides = dict[str, Any]()
    axes_of: dict[str, dict[int, Any] | None] = {}
    for name in component.inputs:
        axes: dict[int, Any] = {} if name in component.fixed else {0: batch}
        for axis, side in component.growing.get(name, {}).items() if sizes else ():
            varied = sides.setdefault(side, torch.export.Dim(side, min=1, max=_MOST))
            axes[axis] = component.step * varied if component.step > 1 else varied
        axes_of[name] = axes or None
    return axes_of
