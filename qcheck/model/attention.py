"""Attention in an exported graph: softmax(q k^T scale) v, which torch's exporter writes out.

Its keys are transposed by way of shapes that are computed at run time; one Transpose does, which builders recognize.
ONNX Runtime has an operator of its own that never holds all scores: rows x heads x queries x keys numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcheck.model import initializer

_SWAP = (0, 2, 1, 3)  # [n, heads, tokens, d] from [n, tokens, heads, d], and back
_DOMAIN = "com.microsoft"


def simplify(model: ir.Model) -> None:
    """Transpose keys by one node; ``model`` is changed in place."""
    for scores in [node for node in model.graph if node.op_type == "MatMul"]:
        turned = _behind(scores.inputs[1], "Mul") or scores
        place = 0 if turned.op_type == "Mul" else 1
        keys = _turned_by_shapes(turned.inputs[place])
        if keys is None or keys.shape is None:
            continue
        node = ir.node("Transpose", [keys], attributes={"perm": [0, 1, 3, 2]}, name=f"{scores.name}/keys")
        output = node.outputs[0]
        output.name, output.type = f"{scores.name}_keys", keys.type
        output.shape = ir.Shape([keys.shape[axis] for axis in (0, 1, 3, 2)])
        model.graph.insert_before(turned, [node])
        turned.replace_input_with(place, output)
    RemoveUnusedNodesPass()(model)


def _behind(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of that operator that computes a value."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _turned_by_shapes(value: ir.Value | None) -> ir.Value | None:
    """X of Reshape(Transpose(Reshape(x, [-1, ., .])), [., ., ., .]), where both shapes are computed."""
    last = _behind(value, "Reshape")
    turn = None if last is None else _behind(last.inputs[0], "Transpose")
    first = None if turn is None else _behind(turn.inputs[0], "Reshape")
    if last is None or turn is None or first is None or tuple(turn.attributes["perm"].as_ints()) != (0, 2, 1):
        return None
    computed = all(_behind(node.inputs[1], "Concat") is not None for node in (first, last))
    keys = first.inputs[0]
    return keys if computed and keys is not None and keys.shape is not None and len(keys.shape) == 4 else None


@dataclass(frozen=True)
class Attention:
    """One attention: queries, keys and values [n, heads, tokens, width], the factor of its scores, and its output."""

    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    heads: int
    width: int
    scale: float
    output: ir.Value


def find(graph: ir.Graph) -> Iterator[Attention]:
    """Every attention without a mask and with a fixed number of heads, of a graph that was simplified."""
    for softmax in [node for node in graph if node.op_type == "Softmax" and node.attributes["axis"].as_int() == -1]:
        scores = _behind(softmax.inputs[0], "MatMul")
        readers = [use.node for use in softmax.outputs[0].uses()]
        if scores is None or len(readers) != 1 or readers[0].op_type != "MatMul":
            continue
        (queries, left), (turned, right) = _scaled(scores.inputs[0]), _scaled(scores.inputs[1])
        turn, values = _behind(turned, "Transpose"), readers[0].inputs[1]
        if queries is None or values is None or turn is None:
            continue
        keys, (_, heads, _, width) = turn.inputs[0], values.shape or (None,) * 4
        if keys is None or not isinstance(heads, int) or not isinstance(width, int):
            continue
        if tuple(turn.attributes["perm"].as_ints()) == (0, 1, 3, 2):
            yield Attention(queries, keys, values, heads, width, left * right, readers[0].outputs[0])


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """X and the constant c of x * c; the value itself and 1 where it is no such product."""
    node = _behind(value, "Mul")
    factor = None if node is None or node.inputs[1] is None else node.inputs[1].const_value
    if node is None or factor is None or factor.size != 1:
        return value, 1.0
    return node.inputs[0], float(factor.numpy().item())


def fuse(model: ir.Model) -> ir.Model:
    """``model`` with ONNX Runtime's MultiHeadAttention for every attention without a mask; changed in place."""
    graph = model.graph
    found = list(find(graph))
    for number, attention in enumerate(found):
        _replace(graph, attention, f"attention{number}")
    if found:
        graph.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    return model


def _replace(graph: ir.Graph, attention: Attention, name: str) -> None:
    before = attention.output.producer()
    if before is None:
        raise ValueError(f"{attention.output.name} is no node's output")
    # shapes of Reshape: 0 is an axis that stays, -1 the rest
    joined = initializer.add(graph, f"{name}/joined", np.array([0, 0, -1]))
    apart = initializer.add(graph, f"{name}/apart", np.array([0, 0, attention.heads, attention.width]))
    sources = {"queries": attention.queries, "keys": attention.keys, "values": attention.values}
    nodes = [node for part, value in sources.items() for node in _joined(value, joined, f"{name}/{part}")]
    inputs = [node.outputs[0] for node in nodes if node.op_type == "Reshape"]
    product = ir.node(
        "MultiHeadAttention",
        inputs,
        domain=_DOMAIN,
        attributes={"num_heads": attention.heads, "scale": attention.scale},
        name=name,
    )
    split = ir.node("Reshape", [product.outputs[0], apart], name=f"{name}/split")
    turned = ir.node("Transpose", [split.outputs[0]], attributes={"perm": list(_SWAP)}, name=f"{name}/turned")
    nodes += [product, split, turned]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_out", attention.output.type
    turned.outputs[0].shape = attention.output.shape
    graph.insert_before(before, nodes)
    ir.convenience.replace_all_uses_with(attention.output, turned.outputs[0], replace_graph_outputs=True)


def _joined(value: ir.Value, shape: ir.Value, name: str) -> list[ir.Node]:
    """Nodes from a value [n, heads, tokens, d] to [n, tokens, heads * d]."""
    turn = ir.node("Transpose", [value], attributes={"perm": list(_SWAP)}, name=f"{name}/turned")
    return [turn, ir.node("Reshape", [turn.outputs[0], shape], name=f"{name}/joined")]
