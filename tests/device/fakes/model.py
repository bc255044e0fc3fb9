"""A tiny denoiser as ONNX: one INT8 convolution of float16 activations, and a float32 timestep."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcheck.device.built import Job
from qcheck.device.bundle import Component, Layer
from qcheck.device.tensors import Tensor

SHAPE = (2, 4, 8, 8)
INPUTS = (Tensor("sample", "float16", SHAPE), Tensor("timestep", "float32", (2,)))
OUTPUTS = (Tensor("out/eps:0", "float16", SHAPE),)
LAYERS = (Layer("blocks.conv", "conv", "conv.weight/dequantize", "int8", "int8"),)


def component(folder: Path, rows: int | None = 2) -> Component:
    """The component and its file with weights beside it; ``rows`` None leaves the first axis open."""
    path = folder / "model.onnx"
    onnx.save(_model(rows), path, save_as_external_data=True, location="model.onnx.data", size_threshold=100)
    return Component("denoiser", "denoiser", path, "float16", INPUTS, OUTPUTS, LAYERS)


def inputs() -> dict[str, np.ndarray]:
    """Inputs in the types of the bindings."""
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    return {"sample": sample, "timestep": np.array([0.25, -3], np.float32)}


def _model(rows: int | None) -> onnx.ModelProto:
    weight = np.random.default_rng(1).integers(-100, 100, (4, 4, 3, 3), np.int8)
    constants = {
        "scale": np.array(0.03, np.float16),
        "zero": np.array(0, np.int8),
        "codes": weight,
        "scales": np.array([0.01, 0.02, 0.015, 0.01], np.float16),
        "zeros": np.zeros(4, np.int8),
        "sides": np.array([-1, 1, 1, 1], np.int64),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["sample", "scale", "zero"], ["quantized"], "quantize"),
        helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["decoded"], "dequantize"),
        helper.make_node(
            "DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], "conv.weight/dequantize", axis=0
        ),
        helper.make_node("Conv", ["decoded", "weight"], ["features"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["timestep"], ["time"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["time", "sides"], ["times"], "reshape"),
        helper.make_node("Add", ["features", "times"], [OUTPUTS[0].name], "add"),
    ]
    first = "rows" if rows is None else rows
    values = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT16, [first, 4, 8, 8]),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, [first]),
    ]
    output = helper.make_tensor_value_info(OUTPUTS[0].name, TensorProto.FLOAT16, [first, 4, 8, 8])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def job(component: Component, folder: Path, **changes: Any) -> Job:
    """An engine of the component to build in a folder."""
    asked = Job(
        onnx=component.path,
        digest="d1",
        inputs=component.inputs,
        engine=folder / "engines" / "denoiser.engine",
        timing_cache=folder / "timing.cache",
        workspace=3 << 27,
        board="Orin Nano",
        mode="15W",
    )
    return replace(asked, **changes)
