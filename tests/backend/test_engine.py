"""Reading an engine's program: from a plan's text, and from the inspector's JSON."""

from pathlib import Path

from qcheck.build import engine
from qcheck.build.precision import Operation

# lines of a plan of TensorRT-RTX 1.7.1.116, shortened where "..." was
PLAN = b"""\0head
  tensor={ alignment=128 const_payload_size=9216 dims={ 32 32 3 3 } name="w" offset=1 region=__mye1-consts type=int8 }
  tensor={ alignment=16 dims={ "proxy.1" 32 } mem_prop=0 name="x" offset=0 rank0=0 stride_order={ 0 } type=half }
  sub_tensor={ base="x" const_offset=0 dims={ 32 } mem_prop=0 name="q" offset=0 strides={ 1 } type=int8 }
  corrltn={ name="node_conv2d_1" output={"y" } input={"q" "w" } stream=0 layers="[ONNX Layer: node_conv2d_1][ONNX Layer: a.weight/dequantize]" }
  function={ name=__myl_Cast fqn=__myl_Cast_0x1 args={ "w" "x" } input_args={ "w" } output_args={ "x" } layers="[ONNX Layer: b.weight.T/dequantize]" }
  fully_connected={ name="node_linear" output={"z" } input={"unknown" "w" } stream=0 layers="[ONNX Layer: node_linear]" }
  mul={ name="__mye3" output={"s" } input={"n" "m" } stream=0  layers="" }
"""  # noqa: E501

# https://github.com/NVIDIA/trt-samples-for-hackathon-cn, cookbook/07-Tool/trtexec, written by TensorRT 10.16.1
LAYERS = """{"Layers": [
 {"Name": "node_conv2d + node_relu", "LayerType": "CaskConvolution",
  "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1,1,28,28], "Format/Datatype": "Float"}],
  "Outputs": [{"Name": "relu", "Location": "Device", "Dimensions": [1,32,28,28], "Format/Datatype": "Float"}],
  "ParameterType": "Convolution", "Weights": {"Type": "Float", "Count": 800},
  "Metadata": "[ONNX Layer: node_conv2d]\x1e[ONNX Layer: node_relu]"},
 {"Name": "__myl_MulSum_myl4_1", "LayerType": "kgen",
  "Inputs": [{"Name": "relu_2.1_myl4", "Dimensions": [1024,1], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "Metadata": "[ONNX Layer: node_linear_1]"},
 "a layer without details"], "Bindings": ["x","y","z"]}"""  # noqa: E501


def test_a_plans_operations_come_with_the_types_of_their_inputs(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(PLAN)
    found = engine.read(tmp_path / "plan")
    assert found.operations == (
        Operation(frozenset({"node_conv2d_1", "a.weight/dequantize"}), ("int8", "int8"), product=True),
        Operation(frozenset({"b.weight.T/dequantize"}), ("int8",), product=False),
        Operation(frozenset({"node_linear"}), ("", "int8"), product=True),
    )
    assert found.constants == {"int8": 9216}


def test_a_plan_without_text_has_no_operations(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"\0" * 100)
    assert engine.read(tmp_path / "plan").operations == ()


def test_the_inspectors_layers_are_read_alike() -> None:
    found = engine.inspected(LAYERS)
    assert found.operations == (
        Operation(frozenset({"node_conv2d", "node_relu"}), ("float32", "float32"), product=True),
        Operation(frozenset({"node_linear_1"}), ("int8",), product=False),
    )
