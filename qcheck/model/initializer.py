"""Constants of an ONNX graph."""

import numpy as np
import onnx_ir as ir


def add(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of ``graph`` that holds ``array``."""
    value = ir.Value(name=name, type=None, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
    value.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value
